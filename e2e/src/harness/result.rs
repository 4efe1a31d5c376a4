//! How a job ended and everything that is known about its run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use crate::coordinator::contains;

use super::error::{JobError, Reason};
use super::moment::Moment;
use super::process::Orphan;
use super::record::{CallKind, CallRecord, is_echo};

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All went well.
    Success,
    /// The script failed: `script_failure`.
    ScriptFailure {
        /// What GitLab gets as exit code.
        exit_code: i64,
    },
    /// Something else failed: `runner_system_failure`.
    SystemFailure {
        /// What the job log says.
        message: String,
    },
    /// The runner's or the job's settings are wrong: `runner_configuration_error`.
    ConfigurationError {
        /// What the job log says.
        message: String,
    },
    /// The time was up: `job_execution_timeout`.
    TimedOut {
        /// What the job log says.
        message: String,
    },
    /// Somebody canceled it.
    Canceled,
    /// The runner was told to stop.
    Interrupted,
    /// The runner was killed: nobody reported anything.
    RunnerKilled,
}

impl Outcome {
    pub(super) fn of(result: &Result<(), JobError>) -> Self {
        let Err(error) = result else { return Self::Success };
        let message = error.message();
        match error {
            JobError::Build { reason: Reason::Script, exit_code, .. } => {
                Self::ScriptFailure { exit_code: *exit_code }
            }
            JobError::Build { reason: Reason::Configuration, .. } => Self::ConfigurationError { message },
            JobError::Build { reason: Reason::Canceled, .. } => Self::Canceled,
            JobError::Build { reason: Reason::Timeout, .. } => Self::TimedOut { message },
            JobError::Build { reason: Reason::Interrupted, .. } => Self::Interrupted,
            JobError::System(_) | JobError::Stopped(_) => Self::SystemFailure { message },
        }
    }

    /// GitLab's word for a failure; `None` for success, and where nothing is reported.
    pub fn failure_reason(&self) -> Option<&'static str> {
        match self {
            Self::Success | Self::RunnerKilled => None,
            Self::ScriptFailure { .. } => Some("script_failure"),
            Self::SystemFailure { .. } => Some("runner_system_failure"),
            Self::ConfigurationError { .. } => Some("runner_configuration_error"),
            Self::TimedOut { .. } => Some("job_execution_timeout"),
            Self::Canceled => Some("unknown_failure"),
            Self::Interrupted => Some("runner_interrupted"),
        }
    }
}

/// A job that has ended, or whose runner has.
#[derive(Debug, Clone)]
pub struct JobResult {
    /// Number of the job.
    pub id: i64,
    /// How it ended.
    pub outcome: Outcome,
    /// Every call of the driver, in the order in which they began. A real runner does not tell them.
    pub calls: Vec<CallRecord>,
    /// The job log. The harness masks nothing; a real runner does.
    pub log: Vec<u8>,
    /// When the runner got the job.
    pub assigned: Moment,
    /// When the runner was done with it.
    pub ended: Moment,
    /// The runner's temporary folders, one for each try to prepare. Gone after a cleanup.
    pub tmpdirs: Vec<PathBuf>,
    /// The driver's process that was running when the runner was killed.
    pub orphan: Option<Orphan>,
    /// When the first byte of a user's step came.
    pub(super) first_output: Option<Moment>,
    /// When the first line of a user's step came that is no echoed command.
    pub(super) first_line: Option<Moment>,
    /// Lines of a real runner's log with their times.
    pub(super) lines: Vec<(Moment, Vec<u8>)>,
    /// Keeps what a killed runner has left behind.
    pub(super) _folder: Option<Arc<TempDir>>,
}

