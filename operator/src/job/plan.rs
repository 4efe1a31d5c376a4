//! What to do about a CiJob: its next status, the actions that go with it, when to look again and
//! why. Planning again on the planned state changes nothing.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use roadstead_crds::request::JobRequest;
use roadstead_crds::status::{PodStatus, condition};
use roadstead_crds::{CiJob, CiJobStatus, Phase, Reason, names};

use crate::job::Identity;
use crate::job::inspect::{self, Inspection, Setting};
use crate::job::pod::{self, Order};
use crate::job::status::{self, Draft};
use crate::policy::class::{self, Terms};
use crate::policy::matching::Subject;
use crate::policy::queue::Room;
use crate::policy::select::{self, Candidate, Choice, Fault, Selection};
use crate::policy::start::Trouble;
use crate::policy::timeouts;
use crate::policy::verdict::{self, Case, PodEnd, Verdict};
use crate::policy::{Images, image, resources};

/// Everything that a plan is made from.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Whose it is.
    pub identity: Identity,
    /// The CiJob.
    pub job: Arc<CiJob>,
    /// The class that its status records, if that still exists; all classes before it has one.
    pub classes: Vec<Arc<Candidate>>,
    /// All pods that carry the CiJob's name, whoever made them.
    pub pods: Vec<Arc<Pod>>,
    /// The pod whose name the status records.
    pub current: Current,
    /// Which of the classes the job gets, where [`wants_room`] had to find that out.
    pub selected: Option<Selected>,
    /// Whether there is room for the pod that [`wants_room`] tells of.
    pub room: Room,
}

/// The class that a job gets or why it gets none, and the expressions that failed on the way.
#[derive(Clone, Debug)]
pub struct Selected {
    selection: Selection,
    faults: Vec<Fault>,
}

impl Selected {
    fn of(observed: &Observed) -> Self {
        let subject = Subject::new(&observed.job.spec.request, &observed.identity.namespace);
        let mut faults = vec![];
        let selection = select::select(&subject, &observed.classes, &mut faults);
        Self { selection, faults }
    }
}

/// What is known of the pod whose name the status records.
#[derive(Clone, Debug)]
pub enum Current {
    /// The status records none, or nobody needs to know.
    Unknown,
    /// The API server has no pod of that name, and may be about to get it.
    Unborn,
    /// The API server has no pod of that name.
    Absent,
    /// There is one. It need not be the job's.
    Present {
        /// The pod.
        pod: Arc<Pod>,
        /// Whether its changes are noticed. A pod without the label is found by asking only.
        watched: bool,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The status that the CiJob gets, before any action is taken.
    pub status: CiJobStatus,
    /// In this order.
    pub actions: Vec<Action>,
    /// When to look again if nothing changes before.
    pub requeue: Option<Duration>,
    /// What it was that decided.
    pub why: Why,
    /// Expressions of classes that failed on the way.
    pub faults: Vec<Fault>,
}

/// A change to the cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Create the pod that the status names.
    CreatePod(Box<Pod>),
    /// Delete this very pod.
    DeletePod {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
        /// Seconds between SIGTERM and SIGKILL.
        grace: u32,
    },
    /// Delete the Secrets of the job, by their names: it needs them no longer. What is left of them goes with the
    /// CiJob.
    DeleteSecrets(Vec<String>),
    /// Delete the CiJob: it was kept long enough.
    DeleteJob,
}

/// What decided a plan, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The CiJob is being deleted; its pod goes with it.
    BeingDeleted,
    /// The class is not there, and may still come.
    AwaitingClass,
    /// The shim holds the pod back.
    Held,
    /// There is no room for the job.
    Queued,
    /// The job needs its first pod.
    NewPod,
    /// The pod that was named was never created.
    LostPod,
    /// The pod is lost, and the shim has not said whether another one may take its place.
    Lost,
    /// The shim wants another pod in the place of the lost one.
    Replaced,
    /// The image could not be pulled, and there is another pull policy to try.
    PulledAnew,
    /// Nobody could say whether the pod that was named exists.
    Unsure,
    /// The pod is there and on its way.
    Starting,
    /// The job runs.
    Running,
    /// The job has just ended.
    Ended(Reason),
    /// The job ended earlier and is kept for a while.
    Kept,
    /// The job ended and was kept long enough.
    Expired,
}

