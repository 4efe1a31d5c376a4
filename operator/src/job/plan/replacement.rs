//! Jobs whose pod is lost, and jobs whose status is.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use roadstead_crds::report::Outcome;
use roadstead_crds::{CiJob, Phase, Reason};

use super::tests::{
    FIRST, SECOND, delete, first_pod, observed, plan_at, reporting, running, stands, started, then, unchanged,
};
use super::*;
use crate::fixture::{self, at};
use crate::policy::queue::{Obstacle, Wait};

/// A job that runs, after its pod was deleted.
fn lost() -> (CiJob, Plan) {
    let mut gone = started();
    (gone.current, gone.pods) = (Current::Absent, vec![]);
    (CiJob::clone(&gone.job), plan_at(&gone, 60_000))
}

/// What is seen of it later. The shim may have asked for another pod.
fn later((job, plan): &(CiJob, Plan), replace: Option<&str>) -> Observed {
    let mut job = job.clone();
    job.spec.replace = replace.map(str::to_owned);
    Observed { current: Current::Unknown, ..then(&job, plan, None) }
}

#[test]
fn a_lost_pod_ends_the_job_unless_the_shim_wants_another_one() {
    let lost = lost();
    assert_eq!((lost.1.why, stands(&lost.1)), (Why::Lost, (Some(Phase::Starting), Some(Reason::PodDeleted))));
    assert!(lost.1.actions.is_empty());
    assert_eq!(lost.1.status.pod.as_ref().map(|pod| pod.attempt), Some(1));
    // As long as a pod waits for a client: 120 s.
    assert_eq!(lost.1.requeue, Some(Duration::from_secs(120)));
    let waiting = plan_at(&later(&lost, None), 179_999);
    assert_eq!((waiting.why, &waiting.status), (Why::Lost, &lost.1.status));
    let ended = plan_at(&later(&lost, None), 180_000);
    assert_eq!(stands(&ended), (Some(Phase::Errored), Some(Reason::PodDeleted)));
    assert_eq!(ended.status.message, lost.1.status.message);
    // A report is an answer too. What happened to the pod explains it.
    for (outcome, end) in [
        (Outcome::Errored, (Phase::Errored, Reason::PodDeleted)),
        (Outcome::Canceled, (Phase::Errored, Reason::PodDeleted)),
        (Outcome::Succeeded, (Phase::Succeeded, Reason::Succeeded)),
    ] {
        let ended = plan_at(&reporting(later(&lost, None), outcome), 61_000);
        assert_eq!(stands(&ended), (Some(end.0), Some(end.1)), "{outcome:?}");
    }
}

#[test]
fn another_pod_takes_the_place_of_a_lost_one_once() {
    let lost = lost();
    assert_eq!(plan_at(&later(&lost, Some("another")), 61_000).why, Why::Lost, "it asks for something else");
    let replaced = plan_at(&later(&lost, Some(FIRST)), 61_000);
    assert_eq!(replaced.why, Why::Replaced);
    let [Action::CreatePod(pod)] = &replaced.actions[..] else { panic!("{:?}", replaced.actions) };
    assert_eq!(pod.metadata.name.as_deref(), Some(SECOND));
    let named = replaced.status.pod.as_ref().unwrap();
    assert_eq!((named.name.as_str(), named.attempt, named.uid.as_ref()), (SECOND, 2, None));
    assert_eq!((replaced.status.started_at.as_ref(), replaced.status.start.running_ms), (None, None));

    // It starts as the first one did, with the whole time for the start.
    let mut job = lost.0.clone();
    job.spec.replace = Some(FIRST.to_owned());
    let second = || fixture::pod(SECOND, "pod-uid-2", at(61_100));
    let up = plan_at(&then(&job, &replaced, Some(running(second()))), 62_000);
    assert_eq!((up.why, stands(&up)), (Why::Running, (Some(Phase::Running), Some(Reason::Running))));
    // And is not replaced.
    let gone = plan_at(&then(&job, &up, None), 90_000);
    assert_eq!(stands(&gone), (Some(Phase::Errored), Some(Reason::PodDeleted)));
    assert!(gone.status.message.as_ref().unwrap().contains(SECOND), "{:?}", gone.status.message);
}

#[test]
fn the_time_for_the_start_begins_when_there_is_room_for_the_other_pod() {
    let lost = lost();
    let mut replaced = plan_at(&later(&lost, Some(FIRST)), 61_000);
    let mut job = lost.0.clone();
    job.spec.replace = Some(FIRST.to_owned());
    let identity = Identity::of(&job).unwrap();
    // A quota refuses it for longer than a start may take.
    let named = CiJob { status: Some(replaced.status), ..job.clone() };
    let mut draft = Draft::of(&named, at(61_100));
    draft.refused_by_quota(&identity, "exceeded quota: q");
    replaced.status = draft.status;
    let free = plan_at(&Observed { current: Current::Unknown, ..then(&job, &replaced, None) }, 700_000);
    assert_eq!(free.why, Why::NewPod);
    let next = plan_at(&Observed { current: Current::Unborn, ..then(&job, &free, None) }, 700_100);
    assert_eq!(next.why, Why::Unsure, "{:?}", next.status.message);
}

