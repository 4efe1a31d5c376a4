//! The runner's part of GitLab's API: requests, updates, traces, and who a token belongs to.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Request, State as Extract};
use axum::http::{HeaderMap, HeaderName, Response, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::IntoResponse as _;
use axum::routing::{get, patch, post, put};
use serde_json::{Value, json};

use super::state::{Endpoint, JobSnapshot, JobState, RemoteStatus, RequestRecord, timestamp};
use super::{Shared, artifacts, git, runners};

/// What a handler gives back.
pub(super) type Answer = Response<Body>;

/// All routes.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/api/v4/jobs/request", post(runners::request_job))
        .route("/api/v4/jobs/{id}", put(update))
        .route("/api/v4/jobs/{id}/trace", patch(append_trace))
        .route("/api/v4/jobs/{id}/artifacts", post(artifacts::upload).get(artifacts::download))
        .route("/api/v4/job", get(current_job))
        .route("/api/v4/runners", post(runners::register).delete(runners::forget))
        .route("/api/v4/runners/managers", axum::routing::delete(runners::forget))
        .route("/api/v4/runners/verify", post(runners::verify))
        .route("/api/v4/runners/reset_authentication_token", post(runners::reset_token))
        .route("/api/v4/runners/router/discovery", get(async || StatusCode::NOT_IMPLEMENTED))
        .fallback(git::serve)
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), record))
        .with_state(shared)
}

/// Remembers every request with its answer.
async fn record(Extract(shared): Extract<Arc<Shared>>, request: Request, next: Next) -> Answer {
    let method = request.method().to_string();
    let path = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
    let response = next.run(request).await;
    let status = response.status().as_u16();
    shared.change(|state| {
        state.requests.push(RequestRecord { at: SystemTime::now(), method, path, status });
    });
    response
}

