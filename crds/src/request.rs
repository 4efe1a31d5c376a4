//! [`JobRequest`]: the job as GitLab described it to the runner.
//!
//! Every field is taken from the job response that GitLab sent (the file behind
//! `JOB_RESPONSE_FILE`), never from the environment, which the job's own variables can shadow.
//! No token or script is part of it, and of the variables only those of [`crate::overrides`].

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// What stands for the server and the project of a job that somebody runs by hand. It is no URL
/// and no path of a project, so that such a job is never one of GitLab's.
pub const BY_HAND: &str = "by-hand";

/// One GitLab job, as requested.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct JobRequest {
    /// URL of the GitLab server that assigned the job, without credentials; `by-hand` for a job
    /// that somebody runs without GitLab.
    #[schemars(length(min = 1, max = 512))]
    pub server: String,

    /// The job.
    pub job: JobIdentity,

    /// The project that the job belongs to.
    pub project: ProjectIdentity,

    /// The Git ref and commit that the job runs for.
    #[serde(rename = "ref")]
    pub git_ref: GitRef,

    /// ID of the pipeline (`CI_PIPELINE_ID`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline_id: Option<i64>,

    /// ID of the user who started the job (`GITLAB_USER_ID`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<i64>,

    /// Login of the user who started the job, as GitLab's API says it. Absent where it was not
    /// asked: among the job's variables only an author's own would be found with certainty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub user_login: Option<String>,

    /// What started the pipeline, in GitLab's words (`CI_PIPELINE_SOURCE`): `push`,
    /// `merge_request_event`, `schedule`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub pipeline_source: Option<String>,

    /// The runner that took the job.
    #[serde(default)]
    pub runner: RunnerIdentity,

    /// The job's tags (`tags:` in `.gitlab-ci.yml`, variables expanded). What they are worth is in
    /// `tagSource`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 255)))]
    pub tags: Vec<String>,

    /// Who said what `tags` are. `Job`: GitLab, for this job; no tags means an untagged job.
    /// `Runner`: they are all tags of the runner, of which the job's own are some. Absent: nothing
    /// is known of the job's tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = schema::described_by_field)]
    pub tag_source: Option<TagSource>,

    /// Name of the JobClass to use. Without it the class is chosen by what classes match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub class_name: Option<String>,

    /// Image of the build container. Without it the class's default image applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRequest>,

    /// Services that run beside the build container (`services:` in `.gitlab-ci.yml`), in the job's
    /// order. Their variables are in Secrets that the CiJob owns, never here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub services: Vec<ServiceRequest>,

    /// Whether the shim stores credentials for pulling images in a Secret that the CiJob owns.
    #[serde(default, skip_serializing_if = "is_false")]
    pub registry_credentials: bool,

    /// What the job asks for with its variables, by the variable's name: resources, nodes, labels,
    /// annotations, service account. Nothing but variables that Roadstead knows, expanded.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::overrides")]
    pub overrides: BTreeMap<String, String>,

    /// Timeout of the job in seconds as GitLab computed it (the smaller of the project's or job's
    /// and the runner's). The class may shorten it.
    #[schemars(range(min = 1, max = 31_536_000))]
    pub timeout_seconds: i64,

    /// How long the job's pod may be without a client, in seconds, where a job is run by hand: its
    /// client comes and goes. Never longer than the job's timeout. Without it the class's
    /// `timeouts.orphanSeconds` applies, as to every job of GitLab's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 86_400))]
    pub keep_seconds: Option<i64>,

    /// When the shim asked, by the shim's clock. Zero point of the start breakdown in status.
    pub requested_at: MicroTime,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Who said what a job's tags are.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagSource {
    /// GitLab, for this job.
    Job,
    /// GitLab, for the runner: the job's own tags are some of them.
    Runner,
}

impl JobRequest {
    /// Whether somebody runs the job by hand, without GitLab.
    pub fn is_by_hand(&self) -> bool {
        self.server == BY_HAND
    }
}

