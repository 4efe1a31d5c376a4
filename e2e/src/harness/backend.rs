//! One test body, two runners: the played one and the real one.

use std::time::Duration;

use anyhow::Result;

use crate::coordinator::JobSpec;

use super::real::RealRunner;
use super::{Harness, JobResult, RunnerConfig, RunningJob};

/// Something that runs jobs through a driver.
#[derive(Debug)]
pub enum Backend {
    /// The played gitlab-runner.
    Harness(Box<Harness>),
    /// A real one.
    Real(Box<RealRunner>),
}

impl Backend {
    /// The played runner, and a real one as well if the environment names one and the settings have a coordinator.
    ///
    /// # Errors
    /// When no temporary folder can be made.
    pub fn available(config: &RunnerConfig) -> Result<Vec<Self>> {
        let mut backends = vec![Self::Harness(Box::new(Harness::new(config.clone())?))];
        if let Some(program) = super::real::program()
            && config.coordinator.is_some()
        {
            backends.push(Self::Real(Box::new(RealRunner::new(program, config.clone())?)));
        }
        Ok(backends)
    }

    /// For messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Harness(_) => "harness",
            Self::Real(_) => "gitlab-runner",
        }
    }

    /// Whether this is a real gitlab-runner, which does not tell what it calls.
    pub fn is_real(&self) -> bool {
        matches!(self, Self::Real(_))
    }

    /// Starts a job.
    ///
    /// # Errors
    /// As [`Harness::start`] and [`RealRunner::start`].
    pub async fn start(&self, spec: &JobSpec) -> Result<RunningJob> {
        match self {
            Self::Harness(harness) => harness.start(spec).await,
            Self::Real(real) => real.start(spec).await,
        }
    }

    /// Runs a job to its end.
    ///
    /// # Errors
    /// As [`Backend::start`] and [`RunningJob::finish`].
    pub async fn run(&self, spec: &JobSpec, deadline: Duration) -> Result<JobResult> {
        self.start(spec).await?.finish(deadline).await
    }
}