/// Nothing waits longer without a look. It costs no request and forgives a clock that was changed.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_hours(1);

/// How soon to look again at a pod that nobody watches.
const UNWATCHED: SignedDuration = SignedDuration::from_secs(10);

/// How soon to look again for a pod that was named and is not there.
const UNBORN: SignedDuration = SignedDuration::from_secs(1);

/// Grace of a pod in which no script runs any more. Zero would take it from the API server before
/// the kubelet has ended its containers.
const AT_ONCE: u32 = 1;

/// Plans for one CiJob.
pub fn plan(observed: &Observed, images: &Images, now: Timestamp) -> Plan {
    let draft = Draft::of(&observed.job, now);
    if observed.job.metadata.deletion_timestamp.is_some() {
        let why = Why::BeingDeleted;
        return Plan { status: draft.status, actions: vec![], requeue: None, why, faults: vec![] };
    }
    let planner = Planner { observed, images, now, draft, faults: vec![], unpulled: None };
    match planner.draft.status.phase {
        Some(phase) if phase.is_final() => planner.after_the_end(),
        _ => planner.before_the_end(),
    }
}

/// The class in which the job needs room for a pod, if it is about to get one. Where it gets its class only now,
/// that is put into what is observed: with many classes it is most of the work.
pub fn wants_room(observed: &mut Observed) -> Option<Arc<Candidate>> {
    let Observed { job, classes, current, .. } = &*observed;
    if job.metadata.deletion_timestamp.is_some() || job.spec.hold || job.spec.report.is_some() {
        return None;
    }
    let status = job.status.as_ref();
    if status.and_then(|status| status.phase).is_some_and(Phase::is_final) {
        return None;
    }
    // Who has a name for a pod has room, unless the pod was refused.
    let named = status.is_some_and(|status| status.pod.is_some() && !status::waits_for_room(status));
    if named || matches!(current, Current::Present { .. }) {
        return None;
    }
    let admitted = status.filter(|status| status::is_true(status, condition::ADMITTED));
    if let Some(class) = admitted.and_then(|status| status.class.as_deref()) {
        return classes.iter().find(|candidate| candidate.name() == class).cloned();
    }
    let selected = observed.selected.insert(Selected::of(observed));
    match &selected.selection {
        Selection::Chosen(choice) => Some(Arc::clone(&choice.class)),
        Selection::Missing(_) | Selection::Refused(_) => None,
    }
}

/// Names of the Secrets that the shim stores for a job.
pub fn secrets(identity: &Identity, request: &JobRequest) -> Vec<String> {
    let of_service = |place| names::service_secret_name(&identity.name, &identity.uid, place);
    let pull = request.registry_credentials.then(|| names::pull_secret_name(&identity.name, &identity.uid));
    (0..request.services.len()).map(of_service).chain(pull).collect()
}

struct Planner<'a> {
    observed: &'a Observed,
    images: &'a Images,
    now: Timestamp,
    draft: Draft<'a>,
    faults: Vec<Fault>,
    /// Why the job gets another pod, one that pulls its image in another way.
    unpulled: Option<Trouble>,
}

/// On which terms a job runs.
struct Granted {
    terms: Terms,
    class: Arc<Candidate>,
    /// Why the class takes the job and what keeps it from being refused, where that is new.
    admission: Option<(String, Option<String>)>,
}

/// Why no pod can be made now.
enum NoPod {
    /// The class is not there.
    Class(Verdict),
    /// And it will not get better.
    Ever(Verdict),
}

impl<'a> Planner<'a> {
    /// Removes what is left of the job, and the job itself when its time has come.
    fn after_the_end(self) -> Plan {
        let finished = self.draft.status.finished_at.as_ref().map_or_else(|| self.born(), |time| time.0);
        let expiry = timeouts::after(finished, self.ttl());
        let pods_left = self.observed.pods.iter().any(|pod| self.observed.identity.owns(pod));
        let (why, actions) = if self.now >= expiry && !pods_left {
            (Why::Expired, vec![Action::DeleteJob])
        } else {
            (Why::Kept, self.clear_away())
        };
        self.plan(why, actions, &[expiry])
    }

