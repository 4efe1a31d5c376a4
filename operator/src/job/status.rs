//! The steps that a status takes. Each changes only what is new, so that taking one twice changes
//! nothing.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use roadstead_crds::labels::BUILD_CONTAINER;
use roadstead_crds::names::pod_name;
use roadstead_crds::request::PullPolicy;
use roadstead_crds::status::{LostPod, PodStatus, QueueStatus, ServiceState, StartBreakdown, condition};
use roadstead_crds::{CiJob, CiJobStatus, Phase, Reason};

use crate::job::Identity;
use crate::job::inspect::Inspection;
use crate::policy::class::Terms;
use crate::policy::queue::Wait;
use crate::policy::start::Trouble;
use crate::policy::verdict::Verdict;
use crate::policy::waiting;
use crate::policy::words::{listed, quoted, sentence, span};

/// A status on its way: whose it is and what time it is.
#[derive(Clone, Debug)]
pub struct Draft<'a> {
    job: &'a CiJob,
    now: Timestamp,
    /// The status as it stands.
    pub status: CiJobStatus,
}

impl<'a> Draft<'a> {
    /// The job's status as it is.
    pub fn of(job: &'a CiJob, now: Timestamp) -> Self {
        Self { job, now, status: job.status.clone().unwrap_or_default() }
    }

    /// Whether the job may run.
    pub fn is_admitted(&self) -> bool {
        is_true(&self.status, condition::ADMITTED)
    }

    /// The job waits for its class.
    pub fn wait_for_class(&mut self, verdict: &Verdict) {
        self.stand(Phase::Queued, verdict.reason, &verdict.message);
        self.condition(condition::ADMITTED, Value::False, verdict.reason, &verdict.message);
    }

    /// The job may run on these terms. `why` follows the class in a sentence; `audit` says what
    /// keeps it from being refused.
    pub fn admit(&mut self, terms: Terms, why: &str, audit: Option<&str>) {
        let message = sentence(&format!("JobClass \"{}\" admits the job: {why}", terms.class));
        terms.record(&mut self.status);
        self.condition(condition::ADMITTED, Value::True, Reason::Scheduling, &message);
        if let Some(audit) = audit {
            self.condition(condition::AUDITED, Value::True, Reason::NoClassMatches, &sentence(audit));
        }
        let elapsed = self.elapsed();
        self.start(|start| &mut start.admitted_ms, elapsed);
    }

    /// The job may run, but the shim holds its pod back.
    pub fn hold(&mut self) {
        self.stand(Phase::Admitted, Reason::Held, "The job waits for its credentials to be stored.");
    }

    /// Whether the job waits for room.
    pub fn waits_for_room(&self) -> bool {
        waits_for_room(&self.status)
    }

    /// The job waits for room in its class.
    pub fn wait_for_room(&mut self, identity: &Identity, wait: &Wait) {
        if wait.is_told(&self.status) {
            return;
        }
        let class = self.status.class.as_deref().unwrap_or_default();
        let refused = self.waits_for_room() && self.status.reason == Some(Reason::QuotaExceeded);
        // A quota's own words say more.
        if !(refused && wait.reason() == Reason::QuotaExceeded) {
            let project = &self.job.spec.request.project.path;
            let message = sentence(&wait.sentence(class, project, &identity.namespace));
            self.stand(Phase::Queued, wait.reason(), &message);
        }
        let number = |number: usize| Some(i32::try_from(number).unwrap_or(i32::MAX));
        let queue = self.queue();
        queue.position = wait.shown_position().and_then(number);
        queue.of = wait.shown_position().and_then(|_| number(wait.of));
        queue.max = wait.max.and_then(|max| i32::try_from(max).ok());
        queue.running = wait.max.and_then(|_| number(wait.running));
    }

    /// Whether there is room for the job is not known yet.
    pub fn wait_for_knowledge(&mut self, unlisted: &[String]) {
        if self.waits_for_room() {
            return;
        }
        let unlisted: Vec<_> = unlisted.iter().map(String::as_str).collect();
        let mut message = "The operator has just begun and finds out which jobs run".to_owned();
        if !unlisted.is_empty() {
            // Where one cannot be listed for long, somebody has to know which.
            message.push_str(&format!(": it has yet to list those of namespace {}", listed(&unlisted)));
        }
        self.stand(Phase::Queued, Reason::ConcurrencyLimit, &sentence(&message));
        self.queue();
    }

