//! A real gitlab-runner in place of the played one.
//!
//! Each job gets a process of its own with its own `config.toml` and token, so that jobs do not wait for each other
//! and one runner can be killed without the others.

mod log;
mod settings;

pub use settings::KubernetesExecutor;

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::coordinator::{Coordinator, JobSnapshot, JobSpec, JobState, RemoteStatus};

use super::config::RunnerConfig;
use super::moment::Moment;
use super::result::{JobResult, Outcome};
use super::running::{Kind, RunningJob};

/// Names the program.
pub const PROGRAM_VARIABLE: &str = "ROADSTEAD_GITLAB_RUNNER";

/// The gitlab-runner that the environment names.
pub fn program() -> Option<PathBuf> {
    std::env::var_os(PROGRAM_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Starts real gitlab-runners for jobs of a coordinator.
#[derive(Debug)]
pub struct RealRunner {
    program: PathBuf,
    config: RunnerConfig,
    kubernetes: Option<KubernetesExecutor>,
    coordinator: Coordinator,
    folder: Arc<TempDir>,
}

impl RealRunner {
    /// Uses the program at `program` with the same settings as the played runner. What cannot be configured in the
    /// real one (pauses, versions) is ignored.
    ///
    /// # Errors
    /// When the settings have no coordinator, or when no temporary folder can be made.
    pub fn new(program: impl Into<PathBuf>, config: RunnerConfig) -> Result<Self> {
        let coordinator = config.coordinator.clone().context("a real runner needs a coordinator")?;
        let folder = tempfile::Builder::new()
            .prefix("roadstead-runner")
            .tempdir()
            .context("cannot make a temporary folder")?;
        Ok(Self { program: program.into(), config, kubernetes: None, coordinator, folder: Arc::new(folder) })
    }

    /// Lets it use GitLab's own Kubernetes executor in place of the driver.
    #[must_use]
    pub fn kubernetes(mut self, executor: KubernetesExecutor) -> Self {
        self.kubernetes = Some(executor);
        self
    }

    /// Queues a job and starts a gitlab-runner that takes it.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub async fn start(&self, spec: &JobSpec) -> Result<RunningJob> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let token = format!("glrt-real{}x{number}", spec.id);
        self.coordinator.add_runner(&token);
        self.coordinator.enqueue(&token, spec).await?;

        let folder = self.folder.path().join(format!("runner-{number}"));
        std::fs::create_dir_all(folder.join("tmp")).context("cannot make the runner's folder")?;
        let file = folder.join("config.toml");
        let text =
            settings::config_toml(&self.config, self.kubernetes.as_ref(), self.coordinator.url(), &token);
        std::fs::write(&file, text).context("cannot write config.toml")?;
        let output = std::fs::File::create(folder.join("log")).context("cannot make the runner's log")?;
        let errors = output.try_clone().context("cannot share the runner's log")?;

        let mut command = Command::new(&self.program);
        if !self.config.inherit_env {
            command.env_clear();
        }
        let temporary = self.config.temporary.clone().unwrap_or_else(|| folder.join("tmp"));
        let child = command
            .arg("--debug")
            .arg("run")
            .arg("--config")
            .arg(&file)
            .arg("--working-directory")
            .arg(&folder)
            .envs(self.config.process_env.iter().cloned())
            .env("TMPDIR", temporary)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let job = RealJob {
            id: spec.id,
            coordinator: self.coordinator.clone(),
            pid: child.id(),
            child: Mutex::new(Some(child)),
            end: Mutex::new(None),
            log_file: folder.join("log"),
            config_file: file,
            _folder: Arc::clone(&self.folder),
        };
        Ok(RunningJob(Kind::Real(Box::new(job))))
    }

    /// Runs a job to its end.
    ///
    /// # Errors
    /// As [`RealRunner::start`] and [`RunningJob::finish`].
    pub async fn run(&self, spec: &JobSpec, deadline: Duration) -> Result<JobResult> {
        self.start(spec).await?.finish(deadline).await
    }
}

/// What was done to the job from outside; it decides how its end is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Canceled,
    Interrupted,
    Killed,
}

/// A job in a real gitlab-runner. Dropping it kills the runner.
#[derive(Debug)]
pub(super) struct RealJob {
    id: i64,
    coordinator: Coordinator,
    pid: Option<u32>,
    child: Mutex<Option<Child>>,
    end: Mutex<Option<End>>,
    log_file: PathBuf,
    config_file: PathBuf,
    /// Both files are in it.
    _folder: Arc<TempDir>,
}

impl RealJob {
    pub(super) fn cancel(&self) {
        self.remote(RemoteStatus::Canceling);
    }

    pub(super) fn abort(&self) {
        self.remote(RemoteStatus::Canceled);
    }

