//! From the records of a job's calls to the report on it. Pure.

use roadstead_crds::report::{JobReport, Outcome};

use crate::shim::redact::Secrets;
use crate::shim::stage::Stage;
use crate::shim::state::{StageEnd, StageRecord, State};

/// Longest message that a report takes, in characters.
const LONGEST_MESSAGE: usize = 1024;

/// How the job went, by what its calls recorded. Its message may quote the cluster, which may quote
/// the job: everybody who sees the CiJob reads it, so secrets are blackened.
pub fn report(state: &State, secrets: &Secrets) -> JobReport {
    let (outcome, exit_code, message) = verdict(state);
    JobReport {
        outcome,
        exit_code,
        message: message.map(|text| secrets.blacken(&text).chars().take(LONGEST_MESSAGE).collect()),
        start: state.start,
        reconnects: state.reconnects,
        stages: state.stages.iter().map(|record| record.report.clone()).collect(),
    }
}

/// What came first explains what followed: gitlab-runner reports the failed script, whatever fails
/// after it.
fn verdict(state: &State) -> (Outcome, Option<i32>, Option<String>) {
    if let Some(failure) = &state.failure {
        return (outcome(failure.end), None, failure.message.clone());
    }
    let decisive: Vec<&StageRecord> = decisive(state);
    if let Some(record) = decisive.iter().find(|record| record.end != StageEnd::Succeeded) {
        let message = record.message.clone().or_else(|| sentence(record, client(state)));
        return (outcome(record.end), record.report.exit_code.filter(|code| *code != 0), message);
    }
    if let Some(stage) = &state.running {
        return (Outcome::Canceled, None, Some(format!("the call that ran the stage {stage} was killed")));
    }
    if !state.stages.iter().any(|record| Stage::new(record.report.name.as_str()).is_job_script()) {
        let message = format!("{} ended the job before its scripts ran", client(state));
        return (Outcome::Canceled, None, Some(message));
    }
    (Outcome::Succeeded, None, None)
}

/// The last record of each stage whose failure is one of the job: gitlab-runner repeats a stage
/// until it succeeds or the attempts are used up.
fn decisive(state: &State) -> Vec<&StageRecord> {
    let mut last: Vec<&StageRecord> = Vec::new();
    for record in &state.stages {
        last.retain(|earlier| earlier.report.name != record.report.name);
        if !Stage::new(record.report.name.as_str()).may_fail() {
            last.push(record);
        }
    }
    last
}

fn outcome(end: StageEnd) -> Outcome {
    match end {
        StageEnd::Succeeded => Outcome::Succeeded,
        StageEnd::Failed => Outcome::Failed,
        StageEnd::TimedOut => Outcome::TimedOut,
        StageEnd::Stopped => Outcome::Canceled,
        StageEnd::Errored => Outcome::Errored,
    }
}

/// Who has the job run.
fn client(state: &State) -> &'static str {
    if state.by_hand { "whoever ran it by hand" } else { "gitlab-runner" }
}

