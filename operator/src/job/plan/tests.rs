//! Cases, one by one.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use roadstead_crds::report::{JobReport, Outcome, ReportedStart};
use roadstead_crds::status::condition;
use roadstead_crds::{CiJob, JobClass, Phase, Reason};
use serde_json::{Value, json};

use super::*;
use crate::fixture::{self, at};

pub(super) const FIRST: &str = "cij-4711-0123456789-3f2a91bc-1";
pub(super) const SECOND: &str = "cij-4711-0123456789-3f2a91bc-2";

pub(super) fn observed(job: CiJob) -> Observed {
    let identity = Identity::of(&job).unwrap();
    let classes = fixture::candidates();
    Observed {
        identity,
        job: Arc::new(job),
        classes,
        pods: vec![],
        current: Current::Unknown,
        selected: None,
        room: Room::Free,
    }
}

/// The job after a plan, with this pod under the recorded name.
pub(super) fn then(job: &CiJob, plan: &Plan, pod: Option<Pod>) -> Observed {
    let job = CiJob { status: Some(plan.status.clone()), ..job.clone() };
    let pod = pod.map(Arc::new);
    let current = match &pod {
        Some(pod) => Current::Present { pod: Arc::clone(pod), watched: true },
        None => Current::Absent,
    };
    Observed { pods: pod.into_iter().collect(), current, ..observed(job) }
}

fn ready(class: JobClass) -> Arc<Candidate> {
    Arc::new(Candidate::new(Arc::new(class)))
}

pub(super) fn plan_at(observed: &Observed, milliseconds: i64) -> Plan {
    plan(observed, &fixture::images(), at(milliseconds))
}

pub(super) fn first_pod() -> Pod {
    fixture::pod(FIRST, "pod-uid-1", at(100))
}

pub(super) fn running(pod: Pod) -> Pod {
    let up = |name: &str| {
        json!({"name": name, "image": "i", "imageID": "", "ready": true, "restartCount": 0, "containerID": "c://1",
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}})
    };
    fixture::with_status(
        pod,
        Some("node-1"),
        json!({"phase": "Running", "containerStatuses": [up("helper"), up("build")]}),
    )
}

pub(super) fn waiting(reason: &str, message: &str) -> Pod {
    let status = json!({"phase": "Pending", "containerStatuses": [
        {"name": "build", "image": "alpine:3.20", "imageID": "", "ready": false, "restartCount": 0,
         "state": {"waiting": {"reason": reason, "message": message}}}]});
    fixture::with_status(first_pod(), Some("node-1"), status)
}

fn report(outcome: Outcome) -> JobReport {
    let start = ReportedStart { helper_ms: Some(700), build_ms: Some(800), first_byte_ms: Some(900) };
    JobReport { outcome, exit_code: None, message: None, start, reconnects: 0, stages: vec![] }
}

/// A plan that leaves the job as it is.
pub(super) fn unchanged(job: &CiJob) -> Plan {
    Plan {
        status: job.status.clone().unwrap(),
        actions: vec![],
        requeue: None,
        why: Why::Running,
        faults: vec![],
    }
}

/// A job whose containers run, by way of every step before.
pub(super) fn started() -> Observed {
    let job = fixture::job();
    let created = plan_at(&observed(job.clone()), 20);
    let seen = then(&job, &created, Some(running(first_pod())));
    let up = plan_at(&seen, 1500);
    assert_eq!(up.why, Why::Running);
    then(&job, &up, Some(running(first_pod())))
}

/// A class that limits the pod as a whole.
fn limiting_pods() -> Arc<Candidate> {
    let mut class = fixture::class();
    class.spec.resources.pod.limits = [("memory".to_owned(), "1Gi".to_owned())].into();
    ready(class)
}

