//! The order of writes, and what comes of each answer, against an API server that knows exactly
//! which calls to expect.

use std::pin::pin;
use std::sync::Arc;

use http::{Method, Request, Response};
use k8s_openapi::api::core::v1::Pod;
use kube::client::Body;
use kube::{Api, Client};
use prometheus_client::registry::Registry;
use roadstead_crds::report::{JobReport, Outcome, ReportedStart};
use roadstead_crds::{CiJob, Phase, Reason};
use serde_json::{Value, json};
use tower_test::mock;

use super::*;
use crate::fixture::{self, at};
use crate::job::plan::{Current, plan};
use crate::policy::queue::Room;
use crate::telemetry::Metrics;

const POD: &str = "cij-4711-0123456789-3f2a91bc-1";

/// A call that the server expects, and its answer.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// PUT of the status, on the version that the call before left.
    Status(Answer),
    /// POST of the pod.
    Create(Answer),
    /// DELETE of the pod.
    DeletePod(Answer),
    /// DELETE of the CiJob.
    DeleteJob(Answer),
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    /// It is done.
    Done,
    /// It is not, with this code, reason and message.
    Refused(u16, &'static str, &'static str),
}

const CONFLICT: Answer = Answer::Refused(409, "Conflict", "the object has been modified");
const EXISTS: Answer = Answer::Refused(409, "AlreadyExists", "pods already exists");
const QUOTA: Answer = Answer::Refused(
    403,
    "Forbidden",
    "exceeded quota: compute, requested: pods=1, used: pods=3, limited: pods=3",
);
const FORBIDDEN: Answer =
    Answer::Refused(403, "Forbidden", "pods is forbidden: violates PodSecurity \"restricted\"");
const INVALID: Answer =
    Answer::Refused(422, "Invalid", "Pod is invalid: spec.containers[0].image: Required value");
const NOT_FOUND: Answer = Answer::Refused(404, "NotFound", "not found");
const TIMEOUT: Answer =
    Answer::Refused(504, "Timeout", "request did not complete within the allotted timeout");

/// What the server saw.
#[derive(Default)]
struct Seen {
    statuses: Vec<CiJob>,
    deletions: Vec<Value>,
}

/// Answers the expected calls, fails the test on any other, and on one that does not come.
async fn serve(mut handle: mock::Handle<Request<Body>, Response<Body>>, expected: Vec<Expected>) -> Seen {
    let mut handle = pin!(&mut handle);
    let mut seen = Seen::default();
    let mut version = 1;
    for call in expected {
        let (request, respond) =
            handle.next_request().await.unwrap_or_else(|| panic!("{call:?} did not come"));
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let bytes = body.collect_bytes().await.unwrap();
        let job = format!("/apis/roadstead.dev/v1alpha1/namespaces/ci-jobs/cijobs/{}", fixture::JOB);
        let (method, expected_path, answer) = match call {
            Expected::Status(answer) => (Method::PUT, format!("{job}/status"), answer),
            Expected::Create(answer) => (Method::POST, "/api/v1/namespaces/ci-jobs/pods".to_owned(), answer),
            Expected::DeletePod(answer) => {
                (Method::DELETE, format!("/api/v1/namespaces/ci-jobs/pods/{POD}"), answer)
            }
            Expected::DeleteJob(answer) => (Method::DELETE, job, answer),
        };
        assert_eq!((&parts.method, &path), (&method, &expected_path), "instead of {call:?}");
        let mut body: Value = serde_json::from_slice(&bytes).unwrap();
        match call {
            Expected::Status(_) => {
                assert_eq!(
                    body["metadata"]["resourceVersion"],
                    version.to_string(),
                    "not the version that was planned on"
                );
                version += 1;
                body["metadata"]["resourceVersion"] = json!(version.to_string());
                seen.statuses.push(serde_json::from_value(body.clone()).unwrap());
            }
            Expected::Create(_) => {
                assert_eq!(body["metadata"]["name"], POD);
                body["metadata"]["uid"] = json!("pod-uid-1");
                body["metadata"]["creationTimestamp"] = json!("2027-01-15T08:00:00Z");
            }
            Expected::DeletePod(_) | Expected::DeleteJob(_) => seen.deletions.push(body.clone()),
        }
        let response = match answer {
            Answer::Done if matches!(call, Expected::DeletePod(_) | Expected::DeleteJob(_)) => {
                (200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            }
            Answer::Done => (200, body),
            Answer::Refused(code, reason, message) => (
                code,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}),
            ),
        };
        let bytes = serde_json::to_vec(&response.1).unwrap();
        respond.send_response(Response::builder().status(response.0).body(Body::from(bytes)).unwrap());
    }
    if let Some((request, _)) = handle.next_request().await {
        panic!("unexpected {} {}", request.method(), request.uri());
    }
    seen
}

