//! What holds for every plan, tried on a small world in which things go wrong in any order.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use roadstead_crds::report::{JobReport, Outcome, ReportedStart};
use roadstead_crds::request::ServiceRequest;
use roadstead_crds::{CiJob, CiJobStatus, Phase, Reason};
use serde_json::{Value, json};

use super::*;
use crate::fixture;
use crate::policy::queue::{Obstacle, Room, Wait};
use crate::policy::verdict::Verdict;

/// Something that happens to the world.
#[derive(Clone, Debug)]
enum Happening {
    TimePasses(u32),
    Reconcile(Fate),
    ReleaseHold,
    Report(Outcome),
    ClassGoes,
    ClassComes {
        broken: bool,
    },
    PodChanges(PodChange),
    /// Somebody makes a pod under the recorded name.
    Impostor {
        owned: bool,
    },
    RoomChanges(Room),
    /// The shim asks for a pod in the place of the lost one.
    Replace,
    /// Somebody removes the status while the job's pod is there.
    StatusRemoved,
    JobDeleted,
}

/// How far the operator gets with a plan.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// All the way.
    Done,
    /// It dies, or its write is refused, before anything is written.
    Nothing,
    /// It dies after the status.
    StatusOnly,
    /// The pod is created, and the answer lost.
    AnswerLost,
    /// The cluster refuses the pod.
    Rejected,
    /// A quota has no room for the pod.
    NoRoom,
}

#[derive(Clone, Copy, Debug)]
enum PodChange {
    Bound,
    Running,
    ImageMissing,
    RegistryDown,
    Unschedulable,
    OutOfMemory,
    Orphaned,
    HelperEnds,
    /// Where the job has one, its service begins or ends, beside the others.
    ServiceRuns,
    ServiceEnds,
    Evicted,
    Announced,
    DeletedByHand,
    /// The kubelet is done with a pod that is being deleted, or somebody used force.
    Gone,
    LosesItsLabel,
}

struct World {
    job: CiJob,
    classes: Vec<Arc<Candidate>>,
    pods: Vec<Pod>,
    hidden: BTreeSet<String>,
    now: Timestamp,
    uids: u32,
    names: BTreeSet<String>,
    job_exists: bool,
    room: Room,
}

impl World {
    /// What has to be held back has a service.
    fn new(hold: bool) -> Self {
        let mut job = fixture::job();
        job.spec.hold = hold;
        if hold {
            let service = ServiceRequest { name: "redis:7".to_owned(), ..ServiceRequest::default() };
            job.spec.request.services = vec![service];
        }
        Self {
            job,
            classes: fixture::candidates(),
            pods: vec![],
            hidden: BTreeSet::new(),
            now: fixture::birth(),
            uids: 0,
            names: BTreeSet::new(),
            job_exists: true,
            room: Room::Free,
        }
    }

    fn observe(&self) -> Observed {
        let status = self.job.status.as_ref();
        let over = status.and_then(|status| status.phase).is_some_and(Phase::is_final);
        let lost = status.is_some_and(|status| status.loss().is_some());
        let recorded = status.and_then(|status| status.pod.as_ref()).filter(|_| !over && !lost);
        let identity = Identity::of(&self.job).unwrap();
        let visible: Vec<_> =
            self.pods.iter().filter(|pod| !self.hides(pod)).cloned().map(Arc::new).collect();
        let forgotten = forgotten(status, &identity, &visible).filter(|_| !over);
        let current = match recorded {
            None if forgotten.is_some() => {
                Current::Present { pod: Arc::clone(forgotten.unwrap()), watched: true }
            }
            None => Current::Unknown,
            Some(recorded) => {
                match self.pods.iter().find(|pod| pod.metadata.name.as_ref() == Some(&recorded.name)) {
                    None if status.is_some_and(status::waits_for_room) => Current::Unknown,
                    None => Current::Absent,
                    Some(pod) => Current::Present { pod: Arc::new(pod.clone()), watched: !self.hides(pod) },
                }
            }
        };
        let mut pods = visible.clone();
        if let Current::Present { pod, watched: false } = &current {
            pods.push(Arc::clone(pod));
        }
        Observed {
            identity,
            job: Arc::new(self.job.clone()),
            classes: self.classes.clone(),
            pods,
            current,
            selected: None,
            room: self.room.clone(),
        }
    }