    /// A quota refused the job's pod, in these words.
    pub fn refused_by_quota(&mut self, identity: &Identity, words: &str) {
        let message = format!(
            "A quota of namespace \"{}\" has no room for the job's pod: {}",
            identity.namespace,
            waiting::over_quota(words).unwrap_or_else(|| quoted(words))
        );
        self.stand(Phase::Queued, Reason::QuotaExceeded, &sentence(&message));
        self.queue();
    }

    fn queue(&mut self) -> &mut QueueStatus {
        let now = self.now;
        self.status.queue.get_or_insert(QueueStatus {
            since: MicroTime(now),
            position: None,
            of: None,
            running: None,
            max: None,
        })
    }

    /// What the job's next pod is called. No number comes twice.
    pub fn next_pod(&self, identity: &Identity) -> PodStatus {
        let attempt = self.status.pod.as_ref().map_or(0, |pod| pod.attempt).saturating_add(1);
        PodStatus { name: pod_name(&identity.name, &identity.uid, attempt), attempt, uid: None, node: None }
    }

    /// Stores the name of a pod, before the pod is created.
    pub fn name_pod(&mut self, pod: PodStatus) {
        // Until there is a pod, the trouble with the one before says more.
        if self.status.reason != Some(Reason::PodCreateFailed) {
            self.stand(Phase::Admitted, Reason::Scheduling, "The job's pod is being created.");
        }
        self.status.pod = Some(pod);
        if self.status.queue.is_some() {
            self.status.start.room_ms = Some(self.elapsed());
        }
    }

    /// The API server could not create the pod, in these words. The operator tries again.
    pub fn cannot_create(&mut self, words: &str) {
        let words = quoted(words);
        let message = format!(
            "The API server cannot create the job's pod at the moment: {words}. The operator tries again."
        );
        self.stand(Phase::Admitted, Reason::PodCreateFailed, &message);
    }

    /// The API server has the pod, under this UID.
    pub fn pod_exists(&mut self, uid: &str) {
        let Some(pod) = &mut self.status.pod else { return };
        if pod.uid.is_none() {
            pod.uid = Some(uid.to_owned());
            self.stand(Phase::Starting, Reason::Scheduling, "The job's pod waits for a node.");
        }
        self.status.queue = None;
        let elapsed = self.elapsed();
        self.start(|start| &mut start.pod_created_ms, elapsed);
    }

    /// Takes a pod for the job's that nobody has recorded: somebody removed the status.
    pub fn adopt(&mut self, pod: PodStatus) {
        self.status.pod = Some(pod);
    }

    /// The recorded pod is lost. Another one takes its place if the shim asks for it.
    pub fn lose_pod(&mut self, verdict: &Verdict) {
        let Some(pod) = &self.status.pod else { return };
        self.status.lost_pod = Some(LostPod {
            name: pod.name.clone(),
            reason: verdict.reason,
            message: verdict.message.clone(),
            since: MicroTime(self.now),
        });
        self.stand(Phase::Starting, verdict.reason, &verdict.message);
    }

    /// Forgets what the start of the lost pod had shown.
    pub fn start_again(&mut self) {
        self.status.started_at = None;
        let of_pod = [condition::SCHEDULED, condition::STARTED, condition::DISRUPTED];
        self.status.conditions.retain(|condition| !of_pod.contains(&condition.type_.as_str()));
        let start = &mut self.status.start;
        (start.pod_created_ms, start.bound_ms, start.running_ms) = (None, None, None);
        for service in &mut self.status.services {
            (service.state, service.ended) = (ServiceState::Waiting, None);
        }
    }

    /// The pull policies that are left to try for the image of a container of the job's.
    pub fn pull_policies(&mut self, container: &str) -> Option<&mut Vec<PullPolicy>> {
        if container == BUILD_CONTAINER {
            return Some(&mut self.status.pull_policies);
        }
        let mut services = self.status.services.iter_mut();
        let service = services.find(|service| service.container == container)?;
        Some(&mut service.pull_policies)
    }