struct Run {
    result: Result<Applied, ApplyError>,
    seen: Seen,
    memory: Arc<Memory>,
}

impl Run {
    fn statuses(&self) -> Vec<(Option<Phase>, Option<Reason>)> {
        self.seen
            .statuses
            .iter()
            .filter_map(|job| job.status.as_ref())
            .map(|status| (status.phase, status.reason))
            .collect()
    }

    fn error(&self) -> &'static str {
        self.result.as_ref().unwrap_err().reason()
    }

    fn applied(&self) -> Applied {
        *self.result.as_ref().unwrap()
    }
}

/// Plans on what is observed and applies the plan.
async fn run(observed: &Observed, now: i64, expected: &[Expected]) -> Run {
    let (service, handle) = mock::pair::<Request<Body>, Response<Body>>();
    let server = tokio::spawn(serve(handle, expected.to_vec()));
    let client = Client::new(service, fixture::NAMESPACE);
    let memory = Arc::new(Memory::default());
    let (journal, _queue) = Journal::new(Metrics::register(&mut Registry::default()));
    let writer = Writer {
        jobs: Api::namespaced(client.clone(), fixture::NAMESPACE),
        pods: Api::namespaced(client.clone(), fixture::NAMESPACE),
        secrets: Api::namespaced(client, fixture::NAMESPACE),
        memory: Arc::clone(&memory),
        journal,
        clock: || at(150),
    };
    let result = writer.apply(observed, plan(observed, &fixture::images(), at(now))).await;
    drop(writer);
    Run { result, seen: server.await.unwrap(), memory }
}

fn fresh() -> Observed {
    let job = fixture::job();
    Observed {
        identity: Identity::of(&job).unwrap(),
        job: Arc::new(job),
        classes: fixture::candidates(),
        pods: vec![],
        current: Current::Unknown,
        selected: None,
        room: Room::Free,
    }
}

/// A job with a pod, and a report that all went well.
fn reported() -> Observed {
    let fresh = fresh();
    let mut job = fixture::job();
    job.status = Some(plan(&fresh, &fixture::images(), at(20)).status);
    let start = ReportedStart::default();
    job.spec.report = Some(JobReport {
        outcome: Outcome::Succeeded,
        exit_code: None,
        message: None,
        start,
        reconnects: 0,
        stages: vec![],
    });
    let pod: Arc<Pod> = Arc::new(fixture::pod(POD, "pod-uid-1", at(100)));
    Observed {
        job: Arc::new(job),
        pods: vec![Arc::clone(&pod)],
        current: Current::Present { pod, watched: true },
        ..fresh
    }
}

use Answer::Done;
use Expected::{Create, DeleteJob, DeletePod, Status};

