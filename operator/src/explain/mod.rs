//! `roadstead-operator explain`: what would become of a job, without running it.
//!
//! The decision is the operator's own: [`plan`](crate::job::plan::plan) is asked for a CiJob that does not exist.
//! Nothing is asked of a cluster but with `--server`, and nothing is written to one.

mod decision;
mod input;
mod render;
mod schema;
mod server;

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use roadstead_crds::JobClass;
use thiserror::Error;

use crate::classes::made;
use crate::policy::Images;

pub use schema::problems as schema_problems;

/// The job is refused.
const REFUSED: u8 = 1;
/// What was given cannot be used.
const BAD_INPUT: u8 = 2;
/// The cluster cannot be asked.
const UNREACHABLE: u8 = 3;

/// Exit codes, for the help.
const CODES: &str = "Exit code: 0 the job is admitted, 1 it is refused, 2 the input cannot be used, 3 the cluster cannot be asked.

What it prints is YAML: the pod, and everything else as comments above it.

Examples:
  roadstead-operator explain --class classes.yaml job.yaml
  executor-shim cijob --tags gpu response.json | roadstead-operator explain --class classes.yaml
  kubectl -n ci-jobs get cij NAME -o yaml | roadstead-operator explain --server";

/// Explain what would become of a job: which JobClass takes it and why no other does, what it gets, and its pod.
#[derive(Args, Clone, Debug)]
#[command(after_help = CODES)]
pub struct Options {
    /// The job, a CiJob in YAML or JSON; `-` for standard input. Of what is left out of its request, but for
    /// `requestedAt`, an untagged job on an unprotected branch is assumed
    #[arg(value_name = "JOB", default_value = "-")]
    pub job: PathBuf,

    /// File with JobClasses in YAML, any number of documents; may be given more than once
    #[arg(long = "class", value_name = "FILE")]
    pub classes: Vec<PathBuf>,

    /// Take the classes of the cluster too, behind those of files, and ask its API server whether it would take the pod
    /// (a dry run)
    #[arg(long)]
    pub server: bool,

    /// Namespace of the job, in place of the one that it names
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,

    /// Image of the helper container where a JobClass names none
    #[arg(long, env = "ROADSTEAD_HELPER_IMAGE", default_value = "roadstead-helper")]
    pub helper_image: String,

    /// Image that carries the stage-agent
    #[arg(long, env = "ROADSTEAD_AGENT_IMAGE", default_value = "roadstead-agent")]
    pub agent_image: String,
}

/// Why nothing can be explained.
#[derive(Debug, Error)]
enum ExplainError {
    /// What was given cannot be used.
    #[error("{0}")]
    Input(String),
    /// The cluster cannot be asked.
    #[error("{0}")]
    Server(String),
}

/// Explains, and says by its exit code how it came out.
pub async fn explain(options: &Options) -> ExitCode {
    let (text, code) = match explained(options).await {
        Ok((text, true)) => (text, ExitCode::SUCCESS),
        Ok((text, false)) => (text, ExitCode::from(REFUSED)),
        Err(error) => {
            let code = match error {
                ExplainError::Input(_) => BAD_INPUT,
                ExplainError::Server(_) => UNREACHABLE,
            };
            // Without standard error there is only the exit code.
            let _ = writeln!(io::stderr(), "{error}");
            return ExitCode::from(code);
        }
    };
    // A reader that has seen enough, such as `head`, changes nothing about the answer.
    let _ = io::stdout().write_all(text.as_bytes());
    code
}

/// The text, and whether the job is admitted.
async fn explained(options: &Options) -> Result<(String, bool), ExplainError> {
    let job = input::job(&read(&options.job)?, options.namespace.as_deref()).map_err(ExplainError::Input)?;
    let mut classes: Vec<JobClass> = Vec::new();
    for path in &options.classes {
        let found = input::classes(&read(path)?, &path.display().to_string()).map_err(ExplainError::Input)?;
        for class in found {
            if classes.iter().any(|known| known.metadata.name == class.metadata.name) {
                let name = class.metadata.name.unwrap_or_default();
                return Err(ExplainError::Input(format!("JobClass \"{name}\" is given twice")));
            }
            classes.push(class);
        }
    }
    let server = if options.server {
        let server = server::Server::connect().await.map_err(ExplainError::Server)?;
        for class in server.classes().await.map_err(ExplainError::Server)? {
            if classes.iter().all(|known| known.metadata.name != class.metadata.name) {
                classes.push(class);
            }
        }
        Some(server)
    } else if classes.is_empty() {
        let text = "there are no classes: name files with --class, or take the cluster's with --server";
        return Err(ExplainError::Input(text.to_owned()));
    } else {
        None
    };
    let candidates: Vec<_> = classes.into_iter().map(|class| Arc::new(made(Arc::new(class)))).collect();
    let images = Images { helper: options.helper_image.clone(), agent: options.agent_image.clone() };
    let mut decision = decision::decide(&job, &candidates, &images);
    if let (Some(server), Some(pod)) = (&server, &decision.pod) {
        decision.trial = Some(server.try_out(pod).await.map_err(ExplainError::Server)?);
    }
    let text = render::text(&decision)
        .map_err(|error| ExplainError::Input(format!("cannot print the pod: {error}")))?;
    Ok((text, decision.is_admitted()))
}

fn read(path: &Path) -> Result<String, ExplainError> {
    let failed = |error: io::Error| {
        let place =
            if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
        ExplainError::Input(format!("cannot read {place}: {error}"))
    };
    if path != Path::new("-") {
        return std::fs::read_to_string(path).map_err(failed);
    }
    let mut text = String::new();
    io::stdin().lock().read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}
