//! What the operator itself has just written and its caches do not show yet.
//!
//! A status write comes back through the watch some milliseconds later. A plan made in between,
//! from the cache alone, would write again, be told 409, and ask for a pod that it has just made.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use roadstead_crds::CiJob;

/// How long the watch may take to show a new pod before the API server is asked for it.
const WATCH_LAG: Duration = Duration::from_secs(15);

/// How long a pod whose name is stored may take to be created by whoever stored the name.
const BIRTH: Duration = Duration::from_secs(1);

/// Remembers what was written, by the CiJob's UID.
#[derive(Debug, Default)]
pub struct Memory {
    entries: Mutex<HashMap<String, Entry>>,
}

#[derive(Debug, Default)]
struct Entry {
    /// The newest version of the CiJob, as the API server answered.
    job: Option<Arc<CiJob>>,
    /// Resource versions of the CiJob that the newest one replaced, one after the other.
    superseded: Vec<String>,
    /// The pod that was created and not seen yet.
    pod: Option<(Arc<Pod>, Instant)>,
    /// The name of a pod that is stored in the status and was not there, and since when.
    unborn: Option<(String, Instant)>,
}

impl Memory {
    /// A version of a CiJob replaced another one.
    pub fn wrote(&self, uid: &str, replaced: Option<&str>, job: Arc<CiJob>) {
        let mut entries = self.lock();
        let entry = entries.entry(uid.to_owned()).or_default();
        entry.superseded.extend(replaced.map(str::to_owned));
        entry.job = Some(job);
    }

    /// A pod was created.
    pub fn created(&self, uid: &str, pod: Arc<Pod>, now: Instant) {
        self.lock().entry(uid.to_owned()).or_default().pod = Some((pod, now));
    }

    /// The newer one of the cached CiJob and the remembered one. Versions are only told apart, not
    /// ordered: a cached one that was not replaced by us is ours or later.
    pub fn freshest(&self, uid: &str, cached: Arc<CiJob>) -> Arc<CiJob> {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(uid) else { return cached };
        let behind = cached
            .metadata
            .resource_version
            .as_ref()
            .is_some_and(|version| entry.superseded.contains(version));
        if let Some(job) = entry.job.as_ref().filter(|_| behind) {
            return Arc::clone(job);
        }
        entry.job = None;
        entry.superseded.clear();
        if entry.pod.is_none() && entry.unborn.is_none() {
            entries.remove(uid);
        }
        cached
    }

    /// The pod that was created for the CiJob, if the watch may still be about to show it.
    pub fn pod(&self, uid: &str, now: Instant) -> Option<Arc<Pod>> {
        let entries = self.lock();
        let (pod, created) = entries.get(uid)?.pod.as_ref()?;
        (now.duration_since(*created) < WATCH_LAG).then(|| Arc::clone(pod))
    }

    /// A pod whose name is stored and whose UID is not does not exist. Whether it will not come any
    /// more: another operator may have stored the name just now, and be about to create the pod.
    pub fn is_lost(&self, uid: &str, pod: &str, now: Instant) -> bool {
        let mut entries = self.lock();
        let unborn = &mut entries.entry(uid.to_owned()).or_default().unborn;
        match unborn {
            Some((name, since)) if name == pod => now.duration_since(*since) >= BIRTH,
            _ => {
                *unborn = Some((pod.to_owned(), now));
                false
            }
        }
    }

    /// The watch showed a pod, or its end.
    pub fn saw(&self, pod: &Pod) {
        let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
        let mut entries = self.lock();
        for owner in owners {
            if let Some(entry) = entries.get_mut(&owner.uid)
                && entry.pod.as_ref().is_some_and(|(created, _)| created.metadata.uid == pod.metadata.uid)
            {
                entry.pod = None;
            }
        }
    }

    /// The CiJob is no more.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Forgets all but these, after a list that replaced a broken watch.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.lock().retain(|uid, _| exists(uid));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

    fn version(version: &str) -> Arc<CiJob> {
        let mut job = fixture::job();
        job.metadata.resource_version = Some(version.to_owned());
        Arc::new(job)
    }

    fn seen(memory: &Memory, cached: &str) -> String {
        memory.freshest(fixture::JOB_UID, version(cached)).metadata.resource_version.clone().unwrap()
    }

    #[test]
    fn a_cache_that_lags_is_corrected_until_it_caught_up() {
        let memory = Memory::default();
        assert_eq!(seen(&memory, "1"), "1");
        memory.wrote(fixture::JOB_UID, Some("1"), version("5"));
        memory.wrote(fixture::JOB_UID, Some("5"), version("8"));
        assert_eq!(seen(&memory, "1"), "8");
        assert_eq!(seen(&memory, "5"), "8");
        assert_eq!(seen(&memory, "8"), "8");
        assert!(memory.lock().is_empty());
    }

    #[test]
    fn what_others_wrote_since_wins() {
        let memory = Memory::default();
        memory.wrote(fixture::JOB_UID, Some("1"), version("5"));
        assert_eq!(seen(&memory, "7"), "7");
        assert!(memory.lock().is_empty());
    }

    #[test]
    fn a_created_pod_is_there_until_the_watch_shows_it() {
        let memory = Memory::default();
        let now = Instant::now();
        let mut pod = Pod::default();
        pod.metadata.uid = Some("p".to_owned());
        let owner = OwnerReference { uid: fixture::JOB_UID.to_owned(), ..OwnerReference::default() };
        pod.metadata.owner_references = Some(vec![owner]);
        memory.created(fixture::JOB_UID, Arc::new(pod.clone()), now);
        assert!(memory.pod(fixture::JOB_UID, now).is_some());
        assert!(memory.pod(fixture::JOB_UID, now + WATCH_LAG).is_none());
        let other = Pod { metadata: ObjectMeta::default(), ..pod.clone() };
        memory.saw(&other);
        assert!(memory.pod(fixture::JOB_UID, now).is_some());
        memory.saw(&pod);
        assert!(memory.pod(fixture::JOB_UID, now).is_none());
    }

    #[test]
    fn a_pod_that_was_named_has_a_moment_to_come() {
        let memory = Memory::default();
        let now = Instant::now();
        assert!(!memory.is_lost("a", "pod-1", now));
        assert!(!memory.is_lost("a", "pod-1", now + BIRTH / 2));
        assert!(memory.is_lost("a", "pod-1", now + BIRTH));
        assert!(!memory.is_lost("a", "pod-2", now + BIRTH), "another name, another moment");
        memory.freshest("a", version("1"));
        assert!(memory.is_lost("a", "pod-2", now + BIRTH * 2));
    }

    #[test]
    fn nothing_is_kept_of_jobs_that_are_gone() {
        let memory = Memory::default();
        memory.wrote("a", Some("1"), version("2"));
        memory.wrote("b", Some("1"), version("2"));
        memory.wrote("c", Some("1"), version("2"));
        memory.forget("a");
        memory.retain(|uid| uid == "c");
        assert_eq!(memory.lock().keys().collect::<Vec<_>>(), ["c"]);
    }
}
