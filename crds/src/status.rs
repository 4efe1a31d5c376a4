//! [`CiJobStatus`]: what the operator decided and observed.

pub mod table;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::jobclass::Shell;
use crate::quantity::Quantity;
use crate::reason::Reason;
use crate::request::PullPolicy;
use crate::schema;

/// State of a CiJob. Only the operator writes it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CiJobStatus {
    /// Where the job is. The last five phases are final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = schema::described_by_field)]
    pub phase: Option<Phase>,

    /// Why it is there, one word of a closed list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = schema::described_by_field)]
    pub reason: Option<Reason>,

    /// The same in a sentence for the job log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,

    /// Conditions `Admitted`, `Audited`, `Scheduled`, `Started`, `Finished`, `Disrupted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,

    /// Name of the JobClass that was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,

    /// Image of the build container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,

    /// Pull policies of the build image that are left to try; the pod has the first one. Kubernetes' own
    /// rule where there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pull_policies: Vec<PullPolicy>,

    /// The job's services, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceStatus>,

    /// What gitlab-runner has to be told about the job's environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<JobConfig>,

    /// The job's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodStatus>,

    /// The pod that the job lost before. Another one takes its place where `spec.replace` asks for it;
    /// that happens once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_pod: Option<LostPod>,

    /// Requests and limits that were applied, by container name, and under `pod` those of the pod as a
    /// whole.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: BTreeMap<String, EffectiveResources>,

    /// What the job asked for with its variables and tags, and what became of it; at most 128. What
    /// is not listed is by the class.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<OverrideReport>,

    /// Timeouts that apply to the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<EffectiveTimeouts>,

    /// Where the job stands in the queue of its class, while it waits for room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueStatus>,

    /// Where the time of the start went, in milliseconds since `spec.request.requestedAt`.
    /// The operator's steps are by its own clock, so a skew between its node and the runner's shows in them.
    #[serde(default)]
    pub start: StartBreakdown,

    /// When the job's containers ran, by the operator's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,

    /// When the job reached a final phase, by the operator's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<MicroTime>,

    /// Time from `spec.request.requestedAt` to `finishedAt`, for people: `1m12s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
}

impl CiJobStatus {
    /// The loss of the job's pod, as long as no other one has taken its place.
    pub fn loss(&self) -> Option<&LostPod> {
        let pod = self.pod.as_ref()?;
        self.lost_pod.as_ref().filter(|lost| lost.name == pod.name)
    }
}

/// Where a job stands in the queue of its class. To keep the number of writes small, positions up
/// to 5 are exact and greater ones rounded up to 10, 20, 50, 100 and so on, and the other numbers
/// are those of the moment at which the position was written.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct QueueStatus {
    /// Since when the job waits, by the operator's clock.
    pub since: MicroTime,
    /// Its position, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<i32>,
    /// How many jobs waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<i32>,
    /// How many jobs ran: of the class, or of the class and project where that is the limit that
    /// holds the job up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<i32>,
    /// How many of them may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<i32>,
}

/// Where a job is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Waits for room, or for its class.
    Queued,
    /// May run; its pod is about to be created.
    Admitted,
    /// Its pod exists and is being started.
    Starting,
    /// Its containers run.
    Running,
    /// Final: all stages succeeded.
    Succeeded,
    /// Final: the job failed by its own doing.
    Failed,
    /// Final: Roadstead or the cluster failed.
    Errored,
    /// Final: it was canceled.
    Canceled,
    /// Final: it ran longer than its timeout.
    TimedOut,
}

impl Phase {
    /// Whether nothing follows this phase.
    pub fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Admitted | Self::Starting | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::Errored | Self::Canceled | Self::TimedOut => true,
        }
    }

    /// The word itself, for metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "Queued",
            Self::Admitted => "Admitted",
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Errored => "Errored",
            Self::Canceled => "Canceled",
            Self::TimedOut => "TimedOut",
        }
    }
}

/// Types of the conditions of a CiJob.
pub mod condition {
    /// The job may run: its class was found and applied.
    pub const ADMITTED: &str = "Admitted";
    /// No class takes the job; it runs because the mode of its class is `Audit`.
    pub const AUDITED: &str = "Audited";
    /// The job's pod has a node.
    pub const SCHEDULED: &str = "Scheduled";
    /// The job's containers run.
    pub const STARTED: &str = "Started";
    /// The job has ended, however it did.
    pub const FINISHED: &str = "Finished";
    /// The cluster is about to take the job's pod away, or did.
    pub const DISRUPTED: &str = "Disrupted";
}

/// What the custom executor's `config` stage answers gitlab-runner, taken from the class.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct JobConfig {
    /// Dialect of the scripts that gitlab-runner generates.
    pub shell: Shell,
    /// Directory that repositories are checked out in (`builds_dir`).
    pub builds_dir: String,
    /// Directory of local caches (`cache_dir`).
    pub cache_dir: String,
}

