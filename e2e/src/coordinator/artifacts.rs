//! Artifacts: what jobs upload and what later jobs download.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Multipart, Path, Query, State as Extract};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse as _;
use serde_json::json;

use super::Shared;
use super::routes::{Answer, job_token, json_answer};
use super::state::{Endpoint, StoredArtifact};

/// `POST /jobs/:id/artifacts`: a form with one file.
pub(super) async fn upload(
    Extract(shared): Extract<Arc<Shared>>,
    Path(id): Path<i64>,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
    form: Multipart,
) -> Answer {
    {
        let mut state = shared.lock();
        if let Some(status) = state.fault(Endpoint::ArtifactUpload) {
            return status.into_response();
        }
        let token = job_token(&headers, None).unwrap_or_default();
        if state.running_job(&token).is_none_or(|job| job.spec.id != id) {
            return json_answer(StatusCode::FORBIDDEN, &json!({"message": "403 Forbidden"}));
        }
    }
    let (filename, content) = match file(form).await {
        Ok(file) => file,
        Err(why) => return (StatusCode::BAD_REQUEST, why).into_response(),
    };
    let asked = |key: &str, or: &str| query.get(key).map_or(or, String::as_str).to_owned();
    let artifact = StoredArtifact {
        filename,
        kind: asked("artifact_type", "archive"),
        format: asked("artifact_format", "zip"),
        expire_in: asked("expire_in", ""),
        content,
    };
    shared.change(|state| {
        if let Some(job) = state.job_mut(id) {
            job.artifacts.push(artifact);
        }
    });
    json_answer(StatusCode::CREATED, &json!({"message": "201 Created"}))
}

/// The field `file` of the form.
async fn file(mut form: Multipart) -> Result<(String, axum::body::Bytes), String> {
    while let Some(field) = form.next_field().await.map_err(|error| error.to_string())? {
        if field.name() == Some("file") {
            let name = field.file_name().unwrap_or("artifacts").to_owned();
            let content = field.bytes().await.map_err(|error| error.to_string())?;
            return Ok((name, content));
        }
    }
    Err("the form has no field `file`".to_owned())
}

/// `GET /jobs/:id/artifacts`: the archive of a job, for the token of any running job.
pub(super) async fn download(
    Extract(shared): Extract<Arc<Shared>>,
    Path(id): Path<i64>,
    headers: HeaderMap,
) -> Answer {
    let mut state = shared.lock();
    if let Some(status) = state.fault(Endpoint::ArtifactDownload) {
        return status.into_response();
    }
    let token = job_token(&headers, None).unwrap_or_default();
    if state.running_job(&token).is_none() {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let archive = state.job(id).and_then(|job| job.artifacts.iter().rev().find(|one| one.kind == "archive"));
    match archive {
        Some(archive) => {
            ([(header::CONTENT_TYPE, "application/zip")], archive.content.clone()).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