impl JobResult {
    /// The job log as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.log).into_owned()
    }

    /// Whether the job log contains a text.
    pub fn log_contains(&self, text: &str) -> bool {
        contains(&self.log, text.as_bytes())
    }

    /// The stages of all calls, in order: `config`, `prepare`, `prepare_script`, … `cleanup`.
    pub fn stages(&self) -> Vec<&str> {
        self.calls.iter().map(|call| call.stage.as_str()).collect()
    }

    /// All calls for one stage.
    pub fn calls_of<'a>(&'a self, stage: &str) -> Vec<&'a CallRecord> {
        self.calls.iter().filter(|call| call.stage == stage).collect()
    }

    /// The last call for one stage.
    ///
    /// # Panics
    /// When there was none; the message names those that there were.
    #[expect(clippy::panic, reason = "this is for assertions of tests")]
    pub fn call<'a>(&'a self, stage: &str) -> &'a CallRecord {
        match self.calls.iter().rev().find(|call| call.stage == stage) {
            Some(call) => call,
            None => panic!("there was no {stage}, only {:?}; log:\n{}", self.stages(), self.text()),
        }
    }

    /// Time from the assignment to the first byte that a user's step wrote to standard output (the echo of its
    /// first command).
    pub fn first_output(&self) -> Option<Duration> {
        self.first_output.map(|at| at.since(self.assigned))
    }

    /// Time from the assignment to the first line on standard output of a user's step that is no echoed command.
    pub fn first_line(&self) -> Option<Duration> {
        self.first_line.map(|at| at.since(self.assigned))
    }

    /// Time from the assignment to the moment when a text was complete on standard output of any `run` call; echoed
    /// commands do not count. With a real runner: when the line was there that has it.
    pub fn when(&self, text: &str) -> Option<Duration> {
        let mut calls = self.calls.iter().filter(|call| call.kind == CallKind::Run);
        let at = calls.find_map(|call| call.when(text)).or_else(|| {
            let has = |line: &[u8]| !is_echo(line) && contains(line, text.as_bytes());
            self.lines.iter().find(|(_, line)| has(line)).map(|(at, _)| *at)
        })?;
        Some(at.since(self.assigned))
    }

    /// The longest time between two lines of a real runner's log, from one with the first text to one with the second.
    pub fn longest_gap(&self, from: &str, to: &str) -> Option<Duration> {
        let at = |text: &str| self.lines.iter().position(|(_, line)| contains(line, text.as_bytes()));
        let between = self.lines.get(at(from)?..=at(to)?)?;
        between.windows(2).map(|pair| pair[1].0.since(pair[0].0)).max()
    }

    /// Time from the assignment to the end.
    pub fn duration(&self) -> Duration {
        self.ended.since(self.assigned)
    }

    /// Panics unless the job has succeeded.
    ///
    /// # Panics
    /// With the whole log.
    pub fn assert_success(&self) -> &Self {
        assert_eq!(self.outcome, Outcome::Success, "log:\n{}", self.text());
        self
    }

    /// Panics unless the script has failed with this exit code.
    ///
    /// # Panics
    /// With the whole log.
    pub fn assert_script_failure(&self, exit_code: i64) -> &Self {
        assert_eq!(self.outcome, Outcome::ScriptFailure { exit_code }, "log:\n{}", self.text());
        self
    }

    /// Panics unless the system has failed.
    ///
    /// # Panics
    /// With the whole log.
    pub fn assert_system_failure(&self) -> &Self {
        assert!(
            matches!(self.outcome, Outcome::SystemFailure { .. }),
            "{:?}, log:\n{}",
            self.outcome,
            self.text()
        );
        self
    }
}

/// First byte and first own line of the user's steps.
pub(super) fn firsts(calls: &[CallRecord]) -> (Option<Moment>, Option<Moment>) {
    let steps = || {
        calls.iter().filter(|call| {
            call.kind == CallKind::Run && (call.stage == "build_script" || call.stage.starts_with("step_"))
        })
    };
    let byte = steps().find_map(|call| call.arrived(super::record::Stream::Stdout, 0));
    let line = steps().find_map(CallRecord::first_line);
    (byte, line)
}
