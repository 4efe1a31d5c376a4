//! [`Reason`]: the closed list of reasons that conditions, Events and metrics use.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a job is where it is, in one CamelCase word.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The job waits for the shim to release `spec.hold`.
    Held,
    /// As many jobs of the class run as may, or as many of the job's project.
    ConcurrencyLimit,
    /// A quota of the namespace has no room for the pod.
    QuotaExceeded,
    /// The pod waits for a node.
    Scheduling,
    /// No node can take the pod now; the scheduler keeps trying.
    Unschedulable,
    /// The node prepares the pod: images, volumes, containers.
    Starting,
    /// The job's containers run.
    Running,
    /// All stages of the job succeeded.
    Succeeded,
    /// A script of the job failed.
    ScriptFailed,
    /// A script of the job ran longer than the class lets it.
    ScriptTimeout,
    /// The job was canceled, or gitlab-runner ended it before its scripts did.
    Canceled,
    /// The job ran longer than its timeout.
    DeadlineExceeded,
    /// The job waited for room longer than its class lets it.
    QueueTimeout,
    /// The job's containers did not start in the time that the class gives them.
    StartTimeout,
    /// The JobClass that the job names does not exist, or there is none for jobs that name none.
    ClassNotFound,
    /// The JobClass cannot be applied: its spec contradicts itself, its expression fails, its pod
    /// overlay is not a pod or breaks a boundary.
    ClassInvalid,
    /// The job asks for resources, nodes or other parts of its pod that its class does not allow.
    OverrideRefused,
    /// No JobClass takes the job, or the one that it names does not.
    NoClassMatches,
    /// The reference of the job's image is malformed.
    InvalidImageName,
    /// The registry does not have the image, or hides it from these credentials.
    ImageNotFound,
    /// The image could not be pulled for another reason.
    ImagePullFailed,
    /// The job's image is on the node but cannot be run: it has no /bin/sh, is for another CPU
    /// architecture, or would run as root where the class forbids it.
    ImageUnusable,
    /// The cluster refused the pod: admission, validation, missing rights.
    PodRejected,
    /// The API server could not create the pod now: an admission webhook does not answer, for
    /// instance. The operator keeps trying.
    PodCreateFailed,
    /// A container of the pod could not be created.
    ContainerCreateFailed,
    /// A container ended while the job still needed it.
    ContainerTerminated,
    /// A container was killed because it used more memory than its limit.
    OutOfMemory,
    /// A container, or the pod as a whole, wrote more to the node's disk than its limit.
    StorageExceeded,
    /// The pod was evicted, preempted or its node shut down.
    PodEvicted,
    /// The pod was deleted by somebody else.
    PodDeleted,
    /// A pod with the job's pod name exists that is not the job's.
    PodImpostor,
    /// No client spoke to the job's pod for the class's orphan time: gitlab-runner is gone.
    ClientLost,
    /// The shim reported a system failure.
    SystemFailure,
}

/// Whose doing a failure is. It decides between GitLab's `script_failure` and
/// `runner_system_failure`, and with that whether `retry:` applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The author of the job can mend it; trying again does not help.
    User,
    /// Roadstead, the cluster or its administrator; trying again may help.
    System,
}

impl Reason {
    /// The word itself, for conditions, Events and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Held => "Held",
            Self::ConcurrencyLimit => "ConcurrencyLimit",
            Self::QuotaExceeded => "QuotaExceeded",
            Self::Scheduling => "Scheduling",
            Self::Unschedulable => "Unschedulable",
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::ScriptFailed => "ScriptFailed",
            Self::ScriptTimeout => "ScriptTimeout",
            Self::Canceled => "Canceled",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::QueueTimeout => "QueueTimeout",
            Self::StartTimeout => "StartTimeout",
            Self::ClassNotFound => "ClassNotFound",
            Self::ClassInvalid => "ClassInvalid",
            Self::OverrideRefused => "OverrideRefused",
            Self::NoClassMatches => "NoClassMatches",
            Self::InvalidImageName => "InvalidImageName",
            Self::ImageNotFound => "ImageNotFound",
            Self::ImagePullFailed => "ImagePullFailed",
            Self::ImageUnusable => "ImageUnusable",
            Self::PodRejected => "PodRejected",
            Self::PodCreateFailed => "PodCreateFailed",
            Self::ContainerCreateFailed => "ContainerCreateFailed",
            Self::ContainerTerminated => "ContainerTerminated",
            Self::OutOfMemory => "OutOfMemory",
            Self::StorageExceeded => "StorageExceeded",
            Self::PodEvicted => "PodEvicted",
            Self::PodDeleted => "PodDeleted",
            Self::PodImpostor => "PodImpostor",
            Self::ClientLost => "ClientLost",
            Self::SystemFailure => "SystemFailure",
        }
    }

    /// Whose doing a job that ended for this reason is.
    pub fn blame(self) -> Blame {
        match self {
            Self::ScriptFailed
            | Self::ScriptTimeout
            | Self::OverrideRefused
            | Self::NoClassMatches
            | Self::InvalidImageName
            | Self::ImageNotFound
            | Self::ImageUnusable
            | Self::OutOfMemory
            | Self::StorageExceeded => Blame::User,
            Self::Held
            | Self::ConcurrencyLimit
            | Self::QuotaExceeded
            | Self::Scheduling
            | Self::Unschedulable
            | Self::Starting
            | Self::Running
            | Self::Succeeded
            | Self::Canceled
            | Self::DeadlineExceeded
            | Self::QueueTimeout
            | Self::StartTimeout
            | Self::ClassNotFound
            | Self::ClassInvalid
            | Self::ImagePullFailed
            | Self::PodRejected
            | Self::PodCreateFailed
            | Self::ContainerCreateFailed
            | Self::ContainerTerminated
            | Self::PodEvicted
            | Self::PodDeleted
            | Self::PodImpostor
            | Self::ClientLost
            | Self::SystemFailure => Blame::System,
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_is_what_serde_writes() {
        for reason in [Reason::Held, Reason::ClientLost, Reason::OutOfMemory, Reason::PodImpostor] {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }
}
