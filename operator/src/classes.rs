//! The classes of the cluster, each made ready once for every version of its spec.

pub mod status;
pub mod writer;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::runtime::reflector::store::WriterDropped;
use kube::runtime::reflector::{ObjectRef, Store};
use roadstead_crds::JobClass;
use tokio::sync::mpsc;

use crate::job::pod;
use crate::policy::select::{Candidate, Fault};

/// Faults that may wait to be noted. More of them say nothing new.
const FAULTS: usize = 64;

/// The classes.
pub struct Classes {
    store: Store<JobClass>,
    ready: Mutex<HashMap<String, Ready>>,
    faults: mpsc::Sender<Fault>,
}

/// A class that was made ready.
struct Ready {
    uid: Option<String>,
    generation: Option<i64>,
    candidate: Arc<Candidate>,
}

impl Classes {
    /// The classes of a cache, and the faults that are found in them.
    pub fn new(store: Store<JobClass>) -> (Arc<Self>, mpsc::Receiver<Fault>) {
        let (faults, found) = mpsc::channel(FAULTS);
        (Arc::new(Self { store, ready: Mutex::default(), faults }), found)
    }

    /// Waits until the cache is filled.
    ///
    /// # Errors
    /// It never will be.
    pub async fn wait_until_ready(&self) -> Result<(), WriterDropped> {
        self.store.wait_until_ready().await
    }

    /// The class of that name.
    pub fn get(&self, name: &str) -> Option<Arc<Candidate>> {
        let class = self.store.get(&ObjectRef::new(name))?;
        Some(made_ready(&mut self.lock(), class))
    }

    /// All classes.
    pub fn all(&self) -> Vec<Arc<Candidate>> {
        let classes = self.store.state();
        let mut ready = self.lock();
        if ready.len() > classes.len() {
            let exists =
                |name: &String| classes.iter().any(|class| class.metadata.name.as_ref() == Some(name));
            ready.retain(|name, _| exists(name));
        }
        classes.into_iter().map(|class| made_ready(&mut ready, class)).collect()
    }

    /// Hands on that an expression failed. That one of many is lost makes no difference.
    pub fn found(&self, fault: Fault) {
        let _ = self.faults.try_send(fault);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Ready>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A class with everything found that is wrong with it.
pub fn made(class: Arc<JobClass>) -> Candidate {
    let mut candidate = Candidate::new(class);
    candidate.problems.extend(pod::problems(&candidate.class.spec));
    candidate
}

fn made_ready(ready: &mut HashMap<String, Ready>, class: Arc<JobClass>) -> Arc<Candidate> {
    let name = class.metadata.name.clone().unwrap_or_default();
    let (uid, generation) = (class.metadata.uid.clone(), class.metadata.generation);
    if let Some(known) = ready.get(&name)
        && (&known.uid, known.generation) == (&uid, generation)
    {
        return Arc::clone(&known.candidate);
    }
    let candidate = Arc::new(made(class));
    ready.insert(name, Ready { uid, generation, candidate: Arc::clone(&candidate) });
    candidate
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use kube::runtime::{reflector, watcher::Event};

    #[test]
    fn a_class_is_made_ready_once_for_each_generation() {
        let (store, mut writer) = reflector::store();
        let (classes, _) = Classes::new(store);
        assert!(classes.get("default").is_none());
        let mut class = fixture::class();
        class.metadata.generation = Some(1);
        writer.apply_watcher_event(&Event::Apply(class.clone()));
        let first = classes.get("default").unwrap();
        // A status that is written changes the object, not what is made of it.
        class.metadata.resource_version = Some("2".to_owned());
        writer.apply_watcher_event(&Event::Apply(class.clone()));
        assert!(Arc::ptr_eq(&first, &classes.all()[0]));
        class.metadata.generation = Some(2);
        writer.apply_watcher_event(&Event::Apply(class.clone()));
        assert!(!Arc::ptr_eq(&first, &classes.get("default").unwrap()));
        writer.apply_watcher_event(&Event::Delete(class));
        assert!(classes.get("default").is_none() && classes.all().is_empty());
        assert!(classes.lock().is_empty(), "nothing is kept of classes that are gone");
    }
}
