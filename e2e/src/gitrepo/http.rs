//! Git's smart HTTP protocol, read-only, through `git http-backend` (a CGI program that comes with git).

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// What of the protocol a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// `GET info/refs?service=git-upload-pack`: which references there are.
    References,
    /// `POST git-upload-pack`: objects.
    UploadPack,
}

impl Service {
    /// The service that a path below the repository and a query ask for; `None` for pushes, the dumb protocol and
    /// everything else that is not served.
    pub fn asked(method: &str, path: &str, query: &str) -> Option<Self> {
        match (method, path) {
            ("GET", "info/refs") if query == "service=git-upload-pack" => Some(Self::References),
            ("POST", "git-upload-pack") => Some(Self::UploadPack),
            _ => None,
        }
    }

    fn method(self) -> &'static str {
        match self {
            Self::References => "GET",
            Self::UploadPack => "POST",
        }
    }

    fn path_info(self) -> &'static str {
        match self {
            Self::References => "/info/refs",
            Self::UploadPack => "/git-upload-pack",
        }
    }
}

/// One request for a repository.
#[derive(Debug)]
pub struct GitRequest<'a> {
    /// The folder of the bare repository.
    pub repository: &'a Path,
    /// What is asked for.
    pub service: Service,
    /// The request's headers; content type, encoding and `Git-Protocol` are handed on.
    pub headers: &'a HeaderMap,
    /// The request's body.
    pub body: Bytes,
}

/// Answers a request by running `git http-backend`.
///
/// # Errors
/// When git cannot be started, or when what it says is not a CGI answer.
pub async fn answer(request: GitRequest<'_>) -> Result<Response<Body>> {
    let header = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        // The repository may belong to another user than the one who runs the test.
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_PROJECT_ROOT", request.repository)
        .env("PATH_INFO", request.service.path_info())
        .env("REQUEST_METHOD", request.service.method())
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let query = if request.service == Service::References { "service=git-upload-pack" } else { "" };
    let mut child = command.env("QUERY_STRING", query).spawn().context("cannot start git http-backend")?;
    let mut stdin = child.stdin.take().context("git http-backend has no stdin")?;
    let body = request.body;
    // Git may answer before it has read everything, so both directions run at once.
    let writer = tokio::spawn(async move {
        // A pipe that git has closed early is git's decision; its answer says why.
        let _ = stdin.write_all(&body).await;
    });
    let output = child.wait_with_output().await.context("cannot wait for git http-backend")?;
    writer.abort();
    if !output.status.success() && output.stdout.is_empty() {
        bail!("git http-backend failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    parse(&output.stdout)
}

/// Turns a CGI answer (headers, an empty line, the body) into an HTTP one.
fn parse(output: &[u8]) -> Result<Response<Body>> {
    let end = output.windows(4).position(|four| four == b"\r\n\r\n").context("no end of the CGI headers")?;
    let (head, body) = (&output[..end], &output[end + 4..]);
    let mut response = Response::new(Body::from(body.to_vec()));
    for line in std::str::from_utf8(head).context("the CGI headers are not text")?.split("\r\n") {
        let (name, value) = line.split_once(':').context("a CGI header has no colon")?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("status") {
            let code = value.split(' ').next().unwrap_or(value);
            *response.status_mut() =
                StatusCode::from_bytes(code.as_bytes()).context("the CGI status is not a number")?;
        } else {
            let name = HeaderName::from_bytes(name.as_bytes()).context("a CGI header has a bad name")?;
            response
                .headers_mut()
                .append(name, HeaderValue::from_str(value).context("a CGI header has a bad value")?);
        }
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fetching_is_served() {
        assert_eq!(Service::asked("GET", "info/refs", "service=git-upload-pack"), Some(Service::References));
        assert_eq!(Service::asked("POST", "git-upload-pack", ""), Some(Service::UploadPack));
        assert_eq!(Service::asked("GET", "info/refs", "service=git-receive-pack"), None);
        assert_eq!(Service::asked("GET", "info/refs", ""), None);
        assert_eq!(Service::asked("POST", "git-receive-pack", ""), None);
        assert_eq!(Service::asked("GET", "HEAD", ""), None);
    }

    #[test]
    fn a_cgi_answer_becomes_a_response() {
        let response =
            parse(b"Status: 404 Not Found\r\nContent-Type: text/plain\r\n\r\nno\r\n\r\nbody").unwrap();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()["content-type"], "text/plain");
        assert_eq!(parse(b"A: b\r\n\r\n").unwrap().status(), StatusCode::OK);
        assert!(parse(b"A: b\r\n").is_err());
    }
}
