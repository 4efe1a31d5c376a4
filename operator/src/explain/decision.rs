//! What would become of a job. Pure.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use roadstead_crds::status::condition;
use roadstead_crds::{CiJob, CiJobStatus};

use crate::job::Identity;
use crate::job::plan::{Action, Current, Observed, plan};
use crate::policy::Images;
use crate::policy::matching::{Subject, described};
use crate::policy::queue::Room;
use crate::policy::select::{Candidate, standings};

/// UID of a job that no cluster has.
const NO_UID: &str = "00000000-0000-4000-8000-000000000000";

/// What would become of a job.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The job, for people.
    pub subject: String,
    /// What each class makes of it, those that come first for it first.
    pub standings: Vec<(String, String)>,
    /// The job's timeout in seconds, and the longest that its class allows, if it has one.
    pub asked_seconds: (i64, Option<i64>),
    /// The status that it would get.
    pub status: CiJobStatus,
    /// Its pod, where it would get one.
    pub pod: Option<Pod>,
    /// What the API server makes of that pod, where it was asked.
    pub trial: Option<Trial>,
}

/// What an API server makes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Trial {
    /// It would take it, in this form.
    Taken(Box<Pod>),
    /// It would once a quota has room for it, in its words.
    Waits(String),
    /// It would not, in its words.
    Refused(String),
}

impl Decision {
    /// Whether the job would run.
    pub fn is_admitted(&self) -> bool {
        self.pod.is_some() && !matches!(self.trial, Some(Trial::Refused(_)))
    }

    /// Who decided, and why, in a sentence; or more lines where no class takes the job.
    pub fn sentence(&self) -> String {
        let admitted = self.condition(condition::ADMITTED).filter(|_| self.pod.is_some());
        admitted.or_else(|| self.status.message.clone()).unwrap_or_default()
    }

    /// What would have been if the class were enforced.
    pub fn audit(&self) -> Option<String> {
        self.condition(condition::AUDITED)
    }

    fn condition(&self, kind: &str) -> Option<String> {
        let conditions = &self.status.conditions;
        conditions.iter().find(|condition| condition.type_ == kind).map(|condition| condition.message.clone())
    }
}

/// Decides as if the job had just been asked for.
pub fn decide(job: &CiJob, candidates: &[Arc<Candidate>], images: &Images) -> Decision {
    let identity = Identity {
        namespace: job.metadata.namespace.clone().unwrap_or_default(),
        name: job.metadata.name.clone().unwrap_or_default(),
        // Its first pod would be another one than the first pod of a job that exists.
        uid: NO_UID.to_owned(),
    };
    let request = &job.spec.request;
    let subject = &Subject::new(request, &identity.namespace);
    let standings = standings(subject, candidates);
    let text =
        format!("Job \"{}\", namespace {}: {}", request.job.name, identity.namespace, described(subject));
    let now = request.requested_at.0;
    let observed = Observed {
        identity,
        job: Arc::new(new(job, now)),
        classes: candidates.to_vec(),
        pods: vec![],
        current: Current::Unknown,
        // It is about what the job would get, not when.
        selected: None,
        room: Room::Free,
    };
    let plan = plan(&observed, images, now);
    let pod = plan.actions.into_iter().find_map(|action| match action {
        Action::CreatePod(pod) => Some(*pod),
        Action::DeletePod { .. } | Action::DeleteSecrets(_) | Action::DeleteJob => None,
    });
    let class = plan.status.class.as_ref();
    let class = candidates.iter().find(|candidate| Some(candidate.name()) == class.map(String::as_str));
    Decision {
        subject: text,
        standings,
        asked_seconds: (
            request.timeout_seconds,
            class.map(|candidate| candidate.class.spec.timeouts.job_seconds),
        ),
        status: plan.status,
        pod,
        trial: None,
    }
}

/// The job as it was when it was asked for.
fn new(job: &CiJob, now: Timestamp) -> CiJob {
    let mut job = job.clone();
    job.metadata.uid = Some(NO_UID.to_owned());
    job.metadata.deletion_timestamp = None;
    job.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
    job.spec.hold = false;
    job.spec.report = None;
    job.status = None;
    job
}
