//! Who gets a place, and who is woken, with caches that lag behind.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::runtime::reflector::{self, store::Writer};
use kube::runtime::watcher::Event;
use roadstead_crds::Phase;
use roadstead_crds::status::{PodStatus, QueueStatus};
use roadstead_crds::{JobClass, JobClassSpec};
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::fixture::{self, at};

const CLASS: &str = "big";

struct World {
    queues: Arc<Queues>,
    writer: Writer<CiJob>,
    memory: Arc<Memory>,
    woken: UnboundedReceiver<ObjectRef<CiJob>>,
    class: Arc<Candidate>,
}

impl World {
    fn new(limits: Concurrency) -> Self {
        let spec = JobClassSpec { concurrency: limits, ..JobClassSpec::default() };
        let class = JobClass::new(CLASS, spec);
        let (classes, mut classes_writer) = reflector::store();
        classes_writer.apply_watcher_event(&Event::Apply(class.clone()));
        let (classes, _) = Classes::new(classes);
        let (jobs, writer) = reflector::store();
        let (wake, woken) = mpsc::unbounded_channel();
        let memory = Arc::new(Memory::default());
        let namespace = fixture::NAMESPACE.to_owned();
        let member = Member { namespace, jobs, memory: Arc::clone(&memory), wake };
        let (queues, _) = Queues::new(vec![member], classes, || 1.0);
        Self { queues, writer, memory, woken, class: Arc::new(Candidate::new(Arc::new(class))) }
    }

    /// One whose cache has these jobs.
    fn with(limits: Concurrency, jobs: &[&CiJob]) -> Self {
        let mut world = Self::new(limits);
        world.writer.apply_watcher_event(&Event::Init);
        world.writer.apply_watcher_event(&Event::InitDone);
        for job in jobs {
            world.see(job);
        }
        world
    }

    fn see(&mut self, job: &CiJob) {
        self.writer.apply_watcher_event(&Event::Apply(job.clone()));
    }

    fn ask(&self, job: &CiJob) -> Room {
        self.queues.ask(&Arc::new(job.clone()), &self.class, at(10_000))
    }

    fn woken(&mut self) -> Vec<String> {
        let mut names = vec![];
        while let Ok(job) = self.woken.try_recv() {
            names.push(job.name);
        }
        names
    }
}

fn job(name: &str, project: i64, age: i64) -> CiJob {
    let mut job = fixture::job();
    job.metadata.name = Some(name.to_owned());
    job.metadata.uid = Some(name.to_owned());
    job.metadata.creation_timestamp = Some(Time(at(-age * 1000)));
    job.spec.request.project.id = project;
    job
}

/// How far the pod of a job has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pod {
    Never,
    Named,
    Created,
}

fn standing(mut job: CiJob, phase: Phase, pod: Pod) -> CiJob {
    let queue = QueueStatus { since: MicroTime(at(0)), position: None, of: None, running: None, max: None };
    job.status = Some(CiJobStatus {
        phase: Some(phase),
        class: Some(CLASS.to_owned()),
        reason: (phase == Phase::Queued).then_some(Reason::ConcurrencyLimit),
        queue: (phase == Phase::Queued).then_some(queue),
        pod: (pod != Pod::Never).then(|| PodStatus {
            name: "p".to_owned(),
            attempt: 1,
            uid: (pod == Pod::Created).then(|| "u".to_owned()),
            node: None,
        }),
        ..CiJobStatus::default()
    });
    job
}

fn running(name: &str, project: i64) -> CiJob {
    standing(job(name, project, 100), Phase::Running, Pod::Created)
}

fn queued(name: &str, project: i64, age: i64) -> CiJob {
    standing(job(name, project, age), Phase::Queued, Pod::Never)
}

fn refused(name: &str, project: i64, age: i64) -> CiJob {
    let mut job = standing(job(name, project, age), Phase::Queued, Pod::Named);
    job.status.as_mut().unwrap().reason = Some(Reason::QuotaExceeded);
    job
}

fn at_most(max: u32) -> Concurrency {
    Concurrency { max: Some(max), max_per_project: None }
}

#[test]
fn a_promised_place_is_taken_before_any_cache_shows_it() {
    let (first, second) = (job("a", 1, 1), job("b", 2, 9));
    let world = World::with(at_most(1), &[&first, &second]);
    assert_eq!(world.ask(&first), Room::Free);
    assert_eq!(world.ask(&first), Room::Free, "it is still its own");
    let Room::Taken(wait) = world.ask(&second) else { panic!("two have one place") };
    assert_eq!((wait.obstacle, wait.position, wait.of, wait.running), (Obstacle::Class, 1, 1, 1));
    // It did not need it after all.
    world.queues.settle("a");
    assert_eq!(world.ask(&second), Room::Free);
}

#[test]
fn what_was_written_counts_before_the_cache_shows_it() {
    let (first, second) = (job("a", 1, 1), job("b", 2, 9));
    let world = World::with(at_most(1), &[&first, &second]);
    let mut placed = standing(first.clone(), Phase::Admitted, Pod::Named);
    placed.metadata.resource_version = Some("2".to_owned());
    world.memory.wrote("a", Some("1"), Arc::new(placed));
    assert!(matches!(world.ask(&second), Room::Taken(_)));
    let mut over = standing(first, Phase::Succeeded, Pod::Created);
    over.metadata.resource_version = Some("3".to_owned());
    world.memory.wrote("a", Some("2"), Arc::new(over));
    assert_eq!(world.ask(&second), Room::Free);
}

