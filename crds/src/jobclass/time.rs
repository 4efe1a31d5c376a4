//! How many jobs a class runs at once, and how long things may take.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How long a job waits for room where its class does not say, in seconds.
pub const DEFAULT_QUEUE_SECONDS: i64 = 2_700;

/// How many jobs of a class may run at once. A job runs from the moment its pod is about to be
/// created until it has ended. The next free place goes to the project with the fewest running jobs
/// of the class, among those to the one that was served least recently, and there to the oldest job.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Concurrency {
    /// Most jobs of the class that run at once. No limit where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max: Option<u32>,

    /// Most jobs of the class that run at once for one project. No limit where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_per_project: Option<u32>,
}

/// How long things may take, in seconds.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// Longest a job may take, from its request to its end. The job's own timeout applies where it
    /// is smaller. At least ten minutes, as for GitLab's maximum job timeout.
    #[serde(default = "default_job_seconds")]
    #[schemars(range(min = 600, max = 31_536_000))]
    pub job_seconds: i64,

    /// Longest a job may wait for room: for `concurrency`, or for a quota of its namespace. The wait
    /// counts towards the job's timeout, as it does for GitLab. gitlab-runner gives up
    /// preparing after its `prepare_exec_timeout`, an hour by default: keep this and `startSeconds`
    /// together below it, so that the job log says why.
    #[serde(default = "default_queue_seconds")]
    #[schemars(range(min = 5, max = 86_400))]
    pub queue_seconds: i64,

    /// Longest the pod may take from its creation until its containers run, image pull included.
    #[serde(default = "default_start_seconds")]
    #[schemars(range(min = 5, max = 86_400))]
    pub start_seconds: i64,

    /// Longest that the job's scripts may run, `before_script` and `script` together. What runs longer
    /// is ended in the pod itself, whoever else is gone; `after_script` still runs, and the job fails
    /// with the reason `ScriptTimeout` and exit code 124. No limit but the job's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub script_seconds: Option<i64>,

    /// Longest that `after_script` may run. What runs longer is ended; the job stays what it was. No
    /// limit where absent, but gitlab-runner has one of its own (`RUNNER_AFTER_SCRIPT_TIMEOUT`, five
    /// minutes by default).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub after_script_seconds: Option<i64>,

    /// Time between SIGTERM and SIGKILL when a stage is stopped, and when the cluster ends the pod. In
    /// the latter case the last two seconds, or half of it where it is shorter than four, are for
    /// noting how the script ended. Keep it well below gitlab-runner's `graceful_kill_timeout`.
    #[serde(default = "default_grace_seconds")]
    #[schemars(range(min = 0, max = 240))]
    pub termination_grace_seconds: i64,

    /// How long a pod lives without a client before it ends itself: the answer to the death of
    /// gitlab-runner. After a stage that failed, and that gitlab-runner may therefore try again
    /// after up to five minutes, at least 330 s.
    #[serde(default = "default_orphan_seconds")]
    #[schemars(range(min = 10, max = 86_400))]
    pub orphan_seconds: i64,

    /// How long a finished CiJob is kept, for `kubectl get cij`.
    #[serde(default = "default_ttl_seconds")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub ttl_seconds_after_finished: i64,
}

fn default_job_seconds() -> i64 {
    86_400
}

fn default_queue_seconds() -> i64 {
    DEFAULT_QUEUE_SECONDS
}

fn default_start_seconds() -> i64 {
    600
}

fn default_grace_seconds() -> i64 {
    10
}

fn default_orphan_seconds() -> i64 {
    120
}

fn default_ttl_seconds() -> i64 {
    3_600
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            job_seconds: default_job_seconds(),
            queue_seconds: default_queue_seconds(),
            start_seconds: default_start_seconds(),
            script_seconds: None,
            after_script_seconds: None,
            termination_grace_seconds: default_grace_seconds(),
            orphan_seconds: default_orphan_seconds(),
            ttl_seconds_after_finished: default_ttl_seconds(),
        }
    }
}
