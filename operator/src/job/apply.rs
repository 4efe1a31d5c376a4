//! Carries out a plan. The only place that writes.
//!
//! The status comes first: a pod's name is stored before the pod is created, and a verdict before
//! the pod that it is about is deleted. A status write is a PUT of the version that was planned
//! on, so a plan made from an outdated cache changes nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use roadstead_crds::{CiJob, CiJobStatus, Phase, Reason};
use thiserror::Error;

use crate::api::{CallError, call};
use crate::job::Identity;
use crate::job::memory::Memory;
use crate::job::plan::{self, Action, Observed, Plan};
use crate::job::status::Draft;
use crate::journal::Journal;
use crate::policy::verdict::Verdict;
use crate::policy::waiting;
use crate::policy::words::quoted;

/// Which call failed.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The status could not be written.
    #[error("cannot write the status")]
    WriteStatus {
        /// What went wrong.
        source: CallError,
    },
    /// The pod could not be created, or nobody knows.
    #[error("cannot create pod {pod}")]
    CreatePod {
        /// Its name.
        pod: String,
        /// What went wrong.
        source: CallError,
    },
    /// A pod could not be deleted.
    #[error("cannot delete pod {pod}")]
    DeletePod {
        /// Its name.
        pod: String,
        /// What went wrong.
        source: CallError,
    },
    /// A Secret of the job could not be deleted.
    #[error("cannot delete secret {secret}")]
    DeleteSecret {
        /// Its name.
        secret: String,
        /// What went wrong.
        source: CallError,
    },
    /// The CiJob could not be deleted.
    #[error("cannot delete the CiJob")]
    DeleteJob {
        /// What went wrong.
        source: CallError,
    },
}

impl ApplyError {
    /// In one word, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::WriteStatus { .. } => "write_status",
            Self::CreatePod { .. } => "create_pod",
            Self::DeletePod { .. } => "delete_pod",
            Self::DeleteSecret { .. } => "delete_secret",
            Self::DeleteJob { .. } => "delete_cijob",
        }
    }

    /// How long to wait at least before the next try, where the API server says so.
    pub fn retry(&self) -> Option<Duration> {
        match self {
            Self::WriteStatus { source }
            | Self::CreatePod { source, .. }
            | Self::DeletePod { source, .. }
            | Self::DeleteSecret { source, .. }
            | Self::DeleteJob { source } => source.retry_after(),
        }
    }
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// All of it was done.
    Done,
    /// A quota refused the pod: the job waits for room.
    Queued,
    /// Something was not as the plan took it to be: look again, soon.
    LookAgain,
    /// The CiJob does not exist any more.
    Gone,
}

/// Writes for the CiJobs of one namespace.
pub struct Writer {
    /// Its CiJobs.
    pub jobs: Api<CiJob>,
    /// Its pods.
    pub pods: Api<Pod>,
    /// Its Secrets.
    pub secrets: Api<Secret>,
    /// Keeps what was written until the caches show it.
    pub memory: Arc<Memory>,
    /// Is told of every status that was written.
    pub journal: Arc<Journal>,
    /// What time it is.
    pub clock: fn() -> Timestamp,
}

/// What became of a status write.
enum Written {
    Now(Arc<CiJob>),
    /// Somebody else wrote since.
    Stale,
    Gone,
}

/// What became of a pod's creation.
enum Created {
    /// Under this UID.
    Now(String),
    /// A pod of that name is there already.
    Exists,
    /// A quota has no room for it, and says so.
    NoRoom(String),
    /// The cluster will not have it, for this reason.
    Rejected(String),
}

impl Writer {
    /// Carries out a plan.
    ///
    /// # Errors
    /// Which call failed. Whatever was done before stays done; the next plan goes on from there.
    pub async fn apply(&self, observed: &Observed, plan: Plan) -> Result<Applied, ApplyError> {
        let identity = &observed.identity;
        let mut job = match self.write(identity, &observed.job, plan.status).await? {
            Written::Now(job) => job,
            Written::Stale => return Ok(Applied::LookAgain),
            Written::Gone => return Ok(Applied::Gone),
        };
        let mut applied = Applied::Done;
        for action in plan.actions {
            match action {
                Action::CreatePod(pod) => {
                    let created = match self.create(identity, &pod).await {
                        Ok(created) => created,
                        Err(error) => {
                            self.tell(identity, &job, &error).await?;
                            return Err(error);
                        }
                    };
                    let status = match created {
                        Created::Now(uid) => {
                            let mut draft = Draft::of(&job, (self.clock)());
                            draft.pod_exists(&uid);
                            draft.status
                        }
                        Created::NoRoom(words) => {
                            applied = Applied::Queued;
                            let mut draft = Draft::of(&job, (self.clock)());
                            draft.refused_by_quota(identity, &words);
                            draft.status
                        }
                        Created::Rejected(why) => {
                            let mut draft = Draft::of(&job, (self.clock)());
                            draft.finish(&rejected(&why));
                            draft.status
                        }
                        Created::Exists => return Ok(Applied::LookAgain),
                    };
                    job = match self.write(identity, &job, status).await? {
                        Written::Now(job) => job,
                        Written::Stale => return Ok(Applied::LookAgain),
                        Written::Gone => return Ok(Applied::Gone),
                    };
                    if is_over(&job) {
                        self.delete_secrets(plan::secrets(identity, &job.spec.request)).await?;
                    }
                }
                Action::DeletePod { name, uid, grace } => self.delete_pod(name, uid, grace).await?,
                Action::DeleteSecrets(names) => self.delete_secrets(names).await?,
                Action::DeleteJob => {
                    self.delete_job(identity).await?;
                    return Ok(Applied::Gone);
                }
            }
        }
        Ok(applied)
    }

