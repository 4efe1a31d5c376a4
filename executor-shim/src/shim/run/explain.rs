//! From the verdict on a script to the end of the call, and what the job log says about it. Pure.

use super::limit::Limit;
use super::supervise::{JobEnd, Verdict};
use crate::shim::exit::{End, Failure, TIMED_OUT};
use crate::shim::stage::{Container, Stage};
use crate::shim::state::State;
use crate::wire::message::{ExitRecord, RefusalReason};

/// How the call ends, and a line for the job log where there is something to say that the end
/// itself does not.
pub fn explain(
    verdict: &Verdict,
    (stage, limit, known): (&Stage, Option<&Limit>, &State),
    stopped: bool,
    output_error: Option<&str>,
) -> (End, Option<String>) {
    if stopped {
        let note = output_error.map(|error| format!("cannot write the job log: {error}"));
        return (End::Interrupted, note);
    }
    match verdict {
        Verdict::Exited(record) => exited(record, (stage, limit, known)),
        Verdict::Refused(refusal) => {
            // The helper's image is the administrator's choice, the build image is the job's.
            let users = refusal.reason == RefusalReason::NoShell && stage.container() == Container::Build;
            let failure = if users { Failure::user } else { Failure::system };
            (failure(refusal.message.clone()).into(), None)
        }
        Verdict::JobEnded(end) => (job_ended(end).into(), None),
        Verdict::Died(record) => {
            let reason = record.error.as_deref().unwrap_or("the container died before the script ended");
            (Failure::system(reason).into(), None)
        }
        Verdict::Denied(reason) => (Failure::system(reason.clone()).into(), None),
        Verdict::GivenUp { reason, after } => {
            let text = match after.as_secs() {
                0 => format!("the stage {} was given up: {reason}", stage.name()),
                seconds => format!("the job's pod could not be reached for {seconds} s: {reason}"),
            };
            (Failure::system(text).into(), None)
        }
        Verdict::StoppedBlindly => (End::Interrupted, None),
    }
}

fn exited(
    record: &ExitRecord,
    (stage, limit, known): (&Stage, Option<&Limit>, &State),
) -> (End, Option<String>) {
    if let Some(error) = &record.error {
        return (Failure::system(error.clone()).into(), None);
    }
    // Whatever the script made of it: it was not at its end.
    if let Some(limit) = limit.filter(|_| record.expired) {
        return (Failure { exit_code: Some(TIMED_OUT), ..Failure::user(limit.sentence()) }.into(), None);
    }
    let end = match (record.code, record.signal) {
        (Some(0), None) => return (End::Done, None),
        (Some(code), None) => End::ScriptExited(code),
        (_, Some(signal)) => End::ScriptKilled(signal),
        (None, None) => {
            let text = "the agent's exit record says neither an exit code nor a signal";
            return (Failure::system(text).into(), None);
        }
    };
    let mut notes = Vec::new();
    if record.oom_kills.unwrap_or(0) > 0 {
        notes.push(out_of_memory(record, stage, known));
    }
    if let Some(signal) = record.signal {
        notes.push(format!("the script was ended by signal {}", signal_name(signal)));
    }
    (end, (!notes.is_empty()).then(|| notes.join("; ")))
}

fn out_of_memory(record: &ExitRecord, stage: &Stage, known: &State) -> String {
    let who = if record.signal == Some(KILL) { "the script's shell" } else { "a process of the script" };
    let mut text = format!("{who} was killed: out of memory");
    let container = stage.container();
    let resources = known.resources.get(container.name());
    let said = resources.and_then(|resources| resources.limits.get("memory").cloned());
    if let Some(limit) = said.or_else(|| record.memory_limit_bytes.map(mebibytes)) {
        text = format!("{text}; limit of container \"{container}\" {limit}");
    }
    if let Some(peak) = record.peak_memory_bytes {
        text = format!("{text}, peak {}", mebibytes(peak));
    }
    let variable = match container {
        Container::Build => "KUBERNETES_MEMORY_LIMIT",
        Container::Helper => "KUBERNETES_HELPER_MEMORY_LIMIT",
    };
    match (resources, &known.class) {
        (Some(resources), Some(class)) => format!("{text}; {}", resources.more_of("memory", variable, class)),
        _ => text,
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{}Mi", bytes >> 20)
}

/// SIGKILL, which is what the kernel sends.
const KILL: i32 = 9;

/// Number of a signal, with the name that it has on every Linux.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "HUP",
        2 => "INT",
        3 => "QUIT",
        4 => "ILL",
        6 => "ABRT",
        8 => "FPE",
        9 => "KILL",
        11 => "SEGV",
        13 => "PIPE",
        15 => "TERM",
        _ => return signal.to_string(),
    };
    format!("{signal} (SIG{name})")
}

