//! Every way in which a call can end, and what gitlab-runner is told about it.
//!
//! gitlab-runner knows two failures. `BUILD_FAILURE_EXIT_CODE` is the job's own doing, with the
//! script's exit code in `BUILD_EXIT_CODE_FILE`; `SYSTEM_FAILURE_EXIT_CODE` is anything else, and
//! only with that does `retry: runner_system_failure` apply. A script's exit code is never this
//! process's: a script that exits with 2 is no system failure.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use roadstead_crds::reason::{Blame, Reason};

use crate::shim::env::ExitCodes;

/// What a shell adds to the number of the signal that ended a command.
pub const SIGNAL_BASE: i32 = 128;

/// Exit code of a process that was killed for its memory, as shells show it.
const KILLED: i32 = SIGNAL_BASE + 9;

/// Exit code of a script that ran longer than its class lets it: that of timeout(1).
pub const TIMED_OUT: i32 = 124;

/// Exit code that is reported for a script where the true one is unknown.
const GENERAL_FAILURE: i32 = 1;

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// What was wanted has been done.
    Done,
    /// The script ran and exited with this code, which is not 0.
    ScriptExited(i32),
    /// The script ran and this signal ended it.
    ScriptKilled(i32),
    /// Something else went wrong.
    Failed(Failure),
    /// gitlab-runner wanted the call to end, or is gone.
    Interrupted,
}

/// What went wrong, in a sentence for the job log, and whose doing it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Whether the job's author can mend it.
    pub blame: Blame,
    /// What went wrong and what to do about it.
    pub sentence: String,
    /// Exit code of the script that GitLab shall see, where one is known.
    pub exit_code: Option<i32>,
}

impl Failure {
    /// The job's author can mend it.
    pub fn user(sentence: impl Into<String>) -> Self {
        Self { blame: Blame::User, sentence: sentence.into(), exit_code: None }
    }

    /// Roadstead, the cluster or its administrator.
    pub fn system(sentence: impl Into<String>) -> Self {
        Self { blame: Blame::System, sentence: sentence.into(), exit_code: None }
    }

    /// What it means for a call that the CiJob has a final phase while the call needs the job.
    pub fn of_job(reason: Option<Reason>, message: Option<&str>) -> Self {
        let word = reason.map_or("for an unknown reason", Reason::as_str);
        let sentence = message.map_or_else(|| format!("the job has ended: {word}"), str::to_owned);
        match reason.map(Reason::blame) {
            Some(Blame::User) => {
                let exit_code = (reason == Some(Reason::OutOfMemory)).then_some(KILLED);
                Self { exit_code, ..Self::user(sentence) }
            }
            Some(Blame::System) | None => Self::system(sentence),
        }
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What gitlab-runner is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Exit code 0.
    Success,
    /// The exit code for a failure of the job, with the script's code in the file.
    BuildFailure(i32),
    /// The exit code for a failure of the system.
    SystemFailure,
}

impl End {
    /// What gitlab-runner is told about it.
    pub fn answer(&self) -> Answer {
        match self {
            Self::Done => Answer::Success,
            Self::ScriptExited(code) => Answer::BuildFailure(*code),
            Self::ScriptKilled(signal) => Answer::BuildFailure(SIGNAL_BASE.saturating_add(*signal)),
            Self::Failed(Failure { blame: Blame::User, exit_code, .. }) => {
                Answer::BuildFailure(exit_code.unwrap_or(GENERAL_FAILURE))
            }
            Self::Failed(Failure { blame: Blame::System, .. }) | Self::Interrupted => Answer::SystemFailure,
        }
    }
}

impl Answer {
    /// Gives the answer: writes the file where there is one to write, and returns the exit code of
    /// this process. A code that cannot be handed on must not look like another one, so that is a
    /// system failure; the error says why.
    pub fn give(self, codes: ExitCodes, file: Option<&Path>) -> (ExitCode, Option<io::Error>) {
        match self {
            Self::Success => (ExitCode::SUCCESS, None),
            Self::SystemFailure => (codes.system_failure.into(), None),
            Self::BuildFailure(code) => match file.map(|file| write_code(file, code)) {
                None | Some(Ok(())) => (codes.build_failure.into(), None),
                // Without the file gitlab-runner takes the exit code to be 1.
                Some(Err(error)) if code == GENERAL_FAILURE => (codes.build_failure.into(), Some(error)),
                Some(Err(error)) => (codes.system_failure.into(), Some(error)),
            },
        }
    }
}

/// Writes `N\n` in one step: gitlab-runner reads anything else in the file as a system failure.
fn write_code(file: &Path, code: i32) -> io::Result<()> {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = tempfile::NamedTempFile::new_in(dir)?;
    new.write_all(format!("{code}\n").as_bytes())?;
    new.persist(file).map_err(|error| error.error)?;
    Ok(())
}

/// Removes the exit code of an earlier stage, which gitlab-runner would otherwise read again.
pub fn forget_code(file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODES: ExitCodes = ExitCodes { build_failure: 11, system_failure: 12 };

    #[test]
    fn every_end_has_its_answer() {
        let oom = Failure { exit_code: Some(137), ..Failure::user("out of memory") };
        for (end, answer) in [
            (End::Done, Answer::Success),
            (End::ScriptExited(1), Answer::BuildFailure(1)),
            (End::ScriptExited(2), Answer::BuildFailure(2)),
            (End::ScriptExited(255), Answer::BuildFailure(255)),
            (End::ScriptKilled(9), Answer::BuildFailure(137)),
            (End::ScriptKilled(15), Answer::BuildFailure(143)),
            (Failure::user("no such image").into(), Answer::BuildFailure(1)),
            (oom.into(), Answer::BuildFailure(137)),
            (Failure::system("no node").into(), Answer::SystemFailure),
            (End::Interrupted, Answer::SystemFailure),
        ] {
            assert_eq!(end.answer(), answer, "{end:?}");
        }
    }

    #[test]
    fn the_file_has_the_code_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("build_exit_code");
        let (exit, error) = Answer::BuildFailure(42).give(CODES, Some(&file));
        assert_eq!((exit, error.is_none()), (ExitCode::from(11), true));
        assert_eq!(std::fs::read(&file).unwrap(), b"42\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left behind");

        forget_code(&file).unwrap();
        forget_code(&file).unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn a_code_that_cannot_be_handed_on_is_a_system_failure() {
        let nowhere = Path::new("/nonexistent/dir/build_exit_code");
        let (exit, error) = Answer::BuildFailure(42).give(CODES, Some(nowhere));
        assert_eq!((exit, error.is_some()), (ExitCode::from(12), true));
        assert_eq!(Answer::BuildFailure(1).give(CODES, Some(nowhere)).0, ExitCode::from(11));
        assert_eq!(Answer::BuildFailure(42).give(CODES, None).0, ExitCode::from(11));
        assert_eq!(Answer::SystemFailure.give(CODES, Some(nowhere)).0, ExitCode::from(12));
    }
}
