//! How long a job may take.

use jiff::{SignedDuration, Timestamp};
use roadstead_crds::JobClassSpec;
use roadstead_crds::request::JobRequest;
use roadstead_crds::status::EffectiveTimeouts;

/// How much later than the job's timeout the operator ends the job. gitlab-runner's own clock
/// starts earlier than the CiJob exists, so its verdict comes first wherever gitlab-runner lives.
pub const BEHIND_RUNNER: SignedDuration = SignedDuration::from_secs(5);

/// How much later than the job's timeout the kubelet ends the pod: the backstop for an operator
/// that is down.
pub const BEHIND_OPERATOR_SECONDS: i64 = 60;

/// How long a failure to start that may pass (a registry that is down, a Secret that is not there
/// yet) is left to the kubelet, whose second try comes after ten seconds. gitlab-runner then
/// prepares the job anew, twice, with a new CiJob each.
pub const START_TROUBLE: SignedDuration = SignedDuration::from_secs(12);

/// The timeouts of a job: the smaller of its own and the class's, the rest by the class, but for
/// how long the pod of a job by hand is kept.
pub fn effective(request: &JobRequest, class: &JobClassSpec) -> EffectiveTimeouts {
    let ready_seconds = class.services.ready_seconds;
    let class = &class.timeouts;
    let job_seconds = request.timeout_seconds.min(class.job_seconds);
    EffectiveTimeouts {
        job_seconds,
        queue_seconds: class.queue_seconds,
        start_seconds: class.start_seconds,
        ready_seconds,
        script_seconds: class.script_seconds,
        after_script_seconds: class.after_script_seconds,
        termination_grace_seconds: class.termination_grace_seconds,
        orphan_seconds: request.keep_seconds.map_or(class.orphan_seconds, |keep| keep.min(job_seconds)),
        ttl_seconds_after_finished: class.ttl_seconds_after_finished,
    }
}

/// `since` and so many seconds; the end of time where that is later.
pub fn after(since: Timestamp, seconds: i64) -> Timestamp {
    later(since, SignedDuration::from_secs(seconds))
}

/// `since` and so long; the end of time where that is later.
pub fn later(since: Timestamp, span: SignedDuration) -> Timestamp {
    since.checked_add(span).unwrap_or(Timestamp::MAX)
}

/// Where a job stands against its timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// It has time left.
    InTime,
    /// It is so close to its timeout that gitlab-runner may have ended it for that.
    AlmostUp,
    /// It is over its timeout and gitlab-runner has had its chance to say so.
    Up,
}

/// Where a job that began at `since` and may take `job_seconds` stands at `now`.
pub fn clock(since: Timestamp, job_seconds: i64, now: Timestamp) -> Clock {
    let timeout = after(since, job_seconds);
    if now >= later(timeout, BEHIND_RUNNER) {
        Clock::Up
    } else if later(now, BEHIND_RUNNER) >= timeout {
        Clock::AlmostUp
    } else {
        Clock::InTime
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use roadstead_crds::jobclass::Timeouts;

    fn class(timeouts: Timeouts) -> JobClassSpec {
        JobClassSpec { timeouts, ..JobClassSpec::default() }
    }

    #[test]
    fn the_smaller_timeout_of_job_and_class_applies() {
        // GitLab's three examples of a runner's maximum job timeout: larger, none, smaller.
        for (job, longest, effective_seconds) in
            [(7200, 86_400, 7200), (7200, 31_536_000, 7200), (7200, 1800, 1800)]
        {
            let request = JobRequest { timeout_seconds: job, ..fixture::request() };
            let class = class(Timeouts { job_seconds: longest, ..Timeouts::default() });
            assert_eq!(effective(&request, &class).job_seconds, effective_seconds);
        }
    }

    #[test]
    fn a_job_by_hand_says_how_long_it_is_kept_within_its_timeout() {
        let class = class(Timeouts { job_seconds: 1800, orphan_seconds: 120, ..Timeouts::default() });
        for (keep, seconds) in [(None, 120), (Some(10), 10), (Some(600), 600), (Some(86_400), 1800)] {
            let request = JobRequest { keep_seconds: keep, ..fixture::request() };
            assert_eq!(effective(&request, &class).orphan_seconds, seconds, "{keep:?}");
        }
    }

    #[test]
    fn the_operator_waits_for_the_runner_to_speak_first() {
        let since = Timestamp::UNIX_EPOCH;
        for (second, expected) in [
            (0, Clock::InTime),
            (594, Clock::InTime),
            (595, Clock::AlmostUp),
            (600, Clock::AlmostUp),
            (604, Clock::AlmostUp),
            (605, Clock::Up),
            (9999, Clock::Up),
        ] {
            assert_eq!(clock(since, 600, after(since, second)), expected, "at {second} s");
        }
        assert_eq!(clock(since, i64::MAX, after(since, 9999)), Clock::InTime);
    }
}