fn job_ended(end: &JobEnd) -> Failure {
    match end {
        JobEnd::Deleted => Failure::system("the job's CiJob was deleted while the job ran"),
        JobEnd::PodLost { reason, message } => Failure::of_job(Some(*reason), Some(message)),
        JobEnd::Final { reason, message } => Failure::of_job(*reason, message.as_deref()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use roadstead_crds::Reason;
    use roadstead_crds::reason::Blame;
    use roadstead_crds::status::EffectiveResources;

    use super::*;
    use crate::wire::message::Refusal;

    fn record(code: Option<i32>, signal: Option<i32>) -> ExitRecord {
        ExitRecord { code, signal, ..ExitRecord::default() }
    }

    fn known() -> State {
        State::new("jobs".into(), "cij-1-0123456789".into(), Timestamp::UNIX_EPOCH)
    }

    fn of(verdict: &Verdict) -> (End, Option<String>) {
        explain(verdict, (&Stage::new("build_script"), None, &known()), false, None)
    }

    #[test]
    fn ends_of_scripts() {
        assert_eq!(of(&Verdict::Exited(record(Some(0), None))), (End::Done, None));
        assert_eq!(of(&Verdict::Exited(record(Some(2), None))), (End::ScriptExited(2), None));
        assert_eq!(
            of(&Verdict::Exited(record(None, Some(9)))),
            (End::ScriptKilled(9), Some("the script was ended by signal 9 (SIGKILL)".into()))
        );
        let (end, _) = of(&Verdict::Exited(record(None, None)));
        assert!(matches!(end, End::Failed(Failure { blame: Blame::System, .. })));
        let broken = ExitRecord { error: Some("no space left".into()), ..record(Some(0), None) };
        assert_eq!(of(&Verdict::Exited(broken)), (Failure::system("no space left").into(), None));
    }

    #[test]
    fn memory_that_ran_out_is_named_where_it_explains_a_failure() {
        let oom = |code| ExitRecord {
            oom_kills: Some(1),
            memory_limit_bytes: Some(512 << 20),
            peak_memory_bytes: Some((511 << 20) + 1),
            ..record(Some(code), None)
        };
        let note = "a process of the script was killed: out of memory; limit of container \"build\" 512Mi, peak 511Mi";
        assert_eq!(of(&Verdict::Exited(oom(137))), (End::ScriptExited(137), Some(note.into())));
        assert_eq!(of(&Verdict::Exited(oom(0))), (End::Done, None));
        let mut known = known();
        known.class = Some("default".into());
        let amounts = |amount: &str| [("memory".to_owned(), amount.to_owned())].into();
        let resources = EffectiveResources {
            limits: amounts("512Mi"),
            max: amounts("2Gi"),
            ..EffectiveResources::default()
        };
        known.resources = [("build".to_owned(), resources)].into();
        let setting = (&Stage::new("build_script"), None, &known);
        let (_, note) = explain(&Verdict::Exited(oom(137)), setting, false, None);
        assert_eq!(
            note.as_deref(),
            Some(
                "a process of the script was killed: out of memory; limit of container \"build\" 512Mi, peak 511Mi; \
                 let the job use less, or ask for more with KUBERNETES_MEMORY_LIMIT, at most 2Gi in JobClass \"default\""
            )
        );
    }

    #[test]
    fn a_script_that_exceeded_its_limit_failed_whatever_it_made_of_the_end() {
        let mut known = known();
        let limits = r#"{"jobSeconds": 3600, "startSeconds": 600, "scriptSeconds": 60,
            "terminationGraceSeconds": 10, "orphanSeconds": 120, "ttlSecondsAfterFinished": 3600}"#;
        known.timeouts = serde_json::from_str(limits).unwrap();
        let stage = Stage::new("build_script");
        let limit = Limit::of(&known, &stage).unwrap();
        for (code, signal) in [(Some(0), None), (Some(1), None), (None, Some(15))] {
            let expired = ExitRecord { expired: true, stopped: true, ..record(code, signal) };
            let (end, _) = explain(&Verdict::Exited(expired), (&stage, Some(&limit), &known), false, None);
            let failure = Failure { exit_code: Some(124), ..Failure::user(limit.sentence()) };
            assert_eq!(end, failure.into());
        }
        let (end, _) =
            explain(&Verdict::Exited(record(Some(0), None)), (&stage, Some(&limit), &known), false, None);
        assert_eq!(end, End::Done);
    }

    #[test]
    fn refusals_and_whose_doing_they_are() {
        for (reason, stage, blame) in [
            (RefusalReason::NoShell, "build_script", Blame::User),
            (RefusalReason::NoShell, "get_sources", Blame::System),
            (RefusalReason::WrongPod, "build_script", Blame::System),
            (RefusalReason::Start, "build_script", Blame::System),
        ] {
            let verdict = Verdict::Refused(Refusal { reason, message: "no".into() });
            let (end, _) = explain(&verdict, (&Stage::new(stage), None, &self::known()), false, None);
            assert_eq!(end, Failure { blame, sentence: "no".into(), exit_code: None }.into(), "{reason:?}");
        }
    }

    #[test]
    fn a_job_that_ended_under_the_script() {
        let end =
            |reason| Verdict::JobEnded(JobEnd::Final { reason: Some(reason), message: Some("why".into()) });
        let (oom, _) = of(&end(Reason::OutOfMemory));
        assert_eq!(oom, Failure { exit_code: Some(137), ..Failure::user("why") }.into());
        assert_eq!(of(&end(Reason::PodEvicted)).0, Failure::system("why").into());
        assert_eq!(of(&end(Reason::Succeeded)).0, Failure::system("why").into());
        let deleted = Failure::system("the job's CiJob was deleted while the job ran");
        assert_eq!(of(&Verdict::JobEnded(JobEnd::Deleted)).0, deleted.into());
    }

    #[test]
    fn whatever_happened_a_stopped_call_was_stopped() {
        for verdict in [
            Verdict::Exited(record(Some(0), None)),
            Verdict::Exited(record(Some(1), None)),
            Verdict::StoppedBlindly,
            Verdict::GivenUp { reason: "x".into(), after: Duration::from_secs(301) },
        ] {
            let (end, note) = explain(&verdict, (&Stage::new("build_script"), None, &known()), true, None);
            assert_eq!((end, note), (End::Interrupted, None));
        }
    }

    #[test]
    fn out_of_reach() {
        let after = Duration::from_secs(301);
        let (end, _) = of(&Verdict::GivenUp { reason: "connection refused".into(), after });
        let sentence = "the job's pod could not be reached for 301 s: connection refused";
        assert_eq!(end, Failure::system(sentence).into());
    }
}
