//! The pod around a job's containers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    HostAlias, Lifecycle, LocalObjectReference, PodDNSConfig, PodSecurityContext, SecurityContext,
    Toleration, Volume,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// The pod around the containers.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PodSettings {
    /// Labels of the pod. Roadstead's own cannot be changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::labels")]
    pub labels: BTreeMap<String, String>,

    /// Annotations of the pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::annotations")]
    pub annotations: BTreeMap<String, String>,

    /// Secrets in the job's namespace with credentials for pulling images.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), transform = schema::bounded)]
    pub image_pull_secrets: Vec<LocalObjectReference>,

    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::labels")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints that the pod tolerates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), transform = schema::bounded)]
    pub tolerations: Vec<Toleration>,

    /// ServiceAccount of the pod, in the job's namespace. The namespace's `default` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,

    /// Whether the containers get a token of the ServiceAccount. With it every script of the job can
    /// do what the account can.
    #[serde(default)]
    pub automount_service_account_token: bool,

    /// Security context of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = schema::bounded)]
    pub security_context: Option<PodSecurityContext>,

    /// Security context of each container of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = schema::bounded)]
    pub container_security_context: Option<Box<SecurityContext>>,

    /// Security context of the build container, instead of `containerSecurityContext`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = schema::bounded)]
    pub build_security_context: Option<Box<SecurityContext>>,

    /// Security context of the helper container and of the one that only copies the agent, instead
    /// of `containerSecurityContext`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = schema::bounded)]
    pub helper_security_context: Option<Box<SecurityContext>>,

    /// Security context of the containers of services, instead of `containerSecurityContext`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = schema::bounded)]
    pub service_security_context: Option<Box<SecurityContext>>,

    /// Whether a container of the pod may be privileged or have the capability `SYS_ADMIN` or
    /// `SYS_PTRACE`. With them the job's scripts can do anything to what runs them, and to the node.
    /// A class that asks for them without saying so here is not valid.
    #[serde(default)]
    pub accept_privileged: bool,

    /// Whether the pod shares the users of its node. `false`: root in a container is nobody on the
    /// node, where the node's kernel and runtime can do that. Kubernetes' own default, which is
    /// `true`, where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_users: Option<bool>,

    /// How the pod's DNS is set up. Kubernetes' own default, `ClusterFirst`, where absent. `None`
    /// needs `dnsConfig`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = schema::described_by_field)]
    pub dns_policy: Option<DnsPolicy>,

    /// Name servers, search domains and options besides those of `dnsPolicy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = schema::bounded)]
    pub dns_config: Option<PodDNSConfig>,

    /// Names of hosts in the containers' `/etc/hosts`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), transform = schema::bounded)]
    pub host_aliases: Vec<HostAlias>,

    /// What the kubelet runs after the start and before the end of the build and the helper
    /// container. What runs before the end takes from `timeouts.terminationGraceSeconds`. Commands
    /// run in the job's image, so let them be none that the job could replace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = schema::bounded)]
    pub lifecycle: Option<Box<Lifecycle>>,

    /// Size of the build container's `/dev/shm`: a quantity, `1Gi`. What is in it counts against the
    /// container's memory limit. Without it the container runtime gives 64 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub shared_memory_size: Option<String>,

    /// How much output of a container waits on the node's disk (in an emptyDir volume, so it counts
    /// against the pod's ephemeral storage) while gitlab-runner is out of reach or slow to read: a
    /// quantity, from `1Mi`. A script that has written more waits as well, and nothing is lost. Ended
    /// stages that nobody has fetched may keep as much again. Without it 256Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub spool_size: Option<String>,

    /// Volumes besides Roadstead's own, of any kind that Kubernetes has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), transform = schema::bounded)]
    pub volumes: Vec<Volume>,

    /// Where containers see `volumes`. A volume that `build` and `helper` mount at `builds.buildsDir`
    /// or `builds.cacheDir` takes the place of the pod's own there, so that a cache can outlive its
    /// pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub volume_mounts: Vec<ClassVolumeMount>,

    /// Anything else: a partial PodTemplateSpec (`metadata.labels`, `metadata.annotations`,
    /// `spec`) laid over the finished pod. Objects merge by key, and `null` removes; lists whose
    /// items have a `name` (containers, volumes, env) merge by name, `volumeMounts` by `mountPath`;
    /// every other value replaces what was there. A field that pods do not have is refused, and so
    /// are `shareProcessNamespace` and `hostPID`. Roadstead's labels, the commands and private
    /// mounts of its containers, `restartPolicy` and `activeDeadlineSeconds` cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::any_object")]
    pub overlay: Option<serde_json::Map<String, serde_json::Value>>,

    /// Operations on the pod after the overlay (JSON Patch, RFC 6902), for what a merge cannot say,
    /// such as taking an item out of a list. What an overlay cannot change they cannot either.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub json_patch: Vec<PatchOperation>,
}

/// How a pod's DNS is set up.
/// <https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/#pod-s-dns-policy>
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsPolicy {
    /// The cluster's DNS, and the node's for other names.
    ClusterFirst,
    /// The same where the pod uses the network of its node.
    ClusterFirstWithHostNet,
    /// The node's DNS.
    Default,
    /// Nothing but what `dnsConfig` says.
    None,
}

impl DnsPolicy {
    /// Kubernetes' word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterFirst => "ClusterFirst",
            Self::ClusterFirstWithHostNet => "ClusterFirstWithHostNet",
            Self::Default => "Default",
            Self::None => "None",
        }
    }
}

/// A container that can mount volumes of a class.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum MountingContainer {
    /// Where the job's scripts run.
    Build,
    /// Where the repository is checked out, and caches and artifacts are moved.
    Helper,
    /// The services of the job, all of them.
    Services,
}

/// Where containers see a volume.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClassVolumeMount {
    /// Which containers: any of `build`, `helper` and `services`.
    #[serde(default = "both")]
    #[schemars(length(min = 1, max = 3))]
    pub containers: Vec<MountingContainer>,

    /// Name of the volume.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,

    /// Absolute path in the container.
    #[schemars(length(max = 256), regex(pattern = r"^(/\.?[^/:.][^/:]*)+$"))]
    pub mount_path: String,

    /// Whether it can only be read.
    #[serde(default)]
    pub read_only: bool,

    /// Path in the volume. All of the volume where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub sub_path: Option<String>,
}

fn both() -> Vec<MountingContainer> {
    vec![MountingContainer::Build, MountingContainer::Helper]
}

/// One operation on a pod.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PatchOperation {
    /// What is done.
    pub op: PatchKind,

    /// Where, as a JSON Pointer (RFC 6901): `/spec/tolerations/0`.
    #[schemars(length(max = 512))]
    pub path: String,

    /// Where from, for `move` and `copy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub from: Option<String>,

    /// What, for `add`, `replace` and `test`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::anything")]
    pub value: Option<serde_json::Value>,
}

/// Operation of a JSON Patch.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum PatchKind {
    /// Adds a value, or replaces one.
    Add,
    /// Removes a value that is there.
    Remove,
    /// Replaces a value that is there.
    Replace,
    /// Moves a value.
    Move,
    /// Copies a value.
    Copy,
    /// Does nothing where the value is that one, and fails where it is not.
    Test,
}