    /// Writes a status, unless it is what the CiJob has.
    async fn write(
        &self,
        identity: &Identity,
        job: &Arc<CiJob>,
        status: CiJobStatus,
    ) -> Result<Written, ApplyError> {
        let before = job.status.clone().unwrap_or_default();
        if before == status {
            return Ok(Written::Now(Arc::clone(job)));
        }
        let mut next = CiJob::clone(job);
        next.status = Some(status);
        let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let mut answer = match call(self.jobs.replace_status(&identity.name, &parameters, &next)).await {
            Ok(answer) => answer,
            Err(error) if error.is_conflict() => return Ok(Written::Stale),
            Err(error) if error.is_not_found() => return Ok(Written::Gone),
            Err(source) => return Err(ApplyError::WriteStatus { source }),
        };
        answer.metadata.managed_fields = None;
        let answer = Arc::new(answer);
        self.memory.wrote(&identity.uid, job.metadata.resource_version.as_deref(), Arc::clone(&answer));
        self.journal.wrote(&answer, &before);
        Ok(Written::Now(answer))
    }

    async fn create(&self, identity: &Identity, pod: &Pod) -> Result<Created, ApplyError> {
        let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        match call(self.pods.create(&parameters, pod)).await {
            Ok(mut created) => {
                let uid = created.metadata.uid.clone().unwrap_or_default();
                created.metadata.managed_fields = None;
                self.journal.created_pod();
                self.memory.created(&identity.uid, Arc::new(created), Instant::now());
                Ok(Created::Now(uid))
            }
            Err(error) if error.is_already_exists() => Ok(Created::Exists),
            Err(error) => match error.rejection() {
                Some(words) if error.is_quota() => Ok(match waiting::beyond_quota(words) {
                    Some(why) => Created::Rejected(why),
                    None => Created::NoRoom(words.to_owned()),
                }),
                Some(words) => Ok(Created::Rejected(quoted(words))),
                None => Err(ApplyError::CreatePod {
                    pod: pod.metadata.name.clone().unwrap_or_default(),
                    source: error,
                }),
            },
        }
    }

    /// Says in the status why there is no pod yet, where the API server has said so.
    async fn tell(
        &self,
        identity: &Identity,
        job: &Arc<CiJob>,
        error: &ApplyError,
    ) -> Result<(), ApplyError> {
        let ApplyError::CreatePod { source, .. } = error else { return Ok(()) };
        let Some(words) = source.trouble() else { return Ok(()) };
        let mut draft = Draft::of(job, (self.clock)());
        draft.cannot_create(words);
        self.write(identity, job, draft.status).await.map(drop)
    }

    async fn delete_pod(&self, name: String, uid: String, grace: u32) -> Result<(), ApplyError> {
        let parameters = DeleteParams::default().grace_period(grace).preconditions(exactly(uid));
        match call(self.pods.delete(&name, &parameters)).await {
            Ok(_) => Ok(()),
            // It is gone, or the one of that name is not the one that was meant.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(source) => Err(ApplyError::DeletePod { pod: name, source }),
        }
    }

    async fn delete_secrets(&self, names: Vec<String>) -> Result<(), ApplyError> {
        let mut failed = None;
        for name in names {
            match call(self.secrets.delete(&name, &DeleteParams::default())).await {
                Ok(_) => {}
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(source) => match source.rejection() {
                    // It goes with its CiJob.
                    Some(words) => {
                        tracing::warn!(secret = name, error = words, "cannot delete a job's secret");
                    }
                    None => failed = Some(ApplyError::DeleteSecret { secret: name, source }),
                },
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn delete_job(&self, identity: &Identity) -> Result<(), ApplyError> {
        let parameters = DeleteParams::background().preconditions(exactly(identity.uid.clone()));
        match call(self.jobs.delete(&identity.name, &parameters)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(source) => Err(ApplyError::DeleteJob { source }),
        }
    }
}

/// Name under which the API server keeps what the operator wrote.
const MANAGER: &str = "roadstead-operator";

fn is_over(job: &CiJob) -> bool {
    job.status.as_ref().and_then(|status| status.phase).is_some_and(Phase::is_final)
}

fn exactly(uid: String) -> Preconditions {
    Preconditions { uid: Some(uid), resource_version: None }
}

fn rejected(why: &str) -> Verdict {
    let message =
        format!("the cluster refuses the job's pod (admission, validation, quota or missing rights): {why}");
    Verdict::new(Reason::PodRejected, message)
}

#[cfg(test)]
mod tests;
