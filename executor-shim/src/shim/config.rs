//! `config`: asks for the job's pod, and prints the settings of the job once it is admitted.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::PostParams;
use roadstead_crds::overrides;
use roadstead_crds::request::JobRequest;
use roadstead_crds::status::{JobConfig, condition};
use roadstead_crds::{CiJob, CiJobSpec, CiJobStatus, Phase, names};
use serde_json::json;
use tokio::time::Instant;

use crate::shim::cli::Options;
use crate::shim::cluster::{Cluster, Meaning, RequestError, persistently};
use crate::shim::deposit::{self, Deposit};
use crate::shim::env::{self, RunnerEnv};
use crate::shim::exit::Failure;
use crate::shim::job_response::JobResponse;
use crate::shim::redact::Secrets;
use crate::shim::registries::{self, Registries};
use crate::shim::request;
use crate::shim::service_variables::Sources;
use crate::shim::services;
use crate::shim::state::{State, StateFile};
use crate::shim::tags;
use crate::shim::watch::{Seen, Watch};

/// How long the API server may take to take the job.
const CREATE_WITHIN: Duration = Duration::from_secs(30);

/// How long the operator may take to look at it.
const ADMIT_WITHIN: Duration = Duration::from_secs(60);

/// Asks for the pod and returns the text for standard output, and lines for the job log where
/// there is something to say.
pub async fn config(options: &Options, env: &RunnerEnv) -> Result<(String, Vec<String>), Failure> {
    let system = |error: &dyn std::error::Error| Failure::system(error.to_string());
    let tmpdir = env.tmpdir().map_err(|error| system(&error))?;
    let response = env.job_response_file().map_err(|error| system(&error))?;
    let job = JobResponse::read(&response).map_err(|error| system(&error))?;
    let now = request::in_microseconds(Timestamp::now());
    let (told, cluster) = tokio::join!(tags::ask(options, env, &job), Cluster::find(options));
    let told = told?;
    let Registries { config: registries, note } = registries::of(&job, env);
    let notes = tags::note(&told).into_iter().chain(services::note(&job)).chain(note).collect();
    let mut request = request::build(&job, told, &Secrets::of(&job, env), options.class.as_deref(), now)?;
    request.registry_credentials = registries.is_some();
    let deposit = Deposit { services: Sources::of(&job, env), registries };
    let name = names::cijob_name(&request.server, request.job.id, &attempt_of(&tmpdir));
    let cluster = cluster.map_err(|error| system(&error))?;

    let file = StateFile::in_dir(&tmpdir);
    let mut state = State::new(namespace(&mut request, &cluster.namespace), name, now);
    let (settings, status) = ask(&cluster, &file, &mut state, request, &deposit).await?;
    Ok((answer(&state, &settings, &status), notes))
}

/// Where the job's objects belong: in the runner's namespace, or in the one that the job asks for, if the class lets it.
pub fn namespace(request: &mut JobRequest, of_runner: &str) -> String {
    // Who asks for what is anyhow asks for nothing.
    request.overrides.retain(|name, value| name != overrides::NAMESPACE || value != of_runner);
    request.overrides.get(overrides::NAMESPACE).map_or(of_runner, String::as_str).to_owned()
}

/// Asks for the job and waits until the operator has admitted it. Where something has to be stored for the job, its pod
/// is made when that is done.
pub async fn ask(
    cluster: &Cluster,
    file: &StateFile,
    state: &mut State,
    request: JobRequest,
    deposit: &Deposit,
) -> Result<(JobConfig, CiJobStatus), Failure> {
    let job_id = request.job.id;
    // Written first: whatever happens from here on, `cleanup` knows what to let go of.
    let write = |state: &State| file.write(state).map_err(|error| Failure::system(error.to_string()));
    write(state)?;
    let spec = CiJobSpec { request, hold: !deposit.is_empty(), replace: None, report: None };
    let job = match create(cluster, state, spec).await {
        Ok(job) => job,
        Err((failure, refused)) => {
            state.refused = refused;
            write(state)?;
            return Err(failure);
        }
    };
    state.cijob_uid = job.uid();
    write(state)?;
    let (settings, status) = admitted(cluster, state, job).await?;
    if !deposit.is_empty() {
        deposit::store(cluster, state, (job_id, &settings), deposit).await?;
    }
    state.shell = Some(settings.shell.as_str().to_owned());
    state.timeouts.clone_from(&status.timeouts);
    state.resources.clone_from(&status.resources);
    state.class.clone_from(&status.class);
    write(state)?;
    Ok((settings, status))
}

