//! Where jobs of a class run, and what else of their pods they may choose.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, Toleration, TopologySpreadConstraint};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// Where jobs run by their tags.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Rules by tag. Every rule whose tags the job has applies, over `pod.nodeSelector` and
    /// `pod.tolerations`. Two rules that can both apply must not disagree. The tags `linux`,
    /// `amd64` and `arm64` select nodes by `kubernetes.io/os` and `kubernetes.io/arch` unless a
    /// rule names them; `osx`, `macos` and `windows` are refused unless a rule names them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub rules: Vec<PlacementRule>,
}

/// Where jobs with certain tags run.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PlacementRule {
    /// The rule applies to jobs that have all of these tags; an empty list, to every job. Only tags
    /// that GitLab told of the job itself count.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(min = 1, max = 255)))]
    pub tags: Vec<String>,

    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::labels")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints that the pod tolerates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), transform = schema::bounded)]
    pub tolerations: Vec<Toleration>,

    /// Affinity to nodes and pods. What is required by several rules is required together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = schema::bounded)]
    pub affinity: Option<Affinity>,

    /// How the pods of jobs spread.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), transform = schema::bounded)]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,

    /// RuntimeClass of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub runtime_class_name: Option<String>,

    /// PriorityClass of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,

    /// Scheduler of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub scheduler_name: Option<String>,
}

/// What a job may set with its variables. Each list holds regular expressions (RE2 syntax), one of
/// which has to match the whole value. A job that sets what no expression matches is refused.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Allowed {
    /// Values of `KUBERNETES_NODE_SELECTOR_*`: `pool=(small|large)`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)))]
    pub node_selector: Vec<String>,

    /// Values of `KUBERNETES_NODE_TOLERATIONS_*`: `spot(=true)?:NoSchedule`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)))]
    pub tolerations: Vec<String>,

    /// Values of `KUBERNETES_POD_LABELS_*`: `team=[a-z]+`. Labels of Roadstead's and Kubernetes'
    /// own cannot be set at all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)))]
    pub pod_labels: Vec<String>,

    /// Values of `KUBERNETES_POD_ANNOTATIONS_*`: `example\.com/cost-center=[0-9]+`. Annotations can
    /// change how a pod is run (AppArmor, networks), so allow them by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)))]
    pub pod_annotations: Vec<String>,

    /// Values of `KUBERNETES_SERVICE_ACCOUNT_OVERWRITE`: `ci-.*`. The job can do what the account
    /// can where `pod.automountServiceAccountToken` is true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)))]
    pub service_account: Vec<String>,

    /// Values of `KUBERNETES_NAMESPACE_OVERWRITE`: `ci-large`. It has to be a job namespace that the
    /// runner's account can use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)))]
    pub namespace: Vec<String>,
}