    /// The image is not to be had by the pull policy of the pod that was named last: another pod tries the next.
    pub fn pull_anew(&mut self, trouble: &Trouble) {
        let container = trouble.unpulled.as_deref().unwrap_or_default();
        let left = self.pull_policies(container).and_then(|left| left.first().copied());
        let Some(policy) = left else { return };
        let message = format!(
            "{} Another pod tries it with the pull policy {}.",
            sentence(&trouble.message),
            policy.as_str()
        );
        self.stand(Phase::Admitted, trouble.reason, &message);
    }

    /// What the pod shows of its start, and of the job's services.
    pub fn progress(&mut self, seen: &Inspection) {
        self.status.services.clone_from(&seen.services);
        if let Some(words) = &seen.disrupted {
            let message = sentence(words);
            self.condition(condition::DISRUPTED, Value::True, Reason::PodEvicted, &message);
        }
        if let Some(node) = &seen.node {
            if let Some(pod) = &mut self.status.pod {
                pod.node.get_or_insert_with(|| node.clone());
            }
            let message = format!("The job's pod is on node \"{node}\".");
            self.condition(condition::SCHEDULED, Value::True, Reason::Starting, &message);
            let elapsed = self.elapsed();
            self.start(|start| &mut start.bound_ms, elapsed);
        }
        if seen.running {
            let message =
                format!("The job's containers run on node \"{}\".", seen.node.as_deref().unwrap_or_default());
            self.condition(condition::STARTED, Value::True, Reason::Running, &message);
            let elapsed = self.elapsed();
            self.start(|start| &mut start.running_ms, elapsed);
            self.status.started_at.get_or_insert(MicroTime(self.now));
            self.stand(Phase::Running, Reason::Running, &message);
        }
        if self.status.started_at.is_some() {
            return;
        }
        if let Some(trouble) = &seen.trouble {
            let message = format!("{} The node tries again.", sentence(&trouble.message));
            self.condition(condition::STARTED, Value::False, trouble.reason, &message);
            self.stand(Phase::Starting, trouble.reason, &message);
            return;
        }
        self.status.conditions.retain(|condition| condition.type_ != condition::STARTED);
        if let Some(node) = &seen.node {
            self.stand(
                Phase::Starting,
                Reason::Starting,
                &format!("Node \"{node}\" prepares the job's pod."),
            );
        } else if let Some(words) = &seen.unschedulable {
            let message = sentence(&format!("no node can take the job's pod yet: {words}"));
            self.condition(condition::SCHEDULED, Value::False, Reason::Unschedulable, &message);
            self.stand(Phase::Starting, Reason::Unschedulable, &message);
        } else {
            self.stand(Phase::Starting, Reason::Scheduling, "The job's pod waits for a node.");
        }
    }

    /// The job has ended.
    pub fn finish(&mut self, verdict: &Verdict) {
        self.stand(verdict.phase(), verdict.reason, &verdict.message);
        self.condition(condition::FINISHED, Value::True, verdict.reason, &verdict.message);
        self.status.queue = None;
        self.status.finished_at.get_or_insert(MicroTime(self.now));
        self.status.duration = Some(span(self.elapsed() / 1000));
        if let Some(report) = &self.job.spec.report {
            let start = &mut self.status.start;
            start.helper_ms = start.helper_ms.or(report.start.helper_ms);
            start.build_ms = start.build_ms.or(report.start.build_ms);
            start.first_byte_ms = start.first_byte_ms.or(report.start.first_byte_ms);
        }
    }

    fn stand(&mut self, phase: Phase, reason: Reason, message: &str) {
        self.status.phase = Some(phase);
        self.status.reason = Some(reason);
        if self.status.message.as_deref() != Some(message) {
            self.status.message = Some(message.to_owned());
        }
    }

    /// Milliseconds since the shim asked.
    fn elapsed(&self) -> i64 {
        self.now.as_millisecond() - self.job.spec.request.requested_at.0.as_millisecond()
    }

