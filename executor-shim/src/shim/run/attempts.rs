//! How often a section of the job is tried. Pure.
//!
//! gitlab-runner repeats checkout, caches and artifacts by calling the stage again. What
//! `EXECUTOR_JOB_SECTION_ATTEMPTS` asks for is the executor's own: another try where not the script
//! failed but what runs it.

use super::supervise::Verdict;
use crate::shim::stage::Stage;
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

    /// Whether the script may come further in the same pod, after that many tries.
    pub fn again(self, tried: u32, verdict: &Verdict) -> bool {
        tried < self.most
            && match verdict {
                Verdict::GivenUp { .. } => true,
                Verdict::Refused(refusal) => {
                    matches!(refusal.reason, RefusalReason::Start | RefusalReason::Script)
                }
                Verdict::Exited(_)
                | Verdict::JobEnded(_)
                | Verdict::Died(_)
                | Verdict::Denied(_)
                | Verdict::StoppedBlindly => false,
            }
    }
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

    use super::*;
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

    #[test]
    fn only_what_another_try_may_mend_is_tried_again() {
        let three = Attempts { most: 3 };
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
            assert_eq!(three.again(1, &verdict), again, "{verdict:?}");
        }
        assert!(three.again(2, &lost) && !three.again(3, &lost) && !Attempts::ONE.again(1, &lost));
    }
}
