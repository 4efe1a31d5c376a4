//! [`JobReport`]: what the executor shim tells about a job that it ran.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the job went, as the shim saw it. The operator's own observation wins over it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct JobReport {
    /// How the job ended. With it the operator removes the pod.
    pub outcome: Outcome,

    /// Exit code of the script that decided the outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,

    /// One sentence on the outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,

    /// Milliseconds of the start that only the shim can see.
    #[serde(default)]
    pub start: ReportedStart,

    /// Connections that were lost and taken up again.
    #[serde(default)]
    pub reconnects: i32,

    /// The stages that ran, in order; the last 64 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub stages: Vec<StageReport>,
}

/// How a job ended.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All stages succeeded.
    Succeeded,
    /// A script of the job failed, or the job was refused for what it asked for.
    Failed,
    /// A script of the job ran longer than the class lets it.
    TimedOut,
    /// Roadstead or the cluster failed.
    Errored,
    /// gitlab-runner ended the job before its scripts did: it was canceled or ran out of time.
    Canceled,
}

/// Milliseconds from the shim's first call to each step of the start.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ReportedStart {
    /// The agent in the helper container answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helper_ms: Option<i64>,

    /// The agent in the build container answered: stages can run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_ms: Option<i64>,

    /// The first byte of a stage's output arrived at the shim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<i64>,
}

/// One stage of the job (one `run` call of gitlab-runner) and the exit record of its script.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StageReport {
    /// GitLab's name of the stage: `prepare_script`, `get_sources`, `step_script`, …
    #[schemars(length(max = 255))]
    pub name: String,

    /// Container that it ran in: `build` or `helper`.
    #[schemars(length(max = 63))]
    pub container: String,

    /// Exit code of the script; absent where a signal ended it or no exit record arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,

    /// Signal that ended the script's shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,

    /// Bytes that the script wrote to standard output.
    #[serde(default)]
    pub stdout_bytes: i64,

    /// Bytes that the script wrote to standard error.
    #[serde(default)]
    pub stderr_bytes: i64,

    /// Wall-clock time of the script in milliseconds.
    #[serde(default)]
    pub duration_ms: i64,

    /// Processes of the container that the kernel killed for memory during the stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<i64>,

    /// Processor time that the container used during the stage, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<i64>,

    /// Peak memory of the container in bytes at the end of the stage, where the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<i64>,
}
