//! Images of the job that one pull policy does not bring, and another may.

use super::{Plan, Planner, Why};
use crate::policy::start::Trouble;
use crate::policy::verdict::PodEnd;

impl Planner<'_> {
    /// Why an image of the job's is not on the node, if there is another pull policy to try and the job goes on.
    pub(super) fn unpulled(&mut self, end: Option<&PodEnd>) -> Option<Trouble> {
        let Some(PodEnd::CannotStart(trouble)) = end else { return None };
        let goes_on = self.observed.job.spec.report.is_none() && self.now < self.job_deadline();
        let container = trouble.unpulled.as_deref()?;
        let another = self.draft.pull_policies(container).is_some_and(|left| left.len() > 1);
        (another && goes_on).then(|| trouble.clone())
    }

    /// Gives the job its next pod, with the next pull policy: that of a container cannot be changed.
    pub(super) fn pull_anew(mut self, trouble: Trouble) -> Plan {
        let before = self.draft.status.clone();
        let container = trouble.unpulled.as_deref().unwrap_or_default();
        if let Some(left) = self.draft.pull_policies(container) {
            left.remove(0);
        }
        self.draft.start_again();
        self.unpulled = Some(trouble);
        let plan = self.with_next_pod(Why::PulledAnew);
        if plan.why == Why::AwaitingClass {
            // No pod has tried the policy.
            return Plan { status: before, ..plan };
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use roadstead_crds::request::{PullPolicy, ServiceRequest};
    use roadstead_crds::{CiJob, Phase, Reason};

    use super::*;
    use crate::fixture;
    use crate::job::plan::Action;
    use crate::job::plan::tests::{observed, plan_at, stands, then, waiting};

    fn asking(policies: [PullPolicy; 2]) -> CiJob {
        let mut job: CiJob = fixture::job();
        job.spec.request.image.as_mut().unwrap().pull_policy = policies.to_vec();
        job
    }

    fn created(plan: &Plan) -> &Pod {
        let pod = plan.actions.iter().find_map(|action| match action {
            Action::CreatePod(pod) => Some(pod),
            Action::DeletePod { .. } | Action::DeleteSecrets(_) | Action::DeleteJob => None,
        });
        pod.expect("a pod is created")
    }

    fn pull_policy(pod: &Pod) -> Option<&str> {
        let containers = &pod.spec.as_ref()?.containers;
        containers.iter().find(|one| one.name == "build")?.image_pull_policy.as_deref()
    }

    #[test]
    fn the_next_pull_policy_is_tried_in_another_pod_and_each_one_once() {
        let job = asking([PullPolicy::Always, PullPolicy::IfNotPresent]);
        let first = plan_at(&observed(job.clone()), 20);
        assert_eq!(pull_policy(created(&first)), Some("Always"));

        let refused = waiting("ErrImagePull", "manifest unknown");
        let next = plan_at(&then(&job, &first, Some(refused.clone())), 2_000);
        assert_eq!(
            (next.why, stands(&next)),
            (Why::PulledAnew, (Some(Phase::Admitted), Some(Reason::ImageNotFound)))
        );
        let message = next.status.message.as_deref().unwrap();
        assert!(message.ends_with("Another pod tries it with the pull policy IfNotPresent."), "{message}");
        let pod = created(&next);
        assert_eq!(pull_policy(pod), Some("IfNotPresent"));
        assert_eq!(pod.metadata.name, next.status.pod.as_ref().map(|pod| pod.name.clone()));
        assert_ne!(pod.metadata.name, refused.metadata.name);
        let goes = |action: &Action| matches!(action, Action::DeletePod { name, .. } if Some(name) == refused.metadata.name.as_ref());
        assert!(next.actions.iter().any(goes), "{:?}", next.actions);

        // There is no third one.
        let mut again = refused;
        again.metadata.name.clone_from(&pod.metadata.name);
        again.metadata.uid = Some("pod-uid-2".to_owned());
        let last = plan_at(&then(&job, &next, Some(again)), 4_000);
        assert_eq!(stands(&last), (Some(Phase::Failed), Some(Reason::ImageNotFound)));
    }

    #[test]
    fn a_pull_policy_that_no_pod_has_tried_is_kept() {
        let job = asking([PullPolicy::Always, PullPolicy::IfNotPresent]);
        let first = plan_at(&observed(job.clone()), 20);
        let mut seen = then(&job, &first, Some(waiting("ErrImagePull", "manifest unknown")));
        let classes = std::mem::take(&mut seen.classes);
        let without = plan_at(&seen, 2_000);
        assert_eq!(without.why, Why::AwaitingClass);

        let mut seen = then(&job, &without, Some(waiting("ErrImagePull", "manifest unknown")));
        seen.classes = classes;
        let next = plan_at(&seen, 3_000);
        assert_eq!((next.why, pull_policy(created(&next))), (Why::PulledAnew, Some("IfNotPresent")));
    }

    #[test]
    fn a_service_has_pull_policies_of_its_own() {
        let mut job = fixture::job();
        let pull_policy = vec![PullPolicy::Never, PullPolicy::Always];
        let service = ServiceRequest { name: "redis:7".to_owned(), pull_policy, ..ServiceRequest::default() };
        job.spec.request.services = vec![service];
        let first = plan_at(&observed(job.clone()), 20);
        let policy = |pod: &Pod, name: &str| {
            let containers = &pod.spec.as_ref()?.containers;
            containers.iter().find(|one| one.name == name)?.image_pull_policy.clone()
        };
        assert_eq!(policy(created(&first), "svc-0").as_deref(), Some("Never"));
        let mut refused = waiting("ErrImageNeverPull", "");
        for container in refused.status.as_mut().unwrap().container_statuses.iter_mut().flatten() {
            "svc-0".clone_into(&mut container.name);
        }
        let next = plan_at(&then(&job, &first, Some(refused)), 2_000);
        assert_eq!(next.why, Why::PulledAnew);
        let pod = created(&next);
        assert_eq!((policy(pod, "svc-0").as_deref(), policy(pod, "build")), (Some("Always"), None));
        assert!(next.status.message.unwrap().ends_with("with the pull policy Always."));
    }

    #[test]
    fn what_no_pull_policy_can_help_ends_at_once() {
        let job = asking([PullPolicy::Always, PullPolicy::Never]);
        let first = plan_at(&observed(job.clone()), 20);
        let world = then(&job, &first, Some(waiting("InvalidImageName", "invalid reference format")));
        assert_eq!(stands(&plan_at(&world, 2_000)), (Some(Phase::Failed), Some(Reason::InvalidImageName)));
    }
}