#[tokio::test]
async fn the_name_is_stored_before_the_pod_is_created_and_the_uid_after() {
    let run = run(&fresh(), 20, &[Status(Done), Create(Done), Status(Done)]).await;
    assert_eq!(run.applied(), Applied::Done);
    let [first, second] = run.seen.statuses.as_slice() else { panic!("two writes") };
    let pod = |job: &CiJob| job.status.as_ref().and_then(|status| status.pod.clone()).unwrap();
    assert_eq!((pod(first).name.as_str(), pod(first).uid), (POD, None));
    assert_eq!(pod(second).uid.as_deref(), Some("pod-uid-1"));
    assert_eq!(run.statuses()[1].0, Some(Phase::Starting));
    assert_eq!(second.status.as_ref().unwrap().start.pod_created_ms, Some(150));
    // The cache still has the first version.
    let remembered = run.memory.freshest(fixture::JOB_UID, Arc::new(fixture::job()));
    assert_eq!(remembered.metadata.resource_version.as_deref(), Some("3"));
    assert!(run.memory.pod(fixture::JOB_UID, Instant::now()).is_some());
}

#[tokio::test]
async fn a_plan_on_an_outdated_version_changes_nothing() {
    let run = run(&fresh(), 20, &[Status(CONFLICT)]).await;
    assert_eq!(run.applied(), Applied::LookAgain);
}

#[tokio::test]
async fn a_job_that_is_gone_gets_no_pod() {
    let run = run(&fresh(), 20, &[Status(NOT_FOUND)]).await;
    assert_eq!(run.applied(), Applied::Gone);
}

#[tokio::test]
async fn no_answer_to_the_status_is_no_licence_for_the_pod() {
    let run = run(&fresh(), 20, &[Status(TIMEOUT)]).await;
    assert_eq!(run.error(), "write_status");
}

#[tokio::test]
async fn a_pod_that_the_cluster_refuses_ends_the_job_in_the_servers_words() {
    for (answer, words) in [(INVALID, "Required value"), (FORBIDDEN, "violates PodSecurity")] {
        let run = run(&fresh(), 20, &[Status(Done), Create(answer), Status(Done)]).await;
        assert_eq!(run.applied(), Applied::Done);
        assert_eq!(run.statuses()[1], (Some(Phase::Errored), Some(Reason::PodRejected)));
        let message = run.seen.statuses[1].status.as_ref().unwrap().message.clone().unwrap();
        assert!(message.contains(words), "{message}");
    }
}

#[tokio::test]
async fn a_quota_that_is_used_up_lets_the_job_wait() {
    let first = run(&fresh(), 20, &[Status(Done), Create(QUOTA), Status(Done)]).await;
    assert_eq!(first.applied(), Applied::Queued);
    assert_eq!(first.statuses()[1], (Some(Phase::Queued), Some(Reason::QuotaExceeded)));
    let job = first.seen.statuses[1].clone();
    let status = job.status.clone().unwrap();
    assert!(
        status.message.unwrap().contains("by \"compute\", the job asks for pods 1, and 3 of 3 are in use")
    );
    assert_eq!((status.pod.unwrap().uid, status.queue.unwrap().since.0), (None, at(150)));
    // What follows is a pod of another name, and the wait counts from its beginning.
    let mut job = job;
    job.metadata.resource_version = Some("1".to_owned());
    let again = Observed { job: Arc::new(job), ..fresh() };
    let planned = plan(&again, &fixture::images(), at(5_000));
    assert_eq!(planned.status.pod.as_ref().map(|pod| pod.attempt), Some(2));
    assert_eq!(planned.status.queue.unwrap().since.0, at(150));
}

#[tokio::test]
async fn a_name_that_is_taken_is_looked_at() {
    let run = run(&fresh(), 20, &[Status(Done), Create(EXISTS)]).await;
    assert_eq!(run.applied(), Applied::LookAgain);
}

#[tokio::test]
async fn a_creation_that_may_succeed_another_time_is_an_error() {
    let run = run(&fresh(), 20, &[Status(Done), Create(CONFLICT)]).await;
    assert_eq!(run.error(), "create_pod");
}