    fn before_the_end(mut self) -> Plan {
        if let Some(lost) = self.draft.status.loss().cloned() {
            return self.after_the_loss(&lost);
        }
        let ours = self.our_pod();
        if let Some(pod) = ours
            && let Err(why) = self.take_over(pod)
        {
            return self.without_pod(why);
        }
        if let Some(verdict) = ours.and_then(|pod| self.short_of_resources(pod)) {
            return self.end(&verdict);
        }
        let seen = ours.map(|pod| self.inspect(pod));
        if let (Some(pod), Some(seen)) = (ours, &seen) {
            self.draft.pod_exists(pod.metadata.uid.as_deref().unwrap_or_default());
            self.draft.progress(seen);
        }
        let end = self.pod_end(seen.as_ref());
        if let Some(trouble) = self.unpulled(end.as_ref()) {
            return self.pull_anew(trouble);
        }
        let may_be_replaced = self.may_be_replaced(end.as_ref());
        if let Some(verdict) = self.verdict(end) {
            return if may_be_replaced { self.lose(&verdict) } else { self.end(&verdict) };
        }
        if ours.is_some() {
            let why = if self.draft.status.started_at.is_some() { Why::Running } else { Why::Starting };
            let strays = self.delete_strays();
            return self.go_on(why, strays);
        }
        let why = match (&self.draft.status.pod, &self.observed.current) {
            (None, _) => Why::NewPod,
            (Some(_), Current::Absent) => Why::LostPod,
            // It was refused, so there is none.
            (Some(_), Current::Unknown) if self.draft.waits_for_room() => Why::NewPod,
            (Some(_), Current::Unknown | Current::Unborn | Current::Present { .. }) => Why::Unsure,
        };
        self.with_next_pod(why)
    }

    /// Goes on with the job's next pod, if it may have one.
    fn with_next_pod(mut self, why: Why) -> Plan {
        match self.next_pod(why) {
            Ok((why, create)) => {
                let mut actions = self.delete_strays();
                actions.extend(create.map(|pod| Action::CreatePod(Box::new(pod))));
                self.go_on(why, actions)
            }
            Err(why) => self.without_pod(why),
        }
    }

    fn without_pod(self, why: NoPod) -> Plan {
        match why {
            NoPod::Ever(verdict) => self.end(&verdict),
            NoPod::Class(verdict) => self.without_class(&verdict),
        }
    }

    /// On which terms the job runs, and its class.
    fn terms(&mut self) -> Result<Granted, NoPod> {
        let Observed { job, classes, .. } = self.observed;
        let recorded = Terms::recorded(&self.draft.status).filter(|_| self.draft.is_admitted());
        if let Some(terms) = recorded {
            let class = classes.iter().find(|class| class.name() == terms.class);
            let class = class.ok_or_else(|| NoPod::Class(class::gone(&terms.class)))?;
            return Ok(Granted { terms, class: Arc::clone(class), admission: None });
        }
        let Choice { class, why, audit } = self.choice()?;
        let terms = Terms::grant(&job.spec.request, class.name(), &class.class.spec);
        let terms = terms.map_err(|verdict| self.refused_by(class.name(), verdict))?;
        Ok(Granted { terms, class, admission: Some((why, audit)) })
    }

    /// Makes the pod that the job needs, if it may have one, and admits the job if it is not yet.
    fn next_pod(&mut self, why: Why) -> Result<(Why, Option<Pod>), NoPod> {
        let Observed { identity, job, .. } = self.observed;
        let request = &job.spec.request;
        let Granted { terms, class, admission } = self.terms()?;
        let class = &class.class.spec;
        if why == Why::Unsure {
            return Ok((why, None));
        }
        let next = self.draft.next_pod(identity);
        let placement = class::place(request, &terms.class, class);
        let placement = placement.map_err(|verdict| self.refused_by(&terms.class, verdict))?;
        let order =
            Order { identity, request, terms: &terms, placement: &placement, class, images: self.images };
        let pod = pod::build(order, &next.name).map_err(|error| {
            let message = format!("JobClass \"{}\" gives no pod: {error}", terms.class);
            self.refused_by(&terms.class, Verdict::new(Reason::ClassInvalid, message))
        })?;
        if let Some((why, audit)) = admission {
            self.draft.admit(terms, &why, audit.as_deref());
        }
        if job.spec.hold {
            self.draft.hold();
            return Ok((Why::Held, None));
        }
        match &self.observed.room {
            Room::Free => {}
            Room::Taken(wait) => {
                self.draft.wait_for_room(identity, wait);
                return Ok((Why::Queued, None));
            }
            Room::Unknown(namespaces) => {
                self.draft.wait_for_knowledge(namespaces);
                return Ok((Why::Queued, None));
            }
        }
        self.draft.name_pod(next);
        if let Some(trouble) = &self.unpulled {
            self.draft.pull_anew(trouble);
        }
        Ok((why, Some(pod)))
    }