#[test]
fn a_pod_without_the_resources_that_it_has_as_a_whole_ends_the_job() {
    let job = fixture::job();
    let created = plan_at(&Observed { classes: vec![limiting_pods()], ..observed(job.clone()) }, 20);
    let [Action::CreatePod(pod)] = &created.actions[..] else { panic!("{:?}", created.actions) };
    let mut seen = first_pod();
    seen.spec.as_mut().unwrap().resources = pod.spec.as_ref().unwrap().resources.clone();
    assert!(seen.spec.as_ref().unwrap().resources.is_some());
    assert_eq!(plan_at(&then(&job, &created, Some(seen)), 150).why, Why::Starting);
    // An API server that does not know the field leaves it out.
    let without = plan_at(&then(&job, &created, Some(first_pod())), 150);
    assert_eq!(stands(&without), (Some(Phase::Errored), Some(Reason::PodRejected)));
    assert_eq!(without.actions, [delete(1)]);
    // Without them there is nothing to miss.
    let plain = plan_at(&observed(job.clone()), 20);
    assert_eq!(plan_at(&then(&job, &plain, Some(first_pod())), 150).why, Why::Starting);
}

pub(super) fn reporting(mut observed: Observed, outcome: Outcome) -> Observed {
    let mut job = CiJob::clone(&observed.job);
    job.spec.report = Some(report(outcome));
    observed.job = Arc::new(job);
    observed
}

pub(super) fn delete(grace: u32) -> Action {
    Action::DeletePod { name: FIRST.to_owned(), uid: "pod-uid-1".to_owned(), grace }
}

pub(super) fn stands(plan: &Plan) -> (Option<Phase>, Option<Reason>) {
    (plan.status.phase, plan.status.reason)
}

#[test]
fn a_new_job_is_admitted_and_gets_its_pod_in_one_go() {
    let plan = plan_at(&observed(fixture::job()), 20);
    assert_eq!((plan.why, stands(&plan)), (Why::NewPod, (Some(Phase::Admitted), Some(Reason::Scheduling))));
    let [Action::CreatePod(pod)] = plan.actions.as_slice() else { panic!("{:?}", plan.actions) };
    assert_eq!(pod.metadata.name.as_deref(), Some(FIRST));
    let status = &plan.status;
    let recorded = status.pod.as_ref().unwrap();
    assert_eq!((recorded.name.as_str(), recorded.attempt, &recorded.uid), (FIRST, 1, &None));
    assert!(status::is_true(status, condition::ADMITTED));
    assert_eq!(status.class.as_deref(), Some("default"));
    assert_eq!(status.image.as_deref(), Some("alpine:3.20"));
    assert_eq!(status.config.as_ref().unwrap().builds_dir, "/builds");
    assert_eq!(status.timeouts.as_ref().unwrap().job_seconds, 3600);
    assert_eq!(status.start.admitted_ms, Some(20));
}

#[test]
fn a_held_job_is_admitted_without_a_pod() {
    let mut job = fixture::job();
    job.spec.hold = true;
    let held = plan_at(&observed(job.clone()), 20);
    assert_eq!((held.why, stands(&held)), (Why::Held, (Some(Phase::Admitted), Some(Reason::Held))));
    assert!(status::is_true(&held.status, condition::ADMITTED));
    assert_eq!((held.actions.as_slice(), &held.status.pod), ([].as_slice(), &None));
    job.status = Some(held.status);
    job.spec.hold = false;
    let released = plan_at(&observed(job), 50);
    assert!(matches!(released.actions.as_slice(), [Action::CreatePod(_)]));
    assert_eq!(released.status.start.admitted_ms, Some(20));
}

#[test]
fn a_class_that_changes_after_the_admission_changes_no_promise() {
    let mut job = fixture::job();
    job.spec.hold = true;
    job.status = Some(plan_at(&observed(job.clone()), 20).status);
    job.spec.hold = false;
    let mut seen = observed(job);
    let mut class = fixture::class();
    class.spec.builds.builds_dir = "/elsewhere".to_owned();
    class.spec.timeouts.job_seconds = 600;
    seen.classes = vec![ready(class)];
    let plan = plan_at(&seen, 50);
    let [Action::CreatePod(pod)] = plan.actions.as_slice() else { panic!("{:?}", plan.actions) };
    let text = serde_json::to_string(pod).unwrap();
    assert!(text.contains("\"mountPath\":\"/builds\"") && !text.contains("/elsewhere"), "{text}");
    assert_eq!(pod.spec.as_ref().unwrap().active_deadline_seconds, Some(3660));
}

