//! Until when each part of a job may take.

use jiff::{SignedDuration, Timestamp};
use roadstead_crds::Reason;
use roadstead_crds::jobclass::Timeouts;
use roadstead_crds::status::{LostPod, condition};

use super::{AT_ONCE, Planner};
use crate::job::status;
use crate::policy::queue::{Room, Wait};
use crate::policy::timeouts;
use crate::policy::verdict::Verdict;

impl Planner<'_> {
    /// The verdict on a job that waited too long, for room or for its containers.
    pub(super) fn late(&self) -> Option<Verdict> {
        let status = &self.draft.status;
        let timeouts = status.timeouts.as_ref()?;
        let class = status.class.as_deref().unwrap_or_default();
        let last = status.message.as_deref().unwrap_or_default();
        let up = |deadline: &Timestamp| self.now >= *deadline;
        if self.queue_deadline().as_ref().is_some_and(up) {
            let message = format!(
                "there was no room for the job within the {} s that JobClass \"{class}\" lets it wait (`timeouts.queueSeconds`). \
                 It stood there: {last}",
                timeouts.queue_seconds
            );
            return Some(Verdict::new(Reason::QueueTimeout, message));
        }
        self.start_deadline().filter(up)?;
        let message = format!(
            "the job did not start within the {} s that JobClass \"{class}\" gives it (`timeouts.startSeconds`). \
             It stood there: {last}",
            timeouts.start_seconds
        );
        Some(Verdict::new(Reason::StartTimeout, message))
    }

    /// By when there has to be room. `None`: the job does not wait for any.
    pub(super) fn queue_deadline(&self) -> Option<Timestamp> {
        let status = &self.draft.status;
        let queue = status.queue.as_ref().filter(|_| self.draft.waits_for_room())?;
        Some(timeouts::after(queue.since.0, status.timeouts.as_ref()?.queue_seconds))
    }

    /// When it is the job's turn to find out whether a quota has room again.
    pub(super) fn quota_retry(&self) -> Option<Timestamp> {
        match &self.observed.room {
            Room::Taken(Wait { retry, .. }) if self.draft.waits_for_room() => *retry,
            Room::Taken(_) | Room::Free | Room::Unknown(_) => None,
        }
    }

    /// By when the containers have to run. `None`: they do, or the job is not admitted or waits for
    /// room.
    pub(super) fn start_deadline(&self) -> Option<Timestamp> {
        let status = &self.draft.status;
        if status.started_at.is_some() || !self.draft.is_admitted() || self.draft.waits_for_room() {
            return None;
        }
        let created =
            self.our_pod().and_then(|pod| pod.metadata.creation_timestamp.as_ref()).map(|time| time.0);
        let room = status.start.room_ms.map(|after| {
            timeouts::later(self.observed.job.spec.request.requested_at.0, SignedDuration::from_millis(after))
        });
        let lost = status.lost_pod.as_ref().map(|lost| lost.since.0);
        // In the place of a lost pod the job may have had to wait for room again.
        let since = created.or(lost.max(room)).or_else(|| status::since(status, condition::ADMITTED))?;
        Some(timeouts::after(since, status.timeouts.as_ref()?.start_seconds))
    }

    /// Until when the shim may ask for another pod in the place of the lost one: as long as a pod
    /// waits for a client.
    pub(super) fn replacement_deadline(&self, lost: &LostPod) -> Timestamp {
        let granted = self.draft.status.timeouts.as_ref().map(|timeouts| timeouts.orphan_seconds);
        timeouts::after(lost.since.0, granted.unwrap_or_default())
    }

    /// When the job's own time is up.
    pub(super) fn job_deadline(&self) -> Timestamp {
        timeouts::later(timeouts::after(self.born(), self.job_seconds()), timeouts::BEHIND_RUNNER)
    }

    /// Until when the kubelet may try again to start a container.
    pub(super) fn trouble_deadline(&self) -> Option<Timestamp> {
        let status = &self.draft.status;
        let since = status::since(status, condition::STARTED).filter(|_| status.started_at.is_none())?;
        Some(timeouts::later(since, timeouts::START_TROUBLE))
    }

    /// When the CiJob was created, by the API server's clock.
    pub(super) fn born(&self) -> Timestamp {
        let job = &self.observed.job;
        job.metadata.creation_timestamp.as_ref().map_or(job.spec.request.requested_at.0, |time| time.0)
    }

    pub(super) fn job_seconds(&self) -> i64 {
        let granted = self.draft.status.timeouts.as_ref().map(|timeouts| timeouts.job_seconds);
        granted.unwrap_or(self.observed.job.spec.request.timeout_seconds)
    }

    pub(super) fn ttl(&self) -> i64 {
        let granted = self.draft.status.timeouts.as_ref().map(|timeouts| timeouts.ttl_seconds_after_finished);
        granted.unwrap_or_else(|| Timeouts::default().ttl_seconds_after_finished)
    }

    /// Seconds that the pod's containers get to end.
    pub(super) fn grace(&self) -> u32 {
        let status = &self.draft.status;
        // After a report no script runs any more; before the start none has run yet.
        let idle = self.observed.job.spec.report.is_some() || status.started_at.is_none();
        let granted = status.timeouts.as_ref().map_or(0, |timeouts| timeouts.termination_grace_seconds);
        if idle { AT_ONCE } else { u32::try_from(granted).unwrap_or(AT_ONCE).max(AT_ONCE) }
    }
}
