//! The API as a runner and its helper use it, over a real connection.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Coordinator, CoordinatorConfig, Endpoint, JobSpec, JobState, RemoteStatus};

/// An answer of an HTTP server.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// One request by hand; the tests need no client for it.
pub(crate) async fn request(method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = tokio::net::TcpStream::connect(host).await.unwrap();
    let mut head = format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &[name, ": ", value, "\r\n"].concat();
    }
    head += &["Content-Length: ", &body.len().to_string(), "\r\n\r\n"].concat();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Reply { status, head, body: bytes[end + 4..].to_vec() }
}

async fn coordinator() -> Coordinator {
    let config = CoordinatorConfig::new("127.0.0.1:0".parse().unwrap()).long_poll(Duration::from_secs(20));
    Coordinator::start(config).await.unwrap()
}

fn api(coordinator: &Coordinator, path: &str) -> String {
    format!("{}/api/v4/{path}", coordinator.url())
}

async fn ask_for_job(coordinator: &Coordinator, token: &str) -> Reply {
    let body = json!({"token": token, "info": {"name": "gitlab-runner"}}).to_string();
    request("POST", &api(coordinator, "jobs/request"), &[], body.as_bytes()).await
}

/// A job that a runner has.
async fn running(coordinator: &Coordinator) -> JobSpec {
    let spec = JobSpec::fresh().script(["true"]);
    coordinator.enqueue(coordinator.runner_token(), &spec).await.unwrap();
    assert_eq!(ask_for_job(coordinator, coordinator.runner_token()).await.status, 201);
    spec
}

