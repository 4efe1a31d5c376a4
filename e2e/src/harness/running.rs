//! A job that runs: what can be waited for, and what can be done to it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::coordinator::{Coordinator, JobState, contains};

use super::build::Build;
use super::error::JobError;
use super::moment::Moment;
use super::process::{Orphan, Task};
use super::real::RealJob;
use super::result::{JobResult, Outcome, firsts};

/// A job that was started. Dropping it is the same as killing its runner.
#[derive(Debug)]
pub struct RunningJob(pub(super) Kind);

#[derive(Debug)]
pub(super) enum Kind {
    Harness(Box<HarnessJob>),
    Real(Box<RealJob>),
}

/// A job of the played runner.
#[derive(Debug)]
pub(super) struct HarnessJob {
    build: Arc<Build>,
    assigned: Moment,
    task: std::sync::Mutex<Option<Task<Result<(), JobError>>>>,
    coordinator: Option<Coordinator>,
    /// The runner's temporary folders are in it.
    folder: Option<Arc<TempDir>>,
}

impl HarnessJob {
    pub(super) fn new(
        build: Arc<Build>,
        coordinator: Option<Coordinator>,
        folder: Option<Arc<TempDir>>,
        work: impl Future<Output = Result<(), JobError>> + Send + 'static,
    ) -> Self {
        Self {
            build,
            assigned: Moment::now(),
            task: std::sync::Mutex::new(Some(Task::spawn(work))),
            coordinator,
            folder,
        }
    }

    fn take_task(&self) -> Option<Task<Result<(), JobError>>> {
        self.task.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }

    async fn finish(&self, deadline: Duration) -> Result<JobResult> {
        let task = self.take_task();
        let result = match task {
            None => None,
            Some(mut task) => match tokio::time::timeout(deadline, task.join()).await {
                Ok(result) => Some(result.context("the task that plays the runner has panicked")?),
                Err(_) => bail!(
                    "job {} did not end within {deadline:?}; calls: {:#?}; log:\n{}",
                    self.build.job.id,
                    self.build.recorder.calls(),
                    String::from_utf8_lossy(&self.build.log.bytes())
                ),
            },
        };
        let ended = Moment::now();
        let outcome = match &result {
            None => Outcome::RunnerKilled,
            Some(result) => {
                self.say_end(result);
                Outcome::of(result)
            }
        };
        if let Some(coordinator) = &self.coordinator {
            report(coordinator, self.build.job.id, &outcome)?;
        }
        let latest = self.build.runner.latest.borrow().clone();
        let orphan = latest.filter(|process| outcome == Outcome::RunnerKilled && process.exit().is_none());
        let calls = self.build.recorder.calls();
        let (first_output, first_line) = firsts(&calls);
        Ok(JobResult {
            id: self.build.job.id,
            outcome,
            calls,
            log: self.build.log.bytes(),
            assigned: self.assigned,
            ended,
            tmpdirs: self.build.tmpdirs(),
            orphan,
            first_output,
            first_line,
            lines: Vec::new(),
            _folder: self.folder.clone(),
        })
    }

    /// The last line of the job log.
    fn say_end(&self, result: &Result<(), JobError>) {
        match result {
            Ok(()) => self.build.log.info("Job succeeded"),
            Err(error @ JobError::Build { .. }) => {
                self.build.log.error(&format!("Job failed: {}", error.message()));
            }
            Err(error) => self.build.log.error(&format!("Job failed (system failure): {}", error.message())),
        }
    }
}

/// Tells the coordinator how a job ended that was never in its queue.
fn report(coordinator: &Coordinator, id: i64, outcome: &Outcome) -> Result<()> {
    let state = match outcome {
        Outcome::RunnerKilled => return Ok(()),
        Outcome::Success => JobState::Success,
        Outcome::ScriptFailure { exit_code } => {
            JobState::Failed { reason: "script_failure".to_owned(), exit_code: Some(*exit_code) }
        }
        other => JobState::Failed {
            reason: other.failure_reason().unwrap_or("unknown_failure").to_owned(),
            exit_code: None,
        },
    };
    coordinator.finish(id, state)
}

impl RunningJob {
    /// A user cancels the job (`Job-Status: canceling`): the script is stopped, `after_script` runs.
    pub fn cancel(&self) {
        match &self.0 {
            Kind::Harness(job) => job.build.control.cancel(),
            Kind::Real(job) => job.cancel(),
        }
    }

    /// The job is over for GitLab (`Job-Status: canceled`): everything is stopped.
    pub fn abort(&self) {
        match &self.0 {
            Kind::Harness(job) => job.build.control.abort(),
            Kind::Real(job) => job.abort(),
        }
    }

    /// The runner gets SIGTERM.
    pub fn interrupt(&self) {
        match &self.0 {
            Kind::Harness(job) => job.build.control.interrupt(),
            Kind::Real(job) => job.interrupt(),
        }
    }