/// What is unique to this Prepare attempt: gitlab-runner gives each one a directory of its own.
fn attempt_of(tmpdir: &Path) -> String {
    tmpdir.to_string_lossy().into_owned()
}

/// Creates the CiJob. An error says also whether it is certain that there is none.
async fn create(cluster: &Cluster, state: &State, spec: CiJobSpec) -> Result<CiJob, (Failure, bool)> {
    let api = cluster.cijobs(&state.namespace);
    let what = format!("create the CiJob {}/{}", state.namespace, state.cijob);
    let deadline = Instant::now() + CREATE_WITHIN;
    let job = CiJob::new(&state.cijob, spec);
    let params = PostParams::default();
    let failed = |error: &RequestError| {
        let refused = matches!(error.meaning(), Meaning::Rejected | Meaning::NotFound);
        let overwritten = job.spec.request.overrides.contains_key(overrides::NAMESPACE);
        let failure = if overwritten && error.is_foreign_namespace() {
            Failure::user(format!(
                "{}=\"{}\" is no namespace that this runner may use for jobs: {}",
                overrides::NAMESPACE,
                state.namespace,
                error.sentence(&what)
            ))
        } else {
            Failure::system(error.sentence(&what))
        };
        (failure, refused)
    };
    match persistently(deadline, || api.create(&params, &job)).await {
        Ok(created) => Ok(created),
        // Either an earlier try came through and its answer was lost, or it is somebody else's.
        Err(error) if error.meaning() == Meaning::Conflict => {
            let there = persistently(deadline, || api.get(&state.cijob)).await.map_err(|e| failed(&e))?;
            if there.spec.request == job.spec.request {
                return Ok(there);
            }
            let text = format!(
                "the CiJob {}/{} exists already and is another job's; every attempt needs a TMPDIR of its own",
                state.namespace, state.cijob
            );
            // It must not be let go of either.
            Err((Failure::system(text), true))
        }
        Err(error) => Err(failed(&error)),
    }
}

/// Waits until the operator has admitted the job.
async fn admitted(cluster: &Cluster, state: &State, job: CiJob) -> Result<(JobConfig, CiJobStatus), Failure> {
    let begin = Instant::now();
    let version = job.resource_version();
    let mut watch = Watch::start(cluster.cijobs(&state.namespace), state.cijob.clone(), job.uid(), version);
    let mut status = job.status;
    let mut blind = None;
    loop {
        if let Some(status) = &status
            && let Some(decision) = decide(status)
        {
            return decision.map(|settings| (settings, status.clone()));
        }
        let seen = tokio::time::timeout_at(begin + ADMIT_WITHIN, watch.next()).await;
        match seen.map_err(|_| Failure::system(late(status.as_ref(), blind.as_deref())))? {
            Seen::Job(job) => {
                status = job.status;
                blind = None;
            }
            Seen::Gone => return Err(Failure::system("the job's CiJob was deleted")),
            Seen::Blind(reason) => blind = Some(reason),
            Seen::Denied(reason) => return Err(Failure::system(reason)),
        }
    }
}

/// What the operator has decided, if it has.
fn decide(status: &CiJobStatus) -> Option<Result<JobConfig, Failure>> {
    if status.phase.is_some_and(Phase::is_final) {
        return Some(Err(Failure::of_job(status.reason, status.message.as_deref())));
    }
    let admitted = |condition: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
        condition.type_ == condition::ADMITTED && condition.status == "True"
    };
    status.conditions.iter().any(admitted).then(|| status.config.clone()).flatten().map(Ok)
}

fn late(status: Option<&CiJobStatus>, blind: Option<&str>) -> String {
    let seconds = ADMIT_WITHIN.as_secs();
    match (blind, status.and_then(|status| status.message.as_deref())) {
        (Some(reason), _) => reason.to_owned(),
        (None, Some(message)) => format!("the job was not admitted within {seconds} s: {message}"),
        (None, None) => format!(
            "no Roadstead operator has looked at the job for {seconds} s; is it running, and does it watch this namespace?"
        ),
    }
}