#[tokio::test]
async fn a_request_waits_for_a_job() {
    let coordinator = coordinator().await;
    let waiting = {
        let coordinator = coordinator.clone();
        tokio::spawn(async move { ask_for_job(&coordinator, coordinator.runner_token()).await })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    let queued = Instant::now();
    let spec = JobSpec::fresh().script(["true"]);
    coordinator.enqueue(coordinator.runner_token(), &spec).await.unwrap();
    let reply = waiting.await.unwrap();
    assert!(queued.elapsed() < Duration::from_secs(10));
    assert_eq!((reply.status, reply.header("content-type")), (201, Some("application/json")));
    assert_eq!(reply.json(), spec.payload(coordinator.url()));
    assert_eq!(coordinator.job(spec.id).unwrap().state, JobState::Running);
}

#[tokio::test]
async fn a_request_without_a_job_ends_empty() {
    let config = CoordinatorConfig::new("127.0.0.1:0".parse().unwrap()).long_poll(Duration::from_millis(50));
    let coordinator = Coordinator::start(config).await.unwrap();
    let reply = ask_for_job(&coordinator, coordinator.runner_token()).await;
    assert_eq!((reply.status, reply.header("x-gitlab-last-update")), (204, Some("1")));
    assert_eq!(ask_for_job(&coordinator, "glrt-unknown").await.status, 403);
}

#[tokio::test]
async fn traces_grow_in_order() {
    let coordinator = coordinator().await;
    let spec = running(&coordinator).await;
    let url = api(&coordinator, &format!("jobs/{}/trace?debug_trace=false", spec.id));
    let token = ("JOB-TOKEN", spec.token.as_str());
    let add = async |range: &str, body: &[u8]| {
        request("PATCH", &url, &[token, ("Content-Range", range)], body).await
    };
    let reply = add("0-4", b"hello").await;
    assert_eq!((reply.status, reply.header("range")), (202, Some("0-5")));
    assert_eq!(reply.header("job-status"), Some("running"));
    assert_eq!(reply.header("x-gitlab-trace-update-interval"), Some("1"));
    let reply = add("9-9", b"x").await;
    assert_eq!((reply.status, reply.header("range")), (416, Some("0-5")));
    assert_eq!(add("5-10", b" world").await.status, 202);
    assert_eq!(coordinator.job(spec.id).unwrap().trace, b"hello world");
    assert_eq!(
        request("PATCH", &url, &[("JOB-TOKEN", "x"), ("Content-Range", "11-11")], b"x").await.status,
        403
    );
    coordinator.set_status(spec.id, RemoteStatus::Canceling).unwrap();
    assert_eq!(add("11-11", b"!").await.header("job-status"), Some("canceling"));
}

#[tokio::test]
async fn updates_end_the_job_and_are_checked() {
    let coordinator = coordinator().await;
    let spec = running(&coordinator).await;
    let trace = api(&coordinator, &format!("jobs/{}/trace", spec.id));
    let token = ("JOB-TOKEN", spec.token.as_str());
    request("PATCH", &trace, &[token, ("Content-Range", "0-4")], b"hello").await;
    let url = api(&coordinator, &format!("jobs/{}", spec.id));
    let say = async |body: Value| request("PUT", &url, &[token], body.to_string().as_bytes()).await;

    assert_eq!(say(json!({"state": "running"})).await.status, 200);
    let wrong = json!({"state": "running", "output": {"checksum": "crc32:00000000", "bytesize": 5}});
    say(wrong).await;
    assert_eq!(coordinator.job(spec.id).unwrap().checksum_ok, Some(false));
    let end = json!({"state": "failed", "failure_reason": "script_failure", "exit_code": 3,
                     "output": {"checksum": format!("crc32:{:08x}", crc32fast::hash(b"hello")), "bytesize": 5}});
    assert_eq!(say(end).await.status, 200);
    let job = coordinator.wait_final(spec.id, Duration::from_secs(5)).await.unwrap();
    assert_eq!(job.state, JobState::Failed { reason: "script_failure".to_owned(), exit_code: Some(3) });
    assert_eq!((job.checksum_ok, job.updates), (Some(true), 3));
    assert_eq!(request("PUT", &api(&coordinator, "jobs/999"), &[token], b"{}").await.status, 404);
}

#[tokio::test]
async fn a_job_that_is_over_refuses_updates() {
    let coordinator = coordinator().await;
    let spec = running(&coordinator).await;
    coordinator.set_status(spec.id, RemoteStatus::Canceled).unwrap();
    let url = api(&coordinator, &format!("jobs/{}", spec.id));
    let reply = request("PUT", &url, &[("JOB-TOKEN", &spec.token)], br#"{"state":"running"}"#).await;
    assert_eq!((reply.status, reply.header("job-status")), (403, Some("canceled")));
}

#[tokio::test]
async fn artifacts_come_back_as_they_went() {
    let coordinator = coordinator().await;
    let (first, second) = (running(&coordinator).await, running(&coordinator).await);
    let url = api(&coordinator, &format!("jobs/{}/artifacts", first.id));
    let content: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let mut form = b"--cut\r\nContent-Disposition: form-data; name=\"file\"; filename=\"out.zip\"\r\n\
        Content-Type: application/octet-stream\r\n\r\n"
        .to_vec();
    form.extend_from_slice(&content);
    form.extend_from_slice(b"\r\n--cut--\r\n");
    let upload = async |token: &str| {
        let headers = [("JOB-TOKEN", token), ("Content-Type", "multipart/form-data; boundary=cut")];
        request("POST", &format!("{url}?artifact_format=zip&artifact_type=archive"), &headers, &form)
            .await
            .status
    };
    assert_eq!(upload(&second.token).await, 403, "nobody uploads for another job");
    coordinator.fail_next(Endpoint::ArtifactUpload, 1, axum::http::StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(upload(&first.token).await, 503);
    assert_eq!(upload(&first.token).await, 201);
    let stored = &coordinator.job(first.id).unwrap().artifacts[0];
    assert_eq!((stored.filename.as_str(), stored.kind.as_str()), ("out.zip", "archive"));

    let reply = request("GET", &url, &[("JOB-TOKEN", &second.token)], b"").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.body, content);
    assert_eq!(request("GET", &url, &[("JOB-TOKEN", "x")], b"").await.status, 401);
    let none = api(&coordinator, &format!("jobs/{}/artifacts", second.id));
    assert_eq!(request("GET", &none, &[("JOB-TOKEN", &second.token)], b"").await.status, 404);
}

#[tokio::test]
async fn runner_tokens_rotate() {
    let coordinator = coordinator().await;
    coordinator.set_token_life(Duration::from_mins(1));
    let token = coordinator.runner_token().to_owned();
    let verify = api(&coordinator, "runners/verify");
    let body = |token: &str| json!({"token": token}).to_string();
    assert_eq!(request("POST", &verify, &[], body(&token).as_bytes()).await.status, 200);
    let reset = api(&coordinator, "runners/reset_authentication_token");
    let reply = request("POST", &reset, &[("RUNNER-TOKEN", &token)], b"{}").await;
    assert_eq!(reply.status, 201);
    let fresh = reply.json()["token"].as_str().unwrap().to_owned();
    assert!(reply.json()["token_expires_at"].is_string());
    assert_ne!(fresh, token);
    assert_eq!(request("POST", &verify, &[], body(&token).as_bytes()).await.status, 403);
    assert_eq!(request("POST", &verify, &[], body(&fresh).as_bytes()).await.status, 200);
    assert_eq!(coordinator.runner_tokens(), [fresh]);
}

#[tokio::test]
async fn every_request_is_remembered() {
    let coordinator = coordinator().await;
    request("GET", &api(&coordinator, "job"), &[], b"").await;
    request(
        "GET",
        &format!("{}/grp/proj.git/info/refs?service=git-upload-pack", coordinator.url()),
        &[],
        b"",
    )
    .await;
    let seen: Vec<(String, u16)> =
        coordinator.requests().into_iter().map(|one| (one.path, one.status)).collect();
    assert_eq!(
        seen,
        [
            ("/api/v4/job".to_owned(), 401),
            ("/grp/proj.git/info/refs?service=git-upload-pack".to_owned(), 401)
        ]
    );
}

#[tokio::test]
async fn waits_end_with_their_deadline() {
    let coordinator = coordinator().await;
    let spec = running(&coordinator).await;
    let error = coordinator.wait_final(spec.id, Duration::from_millis(20)).await.unwrap_err();
    assert!(error.to_string().contains("Running"), "{error}");
    assert!(coordinator.wait_final(1, Duration::from_millis(20)).await.is_err());
}
