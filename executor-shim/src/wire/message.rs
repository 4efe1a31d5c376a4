//! The payloads that are JSON.
//!
//! Unknown fields are ignored and added fields have defaults, so that a field can be added without
//! a new protocol version.

use serde::{Deserialize, Serialize};

/// First words of the shim.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Open {
    /// [`super::PROTOCOL`] of the shim.
    pub protocol: u32,
    /// UID of the pod that the shim means. Exec goes by name; a pod of that name that is another
    /// one refuses.
    pub pod_uid: String,
    /// Boot id of the agent that the shim spoke to before; `None` at the first contact.
    pub boot_id: Option<String>,
    /// What the shim wants.
    pub work: Work,
    /// How long the agent may be without a client after this connection, in milliseconds. Kept by
    /// the agent until a later Open says otherwise.
    pub orphan_ms: u64,
}

/// What the shim wants from the agent.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Only to know that the agent is there and what the container has. The connection may stay
    /// open: while it does, the pod is not an orphan.
    Probe {
        /// Dialect of the scripts, `bash` or `sh`: decides which shell is looked for.
        shell: String,
    },
    /// Run a script once, or go on with it where it is already known.
    Run(Run),
    /// To `helper`, when `build` is dead: send what it had stored of an attempt. The kernel may kill
    /// a whole container for its memory, the agent with it.
    Collect(Collect),
}

/// What is wanted of the output of a dead container.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Collect {
    /// Name of the attempt.
    pub attempt: String,
    /// Spool position that the shim has reached.
    pub position: u64,
}

/// One attempt to run one script.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Run {
    /// Random name of the attempt, 32 hexadecimal digits. Whoever knows it may take the attempt up again.
    pub attempt: String,
    /// GitLab's name of the stage, for the exit record and diagnostics.
    pub stage: String,
    /// Spool position that the shim has reached; 0 at the start.
    pub position: u64,
    /// Length of the script in bytes.
    pub script_len: u64,
    /// CRC-32 (IEEE) of the script.
    pub script_crc: u32,
    /// Dialect of the script, `bash` or `sh`.
    pub shell: String,
    /// Whether every process that the container still has is killed when the stage has ended
    /// (so after `after_script`, until which background processes may live).
    #[serde(default)]
    pub reap: bool,
    /// How long the script may run. The agent ends it by its own clock, with or without a client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
}

/// How long a script may run.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Milliseconds from its start to SIGTERM for its process group.
    pub after_ms: u64,
    /// Milliseconds from there to SIGKILL.
    pub grace_ms: u64,
}

/// First words of the agent.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Hello {
    /// [`super::PROTOCOL`] of the agent.
    pub protocol: u32,
    /// Version of the agent, for diagnostics.
    pub version: String,
    /// UID of the pod that the agent runs in.
    pub pod_uid: String,
    /// Random id of this run of the agent: another one means that the container was restarted.
    pub boot_id: String,
    /// Name of the container.
    pub container: String,
    /// For [`Work::Run`]: the attempt is known, so no script is wanted.
    pub known: bool,
    /// For [`Work::Probe`]: what the container has.
    pub tools: Option<Tools>,
}

/// What a container has.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Tools {
    /// User that scripts run as.
    pub uid: u32,
    /// Group that scripts run as.
    pub gid: u32,
    /// Shell that scripts run in, an absolute path.
    pub shell: Option<String>,
    /// `git`, an absolute path.
    pub git: Option<String>,
    /// `git-lfs`, an absolute path.
    pub git_lfs: Option<String>,
    /// What the name `gitlab-runner` reaches: itself, or `gitlab-runner-helper`.
    pub gitlab_runner: Option<String>,
}

/// The shim's wish to end the script.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Milliseconds between SIGTERM and SIGKILL for the script's process group.
    pub grace_ms: u64,
}

/// How a script ended: the only thing that makes a stage succeed or fail.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct ExitRecord {
    /// The attempt.
    pub attempt: String,
    /// Exit code of the shell, if it exited.
    pub code: Option<i32>,
    /// Signal that ended the shell, if one did.
    pub signal: Option<i32>,
    /// Bytes of standard output that were spooled.
    pub stdout_bytes: u64,
    /// Bytes of standard error that were spooled.
    pub stderr_bytes: u64,
    /// Length of the spool: the position after the last frame.
    pub spool_bytes: u64,
    /// Wall-clock time in milliseconds.
    pub wall_ms: u64,
    /// Whether it was told to end before it did: by a Stop, or for its limit.
    pub stopped: bool,
    /// Whether that was for its limit.
    #[serde(default)]
    pub expired: bool,
    /// Processor time of the container during the stage in milliseconds, where the kernel tells.
    #[serde(default)]
    pub cpu_ms: Option<u64>,
    /// Processes of the container that the kernel killed for memory during the stage.
    pub oom_kills: Option<u64>,
    /// Peak memory of the container in bytes, where the kernel tells.
    pub peak_memory_bytes: Option<u64>,
    /// Memory limit of the container in bytes, where there is one.
    pub memory_limit_bytes: Option<u64>,
    /// A sentence where the agent could not keep its part: the output could not be stored, or the
    /// container died before the script ended. `code` is absent then, and the stage has not
    /// succeeded whatever the script did. After a [`Collect`] only `spool_bytes` counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Why the agent does not do what the shim wants.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of refusal it is.
    pub reason: RefusalReason,
    /// One sentence for the job log.
    pub message: String,
}

/// Kinds of refusal. A refusal is final for its connection.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// The two sides speak different versions.
    Protocol,
    /// The pod or the boot of the agent is not the one that the shim meant.
    WrongPod,
    /// The position is not one that the agent can go on from.
    Position,
    /// The script did not arrive as it was announced.
    Script,
    /// The image has no shell that can run the script.
    NoShell,
    /// The script could not be started or its output not be stored.
    Start,
    /// The peer is not allowed to speak to the agent.
    Peer,
    /// The container whose output was to be collected is alive; its own agent has to be asked.
    Alive,
}
