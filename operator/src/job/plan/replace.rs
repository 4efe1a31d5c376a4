//! Pods that are lost, and pods that somebody has forgotten.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use roadstead_crds::CiJobStatus;
use roadstead_crds::names::pod_name;
use roadstead_crds::status::{LostPod, PodStatus};

use super::{Granted, NoPod, Plan, Planner, Why};
use crate::job::Identity;
use crate::policy::verdict::{PodEnd, Verdict};

/// The pod that the status should name and does not, because somebody removed it: the newest of the
/// job's own.
pub fn forgotten<'a>(
    status: Option<&CiJobStatus>,
    identity: &Identity,
    pods: &'a [Arc<Pod>],
) -> Option<&'a Arc<Pod>> {
    if status.is_some_and(|status| status.pod.is_some()) {
        return None;
    }
    let ours = pods.iter().filter(|pod| identity.owns(pod) && pod.metadata.deletion_timestamp.is_none());
    ours.filter_map(|pod| Some((number(identity, pod)?, pod)))
        .max_by_key(|(number, _)| *number)
        .map(|(_, pod)| pod)
}

/// Which of the job's pods it is, by its name.
fn number(identity: &Identity, pod: &Pod) -> Option<i32> {
    let name = pod.metadata.name.as_ref()?;
    let number = name.rsplit_once('-')?.1.parse().ok()?;
    (number > 0 && pod_name(&identity.name, &identity.uid, number) == *name).then_some(number)
}

impl Planner<'_> {
    /// Records the pod and the terms that it runs on, where somebody has removed that.
    pub(super) fn take_over(&mut self, pod: &Pod) -> Result<(), NoPod> {
        let identity = &self.observed.identity;
        if self.draft.status.pod.is_none()
            && let Some(attempt) = number(identity, pod)
        {
            let name = pod.metadata.name.clone().unwrap_or_default();
            self.draft.adopt(PodStatus { name, attempt, uid: None, node: None });
        }
        if self.draft.is_admitted() {
            return Ok(());
        }
        let Granted { terms, admission, .. } = self.terms()?;
        if let Some((why, audit)) = admission {
            self.draft.admit(terms, &why, audit.as_deref());
        }
        Ok(())
    }

    /// Whether another pod may take the place of the one that came to this end. One may, once, as long
    /// as the job has not ended otherwise. Of a job by hand nobody is there to be asked between two calls,
    /// and what it had in its pod is what it was for.
    pub(super) fn may_be_replaced(&self, end: Option<&PodEnd>) -> bool {
        let job = &self.observed.job;
        end.is_some_and(PodEnd::is_loss)
            && !job.spec.request.is_by_hand()
            && job.spec.report.is_none()
            && self.draft.status.lost_pod.is_none()
            && self.now < self.job_deadline()
    }

    /// Records the loss of the pod. What follows is the shim's to say: only it knows what has been
    /// done in the pod.
    pub(super) fn lose(mut self, verdict: &Verdict) -> Plan {
        self.draft.lose_pod(verdict);
        match self.draft.status.loss().cloned() {
            // The shim may have asked already, of a job whose status somebody has removed since.
            Some(lost) => self.after_the_loss(&lost),
            None => self.end(verdict),
        }
    }

    /// The pod is lost, and nothing has taken its place yet.
    pub(super) fn after_the_loss(mut self, lost: &LostPod) -> Plan {
        let (job, deadline) = (&self.observed.job, self.replacement_deadline(lost));
        let up = self.now >= deadline || self.now >= self.job_deadline();
        if job.spec.report.is_some() || up {
            let lost = Verdict { reason: lost.reason, message: lost.message.clone() };
            if let Some(verdict) = self.verdict(Some(PodEnd::Lost(lost))) {
                return self.end(&verdict);
            }
        }
        if job.spec.replace.as_ref() == Some(&lost.name) {
            self.draft.start_again();
            return self.with_next_pod(Why::Replaced);
        }
        let deadlines = [deadline, self.job_deadline()];
        let strays = self.delete_strays();
        self.plan(Why::Lost, strays, &deadlines)
    }
}
