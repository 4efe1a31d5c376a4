//! How many jobs a class has. Pure.

use roadstead_crds::jobclass::{ClassJobs, Rejection};
use roadstead_crds::status::condition;
use roadstead_crds::{CiJob, Phase};

use crate::job::place::{Place, place};
use crate::job::status::is_true;
use crate::policy::words::shortened;

/// Longest message of a rejection, in characters.
const LONGEST_MESSAGE: usize = 1_024;

/// The jobs of one class.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Census {
    /// How many there are.
    pub jobs: ClassJobs,
    /// The newest one that was refused.
    pub last_rejection: Option<Rejection>,
}

impl Census {
    /// Counts a job, if it is of that class.
    pub fn count(&mut self, job: &CiJob, class: &str) {
        let Some(status) = job.status.as_ref().filter(|status| status.class.as_deref() == Some(class)) else {
            return;
        };
        let add = |number: &mut i32| *number = number.saturating_add(1);
        add(&mut self.jobs.matched);
        match place(Some(status), class) {
            Place::Waits => add(&mut self.jobs.queued),
            Place::Has(_) => add(&mut self.jobs.running),
            Place::Elsewhere | Place::Over => {}
        }
        let ended_badly = matches!(status.phase, Some(Phase::Failed | Phase::Errored));
        if !ended_badly || is_true(status, condition::ADMITTED) {
            return;
        }
        add(&mut self.jobs.rejected);
        let (Some(time), Some(reason)) = (status.finished_at.clone(), status.reason) else { return };
        if self.last_rejection.as_ref().is_none_or(|last| last.time.0 < time.0) {
            self.last_rejection = Some(Rejection {
                time,
                namespace: job.metadata.namespace.clone().unwrap_or_default(),
                name: job.metadata.name.clone().unwrap_or_default(),
                reason,
                message: shortened(status.message.as_deref().unwrap_or_default(), LONGEST_MESSAGE),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{self, at};
    use crate::job::status::Draft;
    use crate::policy::verdict::Verdict;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use roadstead_crds::status::{PodStatus, QueueStatus};
    use roadstead_crds::{CiJobStatus, Reason};

    fn job(phase: Phase, change: impl FnOnce(&mut CiJobStatus)) -> CiJob {
        let mut status =
            CiJobStatus { phase: Some(phase), class: Some("big".to_owned()), ..CiJobStatus::default() };
        change(&mut status);
        CiJob { status: Some(status), ..fixture::job() }
    }

    fn refused(milliseconds: i64, why: &str) -> CiJob {
        let mut job = job(Phase::Queued, |_| {});
        let mut draft = Draft::of(&job, at(milliseconds));
        draft.finish(&Verdict::new(Reason::OverrideRefused, why));
        job.status = Some(draft.status);
        job
    }

    #[test]
    fn jobs_are_counted_by_where_they_stand() {
        let pod = PodStatus { name: "p".to_owned(), attempt: 1, uid: None, node: None };
        let queue =
            QueueStatus { since: MicroTime(at(0)), position: None, of: None, running: None, max: None };
        let jobs = [
            job(Phase::Admitted, |_| {}),
            job(Phase::Running, |status| status.pod = Some(pod.clone())),
            job(Phase::Queued, |status| (status.queue, status.pod) = (Some(queue), Some(pod.clone()))),
            job(Phase::Succeeded, |status| status.pod = Some(pod.clone())),
            job(Phase::Running, |status| {
                (status.class, status.pod) = (Some("other".to_owned()), Some(pod.clone()));
            }),
            refused(5_000, "too much"),
            refused(9_000, "far too much"),
            refused(7_000, "much too much"),
            fixture::job(),
        ];
        let mut census = Census::default();
        for job in &jobs {
            census.count(job, "big");
        }
        assert_eq!(census.jobs, ClassJobs { matched: 7, running: 1, queued: 1, rejected: 3 });
        let last = census.last_rejection.unwrap();
        assert_eq!((last.time.0, last.reason), (at(9_000), Reason::OverrideRefused));
        assert_eq!((last.name.as_str(), last.message.as_str()), (fixture::JOB, "Far too much."));
    }
}
