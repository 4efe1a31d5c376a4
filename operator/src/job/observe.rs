//! Reads everything that a plan is made from: the caches, what was written a moment ago, and,
//! where these do not know the recorded pod, the API server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::reflector::Store;
use roadstead_crds::{CiJob, Phase};
use thiserror::Error;

use crate::api::{CallError, call};
use crate::classes::Classes;
use crate::job::memory::Memory;
use crate::job::plan::{Current, Observed, forgotten, wants_room};
use crate::job::status::waits_for_room;
use crate::job::{Identity, named_by};
use crate::policy::queue::Room;
use crate::queues::Queues;

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
    /// All classes.
    pub classes: Arc<Classes>,
    /// The API server, for pods that the cache does not have.
    pub api: Api<Pod>,
    /// What was written a moment ago.
    pub memory: Arc<Memory>,
    /// Who may start.
    pub queues: Arc<Queues>,
}

/// Observes a job.
///
/// # Errors
/// The pod that the status names could not be read.
pub async fn observe(
    sources: &Sources,
    identity: Identity,
    cached: Arc<CiJob>,
    now: Timestamp,
) -> Result<Observed, ObserveError> {
    let job = sources.memory.freshest(&identity.uid, cached);
    let recorded = job.status.as_ref().and_then(|status| status.class.as_deref());
    let classes = match recorded {
        Some(name) => sources.classes.get(name).into_iter().collect(),
        None => sources.classes.all(),
    };
    let mut pods = sources.pods.state_filter(|pod| named_by(pod) == Some(identity.name.as_str()));
    if let Some(pod) = sources.memory.pod(&identity.uid, Instant::now())
        && pods.iter().all(|other| other.metadata.uid != pod.metadata.uid)
    {
        pods.push(pod);
    }
    let current = current(sources, &identity, &job, &mut pods).await?;
    let mut observed = Observed { identity, job, classes, pods, current, selected: None, room: Room::Free };
    if let Some(class) = wants_room(&mut observed) {
        observed.room = sources.queues.ask(&observed.job, &class, now);
    }
    Ok(observed)
}

