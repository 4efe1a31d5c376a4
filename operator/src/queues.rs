//! The queues of the classes: which jobs run and which wait, in all job namespaces together.
//!
//! Nothing is counted up or down. Each answer is made from the CiJobs that exist, and corrected by
//! what this operator has written and promised and no watch has shown yet.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use kube::runtime::reflector::{ObjectRef, Store};
use roadstead_crds::jobclass::Concurrency;
use roadstead_crds::{CiJob, CiJobStatus, Reason};
use tokio::sync::mpsc;

use crate::backoff::{Backoffs, Random};
use crate::classes::Classes;
use crate::job::memory::Memory;
use crate::job::place::{Place, place};
use crate::job::status::waits_for_room;
use crate::policy::census::Census;
use crate::policy::queue::{self, Entry, Obstacle, Quota, Room, Stand, Wait, Waiting};
use crate::policy::select::Candidate;
use crate::policy::timeouts;

/// The CiJobs of one namespace.
pub struct Member {
    /// Its name.
    pub namespace: String,
    /// Cache of its CiJobs.
    pub jobs: Store<CiJob>,
    /// What was written and the cache does not show yet.
    pub memory: Arc<Memory>,
    /// Has a job looked at again.
    pub wake: mpsc::UnboundedSender<ObjectRef<CiJob>>,
}

impl Member {
    fn is_listed(&self) -> bool {
        matches!(self.jobs.wait_until_ready().now_or_never(), Some(Ok(())))
    }
}

/// The queues of all classes.
pub struct Queues {
    members: Vec<Member>,
    classes: Arc<Classes>,
    state: Mutex<State>,
    backoffs: Backoffs,
    touched: mpsc::UnboundedSender<String>,
}

/// What no CiJob shows.
#[derive(Default)]
struct State {
    /// Classes by the UIDs of jobs that were promised a place and have not taken it yet.
    promised: HashMap<String, String>,
    /// Until when the quota of a namespace is taken to have no room for jobs of a class.
    shut: HashMap<(String, String), Timestamp>,
}

/// A job of the class that is asked about.
struct Known {
    job: Arc<CiJob>,
    stand: Stand,
}

impl Queues {
    /// The queues of these namespaces, and the names of classes whose jobs have changed.
    pub fn new(
        members: Vec<Member>,
        classes: Arc<Classes>,
        random: Random,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<String>) {
        let (touched, changes) = mpsc::unbounded_channel();
        let (state, backoffs) = (Mutex::default(), Backoffs::new(random));
        (Arc::new(Self { members, classes, state, backoffs, touched }), changes)
    }

    /// The jobs of a class. `None`: not all of them are known yet.
    pub fn census(&self, class: &str) -> Option<Census> {
        if !self.is_complete() {
            return None;
        }
        let mut census = Census::default();
        for member in &self.members {
            for job in member.jobs.state() {
                census.count(&job, class);
            }
        }
        Some(census)
    }

