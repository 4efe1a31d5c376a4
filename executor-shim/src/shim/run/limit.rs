//! How long a script of the job may run by its class. Pure.

use std::time::Duration;

use crate::shim::stage::Stage;
use crate::shim::state::State;

/// The limit of one stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    class: String,
    /// What the class calls it.
    field: &'static str,
    seconds: i64,
    /// What earlier scripts of the job have left of it.
    pub left: Duration,
}

impl Limit {
    /// The limit of that stage, if the class has one.
    pub fn of(known: &State, stage: &Stage) -> Option<Self> {
        let timeouts = known.timeouts.as_ref()?;
        let class = known.class.clone().unwrap_or_default();
        let (field, seconds, spent) = if stage.is_job_script() {
            // By hand each call is a script of its own.
            let spent = if known.by_hand { 0 } else { spent(known) };
            ("scriptSeconds", timeouts.script_seconds?, spent)
        } else if stage.is_after_script() {
            ("afterScriptSeconds", timeouts.after_script_seconds?, 0)
        } else {
            return None;
        };
        let whole = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        Some(Self { class, field, seconds, left: whole.saturating_sub(Duration::from_millis(spent)) })
    }

    /// What is said where it is exceeded.
    pub fn sentence(&self) -> String {
        let Self { class, field, seconds, .. } = self;
        let what = if *field == "scriptSeconds" { "the job's script" } else { "after_script" };
        format!(
            "{what} was ended because it ran longer than the {seconds} s that JobClass \"{class}\" gives it (`timeouts.{field}`)"
        )
    }
}

/// Milliseconds that scripts of the job have run.
fn spent(state: &State) -> u64 {
    let scripts =
        state.stages.iter().filter(|record| Stage::new(record.report.name.as_str()).is_job_script());
    scripts.map(|record| u64::try_from(record.report.duration_ms).unwrap_or_default()).sum()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use roadstead_crds::report::StageReport;
    use roadstead_crds::status::EffectiveTimeouts;

    use super::*;
    use crate::shim::state::{StageEnd, StageRecord};

    fn state() -> State {
        let mut state = State::new("jobs".into(), "cij-1-0123456789".into(), Timestamp::UNIX_EPOCH);
        state.class = Some("short".into());
        state.timeouts = Some(EffectiveTimeouts {
            job_seconds: 3600,
            queue_seconds: 2700,
            start_seconds: 600,
            ready_seconds: 30,
            script_seconds: Some(60),
            after_script_seconds: Some(5),
            termination_grace_seconds: 10,
            orphan_seconds: 120,
            ttl_seconds_after_finished: 3600,
        });
        for (name, duration_ms) in [("get_sources", 50_000), ("step_build", 20_500)] {
            let report = StageReport {
                name: name.into(),
                container: "build".into(),
                exit_code: Some(0),
                signal: None,
                stdout_bytes: 0,
                stderr_bytes: 0,
                duration_ms,
                oom_kills: None,
                cpu_ms: None,
                peak_memory_bytes: None,
            };
            state.stages.push(StageRecord { report, end: StageEnd::Succeeded, message: None });
        }
        state
    }

    #[test]
    fn the_scripts_of_a_job_share_their_limit() {
        let left = |state: &State, stage: &str| Limit::of(state, &Stage::new(stage)).map(|limit| limit.left);
        let mut state = state();
        assert_eq!(left(&state, "build_script"), Some(Duration::from_millis(39_500)));
        assert_eq!(left(&state, "after_script"), Some(Duration::from_secs(5)));
        assert_eq!(left(&state, "get_sources"), None);
        state.by_hand = true;
        assert_eq!(left(&state, "step_run"), Some(Duration::from_secs(60)));
        state.timeouts.as_mut().unwrap().script_seconds = None;
        assert_eq!(left(&state, "build_script"), None);
    }

    #[test]
    fn the_limit_and_its_class_are_named() {
        let limit = Limit::of(&state(), &Stage::new("build_script")).unwrap();
        assert_eq!(
            limit.sentence(),
            "the job's script was ended because it ran longer than the 60 s that JobClass \"short\" gives it (`timeouts.scriptSeconds`)"
        );
    }
}