async fn current(
    sources: &Sources,
    identity: &Identity,
    job: &CiJob,
    pods: &mut Vec<Arc<Pod>>,
) -> Result<Current, ObserveError> {
    let status = job.status.as_ref();
    let over = status.and_then(|status| status.phase).is_some_and(Phase::is_final);
    if over || job.metadata.deletion_timestamp.is_some() {
        return Ok(Current::Unknown);
    }
    if let Some(pod) = forgotten(status, identity, pods) {
        return Ok(Current::Present { pod: Arc::clone(pod), watched: true });
    }
    // What is lost does not come back.
    let lost = status.is_some_and(|status| status.loss().is_some());
    let Some(recorded) = status.and_then(|status| status.pod.as_ref()).filter(|_| !lost) else {
        return Ok(Current::Unknown);
    };
    if let Some(pod) = pods.iter().find(|pod| pod.metadata.name.as_ref() == Some(&recorded.name)) {
        return Ok(Current::Present { pod: Arc::clone(pod), watched: true });
    }
    // Its pod was refused. Should there be one all the same, the watch shows it.
    if status.is_some_and(waits_for_room) {
        return Ok(Current::Unknown);
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
        None if recorded.uid.is_none() && !sources.memory.is_lost(&identity.uid, name, Instant::now()) => {
            Current::Unborn
        }
        None => Current::Absent,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{self, at};
    use crate::job::plan::plan;
    use http::{Request, Response};
    use kube::Client;
    use kube::client::Body;
    use kube::runtime::{reflector, watcher};
    use roadstead_crds::CiJobStatus;
    use serde_json::json;
    use tower_test::mock;

    const POD: &str = "cij-4711-0123456789-3f2a91bc-1";

    /// What the API server answers to the one question that is asked.
    #[derive(Clone, Copy)]
    enum Asked {
        Never,
        Found,
        Missing,
        Broken,
    }

    /// The job after its admission, with this phase.
    fn admitted(phase: Phase) -> CiJob {
        let mut job = fixture::job();
        let observed = Observed {
            identity: Identity::of(&job).unwrap(),
            job: Arc::new(job.clone()),
            classes: fixture::candidates(),
            pods: vec![],
            current: Current::Unknown,
            selected: None,
            room: Room::Free,
        };
        let status = plan(&observed, &fixture::images(), at(20)).status;
        job.status = Some(CiJobStatus { phase: Some(phase), ..status });
        job
    }

    async fn look(
        job: CiJob,
        cached: &[Pod],
        memory: Memory,
        asked: Asked,
    ) -> Result<Observed, ObserveError> {
        let (service, handle) = mock::pair::<Request<Body>, Response<Body>>();
        let server = tokio::spawn(async move {
            let mut handle = std::pin::pin!(handle);
            let (code, body) = match asked {
                Asked::Never => (0, json!({})),
                Asked::Found => (200, serde_json::to_value(fixture::pod(POD, "pod-uid-1", at(100))).unwrap()),
                Asked::Missing => {
                    (404, json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "no"}))
                }
                Asked::Broken => {
                    (500, json!({"kind": "Status", "code": 500, "reason": "InternalError", "message": "no"}))
                }
            };
            if code != 0 {
                let (request, respond) = handle.next_request().await.expect("a question");
                assert_eq!(request.uri().path(), format!("/api/v1/namespaces/ci-jobs/pods/{POD}"));
                let body = Body::from(serde_json::to_vec(&body).unwrap());
                respond.send_response(Response::builder().status(code).body(body).unwrap());
            }
            assert!(handle.next_request().await.is_none(), "one question too many");
        });
        let (pods, mut writer) = reflector::store();
        for pod in cached {
            writer.apply_watcher_event(&watcher::Event::Apply(pod.clone()));
        }
        let (classes, mut classes_writer) = reflector::store();
        classes_writer.apply_watcher_event(&watcher::Event::Apply(fixture::class()));
        let api = Api::namespaced(Client::new(service, fixture::NAMESPACE), fixture::NAMESPACE);
        let (classes, _) = Classes::new(classes);
        let (queues, _) = Queues::new(vec![], Arc::clone(&classes), || 1.0);
        let sources = Sources { pods, classes, api, memory: Arc::new(memory), queues };
        let identity = Identity::of(&job).unwrap();
        let observed = observe(&sources, identity, Arc::new(job), at(20)).await;
        drop(sources);
        server.await.unwrap();
        observed
    }

    #[tokio::test]
    async fn a_new_job_costs_no_question() {
        let observed = look(fixture::job(), &[], Memory::default(), Asked::Never).await.unwrap();
        assert!(matches!(observed.current, Current::Unknown));
        assert_eq!(observed.classes.len(), 1);
    }

    #[tokio::test]
    async fn a_pod_in_the_cache_or_just_created_costs_no_question() {
        let pod = fixture::pod(POD, "pod-uid-1", at(100));
        let other = {
            let mut pod = fixture::pod("another", "pod-uid-2", at(100));
            pod.metadata.labels =
                Some([(roadstead_crds::labels::CIJOB.to_owned(), "cij-1".to_owned())].into());
            pod
        };
        let cached = [pod.clone(), other];
        let observed =
            look(admitted(Phase::Starting), &cached, Memory::default(), Asked::Never).await.unwrap();
        assert!(matches!(observed.current, Current::Present { watched: true, .. }));
        assert_eq!(observed.pods.len(), 1, "the other job's pod is the other job's");

        let memory = Memory::default();
        memory.created(fixture::JOB_UID, Arc::new(pod), Instant::now());
        let observed = look(admitted(Phase::Starting), &[], memory, Asked::Never).await.unwrap();
        assert!(matches!(observed.current, Current::Present { watched: true, .. }));
        assert_eq!(observed.pods.len(), 1);
    }

    #[tokio::test]
    async fn a_pod_that_no_cache_has_is_asked_for() {
        // Named, and perhaps about to be created by another operator.
        let observed = look(admitted(Phase::Admitted), &[], Memory::default(), Asked::Missing).await.unwrap();
        assert!(matches!(observed.current, Current::Unborn));
        let mut job = admitted(Phase::Running);
        job.status.as_mut().unwrap().pod.as_mut().unwrap().uid = Some("pod-uid-1".to_owned());
        let observed = look(job, &[], Memory::default(), Asked::Missing).await.unwrap();
        assert!(matches!(observed.current, Current::Absent));
        let observed = look(admitted(Phase::Running), &[], Memory::default(), Asked::Found).await.unwrap();
        assert!(matches!(observed.current, Current::Present { watched: false, .. }));
        assert_eq!(observed.pods.len(), 1);
        let error = look(admitted(Phase::Running), &[], Memory::default(), Asked::Broken).await.unwrap_err();
        assert_eq!(error.reason(), "read_pod");
    }

    #[tokio::test]
    async fn nobody_asks_for_the_pod_of_a_job_that_is_over() {
        look(admitted(Phase::Succeeded), &[], Memory::default(), Asked::Never).await.unwrap();
        let mut deleted = admitted(Phase::Running);
        deleted.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
        look(deleted, &[], Memory::default(), Asked::Never).await.unwrap();
    }
}
