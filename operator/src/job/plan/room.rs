//! Jobs for which there is no room.

use std::sync::Arc;

use roadstead_crds::status::condition;
use roadstead_crds::{CiJob, Phase, Reason};

use super::tests::{plan_at, stands};
use super::*;
use crate::fixture::{self, at};
use crate::policy::queue::{Obstacle, Wait};

fn full(position: usize) -> Room {
    Room::Taken(Wait { obstacle: Obstacle::Class, position, of: 7, running: 4, max: Some(4), retry: None })
}

fn observed(job: CiJob, room: Room) -> Observed {
    let identity = Identity::of(&job).unwrap();
    let classes = fixture::candidates();
    Observed {
        identity,
        job: Arc::new(job),
        classes,
        pods: vec![],
        current: Current::Unknown,
        selected: None,
        room,
    }
}

fn after(plan: &Plan, room: Room) -> Observed {
    observed(CiJob { status: Some(plan.status.clone()), ..fixture::job() }, room)
}

#[test]
fn a_job_without_room_is_admitted_and_waits() {
    let queued = plan_at(&observed(fixture::job(), full(3)), 20);
    assert_eq!(
        (queued.why, stands(&queued)),
        (Why::Queued, (Some(Phase::Queued), Some(Reason::ConcurrencyLimit)))
    );
    assert!(queued.actions.is_empty() && queued.status.pod.is_none());
    // gitlab-runner is told at once what it has to know.
    assert!(status::is_true(&queued.status, condition::ADMITTED) && queued.status.config.is_some());
    let queue = queued.status.queue.as_ref().unwrap();
    assert_eq!((queue.since.0, queue.position, queue.of), (at(20), Some(3), Some(7)));
    assert_eq!((queue.running, queue.max), (Some(4), Some(4)));
    assert_eq!(
        queued.status.message.as_deref(),
        Some(
            "Position 3 of 7 in the queue of JobClass \"default\": 4 of its jobs run, at most 4 may (`concurrency.max`)."
        )
    );
    // Nothing new, nothing to write; another position is.
    assert_eq!(plan_at(&after(&queued, full(3)), 9_000).status, queued.status);
    let moved = plan_at(&after(&queued, full(2)), 9_000);
    assert_eq!(moved.status.queue.as_ref().unwrap().position, Some(2));
    assert_eq!(moved.status.queue.as_ref().unwrap().since.0, at(20));
    // The operator that follows does not forget where it stood.
    assert_eq!(
        plan_at(&after(&moved, Room::Unknown(vec!["others".to_owned()])), 10_000).status,
        moved.status
    );
}

#[test]
fn the_time_for_the_start_begins_when_there_is_room() {
    let queued = plan_at(&observed(fixture::job(), full(1)), 20);
    // Later than the class's 600 s for the start, and within the 2700 s for the queue.
    let placed = plan_at(&after(&queued, Room::Free), 1_000_000);
    assert_eq!(
        (placed.why, stands(&placed)),
        (Why::NewPod, (Some(Phase::Admitted), Some(Reason::Scheduling)))
    );
    assert_eq!(placed.status.start.room_ms, Some(1_000_000));
    let mut named = after(&placed, Room::Free);
    named.current = Current::Absent;
    let lost = plan_at(&named, 1_010_000);
    assert_eq!(lost.why, Why::LostPod, "{:?}", lost.status.message);
    let late = plan_at(&named, 1_600_000);
    assert_eq!(stands(&late), (Some(Phase::Errored), Some(Reason::StartTimeout)));
}

#[test]
fn who_waits_too_long_is_told_for_what() {
    let queued = plan_at(&observed(fixture::job(), full(2)), 0);
    assert_eq!(queued.requeue, Some(Duration::from_secs(2_700)));
    assert_eq!(plan_at(&after(&queued, full(2)), 2_699_000).why, Why::Queued);
    let ended = plan_at(&after(&queued, full(2)), 2_700_000);
    assert_eq!(stands(&ended), (Some(Phase::TimedOut), Some(Reason::QueueTimeout)));
    assert_eq!(ended.status.queue, None);
    let message = ended.status.message.unwrap();
    for words in ["2700 s", "JobClass \"default\"", "timeouts.queueSeconds", "concurrency.max"] {
        assert!(message.contains(words), "no {words:?} in {message:?}");
    }
}

#[test]
fn a_quota_is_tried_again_when_it_is_the_jobs_turn_and_under_another_name() {
    let named = plan_at(&observed(fixture::job(), Room::Free), 20);
    let mut draft_job = fixture::job();
    draft_job.status = Some(named.status.clone());
    let mut draft = Draft::of(&draft_job, at(50));
    draft.refused_by_quota(&Identity::of(&draft_job).unwrap(), "exceeded quota: pods");
    let mut job = fixture::job();
    job.status = Some(draft.status);
    let wait =
        Wait { obstacle: Obstacle::Quota, position: 1, of: 1, running: 0, max: None, retry: Some(at(850)) };
    let waiting = plan_at(&observed(job.clone(), Room::Taken(wait)), 50);
    assert_eq!((waiting.why, waiting.requeue), (Why::Queued, Some(Duration::from_millis(800))));
    assert!(waiting.status.message.as_ref().unwrap().contains("exceeded quota: pods"));
    let again = plan_at(&observed(job, Room::Free), 850);
    assert_eq!(again.why, Why::NewPod);
    assert_eq!(again.status.pod.as_ref().map(|pod| pod.attempt), Some(2));
}

#[test]
fn room_is_asked_for_by_those_who_are_about_to_get_a_pod() {
    let wants = |job: CiJob| wants_room(&mut observed(job, Room::Free)).is_some();
    assert!(wants(fixture::job()));
    let mut held = fixture::job();
    held.spec.hold = true;
    assert!(!wants(held), "it may never need it");
    let named = plan_at(&observed(fixture::job(), Room::Free), 20);
    assert!(!wants(CiJob { status: Some(named.status), ..fixture::job() }), "it has it");
    let queued = plan_at(&observed(fixture::job(), full(1)), 20);
    assert!(wants(CiJob { status: Some(queued.status), ..fixture::job() }));
}