#[tokio::test]
async fn trouble_of_the_api_server_is_told_and_outlasts_the_next_try() {
    let webhook =
        Answer::Refused(500, "InternalError", "failed calling webhook \"mesh\": connection refused");
    let first = run(&fresh(), 20, &[Status(Done), Create(webhook), Status(Done)]).await;
    assert_eq!(first.error(), "create_pod");
    assert_eq!(first.statuses()[1], (Some(Phase::Admitted), Some(Reason::PodCreateFailed)));
    let mut job = first.seen.statuses[1].clone();
    let message = job.status.as_ref().unwrap().message.clone().unwrap();
    assert!(message.contains("failed calling webhook \"mesh\": connection refused"), "{message}");
    // The next try says nothing new.
    job.metadata.resource_version = Some("1".to_owned());
    let again = Observed { job: Arc::new(job), ..fresh() };
    let planned = plan(&again, &fixture::images(), at(1_000));
    assert_eq!(planned.status.message, Some(message));
    let mut draft = Draft::of(&again.job, at(1_100));
    draft.pod_exists("pod-uid-2");
    assert_eq!(draft.status.reason, Some(Reason::Scheduling));
}

#[tokio::test]
async fn trouble_that_cannot_be_told_is_an_error_of_its_own() {
    let run = run(&fresh(), 20, &[Status(Done), Create(TIMEOUT), Status(TIMEOUT)]).await;
    assert_eq!(run.error(), "write_status");
}

#[tokio::test]
async fn a_uid_that_cannot_be_stored_is_found_again() {
    let run = run(&fresh(), 20, &[Status(Done), Create(Done), Status(CONFLICT)]).await;
    assert_eq!(run.applied(), Applied::LookAgain);
    assert!(run.memory.pod(fixture::JOB_UID, Instant::now()).is_some());
}

#[tokio::test]
async fn the_verdict_is_stored_before_the_pod_is_deleted() {
    let run = run(&reported(), 5_000, &[Status(Done), DeletePod(Done)]).await;
    assert_eq!(run.applied(), Applied::Done);
    assert_eq!(run.statuses(), [(Some(Phase::Succeeded), Some(Reason::Succeeded))]);
    assert_eq!(run.seen.deletions[0]["preconditions"]["uid"], "pod-uid-1");
    assert_eq!(run.seen.deletions[0]["gracePeriodSeconds"], 1);
}

#[tokio::test]
async fn a_pod_that_is_gone_already_is_deleted() {
    for answer in [NOT_FOUND, CONFLICT] {
        let run = run(&reported(), 5_000, &[Status(Done), DeletePod(answer)]).await;
        assert_eq!(run.applied(), Applied::Done);
    }
    let run = run(&reported(), 5_000, &[Status(Done), DeletePod(TIMEOUT)]).await;
    assert_eq!(run.error(), "delete_pod");
}

#[tokio::test]
async fn what_is_as_planned_costs_no_call() {
    let mut observed = reported();
    let mut job = CiJob::clone(&observed.job);
    job.status = Some(plan(&observed, &fixture::images(), at(5_000)).status);
    observed.job = Arc::new(job);
    (observed.pods, observed.current) = (vec![], Current::Unknown);
    let run = run(&observed, 6_000, &[]).await;
    assert_eq!(run.applied(), Applied::Done);
}

#[tokio::test]
async fn an_expired_job_is_deleted_by_its_uid() {
    let mut observed = reported();
    let mut job = CiJob::clone(&observed.job);
    job.status = Some(plan(&observed, &fixture::images(), at(5_000)).status);
    observed.job = Arc::new(job);
    (observed.pods, observed.current) = (vec![], Current::Unknown);
    for (answer, applied) in [(Done, Some(Applied::Gone)), (NOT_FOUND, Some(Applied::Gone)), (TIMEOUT, None)]
    {
        let run = run(&observed, 4_000_000, &[DeleteJob(answer)]).await;
        assert_eq!(run.result.as_ref().ok().copied(), applied);
        assert_eq!(run.seen.deletions[0]["preconditions"]["uid"], fixture::JOB_UID);
        assert_eq!(run.seen.deletions[0]["propagationPolicy"], "Background");
    }
}