    fn remote(&self, status: RemoteStatus) {
        self.set_end(End::Canceled);
        // The job is there: it was queued when this was made.
        let _ = self.coordinator.set_status(self.id, status);
    }

    pub(super) fn interrupt(&self) {
        self.set_end(End::Interrupted);
        self.signal(Signal::SIGTERM);
    }

    pub(super) fn kill(&self) {
        self.set_end(End::Killed);
        self.signal(Signal::SIGKILL);
    }

    pub(super) fn config(&self) -> Option<String> {
        std::fs::read_to_string(&self.config_file).ok()
    }

    fn set_end(&self, end: End) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid.and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    pub(super) fn log(&self) -> Vec<u8> {
        let trace = self.coordinator.job(self.id).map(|job| job.trace).unwrap_or_default();
        log::Log::read(&trace).text
    }

    pub(super) async fn wait_log(&self, text: &str, deadline: Duration) -> Result<()> {
        let has = |job: &JobSnapshot| {
            crate::coordinator::contains(&log::Log::read(&job.trace).text, text.as_bytes())
        };
        self.coordinator
            .wait(self.id, deadline, has)
            .await
            .map(|_| ())
            .map_err(|error| self.with_own_log(error))
    }

    pub(super) async fn wait_longer(&self, length: usize, deadline: Duration) -> Result<()> {
        let has = |job: &JobSnapshot| log::Log::read(&job.trace).text.len() > length;
        self.coordinator
            .wait(self.id, deadline, has)
            .await
            .map(|_| ())
            .map_err(|error| self.with_own_log(error))
    }

    pub(super) async fn wait_stage(&self, stage: &str, deadline: Duration) -> Result<()> {
        let stage = if stage == "build_script" { "step_script" } else { stage };
        let has = |job: &JobSnapshot| log::Log::read(&job.trace).sections.iter().any(|one| one == stage);
        self.coordinator
            .wait(self.id, deadline, has)
            .await
            .map(|_| ())
            .map_err(|error| self.with_own_log(error))
    }

    pub(super) async fn finish(&self, deadline: Duration) -> Result<JobResult> {
        let end = *self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let job = if end == Some(End::Killed) {
            self.coordinator.job(self.id).ok_or_else(|| anyhow!("there is no job {}", self.id))?
        } else {
            self.coordinator.wait_final(self.id, deadline).await.map_err(|error| self.with_own_log(error))?
        };
        self.stop().await;
        let read = log::Log::read(&job.trace);
        let assigned = Moment::from_clock(job.assigned_at.context("no runner took the job")?);
        Ok(JobResult {
            id: self.id,
            outcome: outcome(&job, end, &read),
            calls: Vec::new(),
            assigned,
            ended: job.finished_at.map_or_else(Moment::now, Moment::from_clock),
            tmpdirs: Vec::new(),
            orphan: None,
            first_output: read.first_output,
            first_line: read.first_line,
            lines: read.lines,
            log: read.text,
            _folder: None,
        })
    }

    /// Lets the runner go: it has nothing left to do.
    async fn stop(&self) {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut child) = child else { return };
        self.signal(Signal::SIGQUIT);
        if tokio::time::timeout(Duration::from_secs(10), child.wait()).await.is_err() {
            // It hangs on something that no test waits for.
            let _ = child.kill().await;
        }
    }

    /// Adds the end of the runner's own log to an error.
    fn with_own_log(&self, error: anyhow::Error) -> anyhow::Error {
        let own = std::fs::read(&self.log_file).unwrap_or_default();
        let own = String::from_utf8_lossy(&own);
        let lines: Vec<&str> = own.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        error.context(format!("gitlab-runner says:\n{tail}"))
    }
}

fn outcome(job: &JobSnapshot, end: Option<End>, log: &log::Log) -> Outcome {
    let message = || log.last_error();
    match (&job.state, end) {
        (JobState::Success, _) => Outcome::Success,
        (JobState::Pending | JobState::Running, _) => Outcome::RunnerKilled,
        (JobState::Failed { reason, exit_code }, _) => match reason.as_str() {
            "script_failure" => Outcome::ScriptFailure { exit_code: exit_code.unwrap_or(0) },
            "job_execution_timeout" => Outcome::TimedOut { message: message() },
            "runner_configuration_error" => Outcome::ConfigurationError { message: message() },
            "runner_interrupted" => Outcome::Interrupted,
            // Reasons that GitLab has no word for arrive as this one.
            "unknown_failure" if end == Some(End::Canceled) => Outcome::Canceled,
            "unknown_failure" if end == Some(End::Interrupted) => Outcome::Interrupted,
            "job_canceled" => Outcome::Canceled,
            // Versions before 19 have no word of their own for it.
            _ if end == Some(End::Interrupted) && message().starts_with("aborted:") => Outcome::Interrupted,
            _ => Outcome::SystemFailure { message: message() },
        },
    }
}