#[test]
fn a_missing_class_is_awaited_for_a_while() {
    let mut seen = observed(fixture::job());
    seen.classes = vec![];
    let waits = plan_at(&seen, 20);
    assert_eq!(
        (waits.why, stands(&waits)),
        (Why::AwaitingClass, (Some(Phase::Queued), Some(Reason::ClassNotFound)))
    );
    assert_eq!(waits.requeue, Some(Duration::from_millis(9_980)));
    let gives_up = plan_at(&then(&seen.job, &waits, None), 10_000);
    assert_eq!(gives_up.why, Why::NewPod, "the class came");
    let mut still = observed(CiJob { status: Some(waits.status), ..fixture::job() });
    still.classes = vec![];
    let gives_up = plan_at(&still, 10_000);
    assert_eq!(stands(&gives_up), (Some(Phase::Errored), Some(Reason::ClassNotFound)));
}

#[test]
fn what_cannot_be_admitted_ends_at_once() {
    let mut job = fixture::job();
    job.spec.request.image = None;
    let plan = plan_at(&observed(job), 20);
    assert_eq!(stands(&plan), (Some(Phase::Failed), Some(Reason::InvalidImageName)));
    assert!(plan.actions.is_empty());
    assert!(!status::is_true(&plan.status, condition::ADMITTED));

    let mut seen = observed(fixture::job());
    let mut class = fixture::class();
    class.spec.pod.overlay = json!({"spec": {"hostPID": true}}).as_object().cloned();
    seen.classes = vec![ready(class)];
    let plan = plan_at(&seen, 20);
    assert_eq!(stands(&plan), (Some(Phase::Errored), Some(Reason::ClassInvalid)));
    assert!(plan.status.message.as_deref().unwrap().contains("hostPID"));
    assert_eq!(plan.status.pod, None);
    assert!(!status::is_true(&plan.status, condition::ADMITTED));
}

#[test]
fn a_pod_that_was_named_and_never_created_gets_a_successor() {
    let job = fixture::job();
    let first = plan_at(&observed(job.clone()), 20);
    let second = plan_at(&then(&job, &first, None), 5_000);
    assert_eq!(second.why, Why::LostPod);
    let recorded = second.status.pod.as_ref().unwrap();
    assert_eq!((recorded.name.as_str(), recorded.attempt), (SECOND, 2));
    let [Action::CreatePod(pod)] = second.actions.as_slice() else { panic!("{:?}", second.actions) };
    assert_eq!(pod.metadata.name.as_deref(), Some(SECOND));

    // The first one was created after all, by an operator that took its time.
    let mut seen = then(&job, &second, Some(fixture::pod(SECOND, "pod-uid-2", at(5_100))));
    seen.pods.push(Arc::new(first_pod()));
    assert_eq!(plan_at(&seen, 6_000).actions, [delete(1)]);
}

#[test]
fn a_pod_that_was_created_and_not_recorded_is_adopted() {
    let job = fixture::job();
    let first = plan_at(&observed(job.clone()), 20);
    let adopted = plan_at(&then(&job, &first, Some(first_pod())), 5_000);
    assert_eq!(
        (adopted.why, stands(&adopted)),
        (Why::Starting, (Some(Phase::Starting), Some(Reason::Scheduling)))
    );
    assert_eq!(adopted.status.pod.as_ref().unwrap().uid.as_deref(), Some("pod-uid-1"));
    assert!(adopted.actions.is_empty());
}

