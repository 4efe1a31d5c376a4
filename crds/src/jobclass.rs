//! [`JobClass`]: what an administrator lets jobs use.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::request::PullPolicy;
use crate::schema;

pub mod matching;
mod placement;
mod pod;
mod resources;
mod time;

pub use matching::{ClassJobs, JobClassStatus, Matching, Mode, RefMatching, Rejection};
pub use placement::{Allowed, Placement, PlacementRule};
pub use pod::{ClassVolumeMount, DnsPolicy, MountingContainer, PatchKind, PatchOperation, PodSettings};
pub use resources::{ContainerResources, OnExceed, OnForbidden, Resources};
pub use time::{Concurrency, DEFAULT_QUEUE_SECONDS, Timeouts};

/// Seconds that scripts wait for services where a class does not say it, as GitLab's own executors
/// with such a limit do.
pub const DEFAULT_READY_SECONDS: i64 = 30;

/// Name of the class that takes every job without saying so: one without `match`, it comes last.
pub const DEFAULT_CLASS: &str = "default";

/// What jobs of the class run with. Every field has a default, so an empty spec is a valid class.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "roadstead.dev",
    version = "v1alpha1",
    kind = "JobClass",
    plural = "jobclasses",
    status = "JobClassStatus",
    derive = "PartialEq",
    shortname = "jc",
    category = "ci",
    doc = "JobClass says what jobs may use, where they run and for how long.",
    validation = Rule::new("self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("a JobClass is named by at most 63 lower-case letters, digits and hyphens: jobs and labels carry the name"),
    printcolumn(name = "Valid", type_ = "string", json_path = ".status.conditions[?(@.type==\"Valid\")].status"),
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority"),
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image.default"),
    printcolumn(name = "Shell", type_ = "string", json_path = ".spec.builds.shell"),
    printcolumn(name = "Running", type_ = "integer", json_path = ".status.jobs.running"),
    printcolumn(name = "Queued", type_ = "integer", json_path = ".status.jobs.queued"),
    printcolumn(name = "Max", type_ = "integer", json_path = ".spec.concurrency.max"),
    printcolumn(name = "Timeout", type_ = "integer", json_path = ".spec.timeouts.jobSeconds"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode", priority = 1),
    printcolumn(name = "Description", type_ = "string", json_path = ".spec.description", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct JobClassSpec {
    /// What the class is for, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub description: Option<String>,

    /// Which jobs the class takes. Without it a class is for runners that name it
    /// (`ROADSTEAD_CLASS`); only the class named `default` then takes every job that no other class
    /// of its priority takes.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matching: Option<Matching>,

    /// Among the classes that take a job, the one with the highest priority gets it.
    #[serde(default)]
    pub priority: i32,

    /// `Enforce`: the class never takes a job that its `match` does not take. `Audit`: where no
    /// class takes a job, it runs in this one all the same, and the job's condition `Audited` and an
    /// Event say what would have been.
    #[serde(default)]
    pub mode: Mode,

    /// The build container's image.
    #[serde(default)]
    pub image: BuildImage,

    /// The services that jobs run beside the build container.
    #[serde(default)]
    pub services: Services,

    /// The helper container's image, which checks out and moves caches and artifacts.
    #[serde(default)]
    pub helper: Helper,

    /// How scripts are written and where they run.
    #[serde(default)]
    pub builds: Builds,

    /// Requests and limits of the containers, and how far a job may change them.
    #[serde(default)]
    pub resources: ContainerResources,

    /// Where jobs run by their tags.
    #[serde(default)]
    pub placement: Placement,

    /// What jobs may set with their variables besides resources, which `resources` bounds. Each
    /// list holds regular expressions (RE2 syntax), one of which has to match the whole value of
    /// the variable. A job that sets what none matches is refused.
    #[serde(default)]
    pub allow: Allowed,

    /// How many jobs of the class may run at once. What is above it waits, in all job namespaces
    /// together.
    #[serde(default)]
    pub concurrency: Concurrency,

    /// How long things may take.
    #[serde(default)]
    pub timeouts: Timeouts,

    /// The pod around the containers.
    #[serde(default)]
    pub pod: PodSettings,
}

/// The build container's image.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BuildImage {
    /// Image of jobs that name none in `.gitlab-ci.yml`. Without it such jobs are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub default: Option<String>,

    /// Images that jobs may name, as patterns: `registry.example.com/ci/**`, `debian:*`. One of them
    /// has to match the whole reference as the job writes it; `*` stands for anything within one
    /// segment between slashes, `**` for any number of segments. All images where empty. The
    /// default image needs no pattern.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    pub allowed: Vec<String>,

    /// Users that jobs may ask for (`image:kubernetes:user`): `1000`, `1000:1000`. A user without a
    /// group allows every group. All where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 21), regex(pattern = r"^[0-9]{1,10}(:[0-9]{1,10})?$")))]
    pub allowed_users: Vec<String>,

    /// Pull policies of jobs that name none, in the order in which they are tried: where the image
    /// cannot be pulled by one, the pod is made anew with the next. Kubernetes' own default where
    /// empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub pull_policies: Vec<PullPolicy>,

    /// Pull policies that jobs may name (`image:pull_policy`). All where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub allowed_pull_policies: Vec<PullPolicy>,
}

/// The services of jobs (`services:` in `.gitlab-ci.yml`). What `image` says of users and pull
/// policies is said of them too.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Services {
    /// Images that services may have, as patterns like those of `image.allowed`. All images where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    pub allowed: Vec<String>,

    /// How many services a job may have: each of them gets what `resources.services` says.
    #[serde(default = "default_services")]
    #[schemars(range(min = 0, max = 32))]
    pub max: u32,

    /// How long the job's scripts wait for services that name a port to be asked at
    /// (`HEALTHCHECK_TCP_PORT`), in seconds from the start of all containers. Then they run anyway,
    /// and the job log says so.
    #[serde(default = "default_ready_seconds")]
    #[schemars(range(min = 0, max = 3600))]
    pub ready_seconds: i64,
}

fn default_services() -> u32 {
    16
}

fn default_ready_seconds() -> i64 {
    DEFAULT_READY_SECONDS
}

impl Default for Services {
    fn default() -> Self {
        Self { allowed: Vec::new(), max: default_services(), ready_seconds: DEFAULT_READY_SECONDS }
    }
}

/// The helper container.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Helper {
    /// Image with git, and with gitlab-runner-helper for caches and artifacts. The operator's
    /// own helper image where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,

    /// Pull policy of the helper and agent images. Kubernetes' own default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = schema::described_by_field)]
    pub pull_policy: Option<PullPolicy>,

    /// Where the stage-agent comes from. `Container`: a small container of its own copies it and
    /// exits; works with any helper image. `HelperImage`: the helper image carries it, as
    /// Roadstead's own does; one container less to start.
    #[serde(default)]
    pub agent: AgentSource,
}

