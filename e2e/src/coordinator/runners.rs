//! Runners: registration, token rotation and asking for jobs.

use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Bytes;
use axum::extract::State as Extract;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Shared;
use super::routes::{Answer, json_answer};
use super::state::{Endpoint, Runner};

/// The runner's token from the header, or from the body of older runners.
fn runner_token(headers: &HeaderMap, body: &Bytes) -> String {
    let header = headers.get("runner-token").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let body = || serde_json::from_slice::<Value>(body).ok()?.get("token")?.as_str().map(str::to_owned);
    header.or_else(body).unwrap_or_default()
}

fn identity(status: StatusCode, runner: &Runner) -> Answer {
    let body = json!({"id": runner.id, "token": runner.token, "token_expires_at": runner.expires_at});
    json_answer(status, &body)
}

/// `POST /jobs/request`: waits a while for a job of this runner.
pub(super) async fn request_job(
    Extract(shared): Extract<Arc<Shared>>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let token = runner_token(&headers, &body);
    let until = Instant::now() + shared.long_poll;
    let mut changes = shared.changed.subscribe();
    loop {
        changes.mark_unchanged();
        let job = {
            let mut state = shared.lock();
            if let Some(status) = state.fault(Endpoint::JobRequest) {
                return status.into_response();
            }
            state.hand_out(&token, &shared.url, SystemTime::now())
        };
        match job {
            Err(()) => return json_answer(StatusCode::FORBIDDEN, &json!({"message": "403 Forbidden"})),
            Ok(Some(payload)) => {
                shared.change(|_| ());
                return json_answer(StatusCode::CREATED, &payload);
            }
            Ok(None) => {}
        }
        if tokio::time::timeout_at(until, changes.changed()).await.is_err() {
            return (StatusCode::NO_CONTENT, [("x-gitlab-last-update", "1")]).into_response();
        }
    }
}

/// `POST /runners/verify`.
pub(super) async fn verify(Extract(shared): Extract<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Answer {
    let token = runner_token(&headers, &body);
    let state = shared.lock();
    match state.runners.iter().find(|runner| runner.token == token) {
        Some(runner) => identity(StatusCode::OK, runner),
        None => StatusCode::FORBIDDEN.into_response(),
    }
}

/// `POST /runners`: every registration token is good.
pub(super) async fn register(Extract(shared): Extract<Arc<Shared>>) -> Answer {
    shared.change(|state| {
        let token = format!("glrt-registered{:06}", state.runners.len());
        state.add_runner(&token);
        match state.runners.last() {
            Some(runner) => identity(StatusCode::CREATED, runner),
            None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    })
}

/// `POST /runners/reset_authentication_token`: the old token ends at once.
pub(super) async fn reset_token(
    Extract(shared): Extract<Arc<Shared>>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let token = runner_token(&headers, &body);
    match shared.change(|state| state.rotate_token(&token, SystemTime::now())) {
        Some(runner) => identity(StatusCode::CREATED, &runner),
        None => StatusCode::FORBIDDEN.into_response(),
    }
}

/// `DELETE /runners` and `DELETE /runners/managers`.
pub(super) async fn forget(Extract(shared): Extract<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Answer {
    let token = runner_token(&headers, &body);
    shared.change(|state| state.runners.retain(|runner| runner.token != token));
    StatusCode::NO_CONTENT.into_response()
}