/// The job's pod.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Name of the pod. Stored before the pod is created; no name is ever used twice.
    pub name: String,

    /// Which pod of the job it is, from 1.
    pub attempt: i32,

    /// UID of the pod, as the API server answered its creation. The shim runs nothing in a pod
    /// that does not name this UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,

    /// Node that the pod was bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// A service of the job.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Its container in the job's pod: `svc-0`.
    pub container: String,

    /// Its image.
    pub image: String,

    /// Pull policies of its image that are left to try; the pod has the first one. Kubernetes' own
    /// rule where there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pull_policies: Vec<PullPolicy>,

    /// Where it is.
    #[serde(default)]
    pub state: ServiceState,

    /// How its container ended, if it did: the exit code and what the runtime says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
}

/// Where a service is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceState {
    /// Its container does not run yet.
    #[default]
    Waiting,
    /// Its container runs; the port that it is to be asked at takes no connection yet.
    Running,
    /// Its container runs, and takes connections at the port that it is to be asked at, if there is one.
    Ready,
    /// Its container has ended. The job goes on without it.
    Ended,
}

/// A pod that was taken from the job: deleted, evicted, preempted, lost with its node.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LostPod {
    /// Name of the pod.
    pub name: String,
    /// Why it was lost, one word of a closed list.
    #[schemars(transform = schema::described_by_field)]
    pub reason: Reason,
    /// The same in a sentence for the job log.
    pub message: String,
    /// When the operator saw that.
    pub since: MicroTime,
}

/// Requests and limits of one container, in Kubernetes' quantities by resource name.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveResources {
    /// What the scheduler sets aside.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, String>,
    /// What the container cannot exceed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, String>,
    /// Most that the job may ask for with its variables; what is not listed it cannot ask for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub max: BTreeMap<String, String>,
}

impl EffectiveResources {
    /// What the author of a job can do whose container needs more of a resource than its limit: a clause for the job
    /// log. `variable` is the one that asks for that limit.
    pub fn more_of(&self, resource: &str, variable: &str, class: &str) -> String {
        let amount = |amounts: &BTreeMap<String, String>| {
            amounts.get(resource).and_then(|text| Some((text.clone(), Quantity::parse(text).ok()?)))
        };
        match (amount(&self.limits), amount(&self.max)) {
            (Some((_, limit)), Some((most, max))) if limit >= max => {
                format!(
                    "let the job use less, or use a class that allows more than the {most} of JobClass \"{class}\""
                )
            }
            (_, Some((most, _))) => {
                format!(
                    "let the job use less, or ask for more with {variable}, at most {most} in JobClass \"{class}\""
                )
            }
            (_, None) => {
                format!("let the job use less, or use a class with a higher limit than JobClass \"{class}\"")
            }
        }
    }
}

/// One thing that a job asked for, or that changed because of it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct OverrideReport {
    /// What it is about: `build memory limit`, `node selector`, `service account`.
    pub what: String,
    /// What was asked for. Absent where the class's own value had to follow another change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
    /// What the class allows. Absent where it allows nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<String>,
    /// What applies. Absent where nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<String>,
    /// Where it comes from: the name of the variable, `tags`, or `JobClass`.
    pub source: String,
    /// What became of it.
    pub outcome: OverrideOutcome,
}

/// What became of something that a job asked for.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverrideOutcome {
    /// It applies as it was asked for.
    Applied,
    /// The bound of the class applies instead.
    Clamped,
    /// The class's own value was changed to fit another one.
    Adjusted,
    /// The class leaves no choice of it.
    Forbidden,
    /// Roadstead did not support it. No operator writes this any more.
    Unsupported,
    /// The tags are the runner's, so they choose no nodes.
    Untrusted,
}

/// Timeouts in seconds that apply to the job.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveTimeouts {
    /// The whole job: the smaller of the request's and the class's.
    pub job_seconds: i64,
    /// Waiting for room.
    #[serde(default = "default_queue_seconds")]
    pub queue_seconds: i64,
    /// From the pod's creation to the start of its containers.
    pub start_seconds: i64,
    /// Waiting for services that name a port to be asked at, before the first script.
    #[serde(default = "default_ready_seconds")]
    pub ready_seconds: i64,
    /// The job's scripts, `before_script` and `script` together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script_seconds: Option<i64>,
    /// `after_script`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_script_seconds: Option<i64>,
    /// From SIGTERM to SIGKILL when a stage is stopped.
    pub termination_grace_seconds: i64,
    /// How long the pod lives without a client.
    pub orphan_seconds: i64,
    /// How long the finished CiJob is kept.
    pub ttl_seconds_after_finished: i64,
}

fn default_ready_seconds() -> i64 {
    crate::jobclass::DEFAULT_READY_SECONDS
}

fn default_queue_seconds() -> i64 {
    crate::jobclass::DEFAULT_QUEUE_SECONDS
}

/// Milliseconds from the request to each step of the start.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StartBreakdown {
    /// The operator admitted the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admitted_ms: Option<i64>,
    /// There was room for the job, which had waited for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room_ms: Option<i64>,
    /// The API server accepted the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_created_ms: Option<i64>,
    /// The operator saw the pod bound to a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_ms: Option<i64>,
    /// The operator saw the containers running. The kubelet reports about once a second, so the
    /// agents usually answer before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_ms: Option<i64>,
    /// The agent in the helper container answered the shim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helper_ms: Option<i64>,
    /// The agent in the build container answered the shim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_ms: Option<i64>,
    /// The first byte of a stage's output arrived at the shim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<i64>,
}
