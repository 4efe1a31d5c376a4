//! `cijob`: prints the CiJob that would be asked for, and asks for nothing. Neither a cluster nor GitLab is needed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use jiff::Timestamp;
use roadstead_crds::request::{JobRequest, TagSource};
use roadstead_crds::{CiJob, CiJobSpec, names};
use serde_json::Value;

use super::answer::{Answer, Trouble};
use super::identity;
use super::output::Console;
use super::request::{self, Job, Request};
use crate::shim::cli::Options;
use crate::shim::config;
use crate::shim::env::RunnerEnv;
use crate::shim::job_response::JobResponse;
use crate::shim::joblog::Output as _;
use crate::shim::redact::Secrets;
use crate::shim::request as of_gitlab;
use crate::shim::tags::{self, Told};

/// Stands for what is unique to an attempt in the name of a CiJob.
const ATTEMPT: &str = "preview";

/// Said where a job response comes without tags.
const TAGS_UNKNOWN: &str = "the response does not say the job's tags, so they are unknown: --tags TAG,… names them, --tags '' says that it has none";

/// Prints the CiJob of a job response as gitlab-runner has it, or of a request by hand.
pub async fn preview(options: &Options, file: Option<&Path>, tags: Option<&[String]>) -> ExitCode {
    // Without standard streams there is nowhere to print to.
    let Ok(mut console) = Console::new() else { return ExitCode::FAILURE };
    let bytes = request::bytes(file).map_err(|mistake| Trouble::request(mistake.sentence));
    match bytes.and_then(|bytes| cijob(options, file, &bytes, tags)) {
        Ok((job, note)) => {
            if let Some(note) = note {
                console.line(note).await;
            }
            let text = serde_json::to_string_pretty(&job).unwrap_or_default();
            // Who has gone does not need it.
            let _ = console.answer(&format!("{text}\n")).await;
            ExitCode::SUCCESS
        }
        Err(trouble) => {
            console.line(&trouble.sentence).await;
            ExitCode::from(Answer::default().failed(trouble).exit())
        }
    }
}

/// The CiJob, and what there is to say about it.
fn cijob(
    options: &Options,
    file: Option<&Path>,
    bytes: &[u8],
    tags: Option<&[String]>,
) -> Result<(CiJob, Option<&'static str>), Trouble> {
    let now = of_gitlab::in_microseconds(Timestamp::now());
    let by_hand = serde_json::from_slice::<Value>(bytes).is_ok_and(|value| value.get("command").is_some());
    let (mut request, note) = if by_hand {
        (of_hand(options, bytes, tags, now)?, None)
    } else {
        let path = file.map_or_else(|| PathBuf::from("(standard input)"), Path::to_owned);
        let job = JobResponse::parse(bytes, &path).map_err(|error| Trouble::request(error.to_string()))?;
        let told = match tags {
            None => Told::default(),
            Some(tags) => {
                let tags =
                    tags::checked(tags.to_vec()).map_err(|failure| Trouble::request(failure.sentence))?;
                Told { tags, source: Some(TagSource::Job), ..Told::default() }
            }
        };
        let secrets = Secrets::of(&job, &RunnerEnv::new([]));
        let built = of_gitlab::build(&job, told, &secrets, options.class.as_deref(), now);
        (built.map_err(|failure| Trouble::request(failure.sentence))?, tags.is_none().then_some(TAGS_UNKNOWN))
    };
    let name = names::cijob_name(&request.server, request.job.id, ATTEMPT);
    // Where nobody says which namespace is the runner's, the one that the job asks for is known all the same.
    let of_runner = options.namespace.clone().unwrap_or_default();
    let namespace = Some(config::namespace(&mut request, &of_runner)).filter(|name| !name.is_empty());
    // Without what belongs to them such Secrets are nobody's to make, so nothing waits for them.
    let mut job = CiJob::new(&name, CiJobSpec { request, hold: false, replace: None, report: None });
    job.metadata.namespace = namespace;
    Ok((job, note))
}

fn of_hand(
    options: &Options,
    bytes: &[u8],
    tags: Option<&[String]>,
    now: Timestamp,
) -> Result<JobRequest, Trouble> {
    if tags.is_some() {
        return Err(Trouble::request(
            "--tags is for a job response: a request by hand names its tags itself",
        ));
    }
    let (wishes, what) = match request::parse(bytes) {
        Ok(Request::Initialize(wishes)) => (wishes, "session"),
        Ok(Request::Run { job: Job::New(wishes), .. }) => (wishes, "run"),
        Ok(Request::Run { .. } | Request::Cleanup { .. }) => {
            return Err(Trouble::request(
                "the request is about a job that is there already: it asks for none",
            ));
        }
        Err(mistake) => return Err(Trouble::request(mistake.sentence)),
    };
    let request = identity::request(&wishes, what, options.class.as_deref(), now);
    request.map_err(|failure| Trouble::request(failure.sentence))
}