    fn hides(&self, pod: &Pod) -> bool {
        pod.metadata.uid.as_ref().is_some_and(|uid| self.hidden.contains(uid))
    }

    fn plan(&self) -> Plan {
        plan(&self.observe(), &fixture::images(), self.now)
    }

    /// Stores a status the way the API server does: as JSON, whose times are less exact.
    fn store(&mut self, status: &CiJobStatus) {
        let text = serde_json::to_string(status).unwrap();
        self.job.status = Some(serde_json::from_str(&text).unwrap());
    }

    fn add(&mut self, mut pod: Pod) -> String {
        self.uids += 1;
        let uid = format!("pod-uid-{}", self.uids);
        pod.metadata.uid = Some(uid.clone());
        pod.metadata.creation_timestamp = Some(Time(self.now));
        self.pods.push(pod);
        uid
    }

    fn carry_out(&mut self, plan: Plan, fate: Fate) {
        if matches!(fate, Fate::Nothing) {
            return;
        }
        self.store(&plan.status);
        if matches!(fate, Fate::StatusOnly) {
            return;
        }
        for action in plan.actions {
            match action {
                Action::CreatePod(pod) => {
                    let taken = self.pods.iter().any(|other| other.metadata.name == pod.metadata.name);
                    let name = pod.metadata.name.clone().unwrap();
                    if matches!(fate, Fate::Rejected) {
                        let mut draft = Draft::of(&self.job, self.now);
                        draft.finish(&Verdict::new(Reason::PodRejected, "no"));
                        let status = draft.status;
                        self.store(&status);
                        return;
                    }
                    if matches!(fate, Fate::NoRoom) && !taken {
                        self.names.insert(name);
                        let identity = Identity::of(&self.job).unwrap();
                        let mut draft = Draft::of(&self.job, self.now);
                        draft.refused_by_quota(&identity, "exceeded quota: pods");
                        let status = draft.status;
                        self.store(&status);
                        return;
                    }
                    if taken {
                        return;
                    }
                    assert!(self.names.insert(name), "a pod name was used twice");
                    let uid = self.add(*pod);
                    if matches!(fate, Fate::AnswerLost) {
                        return;
                    }
                    let mut draft = Draft::of(&self.job, self.now);
                    draft.pod_exists(&uid);
                    let status = draft.status;
                    self.store(&status);
                }
                Action::DeletePod { uid, .. } => {
                    let now = self.now;
                    for pod in self.pods.iter_mut().filter(|pod| pod.metadata.uid.as_ref() == Some(&uid)) {
                        pod.metadata.deletion_timestamp = Some(Time(now));
                    }
                }
                Action::DeleteSecrets(_) => {}
                Action::DeleteJob => {
                    self.job_exists = false;
                    return;
                }
            }
        }
    }

    /// Judges a plan, then lets it come as far as its fate.
    fn reconcile(&mut self, fate: Fate) -> Result<(), TestCaseError> {
        let before = self.job.status.clone().unwrap_or_default();
        let planned = self.plan();
        self.judge(&before, &planned)?;
        self.carry_out(planned.clone(), fate);
        if matches!(fate, Fate::Done) && self.job_exists {
            let again = self.plan();
            let stored = self.job.status.clone().unwrap_or_default();
            prop_assert_eq!(&again.status, &stored, "after {:?}", planned.why);
            prop_assert_eq!(&again.actions, &vec![], "after {:?}", planned.why);
        }
        Ok(())
    }

