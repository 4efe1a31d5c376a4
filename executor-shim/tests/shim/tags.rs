//! `config` and what it asks GitLab: the real binary against a small GitLab.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::apiserver::ApiServer;
use crate::calls::{Attempt, Called, admitted, response};

const TOKEN: &str = "glcbt-job-token";

/// A GitLab that knows one job. It ends with the test.
#[derive(Clone, Default)]
struct GitLab {
    /// Method, path and token of every request.
    requests: Arc<Mutex<Vec<String>>>,
    /// Answers to give first, instead of the job.
    faults: Arc<Mutex<Vec<u16>>>,
    url: String,
    /// Certificate of its authority.
    authority: Option<String>,
}

async fn answer(State(gitlab): State<GitLab>, request: Request) -> Response {
    let token = request.headers().get("job-token").and_then(|token| token.to_str().ok()).unwrap_or("none");
    gitlab.requests.lock().unwrap().push(format!("{} {} {token}", request.method(), request.uri()));
    let fault = gitlab.faults.lock().unwrap().pop();
    if let Some(code) = fault {
        return (StatusCode::from_u16(code).unwrap(), "the token glcbt-job-token is odd").into_response();
    }
    if token != TOKEN {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let job = json!({"id": 42, "tag_list": ["docker", "gpu"], "user": {"username": "ada"}, "pipeline": {"source": "web"}});
    ([(header::CONTENT_TYPE, "application/json")], job.to_string()).into_response()
}

impl GitLab {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gitlab = Self { url: format!("http://{}", listener.local_addr().unwrap()), ..Self::default() };
        let app = Router::new().fallback(answer).with_state(gitlab.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        gitlab
    }

    /// The same over TLS, with a certificate of an authority that nobody else knows.
    async fn start_secure() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::new(vec![]).unwrap());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let url = format!("https://{}", listener.local_addr().unwrap());
        let gitlab = Self { url, authority: Some(authority), ..Self::default() };
        let app = Router::new().fallback(answer).with_state(gitlab.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, app) = (acceptor.clone(), app.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = TowerToHyperService::new(app);
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        gitlab
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// The job as this GitLab sends it.
    fn response(&self) -> Value {
        let mut job = response();
        let host = self.url.split_once("://").unwrap();
        job["git_info"]["repo_url"] =
            json!(format!("{}://gitlab-ci-token:{TOKEN}@{}/grp/proj.git", host.0, host.1));
        job["variables"] = json!([
            {"key": "CI_API_V4_URL", "value": format!("{}/api/v4", self.url)},
            {"key": "CI_RUNNER_TAGS", "value": "[\"docker\", \"gpu\", \"linux\"]"},
        ]);
        job
    }
}

async fn config(server: &ApiServer, response: &Value, env: &[(&str, &str)]) -> Called {
    server.operator(|job| Some(admitted(job)));
    let mut attempt = Attempt::with(server, response);
    attempt.env.push(("ROADSTEAD_TAG_SOURCE".into(), "job".into()));
    attempt.env.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    attempt.call(&["config"]).await
}

fn add_variable(response: &mut Value, key: &str, value: &str) {
    response["variables"].as_array_mut().unwrap().push(json!({"key": key, "value": value}));
}

#[tokio::test]
async fn tags_come_from_gitlab_in_one_request() {
    let (server, gitlab) = (ApiServer::start().await, GitLab::start().await);
    let mut response = gitlab.response();
    // What the job's author says is no address and no tag.
    add_variable(&mut response, "CI_API_V4_URL", "http://127.0.0.1:1/api/v4");
    add_variable(&mut response, "CI_JOB_TAGS", "[\"privileged\"]");
    let called = config(&server, &response, &[]).await;
    called.assert(0);
    assert_eq!(called.stderr, "");
    assert_eq!(gitlab.requests(), [format!("GET /api/v4/job {TOKEN}")]);
    let request = &server.job()["spec"]["request"];
    assert_eq!(request["tags"], json!(["docker", "gpu"]));
    assert_eq!(request["tagSource"], "Job");
    assert_eq!((&request["userLogin"], &request["pipelineSource"]), (&json!("ada"), &json!("web")));
    assert!(!server.job().to_string().contains(TOKEN));
}

#[tokio::test]
async fn a_gitlab_that_is_busy_is_asked_again() {
    let (server, gitlab) = (ApiServer::start().await, GitLab::start().await);
    gitlab.faults.lock().unwrap().extend([500, 503]);
    config(&server, &gitlab.response(), &[]).await.assert(0);
    assert_eq!(gitlab.requests().len(), 3);
}

#[tokio::test]
async fn a_gitlab_that_refuses_is_a_system_failure() {
    let (server, gitlab) = (ApiServer::start().await, GitLab::start().await);
    for (code, words) in
        [(401, "does not accept the job's token"), (404, "no such API"), (418, "it answers 418")]
    {
        gitlab.faults.lock().unwrap().push(code);
        let called = config(&server, &gitlab.response(), &[]).await;
        called.assert(2);
        let start = format!("cannot ask GitLab at {}/api/v4/job for the job's tags: ", gitlab.url);
        assert!(called.stderr.starts_with(&start) && called.stderr.contains(words), "{called:?}");
        assert!(!called.stderr.contains("glcbt") && called.stderr.lines().count() == 1, "{called:?}");
    }
    assert!(server.world().jobs.is_empty(), "no job without its tags");
}

#[tokio::test]
async fn the_token_goes_to_no_other_server() {
    let (server, gitlab, evil) = (ApiServer::start().await, GitLab::start().await, GitLab::start().await);
    let mut response = gitlab.response();
    response["variables"][0]["value"] = json!(format!("{}/api/v4", evil.url));
    let called = config(&server, &response, &[]).await;
    called.assert(2);
    assert!(called.stderr.contains("is on another server than the job's repository"), "{called:?}");
    assert!(evil.requests().is_empty());
    // Unless the runner's administrator says so.
    config(&server, &response, &[("ROADSTEAD_GITLAB_API_URL", &evil.url)]).await.assert(0);
    assert_eq!((evil.requests().len(), gitlab.requests().len()), (1, 0));
}

#[tokio::test]
async fn other_sources_ask_nobody() {
    let (server, gitlab) = (ApiServer::start().await, GitLab::start().await);
    let mut response = gitlab.response();
    add_variable(&mut response, "CI_RUNNER_TAGS", "[\"privileged\"]");
    let called = config(&server, &response, &[("ROADSTEAD_TAG_SOURCE", "runner")]).await;
    called.assert(0);
    assert!(
        called.stderr.starts_with("The runner's tags (docker, gpu, linux) stand for the job's"),
        "{called:?}"
    );
    let request = server.job()["spec"]["request"].clone();
    assert_eq!(
        (&request["tags"], &request["tagSource"]),
        (&json!(["docker", "gpu", "linux"]), &json!("Runner"))
    );

    let server = ApiServer::start().await;
    let called = config(&server, &response, &[("ROADSTEAD_TAG_SOURCE", "none")]).await;
    called.assert(0);
    let request = server.job()["spec"]["request"].clone();
    assert_eq!((&request["tags"], &request["tagSource"]), (&Value::Null, &Value::Null));

    // gitlab-runner's own check of its executor.
    let server = ApiServer::start().await;
    let mut check = gitlab.response();
    check["git_info"]["repo_url"] = json!("");
    config(&server, &check, &[]).await.assert(0);
    assert!(gitlab.requests().is_empty());
}

#[tokio::test]
async fn gitlabs_certificate_is_checked_with_the_runners_authority() {
    let (server, gitlab) = (ApiServer::start().await, GitLab::start_secure().await);
    let authority = gitlab.authority.clone().unwrap();
    let handed_on = [("CUSTOM_ENV_CI_SERVER_TLS_CA_FILE", authority.as_str())];
    config(&server, &gitlab.response(), &handed_on).await.assert(0);
    assert_eq!(gitlab.requests().len(), 1);

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    std::fs::write(&file, &authority).unwrap();
    let configured = [("ROADSTEAD_GITLAB_CA_FILE", file.to_str().unwrap())];
    config(&ApiServer::start().await, &gitlab.response(), &configured).await.assert(0);
    assert_eq!(gitlab.requests().len(), 2);

    // A variable of that name is the author's, who may be somebody in the middle.
    let mut shadowing = gitlab.response();
    add_variable(&mut shadowing, "CI_SERVER_TLS_CA_FILE", &authority);
    let called = config(&ApiServer::start().await, &shadowing, &handed_on).await;
    called.assert(2);
    assert!(called.stderr.contains("certificate"), "{called:?}");
    assert_eq!(gitlab.requests().len(), 2);
}