#[test]
fn nobody_starts_before_all_caches_are_filled() {
    let world = World::new(at_most(1));
    assert_eq!(world.ask(&job("a", 1, 1)), Room::Unknown(vec!["ci-jobs".to_owned()]));
    let unlimited = World::new(Concurrency::default());
    assert_eq!(unlimited.ask(&job("a", 1, 1)), Room::Free, "no limit, no question");
}

#[test]
fn an_end_wakes_the_next_and_those_whose_position_changed() {
    let jobs = [running("r", 1), queued("a", 1, 9), queued("b", 2, 5)];
    let mut world = World::with(at_most(1), &jobs.iter().collect::<Vec<_>>());
    world.queues.changed(&jobs[0], at(10_000));
    assert_eq!(world.woken(), ["b", "a"], "their positions are not told yet");
    let mut told = queued("b", 2, 5);
    let queue = told.status.as_mut().unwrap().queue.as_mut().unwrap();
    (queue.position, queue.max) = (Some(1), Some(1));
    world.see(&told);
    world.queues.changed(&jobs[0], at(10_000));
    assert_eq!(world.woken(), ["a"], "nothing is new for the other");
    let over = standing(jobs[0].clone(), Phase::Succeeded, Pod::Created);
    world.see(&over);
    world.queues.changed(&over, at(10_000));
    assert_eq!(world.woken(), ["a", "b"], "the older one may start, the other stands where it stood");
}

#[test]
fn a_class_without_limits_wakes_nobody() {
    let jobs = [running("r", 1), running("s", 2)];
    let mut world = World::with(Concurrency::default(), &[&jobs[0], &jobs[1]]);
    world.queues.changed(&jobs[0], at(10_000));
    assert!(world.woken().is_empty());
}

#[test]
fn a_quota_is_asked_by_one_job_at_a_time_and_not_at_once() {
    let jobs = [refused("a", 1, 9), refused("b", 2, 5)];
    let mut world = World::with(Concurrency::default(), &[&jobs[0], &jobs[1]]);
    world.queues.refused(fixture::NAMESPACE, CLASS, at(10_000));
    let Room::Taken(first) = world.ask(&jobs[0]) else { panic!("it was refused just now") };
    let retry = first.retry.unwrap();
    assert!(retry > at(10_000) && retry < at(11_000), "{retry}");
    let Room::Taken(second) = world.ask(&jobs[1]) else { panic!("it is not its turn") };
    assert_eq!((second.retry, second.position), (None, 2));
    // A new job takes its place behind those that wait.
    let new = job("c", 3, 0);
    world.see(&new);
    assert!(matches!(world.ask(&new), Room::Taken(Wait { obstacle: Obstacle::Quota, .. })));

    world.queues.freed("elsewhere", at(10_000));
    assert!(world.woken().is_empty());
    world.queues.freed(fixture::NAMESPACE, at(10_000));
    assert!(world.woken().contains(&"a".to_owned()));
    assert_eq!(world.ask(&jobs[0]), Room::Free);
    assert!(matches!(world.ask(&jobs[1]), Room::Taken(_)), "one at a time");
}

#[test]
fn a_quota_that_refuses_again_is_left_alone_for_longer() {
    let first = refused("a", 1, 9);
    let world = World::with(Concurrency::default(), &[&first]);
    let mut last = SignedDuration::ZERO;
    for _ in 0..4 {
        world.queues.refused(fixture::NAMESPACE, CLASS, at(10_000));
        let Room::Taken(wait) = world.ask(&first) else { panic!("it was refused just now") };
        let pause = wait.retry.unwrap().duration_since(at(10_000));
        assert!(pause > last);
        last = pause;
    }
    world.queues.created(fixture::NAMESPACE, CLASS);
    assert_eq!(world.ask(&first), Room::Free);
}

#[test]
fn the_end_of_a_list_wakes_all_that_wait() {
    let jobs = [running("r", 1), queued("a", 1, 9)];
    let mut world = World::with(at_most(1), &[&jobs[0], &jobs[1]]);
    world.queues.listed();
    assert_eq!(world.woken(), ["a"]);
}

#[test]
fn an_end_changes_few_of_a_thousand_positions() {
    let mut jobs = vec![running("r", 1)];
    for number in 0..1_000 {
        let mut job = queued(&format!("q{number:04}"), 1, 2_000 - number);
        let queue = job.status.as_mut().unwrap().queue.as_mut().unwrap();
        let position = usize::try_from(number).unwrap() + 1;
        (queue.position, queue.max) = (i32::try_from(queue::shown(position)).ok(), Some(1));
        jobs.push(job);
    }
    let mut world = World::with(at_most(1), &jobs.iter().collect::<Vec<_>>());
    world.queues.changed(&jobs[0], at(10_000));
    assert!(world.woken().is_empty(), "all is told");
    let over = standing(jobs[0].clone(), Phase::Succeeded, Pod::Created);
    world.see(&over);
    world.queues.changed(&over, at(10_000));
    assert_eq!(world.woken(), ["q0000"], "the next one");
    let started = standing(jobs[1].clone(), Phase::Admitted, Pod::Named);
    world.see(&started);
    world.queues.changed(&started, at(10_000));
    assert_eq!(world.woken().len(), 11, "the first five, and one for each rounded position");
}