/// What gitlab-runner is told. Values of `job_env` are not masked in job logs, so they are names.
fn answer(state: &State, settings: &JobConfig, status: &CiJobStatus) -> String {
    let mut answer = json!({
        "driver": { "name": "Roadstead", "version": env!("CARGO_PKG_VERSION") },
        "builds_dir": settings.builds_dir,
        "cache_dir": settings.cache_dir,
        "builds_dir_is_shared": false,
        "shell": settings.shell.as_str(),
        "job_env": { env::JOB: state.cijob, env::NAMESPACE_OF_JOB: state.namespace },
    });
    if let (Some(pod), Some(fields)) = (&status.pod, answer.as_object_mut()) {
        fields.insert("hostname".to_owned(), json!(pod.name));
    }
    format!("{answer}\n")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
    use roadstead_crds::Reason;
    use roadstead_crds::jobclass::Shell;
    use roadstead_crds::status::PodStatus;

    use super::*;

    fn settings() -> JobConfig {
        JobConfig { shell: Shell::Sh, builds_dir: "/b".into(), cache_dir: "/c".into() }
    }

    fn status(admitted: &str) -> CiJobStatus {
        let condition = Condition {
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            message: String::new(),
            observed_generation: None,
            reason: "Scheduling".into(),
            status: admitted.into(),
            type_: condition::ADMITTED.into(),
        };
        CiJobStatus { conditions: vec![condition], config: Some(settings()), ..CiJobStatus::default() }
    }

    #[test]
    fn the_decision_is_the_condition_or_a_final_phase() {
        assert_eq!(decide(&CiJobStatus::default()), None);
        assert_eq!(decide(&status("False")), None);
        assert_eq!(decide(&status("True")), Some(Ok(settings())));
        let refused = CiJobStatus {
            phase: Some(Phase::Failed),
            reason: Some(Reason::InvalidImageName),
            message: Some("the image is not valid".into()),
            ..status("True")
        };
        assert_eq!(decide(&refused), Some(Err(Failure::user("the image is not valid"))));
        let unknown = CiJobStatus { phase: Some(Phase::Errored), ..CiJobStatus::default() };
        let sentence = "the job has ended: for an unknown reason";
        assert_eq!(decide(&unknown), Some(Err(Failure::system(sentence))));
    }

    #[test]
    fn a_job_may_ask_for_another_namespace() {
        let asking = |value: Option<&str>| {
            let wish = value.map(|value| (overrides::NAMESPACE.to_owned(), value.to_owned()));
            let mut request: JobRequest = serde_json::from_value(json!({
                "server": "https://gitlab.example", "job": {"id": 1, "name": "j", "stage": "s"},
                "project": {"id": 1, "path": "a/b"}, "ref": {"name": "main", "type": "branch", "sha": ""},
                "overrides": wish.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
                "timeoutSeconds": 60, "requestedAt": "1970-01-01T00:00:00.000000Z",
            }))
            .unwrap();
            (namespace(&mut request, "ci-jobs"), request.overrides.len())
        };
        assert_eq!(asking(None), ("ci-jobs".to_owned(), 0));
        assert_eq!(asking(Some("ci-large")), ("ci-large".to_owned(), 1));
        // It is there anyhow, so nobody has to allow it.
        assert_eq!(asking(Some("ci-jobs")), ("ci-jobs".to_owned(), 0));
    }

    #[test]
    fn the_answer_is_what_gitlab_runner_reads() {
        let state = State::new("jobs".into(), "cij-1-0123456789".into(), Timestamp::UNIX_EPOCH);
        let pod = PodStatus { name: "cij-1-0123456789-3f2a91bc-1".into(), attempt: 1, uid: None, node: None };
        let text = answer(&state, &settings(), &CiJobStatus { pod: Some(pod), ..status("True") });
        let expected = json!({
            "driver": {"name": "Roadstead", "version": env!("CARGO_PKG_VERSION")},
            "builds_dir": "/b", "cache_dir": "/c", "builds_dir_is_shared": false, "shell": "sh",
            "hostname": "cij-1-0123456789-3f2a91bc-1",
            "job_env": {"ROADSTEAD_JOB": "cij-1-0123456789", "ROADSTEAD_NAMESPACE_OF_JOB": "jobs"}
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), expected);
        assert_eq!(text.matches('\n').count(), 1, "one line");
    }
}