/// A JSON answer with the content type that gitlab-runner insists on.
pub(super) fn json_answer(status: StatusCode, body: &Value) -> Answer {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// The job's token from the header, or from the body of older runners.
pub(super) fn job_token(headers: &HeaderMap, body: Option<&Value>) -> Option<String> {
    let header = headers.get("job-token").and_then(|value| value.to_str().ok()).map(str::to_owned);
    header.or_else(|| body?.get("token")?.as_str().map(str::to_owned))
}

/// Headers about the job's status; every answer to an update or a trace increment has them.
fn status_headers(job: &JobSnapshot, interval: u64) -> [(HeaderName, String); 2] {
    [
        (HeaderName::from_static("job-status"), job.status.as_str().to_owned()),
        (HeaderName::from_static("x-gitlab-trace-update-interval"), interval.to_string()),
    ]
}

/// `PUT /jobs/:id`.
async fn update(
    Extract(shared): Extract<Arc<Shared>>,
    Path(id): Path<i64>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let Ok(body) = serde_json::from_slice::<Value>(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let interval = shared.update_interval;
    shared.change(|state| {
        if let Some(status) = state.fault(Endpoint::Update) {
            return status.into_response();
        }
        let Some(job) = state.job_mut(id) else { return StatusCode::NOT_FOUND.into_response() };
        if job_token(&headers, Some(&body)).as_deref() != Some(job.spec.token.as_str()) {
            return StatusCode::FORBIDDEN.into_response();
        }
        job.updates += 1;
        if let Some(said) = body["output"]["checksum"].as_str() {
            let size = body["output"]["bytesize"].as_u64();
            let known = format!("crc32:{:08x}", crc32fast::hash(&job.trace));
            job.checksum_ok = Some(said == known && size == u64::try_from(job.trace.len()).ok());
        }
        let ended = match body["state"].as_str() {
            Some("success") => Some(JobState::Success),
            Some("failed") => Some(JobState::Failed {
                reason: body["failure_reason"].as_str().unwrap_or("unknown_failure").to_owned(),
                exit_code: body["exit_code"].as_i64(),
            }),
            _ => None,
        };
        if let Some(ended) = ended {
            job.state = ended;
            job.finished_at = Some(SystemTime::now());
        }
        // A job that is over for GitLab takes no more updates.
        let status = match job.status {
            RemoteStatus::Canceled => StatusCode::FORBIDDEN,
            RemoteStatus::Running | RemoteStatus::Canceling => StatusCode::OK,
        };
        (status, status_headers(job, interval)).into_response()
    })
}

/// `PATCH /jobs/:id/trace`: the next bytes of the job log.
async fn append_trace(
    Extract(shared): Extract<Arc<Shared>>,
    Path(id): Path<i64>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let interval = shared.update_interval;
    shared.change(|state| {
        if let Some(status) = state.fault(Endpoint::Trace) {
            return status.into_response();
        }
        let Some(job) = state.job_mut(id) else { return StatusCode::NOT_FOUND.into_response() };
        if job_token(&headers, None).as_deref() != Some(job.spec.token.as_str()) {
            return StatusCode::FORBIDDEN.into_response();
        }
        let Some((start, end)) = content_range(&headers) else {
            return StatusCode::BAD_REQUEST.into_response();
        };
        let fits =
            start == job.trace.len() && end.checked_sub(start).map(|more| more + 1) == Some(body.len());
        if fits {
            job.trace.extend_from_slice(&body);
        }
        let status = if fits { StatusCode::ACCEPTED } else { StatusCode::RANGE_NOT_SATISFIABLE };
        let have = [(header::RANGE, format!("0-{}", job.trace.len()))];
        (status, have, status_headers(job, interval)).into_response()
    })
}

/// Start and inclusive end from `Content-Range: 0-99`.
fn content_range(headers: &HeaderMap) -> Option<(usize, usize)> {
    let value = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (start, end) = value.trim().split_once('-')?;
    Some((start.parse().ok()?, end.parse().ok()?))
}

/// `GET /job`: the running job that a token belongs to.
async fn current_job(Extract(shared): Extract<Arc<Shared>>, headers: HeaderMap) -> Answer {
    let mut state = shared.lock();
    if let Some(status) = state.fault(Endpoint::CurrentJob) {
        return status.into_response();
    }
    let token = job_token(&headers, None);
    let Some(job) = token.and_then(|token| state.running_job(&token)) else {
        return json_answer(StatusCode::UNAUTHORIZED, &json!({"message": "401 Unauthorized"}));
    };
    let spec = &job.spec;
    let project_url = format!("{}/{}", shared.url, spec.project.path);
    let mut tags = spec.tags.clone();
    tags.sort();
    let started = job.assigned_at.map(timestamp);
    json_answer(
        StatusCode::OK,
        &json!({
            "id": spec.id, "status": "running", "stage": spec.stage, "name": spec.name, "ref": spec.git_ref,
            "tag": spec.ref_type == "tag", "coverage": null, "allow_failure": false,
            "created_at": started, "started_at": started, "finished_at": null, "erased_at": null,
            "duration": 1.0, "queued_duration": 1.5,
            "user": {"id": 9, "username": "tester", "name": "Tester", "state": "active"},
            "commit": {"id": spec.sha, "short_id": spec.sha.get(..8)},
            "pipeline": {"id": spec.pipeline, "iid": 1, "project_id": spec.project.id, "sha": spec.sha,
                         "ref": spec.git_ref, "status": "running", "source": "push",
                         "web_url": format!("{project_url}/-/pipelines/{}", spec.pipeline)},
            "web_url": format!("{project_url}/-/jobs/{}", spec.id),
            "project": {"ci_job_token_scope_enabled": false},
            "artifacts": [], "artifacts_expire_at": null, "archived": false,
            "runner": {"id": 1, "description": "test runner", "runner_type": "instance_type", "is_shared": true,
                       "paused": false, "online": true, "status": "online"},
            "tag_list": tags,
        }),
    )
}
