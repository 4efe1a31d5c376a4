//! `cleanup`: reports how the job ended, and lets go of its pod.
//!
//! gitlab-runner sends the job's final state only after this call, so it is short, and it never
//! fails: what it cannot do, the pod's orphan clock and its deadline will.

use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams};
use roadstead_crds::CiJob;
use roadstead_crds::report::{JobReport, Outcome, ReportedStart};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::shim::cli::Options;
use crate::shim::cluster::{Cluster, Meaning, RequestError, persistently};
use crate::shim::env::RunnerEnv;
use crate::shim::outcome;
use crate::shim::redact::Secrets;
use crate::shim::state::{State, StateError, StateFile};

/// How long the whole call may take.
const WITHIN: Duration = Duration::from_secs(10);

/// What there is to let go of.
pub enum Job {
    /// It was never created.
    None,
    /// What the calls before this one have recorded.
    Recorded(Box<State>),
    /// Only the name and namespace that gitlab-runner handed on.
    Named(String, String),
}

/// Lets go of the job. Answers with a line for gitlab-runner's own log, where there is something
/// to say.
pub async fn cleanup(options: &Options, env: &RunnerEnv) -> Option<String> {
    let file = env.tmpdir().ok().map(|tmpdir| StateFile::in_dir(&tmpdir));
    let (job, note) = job(file.as_ref(), env);
    let note = match job {
        Job::None => note,
        job => {
            let let_go = let_go(options, &Secrets::known(env), &job).await;
            let_go.map_or_else(|reason| Some(left_alone(&reason)), |()| note)
        }
    };
    if let Some(Err(error)) = file.map(|file| file.remove()) {
        tracing::debug!(%error, "cannot remove the state file");
    }
    note
}

fn job(file: Option<&StateFile>, env: &RunnerEnv) -> (Job, Option<String>) {
    let (state, note) = match file.map(StateFile::read) {
        Some(Ok(state)) => (Some(state), None),
        Some(Err(StateError::Missing { .. })) | None => (None, None),
        Some(Err(error)) => (None, Some(error.to_string())),
    };
    let job = match (state, env.job()) {
        (Some(state), _) if state.refused => Job::None,
        (Some(state), _) => Job::Recorded(Box::new(state)),
        (None, Some((name, namespace))) => Job::Named(name, namespace),
        (None, None) => Job::None,
    };
    (job, note)
}

/// What to say where the job could not be let go of.
pub fn left_alone(reason: &str) -> String {
    format!(
        "the job's pod is left to the cluster, which removes it when it is orphaned or past its deadline: {reason}"
    )
}

/// Lets go of the job. An error says why that was not possible.
pub async fn let_go(options: &Options, secrets: &Secrets, job: &Job) -> Result<(), String> {
    let deadline = Instant::now() + WITHIN;
    let letting_go = let_go_by(options, secrets, job, deadline);
    let late = |_| Err(format!("no answer within {} s", WITHIN.as_secs()));
    tokio::time::timeout_at(deadline, letting_go).await.unwrap_or_else(late)
}

async fn let_go_by(options: &Options, secrets: &Secrets, job: &Job, deadline: Instant) -> Result<(), String> {
    let cluster = Cluster::find(options).await.map_err(|error| error.to_string())?;
    match job {
        Job::None => Ok(()),
        Job::Recorded(state) => {
            let report = outcome::report(state, secrets);
            let api = cluster.cijobs(&state.namespace);
            send(&api, &state.cijob, state.cijob_uid.as_deref(), &report, deadline).await
        }
        Job::Named(name, namespace) => {
            let api = cluster.cijobs(namespace);
            let what = format!("look at the CiJob {namespace}/{name}");
            let there = persistently(deadline, || api.get_opt(name)).await;
            match there.map_err(|error| error.sentence(&what))? {
                // An earlier call may have reported it with all that was known.
                Some(job) if !is_over(&job) => {
                    let uid = job.metadata.uid.as_deref();
                    send(&api, name, uid, &report_of_unknown(), deadline).await
                }
                _ => Ok(()),
            }
        }
    }
}

fn is_over(job: &CiJob) -> bool {
    let phase = job.status.as_ref().and_then(|status| status.phase);
    job.spec.report.is_some() || phase.is_some_and(roadstead_crds::Phase::is_final)
}

fn report_of_unknown() -> JobReport {
    JobReport {
        outcome: Outcome::Errored,
        exit_code: None,
        message: Some("the records of the job were lost".to_owned()),
        start: ReportedStart::default(),
        reconnects: 0,
        stages: Vec::new(),
    }
}

async fn send(
    api: &Api<CiJob>,
    name: &str,
    uid: Option<&str>,
    report: &JobReport,
    deadline: Instant,
) -> Result<(), String> {
    let patch = Patch::Merge(patch(uid, report));
    let params = PatchParams::default();
    let sent = persistently(deadline, || api.patch(name, &params, &patch)).await;
    match sent.as_ref().map_err(RequestError::meaning) {
        // Gone, or another one of the same name: there is nothing to let go of.
        Ok(_) | Err(Meaning::NotFound | Meaning::Conflict) => Ok(()),
        Err(_) => {
            let what = format!("report the end of the CiJob {name}");
            sent.map(drop).map_err(|error| error.sentence(&what))
        }
    }
}

fn patch(uid: Option<&str>, report: &JobReport) -> Value {
    let mut patch = json!({ "spec": { "report": report } });
    if let (Some(uid), Some(fields)) = (uid, patch.as_object_mut()) {
        // The API server refuses the patch for any other object of the name.
        fields.insert("metadata".to_owned(), json!({ "uid": uid }));
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_report_is_patched_and_only_of_the_same_object() {
        let patch = patch(Some("u-1"), &report_of_unknown());
        assert_eq!(patch["metadata"], json!({"uid": "u-1"}));
        assert_eq!(patch["spec"].as_object().unwrap().keys().collect::<Vec<_>>(), ["report"]);
        assert_eq!(super::patch(None, &report_of_unknown()).get("metadata"), None);
    }

    #[test]
    fn what_there_is_to_let_go_of() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::in_dir(dir.path());
        let nothing = RunnerEnv::new([]);
        let vars = [("ROADSTEAD_JOB", "cij-1-0123456789"), ("ROADSTEAD_NAMESPACE_OF_JOB", "jobs")];
        let named = RunnerEnv::new(vars.map(|(name, value)| (name.into(), value.into())));

        assert!(matches!(job(None, &nothing), (Job::None, None)));
        assert!(matches!(job(Some(&file), &nothing), (Job::None, None)));
        assert!(matches!(job(Some(&file), &named), (Job::Named(..), None)));

        let mut state = State::new("jobs".into(), "cij-1-0123456789".into(), jiff::Timestamp::UNIX_EPOCH);
        file.write(&state).unwrap();
        assert!(matches!(job(Some(&file), &named), (Job::Recorded(_), None)));
        state.refused = true;
        file.write(&state).unwrap();
        assert!(matches!(job(Some(&file), &named), (Job::None, None)));
        std::fs::write(dir.path().join("roadstead.json"), "{").unwrap();
        assert!(matches!(job(Some(&file), &named), (Job::Named(..), Some(_))));
    }
}
