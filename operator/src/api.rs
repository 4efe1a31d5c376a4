//! One call to the API server: it answers, or it fails in a way that says what to do next.

use std::future::Future;
use std::time::Duration;

use kube::core::Status;
use thiserror::Error;

/// How long the API server may take for anything but a watch. It bounds what a connection that
/// broke without a word can hold up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a call failed. The caller adds which one it was.
#[derive(Debug, Error)]
pub enum CallError {
    /// The API server refused it.
    #[error("the API server answers {}: {}", .0.code, .0.message)]
    Refused(Box<Status>),
    /// No answer came. The call may have been carried out all the same.
    #[error("the API server did not answer within {} s", .0.as_secs())]
    Silence(Duration),
    /// The connection or the answer was broken. The call may have been carried out all the same.
    #[error("no usable answer from the API server")]
    Transport(#[source] kube::Error),
}

impl CallError {
    /// The object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(status) if status.is_not_found())
    }

    /// An object of that name exists.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Refused(status) if status.is_already_exists())
    }

    /// The object is not the one, or not in the version, that the call was for.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused(status) if status.is_conflict())
    }

    /// The server's words where it judged the object itself: quota, admission, validation, missing rights.
    pub fn rejection(&self) -> Option<&str> {
        match self {
            Self::Refused(status) => {
                let judged =
                    (400..500).contains(&status.code) && !matches!(status.code, 401 | 408 | 409 | 429);
                judged.then_some(status.message.as_str())
            }
            Self::Silence(_) | Self::Transport(_) => None,
        }
    }

    /// The server's words where it was in trouble itself: a webhook that does not answer, for instance.
    pub fn trouble(&self) -> Option<&str> {
        match self {
            Self::Refused(status) => (status.code >= 500).then_some(status.message.as_str()),
            Self::Silence(_) | Self::Transport(_) => None,
        }
    }

    /// A quota has no room for the object now. The API server has no code of its own for that.
    pub fn is_quota(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 403 && status.message.contains("exceeded quota:"))
    }

    /// How long the server asks to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(status) => {
                let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
                (seconds > 0).then(|| Duration::from_secs(seconds.into()))
            }
            Self::Silence(_) | Self::Transport(_) => None,
        }
    }
}

/// Makes a call.
///
/// # Errors
/// Why it failed.
pub async fn call<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, CallError> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(CallError::Refused(status)),
        Ok(Err(error)) => Err(CallError::Transport(error)),
        Err(_) => Err(CallError::Silence(PATIENCE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16, reason: &str) -> CallError {
        CallError::Refused(Status::failure("words", reason).with_code(code).boxed())
    }

    #[test]
    fn only_a_judgement_on_the_object_is_a_rejection() {
        for (code, reason, rejected) in [
            (400, "BadRequest", true),
            (401, "Unauthorized", false),
            (403, "Forbidden", true),
            (404, "NotFound", true),
            (409, "AlreadyExists", false),
            (409, "Conflict", false),
            (422, "Invalid", true),
            (429, "TooManyRequests", false),
            (500, "InternalError", false),
            (504, "Timeout", false),
        ] {
            assert_eq!(refused(code, reason).rejection().is_some(), rejected, "{code}");
        }
        assert!(refused(409, "AlreadyExists").is_already_exists());
        assert!(!refused(409, "AlreadyExists").is_conflict());
        assert!(refused(409, "Conflict").is_conflict());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends() {
        let error = call(std::future::pending::<kube::Result<()>>()).await.unwrap_err();
        assert_eq!(error.to_string(), "the API server did not answer within 30 s");
    }
}
