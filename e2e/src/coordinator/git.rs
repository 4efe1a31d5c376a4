//! `<url>/<project>.git`: repositories for whoever has the token of a running job.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State as Extract;
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri, header};
use axum::response::IntoResponse as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Shared;
use super::state::Endpoint;
use crate::gitrepo::{self, GitRequest, Service};

/// A repository that a coordinator serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedRepo {
    /// Path of the project, such as `grp/proj`.
    pub project: String,
    /// Its newest commit when it was handed over.
    pub head: String,
}

/// Answers everything that no API route takes.
pub(super) async fn serve(
    Extract(shared): Extract<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let path = uri.path().trim_start_matches('/');
    let Some((project, rest)) = path.split_once(".git/") else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let Some(token) = password(&headers) else {
        let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"GitLab\"")];
        return (StatusCode::UNAUTHORIZED, challenge).into_response();
    };
    let (allowed, repository, fault) = {
        let mut state = shared.lock();
        let fault = state.fault(Endpoint::Git);
        (state.running_job(&token).is_some(), state.repositories.get(project).cloned(), fault)
    };
    if let Some(status) = fault {
        return status.into_response();
    }
    if !allowed {
        return (StatusCode::FORBIDDEN, "the token belongs to no running job\n").into_response();
    }
    let Some(repository) = repository else { return StatusCode::NOT_FOUND.into_response() };
    let Some(service) = Service::asked(method.as_str(), rest, uri.query().unwrap_or("")) else {
        return (StatusCode::FORBIDDEN, "this repository can only be fetched\n").into_response();
    };
    let request = GitRequest { repository: &repository, service, headers: &headers, body };
    match gitrepo::answer(request).await {
        Ok(response) => response,
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

/// The password of user `gitlab-ci-token` from the request's basic authentication.
fn password(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let encoded = value.strip_prefix("Basic ").or_else(|| value.strip_prefix("basic "))?;
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    (user == "gitlab-ci-token").then(|| password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_job_token_user_is_known() {
        let mut headers = HeaderMap::new();
        assert_eq!(password(&headers), None);
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text)).parse().unwrap();
        headers.insert(header::AUTHORIZATION, basic("gitlab-ci-token:glcbt-1"));
        assert_eq!(password(&headers).as_deref(), Some("glcbt-1"));
        headers.insert(header::AUTHORIZATION, basic("root:glcbt-1"));
        assert_eq!(password(&headers), None);
    }
}