/// Which job of GitLab's it is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct JobIdentity {
    /// GitLab's ID of the job (`CI_JOB_ID`); 0 for a job that is run by hand.
    #[schemars(range(min = 0))]
    pub id: i64,

    /// Name of the job in `.gitlab-ci.yml` (`CI_JOB_NAME`).
    #[schemars(length(max = 255))]
    pub name: String,

    /// Stage of the job in the pipeline (`CI_JOB_STAGE`).
    #[schemars(length(max = 255))]
    pub stage: String,
}

/// Which project of GitLab's it is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProjectIdentity {
    /// GitLab's ID of the project (`CI_PROJECT_ID`).
    pub id: i64,

    /// Full path of the project, groups included (`CI_PROJECT_PATH`).
    #[schemars(length(max = 512))]
    pub path: String,
}

/// What the job runs for.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GitRef {
    /// Name of the branch or tag, or `refs/merge-requests/<n>/head` and its kin (`CI_COMMIT_REF_NAME`).
    #[schemars(length(max = 1024))]
    pub name: String,

    /// Whether it is a branch or a tag.
    #[serde(rename = "type")]
    pub ref_type: GitRefType,

    /// Commit that the job checks out (`CI_COMMIT_SHA`).
    #[schemars(length(max = 64), regex(pattern = r"^[0-9a-f]*$"))]
    pub sha: String,

    /// Whether GitLab says that the ref is protected; absent where the server does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected: Option<bool>,
}

/// Kind of a Git ref, in GitLab's words.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum GitRefType {
    /// A branch; merge request refs count as branches.
    Branch,
    /// A tag.
    Tag,
}

/// The runner as GitLab's payload names it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RunnerIdentity {
    /// GitLab's ID of the runner (`CI_RUNNER_ID`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<i64>,

    /// Description of the runner (`CI_RUNNER_DESCRIPTION`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub description: Option<String>,
}

/// The image that the job asked for (`image:` in `.gitlab-ci.yml`).
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ImageRequest {
    /// Reference of the image, variables expanded.
    #[schemars(length(min = 1, max = 1024))]
    pub name: String,

    /// Pull policies in the order to try. The first one is applied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub pull_policy: Vec<PullPolicy>,

    /// User to run the build container as (`image:kubernetes:user`), `uid` or `uid:gid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^[0-9]{1,10}(:[0-9]{1,10})?$"))]
    pub user: Option<String>,
}

/// Most services that a job may have.
pub const MOST_SERVICES: usize = 32;

/// Most words of a service's entrypoint or command.
pub const MOST_WORDS: usize = 64;

/// Longest word of a service's entrypoint or command, in characters.
pub const LONGEST_WORD: usize = 4096;

/// A service that runs beside the build container.
/// <https://docs.gitlab.com/ci/services/>
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRequest {
    /// Reference of its image, variables expanded.
    #[schemars(length(min = 1, max = 1024))]
    pub name: String,

    /// Names under which the job's containers reach it, all at 127.0.0.1: what GitLab makes of the
    /// image's name where that is a DNS name, and the service's aliases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        inner(
            length(min = 1, max = 253),
            regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
        )
    )]
    pub aliases: Vec<String>,

    /// What takes the place of the image's entrypoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 4096)))]
    pub entrypoint: Vec<String>,

    /// What takes the place of the image's command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 4096)))]
    pub command: Vec<String>,

    /// Pull policies in the order to try.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub pull_policy: Vec<PullPolicy>,

    /// User to run it as (`kubernetes:user` of the service), `uid` or `uid:gid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^[0-9]{1,10}(:[0-9]{1,10})?$"))]
    pub user: Option<String>,

    /// TCP port that has to take connections before the job's scripts run (`HEALTHCHECK_TCP_PORT`
    /// of its variables).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub readiness_port: Option<u16>,

    /// What its own variables ask for, by the variable's name: `KUBERNETES_SERVICE_CPU_REQUEST` and
    /// its kin. They come before those of the job.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::overrides")]
    pub overrides: BTreeMap<String, String>,
}

/// When to pull an image; GitLab's `always`, `if-not-present`, `never` in Kubernetes' spelling.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// Ask the registry at each start.
    Always,
    /// Pull only what the node does not have.
    IfNotPresent,
    /// Use what the node has or fail.
    Never,
}

impl PullPolicy {
    /// Kubernetes' name of the policy (`imagePullPolicy` of a container).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}