#[test]
fn nobody_knows_is_no_reason_to_create() {
    let job = fixture::job();
    let first = plan_at(&observed(job.clone()), 20);
    let mut unsure = then(&job, &first, None);
    unsure.current = Current::Unknown;
    let plan = plan_at(&unsure, 30);
    assert_eq!(
        (plan.why, plan.actions.as_slice(), &plan.status),
        (Why::Unsure, [].as_slice(), &first.status)
    );
    unsure.current = Current::Unborn;
    let plan = plan_at(&unsure, 30);
    assert_eq!((plan.why, plan.actions.as_slice()), (Why::Unsure, [].as_slice()));
    assert_eq!(plan.requeue, Some(std::time::Duration::from_secs(1)));
}

#[test]
fn the_start_step_by_step() {
    let job = fixture::job();
    let created = plan_at(&observed(job.clone()), 20);
    let stuck = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
        "reason": "Unschedulable", "message": "0/1 nodes are available"}]});
    let unschedulable =
        plan_at(&then(&job, &created, Some(fixture::with_status(first_pod(), None, stuck))), 200);
    assert_eq!(stands(&unschedulable), (Some(Phase::Starting), Some(Reason::Unschedulable)));
    assert!(unschedulable.status.message.as_deref().unwrap().contains("0/1 nodes"));
    // The start timeout, from the pod's creation.
    assert_eq!(unschedulable.requeue, Some(Duration::from_millis(599_900)));

    let bound = fixture::with_status(first_pod(), Some("node-1"), json!({"phase": "Pending"}));
    let bound = plan_at(&then(&job, &unschedulable, Some(bound)), 900);
    assert_eq!(stands(&bound), (Some(Phase::Starting), Some(Reason::Starting)));
    assert!(status::is_true(&bound.status, condition::SCHEDULED));
    assert_eq!(bound.status.pod.as_ref().unwrap().node.as_deref(), Some("node-1"));
    assert_eq!(bound.status.start.bound_ms, Some(900));

    let up = plan_at(&then(&job, &bound, Some(running(first_pod()))), 1500);
    assert_eq!((up.why, stands(&up)), (Why::Running, (Some(Phase::Running), Some(Reason::Running))));
    assert!(status::is_true(&up.status, condition::STARTED));
    assert_eq!(up.status.start.running_ms, Some(1500));
    assert_eq!(up.status.started_at.as_ref().unwrap().0, at(1500));
    // An hour at most, and the start timeout is no more.
    assert_eq!(up.requeue, Some(Duration::from_secs(3600)));
}

#[test]
fn a_job_that_does_not_start_in_time_ends_and_says_where_it_stood() {
    let job = fixture::job();
    let created = plan_at(&observed(job.clone()), 20);
    let stuck = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
        "reason": "Unschedulable", "message": "0/1 nodes are available"}]});
    let pod = fixture::with_status(first_pod(), None, stuck);
    let waits = plan_at(&then(&job, &created, Some(pod.clone())), 600_099);
    assert_eq!(waits.why, Why::Starting);
    let late = plan_at(&then(&job, &waits, Some(pod)), 600_100);
    assert_eq!(stands(&late), (Some(Phase::Errored), Some(Reason::StartTimeout)));
    let message = late.status.message.as_deref().unwrap();
    assert!(message.contains("600 s") && message.contains("0/1 nodes"), "{message}");
    assert_eq!(late.actions, [delete(1)]);
}

#[test]
fn a_hold_that_is_never_released_ends() {
    let mut job = fixture::job();
    job.spec.hold = true;
    let held = plan_at(&observed(job.clone()), 20);
    let late = plan_at(&observed(CiJob { status: Some(held.status), ..job }), 600_020);
    assert_eq!(stands(&late), (Some(Phase::Errored), Some(Reason::StartTimeout)));
}

