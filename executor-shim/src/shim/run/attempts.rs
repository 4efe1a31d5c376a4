//! How often a section of the job is tried. Pure.
//!
//! gitlab-runner repeats checkout, caches and artifacts by calling the stage again. What
//! `EXECUTOR_JOB_SECTION_ATTEMPTS` asks for is the executor's own: another try where not the script
//! failed but what runs it.

use super::supervise::{JobEnd, Verdict};
use crate::shim::stage::Stage;
use crate::shim::state::{StageEnd, State};
use crate::wire::message::RefusalReason;

/// GitLab's variable.
pub const VARIABLE: &str = "EXECUTOR_JOB_SECTION_ATTEMPTS";

/// As many as GitLab allows.
const MOST: u32 = 10;

/// How often a stage may be begun in one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// How often, from 1.
    pub most: u32,
}

impl Attempts {
    /// Just once.
    pub const ONE: Self = Self { most: 1 };

    /// The attempts that the variable asks for, for that stage. A script of the job's own is begun
    /// once, whatever it asks for.
    pub fn of(stage: &Stage, value: Option<&str>) -> Self {
        if stage.is_section() { Self { most: read(value).0 } } else { Self::ONE }
    }

    /// Where the script is begun again after that many times, if it is.
    pub fn next(self, (begun, sent): (u32, bool), stage: &Stage, known: &State, verdict: &Verdict) -> Next {
        match verdict {
            // In another pod nothing of the stage has been done yet, unless its script was there before.
            Verdict::JobEnded(JobEnd::PodLost { .. }) if may_move(stage, known) => {
                if !sent || stage.is_first() || begun < self.most { Next::OtherPod } else { Next::Nowhere }
            }
            Verdict::GivenUp { .. } if begun < self.most => Next::SamePod,
            Verdict::Refused(refusal)
                if begun < self.most
                    && matches!(refusal.reason, RefusalReason::Start | RefusalReason::Script) =>
            {
                Next::SamePod
            }
            _ => Next::Nowhere,
        }
    }
}

/// Where a script is begun again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// In the pod that it was meant for.
    SamePod,
    /// In the one that takes its place.
    OtherPod,
    /// It is not.
    Nowhere,
}

/// Whether the job would miss nothing in another pod: no stage has completed but the first, which
/// leaves nothing behind.
fn may_move(stage: &Stage, known: &State) -> bool {
    let leaves_nothing = |stage: &Stage| stage.is_section() || stage.name() == "clear_worktree";
    leaves_nothing(stage)
        && known.stages.iter().all(|record| {
            let stage = Stage::new(record.report.name.as_str());
            leaves_nothing(&stage) && (record.end != StageEnd::Succeeded || stage.name() != "get_sources")
        })
}

/// What is wrong with the variable, if anything is.
pub fn complaint(value: Option<&str>) -> Option<String> {
    read(value).1
}

