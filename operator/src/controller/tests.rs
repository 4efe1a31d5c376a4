//! Who is woken by what.

use super::*;
use crate::fixture;
use roadstead_crds::CiJobStatus;

fn job(name: &str, class: Option<&str>, status: Option<(Phase, Reason)>) -> CiJob {
    let mut job = fixture::job();
    job.metadata.name = Some(name.to_owned());
    job.metadata.uid = Some(format!("uid-{name}"));
    job.spec.request.class_name = class.map(str::to_owned);
    job.status = status.map(|(phase, reason)| CiJobStatus {
        phase: Some(phase),
        reason: Some(reason),
        ..CiJobStatus::default()
    });
    job
}

fn known(jobs: Store<CiJob>, memory: Arc<Memory>) -> Known {
    let (classes, _) = Classes::new(reflector::store().0);
    let backoffs = Arc::new(Backoffs::new(|| 1.0));
    Known { jobs, memory, backoffs, queues: Queues::new(vec![], classes, || 1.0).0 }
}

fn store(jobs: &[CiJob]) -> Store<CiJob> {
    let (store, mut writer) = reflector::store();
    for job in jobs {
        writer.apply_watcher_event(&Event::Apply(job.clone()));
    }
    store
}

async fn names(triggers: impl Stream<Item = ObjectRef<CiJob>>) -> Vec<String> {
    let mut names: Vec<_> = triggers.map(|job| job.name).collect().await;
    names.sort();
    names
}

#[tokio::test]
async fn a_class_wakes_only_those_that_wait_for_it() {
    let waiting = Some((Phase::Queued, Reason::ClassNotFound));
    let jobs = store(&[
        job("a", Some("big"), waiting),
        job("b", None, waiting),
        job("c", Some("big"), Some((Phase::Running, Reason::Running))),
        job("d", Some("big"), Some((Phase::Errored, Reason::ClassNotFound))),
        job("e", Some("big"), None),
    ]);
    // Who names none may get any.
    for (change, woken) in [("big", vec!["a", "b"]), ("default", vec!["b"]), ("other", vec!["b"])] {
        let (sender, changes) = broadcast::channel(4);
        sender.send(change.to_owned()).unwrap();
        drop(sender);
        assert_eq!(names(by_class(changes, jobs.clone())).await, woken, "{change}");
    }
    // Who lost count of the changes looks at all that wait.
    let (sender, changes) = broadcast::channel(1);
    for change in ["x", "y", "z"] {
        sender.send(change.to_owned()).unwrap();
    }
    drop(sender);
    assert_eq!(names(by_class(changes, jobs)).await, ["a", "b", "b"], "then those that wait for \"z\" too");
}

#[tokio::test]
async fn a_list_wakes_all_jobs_at_its_end_and_forgets_those_that_are_gone() {
    let existing = job("a", None, None);
    let written = Arc::new(existing.clone());
    let memory = Arc::new(Memory::default());
    memory.wrote("uid-a", Some("1"), Arc::clone(&written));
    memory.wrote("uid-gone", Some("1"), Arc::clone(&written));
    let jobs = store(std::slice::from_ref(&existing));
    let begun = vec![Event::Init, Event::InitApply(existing.clone())];
    let woken = by_job(stream::iter(begun), known(jobs.clone(), Arc::clone(&memory)));
    assert!(names(woken).await.is_empty(), "the cache is not what the list says yet");
    let woken = by_job(stream::iter(vec![Event::InitDone]), known(jobs, Arc::clone(&memory)));
    assert_eq!(names(woken).await, ["a"]);
    let cached = Arc::new(existing);
    assert!(Arc::ptr_eq(&memory.freshest("uid-a", Arc::clone(&cached)), &written));
    assert!(Arc::ptr_eq(&memory.freshest("uid-gone", Arc::clone(&cached)), &cached));
}

#[tokio::test]
async fn a_pod_wakes_the_job_that_it_names() {
    let pod = fixture::pod("p", "u", fixture::birth());
    let mut foreign = pod.clone();
    foreign.metadata.labels = None;
    let events = vec![Event::Apply(pod.clone()), Event::Delete(pod), Event::Apply(foreign)];
    let woken = by_pod(stream::iter(events), known(store(&[]), Arc::default()));
    assert_eq!(names(woken).await, [fixture::JOB, fixture::JOB]);
    let woken =
        by_pod(stream::iter(vec![Event::InitDone]), known(store(&[job("a", None, None)]), Arc::default()));
    assert_eq!(names(woken).await, ["a"], "its pod may have gone while nobody watched");
}