fn sentence(record: &StageRecord, client: &str) -> Option<String> {
    let stage = &record.report.name;
    match (record.end, record.report.exit_code, record.report.signal) {
        (StageEnd::Stopped, ..) => Some(format!("{client} ended the stage {stage}")),
        (_, Some(code), _) => Some(format!("the script of the stage {stage} exited with {code}")),
        (_, None, Some(signal)) => Some(format!("signal {signal} ended the script of the stage {stage}")),
        (_, None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use roadstead_crds::report::StageReport;

    use super::*;
    use crate::shim::env::RunnerEnv;
    use crate::shim::job_response::JobResponse;
    use crate::shim::state::StartFailure;

    fn record(name: &str, end: StageEnd, exit_code: Option<i32>) -> StageRecord {
        let report = StageReport {
            name: name.into(),
            container: "build".into(),
            exit_code,
            signal: None,
            stdout_bytes: 0,
            stderr_bytes: 0,
            duration_ms: 0,
            oom_kills: None,
            cpu_ms: None,
            peak_memory_bytes: None,
        };
        StageRecord { report, end, message: None }
    }

    fn state(stages: &[(&str, StageEnd, Option<i32>)]) -> State {
        let mut state = State::new("jobs".into(), "cij-1-0123456789".into(), Timestamp::UNIX_EPOCH);
        state.stages = stages.iter().map(|(name, end, code)| record(name, *end, *code)).collect();
        state
    }

    #[test]
    fn outcomes() {
        use StageEnd::{Errored, Failed, Stopped, Succeeded, TimedOut};
        let ok = |name| (name, Succeeded, Some(0));
        for (stages, outcome, code) in [
            (&[ok("get_sources"), ok("build_script")][..], Outcome::Succeeded, None),
            (&[ok("get_sources"), ("build_script", Failed, Some(3))], Outcome::Failed, Some(3)),
            (&[ok("build_script"), ("after_script", Failed, Some(3))], Outcome::Succeeded, None),
            (&[ok("build_script"), ("cleanup_file_variables", Failed, Some(1))], Outcome::Succeeded, None),
            (&[ok("build_script"), ("archive_cache", Failed, Some(1))], Outcome::Failed, Some(1)),
            (
                &[("build_script", Failed, Some(4)), ("archive_cache", Failed, Some(1))],
                Outcome::Failed,
                Some(4),
            ),
            // Repeated until it succeeded.
            (
                &[("get_sources", Failed, Some(1)), ok("get_sources"), ok("build_script")],
                Outcome::Succeeded,
                None,
            ),
            (&[("get_sources", Failed, Some(1)), ("get_sources", Failed, Some(2))], Outcome::Failed, Some(2)),
            (
                &[ok("get_sources"), ("build_script", Errored, None), ok("upload_artifacts_on_failure")],
                Outcome::Errored,
                None,
            ),
            (&[("build_script", TimedOut, Some(1)), ok("after_script")], Outcome::TimedOut, Some(1)),
            (&[ok("build_script"), ("after_script", TimedOut, None)], Outcome::Succeeded, None),
            (&[("build_script", Stopped, Some(1)), ok("after_script")], Outcome::Canceled, Some(1)),
            (
                &[("build_script", Failed, Some(1)), ("archive_cache", Errored, None)],
                Outcome::Failed,
                Some(1),
            ),
            (&[("get_sources", Errored, None), ("archive_cache", Failed, Some(1))], Outcome::Errored, None),
            // gitlab-runner never came to the job's scripts.
            (&[ok("prepare_script"), ok("get_sources")], Outcome::Canceled, None),
            (&[], Outcome::Canceled, None),
        ] {
            let report = report(&state(stages), &Secrets::default());
            assert_eq!((report.outcome, report.exit_code), (outcome, code), "{stages:?}");
            assert_eq!(
                report.message.is_some(),
                !matches!(outcome, Outcome::Succeeded | Outcome::Errored),
                "{stages:?}"
            );
        }
    }

    #[test]
    fn a_start_that_failed_decides() {
        let mut state = state(&[]);
        state.failure = Some(StartFailure { end: StageEnd::Failed, message: Some("no such image".into()) });
        let report = report(&state, &Secrets::default());
        assert_eq!((report.outcome, report.message.as_deref()), (Outcome::Failed, Some("no such image")));
    }

    #[test]
    fn a_message_keeps_the_secrets_that_it_quotes_to_itself() {
        let job: JobResponse = serde_json::from_str(r#"{"id":1,"token":"job-token"}"#).unwrap();
        let secrets = Secrets::of(&job, &RunnerEnv::new([]));
        let mut state = state(&[]);
        let message = "the node says: invalid image job-token:1".to_owned();
        state.failure = Some(StartFailure { end: StageEnd::Failed, message: Some(message) });
        let message = report(&state, &secrets).message.unwrap();
        assert_eq!(message, "the node says: invalid image [MASKED]:1");
    }

    #[test]
    fn a_call_that_was_killed_is_no_success() {
        let mut state = state(&[("build_script", StageEnd::Succeeded, Some(0))]);
        state.running = Some("after_script".into());
        assert_eq!(report(&state, &Secrets::default()).outcome, Outcome::Canceled);
    }
}
