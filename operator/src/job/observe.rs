//! Reads everything that a plan is made from: the caches, what was written a moment ago, and,
//! where these do not know the recorded pod, the API server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::reflector::{ObjectRef, Store};
use roadstead_crds::{CiJob, JobClass, Phase};
use thiserror::Error;

use crate::api::{CallError, call};
use crate::job::memory::Memory;
use crate::job::plan::{Current, Observed};
use crate::job::{Identity, named_by};
use crate::policy::class;

/// Why a job could not be observed.
#[derive(Debug, Error)]
pub enum ObserveError {
    /// The pod is in the status and in no cache, and the API server did not say what became of it.
    #[error("cannot read pod {name}")]
    ReadPod {
        /// Its name.
        name: String,
        /// What went wrong.
        source: CallError,
    },
}

impl ObserveError {
    /// In one word, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ReadPod { .. } => "read_pod",
        }
    }

    /// How long to wait at least before the next try, where the API server says so.
    pub fn retry(&self) -> Option<Duration> {
        match self {
            Self::ReadPod { source, .. } => source.retry_after(),
        }
    }
}

/// Where observations come from.
#[derive(Clone)]
pub struct Sources {
    /// Cache of the namespace's job pods.
    pub pods: Store<Pod>,
    /// Cache of all classes.
    pub classes: Store<JobClass>,
    /// The API server, for pods that the cache does not have.
    pub api: Api<Pod>,
    /// What was written a moment ago.
    pub memory: Arc<Memory>,
}

/// Observes a job.
///
/// # Errors
/// The pod that the status names could not be read.
pub async fn observe(
    sources: &Sources,
    identity: Identity,
    cached: Arc<CiJob>,
) -> Result<Observed, ObserveError> {
    let job = sources.memory.freshest(&identity.uid, cached);
    let class = sources.classes.get(&ObjectRef::new(class::wanted(&job.spec.request)));
    let mut pods = sources.pods.state_filter(|pod| named_by(pod) == Some(identity.name.as_str()));
    if let Some(pod) = sources.memory.pod(&identity.uid, Instant::now())
        && pods.iter().all(|other| other.metadata.uid != pod.metadata.uid)
    {
        pods.push(pod);
    }
    let current = current(sources, &job, &mut pods).await?;
    Ok(Observed { identity, job, class, pods, current })
}

async fn current(sources: &Sources, job: &CiJob, pods: &mut Vec<Arc<Pod>>) -> Result<Current, ObserveError> {
    let status = job.status.as_ref();
    let over = status.and_then(|status| status.phase).is_some_and(Phase::is_final);
    let Some(recorded) = status.and_then(|status| status.pod.as_ref()).filter(|_| !over) else {
        return Ok(Current::Unknown);
    };
    if job.metadata.deletion_timestamp.is_some() {
        return Ok(Current::Unknown);
    }
    if let Some(pod) = pods.iter().find(|pod| pod.metadata.name.as_ref() == Some(&recorded.name)) {
        return Ok(Current::Present { pod: Arc::clone(pod), watched: true });
    }
    // A cache that does not have a pod proves nothing, and the answer may end the job.
    let name = &recorded.name;
    let read = call(sources.api.get_opt(name)).await;
    let found = read.map_err(|source| ObserveError::ReadPod { name: name.clone(), source })?;
    Ok(match found {
        Some(pod) => {
            let pod = Arc::new(pod);
            pods.push(Arc::clone(&pod));
            Current::Present { pod, watched: false }
        }
        None => Current::Absent,
    })
}
