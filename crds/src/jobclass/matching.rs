//! Which jobs a class takes, and what is known of the class itself.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::reason::Reason;

/// Whether the match of a class is enforced.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The class never takes a job that its match does not take.
    #[default]
    Enforce,
    /// A job that no class takes runs in this class all the same, and says so.
    Audit,
}

/// Which jobs a class takes: those that fulfil all of it. A part that is absent or empty lets every
/// job pass.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    validation = Rule::new("!has(self.runUntagged) || self.runUntagged || !has(self.tags) || size(self.tags) > 0")
        .message("a class without tags must run untagged jobs: with `tags: []` and `runUntagged: false` it would take no job at all")
)]
#[serde(rename_all = "camelCase")]
pub struct Matching {
    /// The class's tags, by GitLab's rule for runners: it takes the jobs all of whose tags are among
    /// these. Case counts. Empty: untagged jobs only. Absent: tags are not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 255)))]
    pub tags: Option<Vec<String>>,

    /// Whether the class takes jobs without tags. By default it does where `tags` is absent or empty,
    /// and does not where it lists any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_untagged: Option<bool>,

    /// Full paths of the projects, one of which the job's project has to match. `*` stands for
    /// anything within one segment, `**` for any number of segments: `group/**`, `*/website`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    pub projects: Vec<String>,

    /// The Git ref that the job runs for.
    #[serde(default)]
    pub refs: RefMatching,

    /// Kubernetes namespaces, one of which the job's CiJob has to be in, as patterns: `ci-*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub namespaces: Vec<String>,

    /// Users of GitLab's, one of whom has to have started the job: an ID (digits only) or a login.
    /// The login is known where the runner asks GitLab for the job (`ROADSTEAD_TAG_SOURCE=job`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 255)))]
    pub users: Vec<String>,

    /// A CEL expression over `job` that has to be true. One that fails at run time refuses the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub expression: Option<String>,
}

/// Which Git refs a class takes jobs for.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RefMatching {
    /// Only protected refs, by what GitLab says of the job. A job of which GitLab does not say it
    /// counts as unprotected, and so does a merge request from a fork.
    #[serde(default)]
    pub protected_only: bool,

    /// Names of branches and tags, one of which the job's ref has to match, as patterns: `main`,
    /// `release/*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    pub names: Vec<String>,
}

/// State of a JobClass. Only the operator writes it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct JobClassStatus {
    /// Generation of the spec that the conditions are about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Its jobs, by the CiJobs that exist: those that have ended are kept for
    /// `timeouts.ttlSecondsAfterFinished`. Written at most every five seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jobs: Option<ClassJobs>,

    /// The newest of its jobs that it refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_rejection: Option<Rejection>,

    /// Conditions `Valid` and `ExpressionFailed`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// How many jobs a class has.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClassJobs {
    /// Jobs that got the class, or named it and were refused.
    #[serde(default)]
    pub matched: i32,
    /// Those that have a place: their pods run or are being started.
    #[serde(default)]
    pub running: i32,
    /// Those that wait for room.
    #[serde(default)]
    pub queued: i32,
    /// Those that the class refused.
    #[serde(default)]
    pub rejected: i32,
}

/// A job that a class refused.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Rejection {
    /// When.
    pub time: MicroTime,
    /// Namespace of the CiJob.
    pub namespace: String,
    /// Name of the CiJob.
    pub name: String,
    /// Why, in one word.
    pub reason: Reason,
    /// The same in a sentence.
    pub message: String,
}

/// Types of the conditions of a JobClass.
pub mod condition {
    /// The class can be applied to jobs. Where it cannot, the message lists every problem.
    pub const VALID: &str = "Valid";
    /// The expression of the match failed on a job, which was refused for it.
    pub const EXPRESSION_FAILED: &str = "ExpressionFailed";
}