    fn judge(&self, before: &CiJobStatus, planned: &Plan) -> Result<(), TestCaseError> {
        let over = |status: &CiJobStatus| status.phase.is_some_and(Phase::is_final);
        let deleting = self.job.metadata.deletion_timestamp.is_some();
        if over(before) {
            prop_assert_eq!(before, &planned.status, "a final status changed");
        }
        if deleting {
            prop_assert_eq!(before, &planned.status);
            prop_assert!(planned.actions.is_empty());
        } else {
            prop_assert!(planned.requeue.is_some_and(|wait| wait > Duration::ZERO), "nobody looks again");
        }
        let attempt = |status: &CiJobStatus| status.pod.as_ref().map_or(0, |pod| pod.attempt);
        let uid = |status: &CiJobStatus| status.pod.as_ref().and_then(|pod| pod.uid.clone());
        let replaced = before.loss().is_some_and(|lost| self.job.spec.replace.as_ref() == Some(&lost.name));
        if uid(before).is_some() && !(replaced && attempt(&planned.status) == attempt(before) + 1) {
            prop_assert_eq!(uid(before), uid(&planned.status), "the pod's UID changed");
        }
        if before.lost_pod.is_some() {
            prop_assert_eq!(&before.lost_pod, &planned.status.lost_pod, "a second pod is given up");
        }
        if before.loss().is_some() && !replaced {
            prop_assert_eq!(attempt(&planned.status), attempt(before), "nobody has asked for another pod");
        }
        let created: Vec<_> = planned
            .actions
            .iter()
            .filter_map(|action| match action {
                Action::CreatePod(pod) => Some(pod),
                Action::DeletePod { .. } | Action::DeleteSecrets(_) | Action::DeleteJob => None,
            })
            .collect();
        prop_assert!(created.len() <= 1);
        // Somebody has removed the record of its pod, which has a number and a place all the same.
        let forgotten = before.pod.is_none() && matches!(self.observe().current, Current::Present { .. });
        for pod in created {
            let numbers = (attempt(before), attempt(&planned.status));
            prop_assert!(
                numbers.1 == numbers.0 + 1 || (forgotten && numbers.1 > 1),
                "a pod without a new number"
            );
            let recorded = planned.status.pod.as_ref().unwrap();
            prop_assert_eq!(pod.metadata.name.as_ref(), Some(&recorded.name));
            prop_assert_eq!(recorded.uid.as_ref(), None);
            prop_assert!(
                self.room == Room::Free
                    || forgotten
                    || (before.pod.is_some() && !status::waits_for_room(before)),
                "a pod without room"
            );
            prop_assert!(!over(&planned.status) && !self.job.spec.hold && self.job.spec.report.is_none());
        }
        if over(&planned.status) && !over(before) && !deleting {
            let identity = Identity::of(&self.job).unwrap();
            let stored = secrets(&identity, &self.job.spec.request);
            let deleted = planned.actions.contains(&Action::DeleteSecrets(stored.clone()));
            prop_assert_eq!(deleted, !stored.is_empty(), "what is stored for a job outlives it");
        }
        if over(&planned.status) && !deleting && !planned.actions.contains(&Action::DeleteJob) {
            let identity = Identity::of(&self.job).unwrap();
            for pod in self.observe().pods.iter().filter(|pod| identity.owns(pod)) {
                let going = pod.metadata.deletion_timestamp.is_some();
                let named = planned.actions.iter().any(|action| {
                    matches!(action, Action::DeletePod { uid, .. } if pod.metadata.uid.as_ref() == Some(uid))
                });
                prop_assert!(going || named, "a pod outlives its job");
            }
        }
        for action in &planned.actions {
            if let Action::DeletePod { uid, .. } = action {
                let identity = Identity::of(&self.job).unwrap();
                let target = self.pods.iter().find(|pod| pod.metadata.uid.as_ref() == Some(uid)).unwrap();
                prop_assert!(identity.owns(target), "it is not the job's to delete");
            }
        }
        if over(&planned.status) {
            let message = planned.status.message.as_deref().unwrap_or_default();
            prop_assert!(message.ends_with('.') && message.starts_with(char::is_uppercase), "{}", message);
        }
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> Result<(), TestCaseError> {
        match happening {
            Happening::TimePasses(milliseconds) => {
                self.now = self.now.checked_add(SignedDuration::from_millis(milliseconds.into())).unwrap();
            }
            Happening::Reconcile(fate) => self.reconcile(fate)?,
            Happening::ReleaseHold => self.job.spec.hold = false,
            Happening::Report(outcome) => {
                let start = ReportedStart { helper_ms: Some(1), build_ms: Some(2), first_byte_ms: None };
                let report = JobReport {
                    outcome,
                    exit_code: None,
                    message: None,
                    start,
                    reconnects: 0,
                    stages: vec![],
                };
                self.job.spec.report.get_or_insert(report);
            }
            Happening::ClassGoes => self.classes = vec![],
            Happening::ClassComes { broken } => {
                let mut class = fixture::class();
                if broken {
                    class.spec.pod.overlay = json!({"spec": {"hostPID": true}}).as_object().cloned();
                }
                self.classes = vec![Arc::new(Candidate::new(Arc::new(class)))];
            }
            Happening::PodChanges(change) => self.change(change),
            Happening::Impostor { owned } => {
                let recorded = self.job.status.as_ref().and_then(|status| status.pod.clone());
                let Some(recorded) = recorded else { return Ok(()) };
                if self.pods.iter().all(|pod| pod.metadata.name.as_ref() != Some(&recorded.name)) {
                    let mut pod = fixture::pod(&recorded.name, "", self.now);
                    if !owned {
                        pod.metadata.owner_references = None;
                    }
                    self.add(pod);
                }
            }
            Happening::RoomChanges(room) => self.room = room,
            Happening::Replace => {
                let lost = self.job.status.as_ref().and_then(CiJobStatus::loss).map(|lost| lost.name.clone());
                self.job.spec.replace = self.job.spec.replace.take().or(lost);
            }
            Happening::StatusRemoved => {
                let over =
                    self.job.status.as_ref().and_then(|status| status.phase).is_some_and(Phase::is_final);
                let identity = Identity::of(&self.job).unwrap();
                let there = |pod: &Pod| {
                    identity.owns(pod) && pod.metadata.deletion_timestamp.is_none() && !self.hides(pod)
                };
                if !over && self.pods.iter().any(there) {
                    self.job.status = None;
                    self.reconcile(Fate::Done)?;
                }
            }
            Happening::JobDeleted => self.job.metadata.deletion_timestamp = Some(Time(self.now)),
        }
        Ok(())
    }

    /// Changes the newest pod.
    fn change(&mut self, change: PodChange) {
        let now = self.now;
        let Some(pod) = self.pods.last_mut() else { return };
        let container = |name: &str, state: Value| json!({"name": name, "image": "alpine:3.20", "imageID": "", "ready": false, "restartCount": 0, "containerID": "c://1", "state": state});
        let up = || json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
        let over = |code: i32, reason: &str| json!({"terminated": {"exitCode": code, "reason": reason}});
        let wait = |reason: &str, message: &str| json!({"waiting": {"reason": reason, "message": message}});
        let both = |phase: &str, helper: Value, build: Value| json!({"phase": phase, "containerStatuses": [container("helper", helper), container("build", build)]});
        let with_service = |service: Value| {
            let mut status = both("Running", up(), up());
            if let Some(containers) = status["containerStatuses"].as_array_mut() {
                containers.push(container("svc-0", service));
            }
            status
        };
        let status = match change {
            PodChange::Bound => json!({"phase": "Pending"}),
            PodChange::Running => both("Running", up(), up()),
            PodChange::ImageMissing => both("Pending", up(), wait("ErrImagePull", "manifest unknown")),
            PodChange::RegistryDown => both("Pending", up(), wait("ImagePullBackOff", "i/o timeout")),
            PodChange::Unschedulable => json!({"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]}),
            PodChange::OutOfMemory => both("Running", up(), over(137, "OOMKilled")),
            PodChange::Orphaned => both("Running", over(86, "Error"), up()),
            PodChange::HelperEnds => both("Running", over(1, "Error"), up()),
            PodChange::ServiceRuns => with_service(up()),
            PodChange::ServiceEnds => with_service(over(1, "Error")),
            PodChange::Evicted => json!({"phase": "Failed", "reason": "Evicted", "message": "disk pressure"}),
            PodChange::Announced => json!({"phase": "Running", "conditions": [
                {"type": "DisruptionTarget", "status": "True", "reason": "X", "message": "the node goes"}]}),
            PodChange::DeletedByHand => {
                pod.metadata.deletion_timestamp = Some(Time(now));
                return;
            }
            PodChange::Gone => {
                self.pods.pop();
                return;
            }
            PodChange::LosesItsLabel => {
                self.hidden.extend(pod.metadata.uid.clone());
                return;
            }
        };
        let node = (!matches!(change, PodChange::Unschedulable)).then_some("node-1");
        *pod = fixture::with_status(pod.clone(), node, status);
    }
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let fate = prop_oneof![
        6 => Just(Fate::Done),
        1 => Just(Fate::Nothing),
        2 => Just(Fate::StatusOnly),
        2 => Just(Fate::AnswerLost),
        1 => Just(Fate::Rejected),
        2 => Just(Fate::NoRoom),
    ];
    let outcome = prop_oneof![
        Just(Outcome::Succeeded),
        Just(Outcome::Failed),
        Just(Outcome::TimedOut),
        Just(Outcome::Errored),
        Just(Outcome::Canceled)
    ];
    let change = prop_oneof![
        3 => Just(PodChange::Bound),
        4 => Just(PodChange::Running),
        1 => Just(PodChange::ImageMissing),
        2 => Just(PodChange::RegistryDown),
        2 => Just(PodChange::Unschedulable),
        1 => Just(PodChange::OutOfMemory),
        1 => Just(PodChange::Orphaned),
        1 => Just(PodChange::HelperEnds),
        3 => Just(PodChange::ServiceRuns),
        1 => Just(PodChange::ServiceEnds),
        1 => Just(PodChange::Evicted),
        2 => Just(PodChange::Announced),
        1 => Just(PodChange::DeletedByHand),
        2 => Just(PodChange::Gone),
        1 => Just(PodChange::LosesItsLabel),
    ];
    let span = prop_oneof![
        6 => 1_u32..3_000,
        2 => 3_000_u32..30_000,
        1 => 30_000_u32..4_000_000,
    ];
    let obstacle = prop_oneof![Just(Obstacle::Class), Just(Obstacle::Project), Just(Obstacle::Quota)];
    let wait =
        (obstacle, 1..20_usize, proptest::option::of(1..9_u32)).prop_map(|(obstacle, position, max)| {
            Room::Taken(Wait { obstacle, position, of: 20, running: 3, max, retry: None })
        });
    let room = prop_oneof![2 => Just(Room::Free), 2 => wait, 1 => Just(Room::Unknown(vec![]))];
    let happening = prop_oneof![
        6 => span.prop_map(Happening::TimePasses),
        12 => fate.prop_map(Happening::Reconcile),
        2 => Just(Happening::ReleaseHold),
        1 => outcome.prop_map(Happening::Report),
        1 => Just(Happening::ClassGoes),
        2 => any::<bool>().prop_map(|broken| Happening::ClassComes { broken }),
        8 => change.prop_map(Happening::PodChanges),
        1 => any::<bool>().prop_map(|owned| Happening::Impostor { owned }),
        3 => room.prop_map(Happening::RoomChanges),
        4 => Just(Happening::Replace),
        1 => Just(Happening::StatusRemoved),
        1 => Just(Happening::JobDeleted),
    ];
    proptest::collection::vec(happening, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_keeps_the_laws(hold in any::<bool>(), happenings in happenings()) {
        let mut world = World::new(hold);
        for happening in happenings {
            world.happen(happening)?;
            if !world.job_exists {
                break;
            }
        }
    }

    /// Left alone with an operator that works, every job comes to its end, and its pods with it.
    #[test]
    fn every_job_ends(hold in any::<bool>(), happenings in happenings()) {
        let mut world = World::new(hold);
        for happening in happenings {
            if !matches!(&happening, Happening::JobDeleted) {
                world.happen(happening)?;
            }
            if !world.job_exists {
                break;
            }
        }
        for _ in 0..1000 {
            if !world.job_exists {
                break;
            }
            let planned = world.plan();
            world.reconcile(Fate::Done)?;
            world.pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
            let wait = SignedDuration::try_from(planned.requeue.unwrap()).unwrap();
            world.now = world.now.checked_add(wait).unwrap();
        }
        let identity = Identity::of(&world.job).unwrap();
        prop_assert!(!world.job_exists, "it stands at {:?}", world.job.status);
        let left = world.pods.iter().any(|pod| identity.owns(pod) && !world.hides(pod));
        prop_assert!(!left, "a pod is left");
    }
}
