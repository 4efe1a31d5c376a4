//! How a job can fail, the way gitlab-runner tells failures apart.

use super::scope::Cause;

/// Who is to blame, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The user's script.
    Script,
    /// The runner's or the job's settings.
    Configuration,
    /// Somebody has canceled the job.
    Canceled,
    /// The time is up.
    Timeout,
    /// The runner was told to stop.
    Interrupted,
}

/// Why a job, or a part of it, did not work.
#[derive(Debug, Clone)]
pub(super) enum JobError {
    /// The runner knows what this is: no try is repeated in `prepare`.
    Build {
        /// Who is to blame.
        reason: Reason,
        /// The script's exit code; 0 when there is none.
        exit_code: i64,
        /// For the job log.
        message: String,
    },
    /// Everything else: a system failure, worth another try in `prepare`.
    System(String),
    /// There was no time left to even start.
    Stopped(Cause),
}

impl JobError {
    pub(super) fn build(reason: Reason, message: impl Into<String>) -> Self {
        Self::Build { reason, exit_code: 0, message: message.into() }
    }

    /// For the job log.
    pub(super) fn message(&self) -> String {
        match self {
            Self::Build { message, .. } | Self::System(message) => message.clone(),
            Self::Stopped(Cause::Canceled) => "context canceled".to_owned(),
            Self::Stopped(_) => "context deadline exceeded".to_owned(),
        }
    }

    /// The same failure with more words around its message.
    pub(super) fn wrapped(self, before: &str, after: &str) -> Self {
        let message = format!("{before}{}{after}", self.message());
        match self {
            Self::Build { reason, exit_code, .. } => Self::Build { reason, exit_code, message },
            Self::System(_) => Self::System(message),
            stopped @ Self::Stopped(_) => stopped,
        }
    }
}