    /// The runner gets SIGKILL: its ends of all pipes are closed, nobody calls `cleanup`, and a driver's process
    /// that runs lives on ([`JobResult::orphan`]).
    pub fn kill_runner(&self) {
        match &self.0 {
            Kind::Harness(job) => {
                drop(job.take_task());
            }
            Kind::Real(job) => job.kill(),
        }
    }

    /// The driver's process that was started last; `None` before the first one, and with a real runner, which does not tell.
    pub fn process(&self) -> Option<Orphan> {
        match &self.0 {
            Kind::Harness(job) => job.build.runner.latest.borrow().clone(),
            Kind::Real(_) => None,
        }
    }

    /// Whether a real gitlab-runner runs it.
    pub fn is_real(&self) -> bool {
        matches!(self.0, Kind::Real(_))
    }

    /// The configuration file of a real runner as it is now: it writes new tokens into it.
    pub fn config_toml(&self) -> Option<String> {
        match &self.0 {
            Kind::Harness(_) => None,
            Kind::Real(job) => job.config(),
        }
    }

    /// The job log so far.
    pub fn log(&self) -> Vec<u8> {
        match &self.0 {
            Kind::Harness(job) => job.build.log.bytes(),
            Kind::Real(job) => job.log(),
        }
    }

    /// Whether the job log contains a text.
    pub fn log_has(&self, text: &str) -> bool {
        contains(&self.log(), text.as_bytes())
    }

    /// Waits until the job log contains a text.
    ///
    /// # Errors
    /// When the deadline passes first; the log is in the message.
    pub async fn wait_log(&self, text: &str, deadline: Duration) -> Result<()> {
        match &self.0 {
            Kind::Real(job) => job.wait_log(text, deadline).await,
            Kind::Harness(job) => {
                let until = Instant::now() + deadline;
                let mut changes = job.build.log.changes();
                let mut from = 0;
                loop {
                    changes.mark_unchanged();
                    let (found, next) = job.build.log.find(text.as_bytes(), from);
                    if found {
                        return Ok(());
                    }
                    from = next;
                    if tokio::time::timeout_at(until, changes.changed()).await.is_err() {
                        let log = job.build.log.bytes();
                        let log = String::from_utf8_lossy(&log);
                        return Err(anyhow!("{text:?} did not come within {deadline:?}; log:\n{log}"));
                    }
                }
            }
        }
    }

    /// Waits until the job log is longer than `length` bytes.
    ///
    /// # Errors
    /// When the deadline passes first; the log is in the message.
    pub async fn wait_longer(&self, length: usize, deadline: Duration) -> Result<()> {
        match &self.0 {
            Kind::Real(job) => job.wait_longer(length, deadline).await,
            Kind::Harness(job) => {
                let mut changes = job.build.log.changes();
                let grown = tokio::time::timeout(deadline, changes.wait_for(|now| *now > length)).await;
                if matches!(grown, Ok(Ok(_))) {
                    return Ok(());
                }
                let log = job.build.log.bytes();
                let log = String::from_utf8_lossy(&log);
                bail!("the job log did not grow for {deadline:?}; log:\n{log}")
            }
        }
    }

    /// Waits until the driver is called for a stage: `config`, `prepare`, `build_script`, `cleanup` and so on. With
    /// a real runner only stages of `run` can be waited for.
    ///
    /// # Errors
    /// When the deadline passes first; the stages until then are in the message.
    pub async fn wait_stage(&self, stage: &str, deadline: Duration) -> Result<()> {
        match &self.0 {
            Kind::Real(job) => job.wait_stage(stage, deadline).await,
            Kind::Harness(job) => {
                let until = Instant::now() + deadline;
                let mut changes = job.build.recorder.changes();
                loop {
                    changes.mark_unchanged();
                    let stages: Vec<String> = job
                        .build
                        .recorder
                        .look(|calls| calls.iter().map(|call| call.stage.clone()).collect());
                    if stages.iter().any(|one| one == stage) {
                        return Ok(());
                    }
                    if tokio::time::timeout_at(until, changes.changed()).await.is_err() {
                        return Err(anyhow!("{stage} did not begin within {deadline:?}; only {stages:?}"));
                    }
                }
            }
        }
    }

    /// Waits for the end of the job and tells everything about it. After [`RunningJob::kill_runner`] it tells at
    /// once.
    ///
    /// # Errors
    /// When the deadline passes first; calls and log are in the message, and the runner is killed.
    pub async fn finish(self, deadline: Duration) -> Result<JobResult> {
        match &self.0 {
            Kind::Harness(job) => job.finish(deadline).await,
            Kind::Real(job) => job.finish(deadline).await,
        }
    }
}