#[test]
fn a_lost_pod_whose_status_is_removed_is_replaced_at_once_where_the_shim_has_asked() {
    let mut job = CiJob::clone(&started().job);
    job.spec.replace = Some(FIRST.to_owned());
    job.status = None;
    let evicted = serde_json::json!({"phase": "Failed", "reason": "Evicted", "message": "disk pressure"});
    let pods = vec![Arc::new(fixture::with_status(first_pod(), Some("node-1"), evicted))];
    let identity = Identity::of(&job).unwrap();
    let found = forgotten(None, &identity, &pods).unwrap();
    let current = Current::Present { pod: Arc::clone(found), watched: true };
    let seen = Observed { current, pods: pods.clone(), ..observed(job) };
    let plan = plan_at(&seen, 60_000);
    assert_eq!(
        (plan.why, plan.status.lost_pod.as_ref().map(|lost| lost.name.as_str())),
        (Why::Replaced, Some(FIRST))
    );
    assert_eq!(plan.actions.len(), 2, "the old one goes, the new one comes");
}

#[test]
fn what_is_left_of_a_lost_pod_goes_with_its_replacement() {
    let job = CiJob::clone(&started().job);
    let evicted = fixture::with_status(
        first_pod(),
        Some("node-1"),
        serde_json::json!({"phase": "Failed", "reason": "Evicted", "message": "disk pressure"}),
    );
    let observed = then(&job, &unchanged(&job), Some(evicted));
    let lost = plan_at(&observed, 60_000);
    assert_eq!((lost.why, lost.status.reason), (Why::Lost, Some(Reason::PodEvicted)));
    let mut asked = Observed { current: Current::Unknown, ..later(&(job, lost), Some(FIRST)) };
    asked.pods.clone_from(&observed.pods);
    let replaced = plan_at(&asked, 61_000);
    assert!(replaced.actions.contains(&delete(1)), "{:?}", replaced.actions);
    assert_eq!(replaced.actions.len(), 2);
}

#[test]
fn only_what_was_taken_away_is_replaced() {
    let job = CiJob::clone(&started().job);
    let over = |code: i32, reason: &str| {
        serde_json::json!({"phase": "Running", "containerStatuses": [
        {"name": "build", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "containerID": "c://1",
         "state": {"terminated": {"exitCode": code, "reason": reason}}}]})
    };
    for (code, reason, end) in
        [(137, "OOMKilled", Reason::OutOfMemory), (1, "Error", Reason::ContainerTerminated)]
    {
        let pod = fixture::with_status(first_pod(), Some("node-1"), over(code, reason));
        let plan = plan_at(&then(&job, &unchanged(&job), Some(pod)), 60_000);
        assert_eq!((plan.why, plan.status.reason), (Why::Ended(end), Some(end)));
    }
    let mut deleted = running(first_pod());
    deleted.metadata.deletion_timestamp = Some(Time(at(60_000)));
    let observed = then(&job, &unchanged(&job), Some(deleted));
    assert_eq!(plan_at(&observed, 60_000).why, Why::Lost);
    let reported = plan_at(&reporting(observed, Outcome::Failed), 60_000);
    assert_eq!(reported.why, Why::Ended(Reason::PodDeleted), "nobody waits for another one");
}

/// Somebody removes the status of a job that runs.
#[test]
fn a_forgotten_pod_is_the_jobs_again_even_where_its_class_is_full() {
    let before = started();
    let mut job = CiJob::clone(&before.job);
    let was = job.status.take().unwrap();
    let pods = before.pods.clone();
    let found = forgotten(job.status.as_ref(), &before.identity, &pods).unwrap();
    let current = Current::Present { pod: Arc::clone(found), watched: true };
    let wait = Wait { obstacle: Obstacle::Class, position: 1, of: 1, running: 4, max: Some(4), retry: None };
    let mut observed = Observed { job: Arc::new(job), current, room: Room::Taken(wait), ..before };
    assert!(wants_room(&mut observed).is_none(), "it has room");
    let plan = plan_at(&observed, 60_000);
    assert_eq!((plan.why, &plan.actions[..]), (Why::Running, &[][..]));
    assert_eq!(plan.status.pod, was.pod);
    assert_eq!((&plan.status.class, &plan.status.timeouts), (&was.class, &was.timeouts));
    assert!(status::is_true(&plan.status, condition::ADMITTED));

    // Other pods are nobody's.
    let mut foreign = CiJob::clone(&observed.job);
    foreign.metadata.uid = Some("another".to_owned());
    assert!(forgotten(None, &Identity::of(&foreign).unwrap(), &pods).is_none());
    assert!(forgotten(Some(&was), &observed.identity, &pods).is_none(), "it is recorded");
}

#[test]
fn a_job_by_hand_is_over_with_its_pod() {
    let mut gone = started();
    let mut job = CiJob::clone(&gone.job);
    job.spec.request.server = roadstead_crds::request::BY_HAND.to_owned();
    (gone.job, gone.current, gone.pods) = (Arc::new(job), Current::Absent, vec![]);
    assert_eq!(stands(&plan_at(&gone, 60_000)), (Some(Phase::Errored), Some(Reason::PodDeleted)));
}