    /// Whether the job may have a pod in this class. If so, the place is promised to it until its
    /// status shows that it has one, or [`settle`](Self::settle) says that it does not need it.
    pub fn ask(&self, job: &Arc<CiJob>, class: &Candidate, now: Timestamp) -> Room {
        let (name, limits) = (class.name(), class.class.spec.concurrency);
        let uid = job.metadata.uid.as_deref().unwrap_or_default();
        let mut state = self.lock();
        if limits == Concurrency::default() && !self.waits_for_quota(name) {
            return Room::Free;
        }
        // A cache that is not filled yet would look like a namespace in which nothing runs.
        let unlisted = self.unlisted();
        if !unlisted.is_empty() {
            return Room::Unknown(unlisted);
        }
        let known = self.known(name, &mut state, Some((uid, job)));
        if known.iter().any(|known| is(&known.job, uid) && known.stand != Stand::Waits) {
            return Room::Free;
        }
        let entries = entries(&known);
        let quotas = quotas(&state, name, &known, now);
        let line = queue::line(&entries, limits, |namespace| of(&quotas, namespace));
        let Some(index) = line.iter().position(|waiting| waiting.uid == uid) else {
            return Room::Unknown(vec![]);
        };
        let Some(mut wait) = Wait::of(&line, index, limits) else {
            state.promised.insert(uid.to_owned(), name.to_owned());
            return Room::Free;
        };
        let namespace = job.namespace().unwrap_or_default();
        let first = |waiting: &&Waiting<'_>| {
            waiting.namespace == namespace && waiting.obstacle == Some(Obstacle::Quota)
        };
        if line.iter().find(first).is_some_and(|waiting| waiting.uid == uid) {
            wait.retry = state.shut.get(&(namespace, name.to_owned())).copied();
        }
        // It may be another one's turn, and nothing but this question tells.
        self.wake_the_next(&known, &line);
        Room::Taken(wait)
    }

    /// What was planned for the job is done: its status shows whether it has a place.
    pub fn settle(&self, uid: &str) {
        self.lock().promised.remove(uid);
    }

    /// A quota refused the pod of a job of that class.
    pub fn refused(&self, namespace: &str, class: &str, now: Timestamp) {
        let wait = self.backoffs.failed(&key(namespace, class));
        let until = now.checked_add(SignedDuration::try_from(wait).unwrap_or_default()).unwrap_or(now);
        self.lock().shut.insert((namespace.to_owned(), class.to_owned()), until);
    }

    /// A pod of a job of that class was created.
    pub fn created(&self, namespace: &str, class: &str) {
        if self.lock().shut.remove(&(namespace.to_owned(), class.to_owned())).is_some() {
            self.backoffs.reset(&key(namespace, class));
        }
    }

    /// A pod of the namespace has ended, which may have made room in a quota.
    pub fn freed(&self, namespace: &str, now: Timestamp) {
        let shut: Vec<_> = {
            let state = self.lock();
            state.shut.keys().filter(|(of, _)| of == namespace).map(|(_, class)| class.clone()).collect()
        };
        for class in shut {
            self.backoffs.reset(&key(namespace, &class));
            self.lock().shut.insert((namespace.to_owned(), class.clone()), now);
            self.look(&class, now);
        }
    }

    /// A CiJob has changed or is gone: those that may start for it are looked at, and those whose
    /// status says something else now.
    pub fn changed(&self, job: &CiJob, now: Timestamp) {
        if let Some(class) = job.status.as_ref().and_then(|status| status.class.as_deref()) {
            self.look(class, now);
            self.touch(class);
        }
    }

    /// A namespace was listed.
    pub fn listed(&self) {
        if !self.is_complete() {
            return;
        }
        self.classes.all().iter().for_each(|class| self.touch(class.name()));
        for member in &self.members {
            for job in member.jobs.state_filter(|job| job.status.as_ref().is_some_and(waits_for_room)) {
                // A controller that is gone needs no waking.
                let _ = member.wake.send(ObjectRef::from_obj(&*job));
            }
        }
    }

    fn touch(&self, class: &str) {
        // Without a writer of statuses nobody counts.
        let _ = self.touched.send(class.to_owned());
    }

    fn look(&self, class: &str, now: Timestamp) {
        let Some(candidate) = self.classes.get(class) else { return };
        let limits = candidate.class.spec.concurrency;
        let mut state = self.lock();
        if !self.somebody_waits(class) || !self.is_complete() {
            return;
        }
        let known = self.known(class, &mut state, None);
        let entries = entries(&known);
        let quotas = quotas(&state, class, &known, now);
        let line = queue::line(&entries, limits, |namespace| of(&quotas, namespace));
        let jobs = by_uid(&known);
        let mut tries = HashSet::new();
        for (index, waiting) in line.iter().enumerate() {
            let Some(job) = jobs.get(waiting.uid) else { continue };
            let wait = Wait::of(&line, index, limits);
            let told = wait.zip(job.status.as_ref()).is_some_and(|(wait, status)| wait.is_told(status));
            // The first one before a quota has to know that it is the first: it is the one that tries again.
            let tries = waiting.obstacle == Some(Obstacle::Quota) && tries.insert(waiting.namespace);
            if tries || !told {
                self.wake(job);
            }
        }
    }

    fn wake_the_next(&self, known: &[Known], line: &[Waiting<'_>]) {
        let mut next = line.iter().filter(|waiting| waiting.obstacle.is_none()).peekable();
        if next.peek().is_none() {
            return;
        }
        let jobs = by_uid(known);
        next.filter_map(|waiting| jobs.get(waiting.uid)).for_each(|job| self.wake(job));
    }

    fn wake(&self, job: &CiJob) {
        let namespace = job.metadata.namespace.as_deref();
        let member = self.members.iter().find(|member| Some(member.namespace.as_str()) == namespace);
        if let Some(member) = member {
            // A controller that is gone needs no waking.
            let _ = member.wake.send(ObjectRef::from_obj(job));
        }
    }

    fn is_complete(&self) -> bool {
        self.members.iter().all(Member::is_listed)
    }

    /// Namespaces whose jobs are not known yet.
    fn unlisted(&self) -> Vec<String> {
        let unlisted = self.members.iter().filter(|member| !member.is_listed());
        unlisted.map(|member| member.namespace.clone()).collect()
    }

    /// The jobs of the class that have a place, had one or wait for one.
    fn known(&self, class: &str, state: &mut State, asking: Option<(&str, &Arc<CiJob>)>) -> Vec<Known> {
        let mut known = vec![];
        let mut promised = HashSet::new();
        for member in &self.members {
            for cached in member.jobs.state() {
                let Some(uid) = cached.metadata.uid.clone() else { continue };
                let job = match asking {
                    Some((asking, job)) if asking == uid => Arc::clone(job),
                    _ => member.memory.freshest(&uid, cached),
                };
                let has_promise = state.promised.get(&uid).is_some_and(|of| of == class);
                let asks = asking.is_some_and(|(asking, _)| asking == uid);
                // What is being deleted asks for nothing any more, and would hold up those behind it.
                let waits = job.metadata.deletion_timestamp.is_none();
                let stand = match place(job.status.as_ref(), class) {
                    Place::Has(stand) => stand,
                    Place::Over => Stand::Over,
                    Place::Waits | Place::Elsewhere if has_promise => Stand::Starts,
                    Place::Waits if waits => Stand::Waits,
                    Place::Elsewhere if asks => Stand::Waits,
                    Place::Waits | Place::Elsewhere => continue,
                };
                if has_promise && stand == Stand::Starts {
                    promised.insert(uid);
                }
                known.push(Known { job, stand });
            }
        }
        // A promise to a job that is over or gone is none.
        state.promised.retain(|uid, of| of != class || promised.contains(uid));
        known
    }

    fn waits_for_quota(&self, class: &str) -> bool {
        self.any(class, |status| status.reason == Some(Reason::QuotaExceeded))
    }

    fn somebody_waits(&self, class: &str) -> bool {
        self.any(class, |_| true)
    }

    /// Whether some job of the class waits, as far as the caches show.
    fn any(&self, class: &str, which: impl Fn(&CiJobStatus) -> bool) -> bool {
        let waits = |job: &CiJob| {
            job.status.as_ref().is_some_and(|status| {
                waits_for_room(status) && status.class.as_deref() == Some(class) && which(status)
            })
        };
        self.members.iter().any(|member| member.jobs.find(waits).is_some())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(namespace: &str, class: &str) -> String {
    format!("{namespace}/{class}")
}

fn is(job: &CiJob, uid: &str) -> bool {
    job.metadata.uid.as_deref() == Some(uid)
}

fn entries(known: &[Known]) -> Vec<Entry<'_>> {
    known.iter().map(Known::entry).collect()
}

impl Known {
    fn entry(&self) -> Entry<'_> {
        let (metadata, request) = (&self.job.metadata, &self.job.spec.request);
        let created = metadata.creation_timestamp.as_ref().map_or(request.requested_at.0, |time| time.0);
        let start = self.job.status.as_ref().map(|status| status.start).unwrap_or_default();
        let served = match self.stand {
            Stand::Waits => None,
            // Just now.
            Stand::Starts => Some(Timestamp::MAX),
            Stand::Runs | Stand::Over => start
                .pod_created_ms
                .map(|after| timeouts::later(request.requested_at.0, SignedDuration::from_millis(after))),
        };
        Entry {
            uid: metadata.uid.as_deref().unwrap_or_default(),
            namespace: metadata.namespace.as_deref().unwrap_or_default(),
            project: (request.server.as_str(), request.project.id),
            created: (created, request.requested_at.0),
            stand: self.stand,
            served,
        }
    }
}

fn by_uid(known: &[Known]) -> HashMap<&str, &CiJob> {
    known.iter().filter_map(|known| Some((known.job.metadata.uid.as_deref()?, &*known.job))).collect()
}

/// What is known of the quotas of namespaces in which jobs of the class wait for one.
fn quotas<'a>(state: &State, class: &str, known: &'a [Known], now: Timestamp) -> HashMap<&'a str, Quota> {
    let refused = known.iter().filter(|known| {
        let status = known.job.status.as_ref();
        known.stand == Stand::Waits
            && status.is_some_and(|status| status.reason == Some(Reason::QuotaExceeded))
    });
    let namespaces: HashSet<_> =
        refused.filter_map(|known| known.job.metadata.namespace.as_deref()).collect();
    let quota = |namespace: &str| {
        let until = state.shut.get(&(namespace.to_owned(), class.to_owned()));
        if until.is_some_and(|until| now < *until) { Quota::Shut } else { Quota::Narrow }
    };
    namespaces.into_iter().map(|namespace| (namespace, quota(namespace))).collect()
}

fn of(quotas: &HashMap<&str, Quota>, namespace: &str) -> Quota {
    quotas.get(namespace).copied().unwrap_or(Quota::Open)
}

#[cfg(test)]
mod tests;