#[test]
fn images_that_are_not_there() {
    let job = fixture::job();
    let created = plan_at(&observed(job.clone()), 20);
    let missing =
        plan_at(&then(&job, &created, Some(waiting("ErrImagePull", "alpine:3.20: not found"))), 2_000);
    assert_eq!(stands(&missing), (Some(Phase::Failed), Some(Reason::ImageNotFound)));
    assert_eq!(missing.actions, [delete(1)]);

    let down = || Some(waiting("ImagePullBackOff", "connection refused"));
    let trouble = plan_at(&then(&job, &created, down()), 2_000);
    assert_eq!(
        (trouble.why, stands(&trouble)),
        (Why::Starting, (Some(Phase::Starting), Some(Reason::ImagePullFailed)))
    );
    assert_eq!(trouble.requeue, Some(Duration::from_secs(12)));
    let patient = plan_at(&then(&job, &trouble, down()), 13_999);
    assert_eq!(patient.status, trouble.status);
    let over = plan_at(&then(&job, &patient, down()), 14_000);
    assert_eq!(stands(&over), (Some(Phase::Errored), Some(Reason::ImagePullFailed)));

    // It came in the end.
    let pulled = plan_at(&then(&job, &patient, Some(running(first_pod()))), 14_000);
    assert_eq!(stands(&pulled), (Some(Phase::Running), Some(Reason::Running)));
}

#[test]
fn a_reported_job_ends_and_its_pod_goes_at_once() {
    for (outcome, phase, reason) in [
        (Outcome::Succeeded, Phase::Succeeded, Reason::Succeeded),
        (Outcome::Failed, Phase::Failed, Reason::ScriptFailed),
        (Outcome::Errored, Phase::Errored, Reason::SystemFailure),
        (Outcome::Canceled, Phase::Canceled, Reason::Canceled),
    ] {
        let plan = plan_at(&reporting(started(), outcome), 72_500);
        assert_eq!(stands(&plan), (Some(phase), Some(reason)));
        assert_eq!(plan.actions, [delete(1)]);
        assert!(status::is_true(&plan.status, condition::FINISHED));
        assert_eq!(plan.status.finished_at.as_ref().unwrap().0, at(72_500));
        assert_eq!(plan.status.duration.as_deref(), Some("1m12s"));
        assert_eq!(plan.status.start.first_byte_ms, Some(900));
    }
}

#[test]
fn a_report_before_anything_else_ends_the_job_without_a_pod() {
    let plan = plan_at(&reporting(observed(fixture::job()), Outcome::Canceled), 20);
    assert_eq!(stands(&plan), (Some(Phase::Canceled), Some(Reason::Canceled)));
    assert_eq!((plan.actions.as_slice(), &plan.status.pod), ([].as_slice(), &None));
}

#[test]
fn a_job_that_runs_too_long_is_ended_after_its_runner_had_the_chance() {
    assert_eq!(plan_at(&started(), 3_604_999).why, Why::Running);
    let plan = plan_at(&started(), 3_605_000);
    assert_eq!(stands(&plan), (Some(Phase::TimedOut), Some(Reason::DeadlineExceeded)));
    assert_eq!(plan.actions, [delete(10)], "its script runs: it gets the class's grace");
    let canceled = plan_at(&reporting(started(), Outcome::Canceled), 3_600_500);
    assert_eq!(stands(&canceled), (Some(Phase::TimedOut), Some(Reason::DeadlineExceeded)));
}

#[test]
fn an_announced_disruption_is_noted_and_explains_the_end() {
    let announced = |pod: Pod| {
        let mut pod = running(pod);
        let target = json!([{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "node lost"}]);
        pod.status.as_mut().unwrap().conditions = Some(serde_json::from_value(target).unwrap());
        pod
    };
    let job = CiJob::clone(&started().job);
    let same = unchanged(&job);
    let plan = plan_at(&then(&job, &same, Some(announced(first_pod()))), 60_000);
    assert_eq!(stands(&plan), (Some(Phase::Running), Some(Reason::Running)));
    assert!(status::is_true(&plan.status, condition::DISRUPTED));
    let gone = plan_at(&reporting(then(&job, &plan, None), Outcome::Errored), 70_000);
    assert_eq!(stands(&gone), (Some(Phase::Errored), Some(Reason::PodEvicted)));
}

