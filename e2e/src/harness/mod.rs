//! Plays gitlab-runner's custom executor, without GitLab: calls a driver with the same arguments, environment,
//! files, pipes, signals and scripts, in the same order, and keeps everything that happens.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use roadstead_e2e::{coordinator::JobSpec, harness::{Driver, Harness, RunnerConfig}};
//! # async fn example() -> anyhow::Result<()> {
//! let harness = Harness::new(RunnerConfig::new(Driver::shim("/usr/local/bin/executor-shim")))?;
//! let job = harness.start(&JobSpec::fresh().image("job:1").script(["echo hello", "exit 3"])).await?;
//! job.wait_log("hello", Duration::from_secs(30)).await?;
//! job.finish(Duration::from_secs(30)).await?.assert_script_failure(3);
//! # Ok(())
//! # }
//! ```
//!
//! The real program can take the place of the played one: see [`Backend`].

mod attempt;
mod backend;
mod build;
mod config;
mod duration;
mod error;
mod flags;
mod job;
mod joblog;
mod lifecycle;
mod moment;
mod process;
mod quote;
pub mod real;
mod record;
mod remote;
mod result;
mod running;
mod scope;
mod script;
mod settings;
mod variables;

#[cfg(test)]
mod tests;

pub use backend::Backend;
pub use config::{Driver, Program, RunnerConfig};
pub use moment::Moment;
pub use process::Orphan;
pub use record::{CallExit, CallKind, CallRecord, OutputEvent, Stream};
pub use result::{JobResult, Outcome};
pub use running::RunningJob;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::coordinator::JobSpec;
use build::Build;
use running::{HarnessJob, Kind};

/// A played gitlab-runner. It runs any number of jobs at once.
#[derive(Debug)]
pub struct Harness {
    config: Arc<RunnerConfig>,
    temporary: PathBuf,
    folder: Option<Arc<TempDir>>,
}

impl Harness {
    /// A runner with these settings.
    ///
    /// # Errors
    /// When no temporary folder can be made.
    pub fn new(config: RunnerConfig) -> Result<Self> {
        let (temporary, folder) = if let Some(path) = &config.temporary {
            (path.clone(), None)
        } else {
            let folder = tempfile::Builder::new()
                .prefix("roadstead-harness")
                .tempdir()
                .context("cannot make a temporary folder")?;
            (folder.path().to_owned(), Some(Arc::new(folder)))
        };
        Ok(Self { config: Arc::new(config), temporary, folder })
    }

    /// Its settings.
    pub fn config(&self) -> &RunnerConfig {
        &self.config
    }

    /// Starts a job. This moment counts as its assignment.
    ///
    /// # Errors
    /// When the job cannot be read, or when the coordinator has one of this number.
    pub async fn start(&self, spec: &JobSpec) -> Result<RunningJob> {
        let build = Arc::new(Build::new(Arc::clone(&self.config), spec)?);
        let coordinator = self.config.coordinator.clone();
        if let Some(coordinator) = &coordinator {
            coordinator.adopt(spec).await?;
        }
        let (work, temporary) = (Arc::clone(&build), self.temporary.clone());
        let folder = self.folder.clone();
        let job = HarnessJob::new(build, coordinator, folder, async move {
            lifecycle::run_job(&work, &temporary).await
        });
        Ok(RunningJob(Kind::Harness(Box::new(job))))
    }

    /// Runs a job to its end.
    ///
    /// # Errors
    /// As [`Harness::start`] and [`RunningJob::finish`].
    pub async fn run(&self, spec: &JobSpec, deadline: Duration) -> Result<JobResult> {
        self.start(spec).await?.finish(deadline).await
    }
}
