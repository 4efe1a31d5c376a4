//! [`CiJob`]: one GitLab CI job as a Kubernetes object.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::report::JobReport;
use crate::request::JobRequest;
use crate::status::CiJobStatus;

/// What the executor shim asks for and reports.
///
/// `request` never changes, `hold` may only be released, `replace` and `report` are the shim's to fill in.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "roadstead.dev",
    version = "v1alpha1",
    kind = "CiJob",
    plural = "cijobs",
    namespaced,
    status = "CiJobStatus",
    derive = "PartialEq",
    shortname = "cij",
    category = "ci",
    doc = "CiJob is one GitLab CI job. The executor shim creates it, the operator runs it in a pod.",
    selectable = ".status.phase",
    validation = Rule::new("self.metadata.name.matches('^cij-[0-9]+-[0-9a-f]{10}$')")
        .message("a CiJob is named cij-<job id>-<10 hexadecimal digits>"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Project", type_ = "string", json_path = ".spec.request.project.path"),
    printcolumn(name = "Job", type_ = "string", json_path = ".spec.request.job.name"),
    printcolumn(name = "Class", type_ = "string", json_path = ".status.class"),
    printcolumn(name = "Queue", type_ = "integer", json_path = ".status.queue.position"),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.pod.node"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Duration", type_ = "string", json_path = ".status.duration"),
    printcolumn(name = "Pod", type_ = "string", json_path = ".status.pod.name", priority = 1),
    printcolumn(name = "Image", type_ = "string", json_path = ".status.image", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct CiJobSpec {
    /// What GitLab asked for. Immutable.
    #[x_kube(validation = Rule::new("self == oldSelf").message("the request of a CiJob never changes"))]
    pub request: JobRequest,

    /// While true the operator admits the job but creates no pod: the shim still has to create the
    /// job's Secret. May change from true to false, never back.
    #[serde(default)]
    #[x_kube(validation = Rule::new("oldSelf || !self").message("hold can be released, not taken again"))]
    pub hold: bool,

    /// Name of a lost pod (`status.lostPod`) in whose place the shim wants another one: only the shim
    /// knows that nothing was done in it that would be missing in another one. Once set it never
    /// changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("replace is set once"))]
    pub replace: Option<String>,

    /// What only the shim knows: how the stages and the job ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<JobReport>,
}