#[test]
fn an_impostor_ends_the_job_and_is_left_alone() {
    let mut foreign = fixture::pod(FIRST, "other-uid", at(100));
    foreign.metadata.owner_references = None;
    let job = CiJob::clone(&started().job);
    let same = unchanged(&job);
    let plan = plan_at(&then(&job, &same, Some(foreign.clone())), 60_000);
    assert_eq!(
        (stands(&plan), plan.actions.as_slice()),
        ((Some(Phase::Errored), Some(Reason::PodImpostor)), [].as_slice())
    );

    // The name is taken before the job's own pod was created.
    let fresh = fixture::job();
    let created = plan_at(&observed(fresh.clone()), 20);
    let plan = plan_at(&then(&fresh, &created, Some(foreign)), 50);
    assert_eq!(stands(&plan).1, Some(Reason::PodImpostor));

    // One with the job's owner reference is the job's to delete, but not to run in.
    let owned = fixture::pod(FIRST, "other-uid", at(100));
    let plan = plan_at(&then(&job, &same, Some(owned)), 60_000);
    assert_eq!(stands(&plan).1, Some(Reason::PodImpostor));
    assert!(matches!(plan.actions.as_slice(), [Action::DeletePod { uid, .. }] if uid == "other-uid"));
}

#[test]
fn a_finished_job_is_kept_and_then_deleted() {
    let job = CiJob::clone(&reporting(started(), Outcome::Succeeded).job);
    let ended = plan_at(&reporting(started(), Outcome::Succeeded), 60_000);
    // The operator died between the verdict and the deletion.
    let kept = plan_at(&then(&job, &ended, Some(running(first_pod()))), 61_000);
    assert_eq!(
        (kept.why, kept.actions.as_slice(), &kept.status),
        (Why::Kept, [delete(1)].as_slice(), &ended.status)
    );
    let alone = plan_at(&then(&job, &ended, None), 61_000);
    assert_eq!((alone.actions.as_slice(), alone.requeue), ([].as_slice(), Some(Duration::from_secs(3599))));
    let expired = plan_at(&then(&job, &ended, None), 3_660_000);
    assert_eq!((expired.why, expired.actions.as_slice()), (Why::Expired, [Action::DeleteJob].as_slice()));
    // Not before its pod is gone.
    let mut going = running(first_pod());
    going.metadata.deletion_timestamp = Some(Time(at(60_000)));
    let waits = plan_at(&then(&job, &ended, Some(going)), 3_660_000);
    assert_eq!(
        (waits.why, waits.actions.as_slice(), waits.requeue),
        (Why::Kept, [].as_slice(), Some(Duration::from_secs(3600)))
    );
}

#[test]
fn a_job_that_is_being_deleted_is_left_to_the_garbage_collector() {
    let mut job = CiJob::clone(&started().job);
    job.metadata.deletion_timestamp = Some(Time(at(5_000)));
    let mut seen = started();
    seen.job = Arc::new(job);
    let plan = plan_at(&seen, 9_999_000);
    assert_eq!((plan.why, plan.actions.as_slice(), plan.requeue), (Why::BeingDeleted, [].as_slice(), None));
}

#[test]
fn a_pod_that_nobody_watches_is_looked_at_again_soon() {
    let mut seen = started();
    seen.current = Current::Present { pod: Arc::new(running(first_pod())), watched: false };
    assert_eq!(plan_at(&seen, 2_000).requeue, Some(Duration::from_secs(10)));
}

#[test]
fn messages_end_like_sentences() {
    let job = fixture::job();
    let created = plan_at(&observed(job.clone()), 20);
    let pods: [Value; 3] = [
        json!({"phase": "Pending"}),
        json!({"phase": "Failed", "reason": "Evicted", "message": "disk"}),
        json!({"phase": "Failed", "reason": "OutOfcpu", "message": "cpu"}),
    ];
    for status in pods {
        let plan =
            plan_at(&then(&job, &created, Some(fixture::with_status(first_pod(), Some("n"), status))), 200);
        let message = plan.status.message.unwrap();
        assert!(message.ends_with('.') && message.starts_with(char::is_uppercase), "{message}");
        assert!(!message.contains("  ") && !message.contains(".."), "{message}");
    }
}