/// How the stage-agent gets into a job's pod.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AgentSource {
    /// A small container of its own copies it and exits. Works with any helper image.
    #[default]
    Container,
    /// The helper image carries it (Roadstead's own does): one container less to start.
    HelperImage,
}

/// Script dialect.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Shell {
    /// Bash where the image has it, otherwise its `sh`.
    #[default]
    Bash,
    /// The image's `sh`.
    Sh,
}

impl Shell {
    /// gitlab-runner's name of the dialect.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Sh => "sh",
        }
    }
}

/// How scripts are written and where they run.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(
    validation = Rule::new("self.buildsDir != self.cacheDir && !self.buildsDir.startsWith(self.cacheDir + '/') && !self.cacheDir.startsWith(self.buildsDir + '/')")
        .message("buildsDir and cacheDir must not be the same or inside each other")
)]
#[serde(rename_all = "camelCase")]
pub struct Builds {
    /// Script dialect that gitlab-runner generates. `bash`: run by bash where the image has it,
    /// otherwise by its `sh`. `sh`: run by `sh`.
    #[serde(default)]
    pub shell: Shell,

    /// Absolute path that repositories are checked out in (gitlab-runner's `builds_dir`).
    #[serde(default = "default_builds_dir")]
    #[schemars(length(max = 256), regex(pattern = r"^(/[A-Za-z0-9_][A-Za-z0-9._-]*)+$"))]
    pub builds_dir: String,

    /// Absolute path of local caches (gitlab-runner's `cache_dir`).
    #[serde(default = "default_cache_dir")]
    #[schemars(length(max = 256), regex(pattern = r"^(/[A-Za-z0-9_][A-Za-z0-9._-]*)+$"))]
    pub cache_dir: String,
}

fn default_builds_dir() -> String {
    "/builds".to_owned()
}

fn default_cache_dir() -> String {
    "/cache".to_owned()
}

impl Default for Builds {
    fn default() -> Self {
        Self { shell: Shell::default(), builds_dir: default_builds_dir(), cache_dir: default_cache_dir() }
    }
}
