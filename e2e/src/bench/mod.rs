//! `cargo e2e bench`: what Roadstead costs and how fast it is, measured on a real cluster, and beside it GitLab's own
//! Kubernetes executor where a real gitlab-runner is at hand.

mod machine;
mod measure;
mod options;
mod processes;
mod render;
mod report;
mod runtime;
mod stats;

pub use options::{Options, Plan, Topic};
pub use report::{About, Report, Row, Samples, Unit};

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cluster::Cluster;
use crate::coordinator::JobSpec;
use crate::gitlab_executor::{self, GitLabExecutor};
use crate::harness::{Backend, Harness, JobResult, Outcome, RunnerConfig, real};
use crate::installation::Installation;
use crate::progress::{Progress, output};
use crate::state::workspace;

/// Beyond any healthy job's end.
const DEADLINE: Duration = Duration::from_mins(5);

/// How long a watch of the cluster may take to show what has happened.
const SOON: Duration = Duration::from_secs(30);

/// The names of the files in the output folder.
const FILES: [&str; 2] = ["bench.json", "bench.md"];

/// Runs the benchmark, prints the table and writes the files.
pub(crate) async fn run(progress: Progress, cluster: Cluster, options: &Options) -> Result<()> {
    let report = with_progress(progress, cluster, &Plan::of(options)).await?;
    output(format_args!("\n{}\n", render::plain(&report)));
    let dir = options.output.clone().unwrap_or_else(|| workspace().join("target/bench"));
    for file in report.write(&dir)? {
        progress.say(format_args!("bench: wrote {}", file.display()));
    }
    Ok(())
}

/// Measures what the plan says on the running cluster.
///
/// # Errors
/// When there is no cluster, or a job does not succeed.
pub async fn measure(plan: &Plan) -> Result<Report> {
    with_progress(Progress::start(), Cluster::find()?, plan).await
}

async fn with_progress(progress: Progress, cluster: Cluster, plan: &Plan) -> Result<Report> {
    let installation = Installation::of(cluster).await?;
    let mut about = machine::about(&installation, &workspace(), plan).await?;
    progress.say(format_args!("bench: {}; {}", plan.name, about.machine));
    let (ours, theirs) = executors(progress, &installation, plan).await?;
    about.compared = theirs.is_some();
    let bench = Bench { progress, installation: &installation, plan, ours, theirs };
    let measured = Box::pin(bench.measure()).await;
    let removed = match &bench.theirs {
        Some(theirs) => theirs.remove().await,
        None => Ok(()),
    };
    let (rows, notes) = measured?;
    removed?;
    Ok(Report { about, rows, notes })
}

/// Both executors under a real gitlab-runner where there is one, or else ours under the played one.
async fn executors(
    progress: Progress,
    installation: &Installation,
    plan: &Plan,
) -> Result<(Backend, Option<GitLabExecutor>)> {
    let config = quiet(installation);
    let Some(program) = real::program().filter(|_| plan.compare) else {
        let variable = real::PROGRAM_VARIABLE;
        progress
            .say(format_args!("bench: nothing to compare with; {variable} can name a real gitlab-runner"));
        return Ok((Backend::Harness(Box::new(Harness::new(config)?)), None));
    };
    let theirs = if installation.image(gitlab_executor::HELPER).is_ok() {
        progress.say("bench: setting up GitLab's Kubernetes executor");
        Some(GitLabExecutor::install(installation, program.clone(), config.clone()).await?)
    } else {
        let variable = crate::images::RUNNER_HELPER_ENV;
        progress.say(format_args!("bench: GitLab's executor is left out; {variable} has to name its helper"));
        None
    };
    Ok((Backend::Real(Box::new(real::RealRunner::new(program, config)?)), theirs))
}

/// The runner's settings without the diagnostics that tests want.
fn quiet(installation: &Installation) -> RunnerConfig {
    let mut config = installation.runner();
    config.process_env.retain(|(name, _)| !name.to_string_lossy().starts_with("ROADSTEAD_LOG"));
    config
}

impl Report {
    /// Writes the report into a folder, as JSON and as the block for the documentation, and tells the files.
    ///
    /// # Errors
    /// When the folder cannot be made or a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<[PathBuf; 2]> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let json = serde_json::to_string_pretty(self).context("cannot write the report")? + "\n";
        let files = FILES.map(|name| dir.join(name));
        for (file, text) in files.iter().zip([json, render::markdown(self)]) {
            fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(files)
    }
}

/// What all measurements need.
struct Bench<'a> {
    progress: Progress,
    installation: &'a Installation,
    plan: &'a Plan,
    ours: Backend,
    theirs: Option<GitLabExecutor>,
}

impl Bench<'_> {
    async fn measure(&self) -> Result<(Vec<Row>, Vec<String>)> {
        self.warm_up().await?;
        let (mut rows, mut notes) = (Vec::new(), Vec::new());
        for topic in &self.plan.topics {
            let inside = matches!(topic, Topic::Requests | Topic::Memory | Topic::Idle);
            if inside && let Err(error) = self.installation.cluster.host_parts() {
                self.progress.say(format_args!("bench: {topic:?}: {error:#}"));
                notes.push(format!("Not measured here: {topic:?} ({error:#})."));
                continue;
            }
            rows.extend(match topic {
                Topic::Start => measure::start(self).await?,
                Topic::Parallel => measure::parallel(self).await?,
                Topic::Output => measure::output(self).await?,
                Topic::Requests => measure::requests(self).await?,
                Topic::Memory => measure::memory(self).await?,
                Topic::Size => measure::size(self).await?,
                Topic::Idle => measure::idle(self).await?,
            });
        }
        Ok((rows, notes))
    }

    /// Programs and images are in the page cache afterwards, for both executors.
    async fn warm_up(&self) -> Result<()> {
        for _ in 0..self.plan.warm_up {
            let spec = self.job("echo warm")?;
            self.run_ours(&spec).await?;
            self.run_theirs(&self.job("echo warm")?).await?;
        }
        Ok(())
    }

    /// A job with one command, in the smallest image.
    fn job(&self, command: impl Into<String>) -> Result<JobSpec> {
        Ok(JobSpec::fresh().image(self.installation.image("busybox")?).script([command]))
    }

    /// Runs a job by Roadstead and waits until nothing of it is left in the cluster.
    async fn run_ours(&self, spec: &JobSpec) -> Result<JobResult> {
        let result = succeeded(self.ours.run(spec, DEADLINE).await?)?;
        self.installation.wait_no_pods(spec.id, SOON).await?;
        Ok(result)
    }

    /// The same by GitLab's executor, if it is at hand.
    async fn run_theirs(&self, spec: &JobSpec) -> Result<Option<JobResult>> {
        let Some(theirs) = &self.theirs else { return Ok(None) };
        let (job, _) = theirs.start(spec).await?;
        let result = succeeded(job.finish(DEADLINE).await?)?;
        theirs.wait_no_pods().await?;
        Ok(Some(result))
    }
}

fn succeeded(result: JobResult) -> Result<JobResult> {
    if result.outcome != Outcome::Success {
        bail!("a job of the benchmark ended with {:?}; its log:\n{}", result.outcome, result.text());
    }
    Ok(result)
}

/// The time to a job's first line, in seconds.
fn first_line(result: &JobResult) -> Result<f64> {
    let first = result.first_line().with_context(|| format!("a job without output:\n{}", result.text()))?;
    Ok(first.as_secs_f64())
}