    /// The class that the job gets.
    fn choice(&mut self) -> Result<Choice, NoPod> {
        let selected = self.observed.selected.clone().unwrap_or_else(|| Selected::of(self.observed));
        self.faults.extend(selected.faults);
        match selected.selection {
            Selection::Chosen(choice) => Ok(choice),
            Selection::Missing(verdict) => Err(NoPod::Class(verdict)),
            Selection::Refused(verdict) => Err(match &self.observed.job.spec.request.class_name {
                Some(named) => self.refused_by(named, verdict),
                None => NoPod::Ever(verdict),
            }),
        }
    }

    /// The class that the job got or named refuses it.
    fn refused_by(&mut self, class: &str, verdict: Verdict) -> NoPod {
        self.draft.status.class = Some(class.to_owned());
        NoPod::Ever(verdict)
    }

    /// The class may be about to come. It is not waited for long.
    fn without_class(mut self, verdict: &Verdict) -> Plan {
        let deadline = timeouts::later(self.born(), class::PATIENCE);
        if self.now >= deadline {
            return self.end(verdict);
        }
        if !self.draft.is_admitted() {
            self.draft.wait_for_class(verdict);
        }
        let strays = self.delete_strays();
        self.plan(Why::AwaitingClass, strays, &[deadline])
    }

    fn verdict(&self, pod: Option<PodEnd>) -> Option<Verdict> {
        let status = &self.draft.status;
        let request = &self.observed.job.spec.request;
        let job_seconds = self.job_seconds();
        let class = status.class.as_deref().unwrap_or_default();
        verdict::verdict(&Case {
            pod,
            report: self.observed.job.spec.report.as_ref(),
            clock: timeouts::clock(self.born(), job_seconds, self.now),
            job_seconds,
            orphan_seconds: status.timeouts.as_ref().map_or(0, |timeouts| timeouts.orphan_seconds),
            client: if request.is_by_hand() { "whoever runs the job by hand" } else { "gitlab-runner" },
            late: self.late(),
            place: &self.place(),
            class,
            resources: &status.resources,
        })
    }

    fn pod_end(&self, seen: Option<&Inspection>) -> Option<PodEnd> {
        let status = &self.draft.status;
        match (&self.observed.current, seen) {
            (Current::Present { .. }, None) => Some(PodEnd::Impostor),
            (Current::Present { .. }, Some(seen)) => seen.end.clone().or_else(|| {
                let trouble = seen.trouble.as_ref()?;
                let deadline = self.trouble_deadline()?;
                (self.now >= deadline).then(|| PodEnd::CannotStart(trouble.clone()))
            }),
            (Current::Absent, _) => {
                let ran = status.pod.as_ref().is_some_and(|pod| pod.uid.is_some());
                ran.then(|| PodEnd::Gone { disrupted: status::is_true(status, condition::DISRUPTED) })
            }
            (Current::Unknown | Current::Unborn, _) => None,
        }
    }