fn read(value: Option<&str>) -> (u32, Option<String>) {
    let Some(value) = value.map(str::trim).filter(|value| !value.is_empty()) else { return (1, None) };
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let number = match value.parse::<u32>() {
        Ok(number @ 1..=MOST) => return (number, None),
        // However many digits it has.
        _ if digits && value.bytes().any(|byte| byte != b'0') => MOST,
        _ => 1,
    };
    // It may hold anything, so it is not quoted.
    (number, Some(format!("WARNING: {VARIABLE} is not a number from 1 to {MOST}; {number} is used")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;
    use roadstead_crds::Reason;
    use roadstead_crds::report::StageReport;

    use super::*;
    use crate::shim::state::StageRecord;
    use crate::wire::message::{ExitRecord, Refusal};

    #[test]
    fn nonsense_is_said_and_means_the_nearest_number() {
        for (value, number, said) in [
            (None, 1, false),
            (Some(""), 1, false),
            (Some("1"), 1, false),
            (Some("10"), 10, false),
            (Some(" 3 "), 3, false),
            (Some("11"), 10, true),
            (Some("99999999999999999999"), 10, true),
            (Some("0"), 1, true),
            (Some("-1"), 1, true),
            (Some("three"), 1, true),
        ] {
            assert_eq!(Attempts::of(&Stage::new("get_sources"), value).most, number, "{value:?}");
            assert_eq!(complaint(value).is_some(), said, "{value:?}");
        }
        assert_eq!(
            complaint(Some("11")).unwrap(),
            "WARNING: EXECUTOR_JOB_SECTION_ATTEMPTS is not a number from 1 to 10; 10 is used"
        );
    }

    #[test]
    fn what_runs_scripts_of_the_job_is_begun_once() {
        let of = |stage| Attempts::of(&Stage::new(stage), Some("3")).most;
        for (stage, most) in [
            ("prepare_script", 3),
            ("get_sources", 3),
            ("restore_cache", 1),
            ("build_script", 1),
            ("step_release", 1),
            ("after_script", 1),
            ("upload_artifacts_on_success", 1),
        ] {
            assert_eq!(of(stage), most, "{stage}");
        }
    }

    fn known(stages: &[(&str, StageEnd)]) -> State {
        let mut known = State::new("jobs".into(), "cij-1-0123456789".into(), Timestamp::UNIX_EPOCH);
        for (name, end) in stages {
            let report = StageReport {
                name: (*name).into(),
                container: "helper".into(),
                exit_code: None,
                signal: None,
                stdout_bytes: 0,
                stderr_bytes: 0,
                duration_ms: 0,
                oom_kills: None,
                peak_memory_bytes: None,
                cpu_ms: None,
            };
            known.record(StageRecord { report, end: *end, message: None });
        }
        known
    }

    #[test]
    fn only_what_another_try_may_mend_is_tried_again() {
        let (three, known, stage) = (Attempts { most: 3 }, known(&[]), Stage::new("get_sources"));
        let next = |attempts: Attempts, begun, verdict: &Verdict| {
            attempts.next((begun, true), &stage, &known, verdict)
        };
        let refused = |reason| Verdict::Refused(Refusal { reason, message: "no".into() });
        let lost = Verdict::GivenUp { reason: "no route".into(), after: Duration::from_secs(301) };
        for (verdict, again) in [
            (lost.clone(), true),
            (refused(RefusalReason::Start), true),
            (refused(RefusalReason::Script), true),
            (refused(RefusalReason::NoShell), false),
            (refused(RefusalReason::WrongPod), false),
            (Verdict::Exited(ExitRecord { code: Some(1), ..ExitRecord::default() }), false),
            (Verdict::Denied("no".into()), false),
            (Verdict::StoppedBlindly, false),
        ] {
            let expected = if again { Next::SamePod } else { Next::Nowhere };
            assert_eq!(next(three, 1, &verdict), expected, "{verdict:?}");
        }
        assert_eq!((next(three, 2, &lost), next(three, 3, &lost)), (Next::SamePod, Next::Nowhere));
        assert_eq!(next(Attempts::ONE, 1, &lost), Next::Nowhere);
    }

    #[test]
    fn a_job_moves_to_another_pod_as_long_as_nothing_would_be_missing_there() {
        use StageEnd::{Errored, Failed, Succeeded};
        let lost = Verdict::JobEnded(JobEnd::PodLost { reason: Reason::PodEvicted, message: "no".into() });
        let next = |attempts: Attempts, sent, stage: &str, stages: &[(&str, StageEnd)]| {
            attempts.next((1, sent), &Stage::new(stage), &known(stages), &lost)
        };
        let first = ("prepare_script", Succeeded);
        // What was never begun, and the stage that leaves nothing behind.
        for (stage, sent, stages) in [
            ("prepare_script", false, &[][..]),
            ("prepare_script", true, &[]),
            ("get_sources", false, &[first]),
            ("get_sources", false, &[first, ("get_sources", Failed), ("clear_worktree", Succeeded)]),
            ("clear_worktree", false, &[first, ("get_sources", Errored)]),
        ] {
            assert_eq!(next(Attempts::ONE, sent, stage, stages), Next::OtherPod, "{stage} {stages:?}");
        }
        // A checkout that was begun is begun again as often as the job lets it.
        assert_eq!(next(Attempts::ONE, true, "get_sources", &[first]), Next::Nowhere);
        assert_eq!(next(Attempts { most: 2 }, true, "get_sources", &[first]), Next::OtherPod);
        // The checkout would be missing, or a script of the job would run twice.
        for stage in ["restore_cache", "build_script", "step_a", "after_script", "something_new"] {
            assert_eq!(next(Attempts::ONE, false, stage, &[first]), Next::Nowhere, "{stage}");
        }
        let done = [first, ("get_sources", Succeeded)];
        assert_eq!(next(Attempts { most: 9 }, false, "get_sources", &done), Next::Nowhere);
        let later = [first, ("get_sources", Failed), ("archive_cache_on_failure", Succeeded)];
        assert_eq!(next(Attempts { most: 9 }, false, "get_sources", &later), Next::Nowhere);
    }
}