    fn start(&mut self, step: impl Fn(&mut StartBreakdown) -> &mut Option<i64>, milliseconds: i64) {
        step(&mut self.status.start).get_or_insert(milliseconds);
    }

    fn condition(&mut self, kind: &str, value: Value, reason: Reason, message: &str) {
        let next = Condition {
            type_: kind.to_owned(),
            status: value.as_str().to_owned(),
            reason: reason.as_str().to_owned(),
            message: message.to_owned(),
            last_transition_time: Time(self.now),
            observed_generation: self.job.metadata.generation,
        };
        let Some(old) = self.status.conditions.iter_mut().find(|condition| condition.type_ == kind) else {
            self.status.conditions.push(next);
            return;
        };
        if old.status != next.status {
            *old = next;
        } else if old.reason != next.reason || old.message != next.message {
            *old = Condition { last_transition_time: old.last_transition_time.clone(), ..next };
        }
    }
}

#[derive(Clone, Copy)]
enum Value {
    True,
    False,
}

impl Value {
    fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
        }
    }
}

/// Whether the job waits for room, and has no pod.
pub fn waits_for_room(status: &CiJobStatus) -> bool {
    status.phase == Some(Phase::Queued) && status.queue.is_some()
}

/// Whether a condition holds.
pub fn is_true(status: &CiJobStatus, kind: &str) -> bool {
    find(status, kind).is_some_and(|condition| condition.status == "True")
}

/// Since when a condition is as it is.
pub fn since(status: &CiJobStatus, kind: &str) -> Option<Timestamp> {
    find(status, kind).map(|condition| condition.last_transition_time.0)
}

fn find<'a>(status: &'a CiJobStatus, kind: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{self, at};
    use crate::policy::start::Trouble;

    fn seen(trouble: &str) -> Inspection {
        Inspection {
            node: Some("n".to_owned()),
            created: None,
            running: false,
            unschedulable: None,
            disrupted: None,
            trouble: Some(Trouble {
                reason: Reason::ImagePullFailed,
                message: trouble.to_owned(),
                definite: false,
                unpulled: Some(BUILD_CONTAINER.to_owned()),
            }),
            services: vec![],
            end: None,
        }
    }

    fn after(job: &mut CiJob, now: i64, seen: &Inspection) {
        let mut draft = Draft::of(job, at(now));
        draft.progress(seen);
        job.status = Some(draft.status);
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_turns() {
        let mut job = fixture::job();
        after(&mut job, 1_000, &seen("connection refused"));
        let first = job.status.clone().unwrap();
        assert_eq!(since(&first, condition::STARTED), Some(at(1_000)));

        // Seen again, later, after the spec changed: nothing to write.
        job.metadata.generation = Some(2);
        after(&mut job, 2_000, &seen("connection refused"));
        assert_eq!(job.status.as_ref(), Some(&first));

        after(&mut job, 3_000, &seen("i/o timeout"));
        let other = job.status.clone().unwrap();
        assert_ne!(other, first);
        assert_eq!(since(&other, condition::STARTED), Some(at(1_000)), "it is still False");

        after(&mut job, 4_000, &Inspection { running: true, trouble: None, ..seen("") });
        let status = job.status.unwrap();
        assert!(is_true(&status, condition::STARTED));
        assert_eq!(since(&status, condition::STARTED), Some(at(4_000)));
    }

    #[test]
    fn a_running_job_stays_running_whatever_its_containers_show() {
        let mut job = fixture::job();
        after(&mut job, 1_000, &Inspection { running: true, trouble: None, ..seen("") });
        let status = job.status.clone();
        after(&mut job, 2_000, &seen("the kubelet lost its memory"));
        assert_eq!(job.status, status);
    }

    #[test]
    fn trouble_that_passed_leaves_no_trace() {
        let mut job = fixture::job();
        after(&mut job, 1_000, &seen("connection refused"));
        after(&mut job, 2_000, &Inspection { trouble: None, ..seen("") });
        let status = job.status.unwrap();
        assert_eq!(since(&status, condition::STARTED), None);
        assert_eq!((status.phase, status.reason), (Some(Phase::Starting), Some(Reason::Starting)));
    }
}