    /// The recorded pod, if it is there and the job's. One whose UID nobody stored is taken over.
    fn our_pod(&self) -> Option<&'a Pod> {
        let Current::Present { pod, .. } = &self.observed.current else { return None };
        // Without a record the job's own name and number on it are enough.
        let recorded = self.draft.status.pod.as_ref().and_then(|pod| pod.uid.as_ref());
        let same = recorded.is_none_or(|uid| pod.metadata.uid.as_ref() == Some(uid));
        (same && self.observed.identity.owns(pod)).then_some(pod.as_ref())
    }

    /// The verdict on a pod without the resources that it has as a whole: an API server that does not know them drops
    /// them without a word.
    fn short_of_resources(&self, pod: &Pod) -> Option<Verdict> {
        let granted = self.draft.status.resources.contains_key(resources::POD);
        let given = pod.spec.as_ref().is_some_and(|spec| spec.resources.is_some());
        (granted && !given).then(|| {
            let message = "this cluster does not know resources of a pod as a whole, which Kubernetes has from 1.34 on: remove \
                 the variables KUBERNETES_POD_* of the job, or `resources.pod` of its JobClass";
            Verdict::new(Reason::PodRejected, message)
        })
    }

    fn inspect(&self, pod: &Pod) -> Inspection {
        let (status, request) = (&self.draft.status, &self.observed.job.spec.request);
        let setting = Setting {
            class: status.class.as_deref().unwrap_or_default(),
            chooser: image::chooser(request),
            resources: &status.resources,
            services: &status.services,
        };
        inspect::inspect(pod, setting)
    }

    fn end(mut self, verdict: &Verdict) -> Plan {
        self.draft.finish(verdict);
        let pods = self.clear_away();
        let actions = if pods.is_empty() { self.delete_secrets().into_iter().collect() } else { pods };
        let expiry = timeouts::after(self.now, self.ttl());
        self.plan(Why::Ended(verdict.reason), actions, &[expiry])
    }

    fn go_on(self, why: Why, actions: Vec<Action>) -> Plan {
        let again = match self.observed.current {
            Current::Present { watched: false, .. } => Some(UNWATCHED),
            Current::Unborn => Some(UNBORN),
            Current::Present { .. } | Current::Absent | Current::Unknown => None,
        };
        let deadlines: Vec<_> = [
            Some(self.job_deadline()),
            self.queue_deadline(),
            self.quota_retry(),
            self.start_deadline(),
            self.trouble_deadline(),
            again.map(|wait| timeouts::later(self.now, wait)),
        ]
        .into_iter()
        .flatten()
        .collect();
        self.plan(why, actions, &deadlines)
    }

    fn plan(self, why: Why, actions: Vec<Action>, deadlines: &[Timestamp]) -> Plan {
        let next = deadlines
            .iter()
            .map(|deadline| deadline.duration_since(self.now))
            .filter(SignedDuration::is_positive);
        let wait = next.min().unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
        Plan {
            status: self.draft.status,
            actions,
            requeue: Some(wait.unsigned_abs()),
            why,
            faults: self.faults,
        }
    }

    fn place(&self) -> String {
        match &self.draft.status.pod {
            Some(PodStatus { name, node: Some(node), .. }) => format!("pod \"{name}\" on node \"{node}\""),
            Some(PodStatus { name, node: None, .. }) => format!("pod \"{name}\""),
            None => "the job's pod".to_owned(),
        }
    }

    /// Deletes the pods of the job, and before them what the shim has stored for it: as long as a pod is to be deleted,
    /// that may have failed.
    fn clear_away(&self) -> Vec<Action> {
        let pods = self.delete_pods(self.grace(), |_| true);
        let secrets = self.delete_secrets().filter(|_| !pods.is_empty());
        secrets.into_iter().chain(pods).collect()
    }

    /// Deletes what the shim has stored for the job, if it has.
    fn delete_secrets(&self) -> Option<Action> {
        let names = secrets(&self.observed.identity, &self.observed.job.spec.request);
        (!names.is_empty()).then_some(Action::DeleteSecrets(names))
    }

    /// Deletes pods of the job under other names than the recorded one.
    fn delete_strays(&self) -> Vec<Action> {
        let recorded = self.draft.status.pod.as_ref().map(|pod| &pod.name);
        self.delete_pods(AT_ONCE, |pod| pod.metadata.name.as_ref() != recorded)
    }

    fn delete_pods(&self, grace: u32, which: impl Fn(&Pod) -> bool) -> Vec<Action> {
        let pods = self.observed.pods.iter().filter(|pod| {
            self.observed.identity.owns(pod) && pod.metadata.deletion_timestamp.is_none() && which(pod)
        });
        pods.filter_map(|pod| {
            let (name, uid) = (pod.metadata.name.clone()?, pod.metadata.uid.clone()?);
            Some(Action::DeletePod { name, uid, grace })
        })
        .collect()
    }
}

mod deadlines;
mod pull;
mod replace;

pub use replace::forgotten;

#[cfg(test)]
mod laws;
#[cfg(test)]
mod replacement;
#[cfg(test)]
mod room;
#[cfg(test)]
mod tests;
