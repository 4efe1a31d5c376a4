//! A small API server: CiJobs with watches, and exec into agents that run on this machine.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

const CIJOBS: &str = "/apis/roadstead.dev/v1alpha1/namespaces/jobs/cijobs";
const SECRETS: &str = "/api/v1/namespaces/jobs/secrets";
const PODS: &str = "/api/v1/namespaces/jobs/pods/";

/// What the operator does when it sees a new CiJob: it returns the first status.
type Operator = Box<dyn Fn(&Value) -> Option<Value> + Send>;

#[derive(Default)]
pub struct World {
    pub jobs: BTreeMap<String, Value>,
    pub secrets: BTreeMap<String, Value>,
    pub version: u64,
    /// `METHOD path?query` of every request.
    pub requests: Vec<String>,
    /// Answers to the next requests whose line contains the text.
    pub faults: VecDeque<(&'static str, u16, Value)>,
    pub operator: Option<Operator>,
    /// Socket directories of the agents, by container.
    pub agents: HashMap<String, PathBuf>,
    /// Bytes after which the connections to come break.
    pub cuts: VecDeque<usize>,
    lost_answers: usize,
    /// Ends every exec stream when it changes.
    breaker: tokio::sync::watch::Sender<u32>,
    watchers: Vec<mpsc::UnboundedSender<Value>>,
    /// The changes of all CiJobs, in order.
    history: Vec<Value>,
}

/// A running API server. It ends with the test.
#[derive(Clone)]
pub struct ApiServer {
    pub world: Arc<Mutex<World>>,
    pub url: String,
}

impl ApiServer {
    pub async fn start() -> Self {
        let world = Arc::new(Mutex::new(World { version: 100, ..World::default() }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { world, url };
        let app = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        server
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "jobs"}}]
        })
        .to_string()
    }

    /// Makes the operator answer every new CiJob with this status.
    pub fn operator(&self, operator: impl Fn(&Value) -> Option<Value> + Send + 'static) {
        self.world().operator = Some(Box::new(operator));
    }

    pub fn fail(&self, request: &'static str, code: u16, message: &str) {
        let body = failure(code, message);
        self.world().faults.push_back((request, code, body));
    }

    /// Changes the status of the only CiJob.
    pub fn set_status(&self, status: &Value) {
        let mut world = self.world();
        let name = world.jobs.keys().next().unwrap().clone();
        world.change(&name, |job| job["status"] = status.clone());
    }

    pub fn requests(&self, containing: &str) -> Vec<String> {
        self.world().requests.iter().filter(|line| line.contains(containing)).cloned().collect()
    }

    /// The only CiJob.
    pub fn job(&self) -> Value {
        let world = self.world();
        assert_eq!(world.jobs.len(), 1);
        world.jobs.values().next().unwrap().clone()
    }
}

impl World {
    fn next(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut Value)) {
        let version = self.next();
        let Some(job) = self.jobs.get_mut(name) else { return };
        change(job);
        job["metadata"]["resourceVersion"] = json!(version);
        let event = json!({"type": "MODIFIED", "object": job});
        self.tell(&event);
        self.history.push(event);
    }

    /// Sends an event to every watch.
    pub fn tell(&mut self, event: &Value) {
        self.watchers.retain(|watcher| watcher.send(event.clone()).is_ok());
    }

    /// The next object is created, but whoever asked for it is told otherwise.
    pub fn lose_next_answer(&mut self) {
        self.lost_answers += 1;
    }

    /// Breaks all connections into pods.
    pub fn cut_all(&mut self) {
        self.breaker.send_modify(|count| *count += 1);
    }

    pub fn end_watches(&mut self) {
        self.watchers.clear();
    }

    pub fn delete(&mut self) {
        for (_, job) in std::mem::take(&mut self.jobs) {
            self.tell(&json!({"type": "DELETED", "object": job}));
        }
    }
}

pub fn failure(code: u16, message: &str) -> Value {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "AlreadyExists",
        410 => "Expired",
        _ => "InternalError",
    };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "details": {}, "code": code})
}

fn reply(code: u16, body: &Value) -> Response {
    (StatusCode::from_u16(code).unwrap(), [(header::CONTENT_TYPE, "application/json")], body.to_string())
        .into_response()
}

async fn answer(State(server): State<ApiServer>, request: Request) -> Response {
    let line = format!("{} {}", request.method(), request.uri());
    let (path, method) = (request.uri().path().to_owned(), request.method().clone());
    let query = request.uri().query().unwrap_or_default().to_owned();
    {
        let mut world = server.world();
        world.requests.push(line.clone());
        if world.faults.front().is_some_and(|(text, ..)| line.contains(text)) {
            let (_, code, body) = world.faults.pop_front().unwrap();
            return reply(code, &body);
        }
    }
    if let Some(pod) = path.strip_prefix(PODS).and_then(|rest| rest.strip_suffix("/exec")) {
        return exec(&server, pod, &query, request);
    }
    if path == SECRETS && method == Method::POST {
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        return server.world().keep(&serde_json::from_slice(&body).unwrap());
    }
    let Some(name) = path.strip_prefix(CIJOBS).map(|rest| rest.trim_start_matches('/').to_owned()) else {
        return reply(404, &failure(404, "no such path"));
    };
    let headers = request.headers().clone();
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    match (method, name.as_str()) {
        (Method::POST, "") => server.world().create(serde_json::from_slice(&body).unwrap()),
        (Method::GET, "") if query.contains("watch=true") => server.world().watch(&query),
        (Method::GET, name) => match server.world().jobs.get(name) {
            Some(job) => reply(200, job),
            None => reply(404, &failure(404, "no such CiJob")),
        },
        (Method::PATCH, name) => {
            server.world().patch(name, &headers, &serde_json::from_slice(&body).unwrap())
        }
        _ => reply(405, &failure(405, "no such method")),
    }
}

impl World {
    fn keep(&mut self, secret: &Value) -> Response {
        let name = secret["metadata"]["name"].as_str().unwrap().to_owned();
        if self.secrets.contains_key(&name) {
            return reply(409, &failure(409, "it exists already"));
        }
        self.secrets.insert(name, secret.clone());
        if let Some(left) = self.lost_answers.checked_sub(1) {
            self.lost_answers = left;
            return reply(504, &failure(504, "request timed out"));
        }
        reply(201, secret)
    }

    fn create(&mut self, mut job: Value) -> Response {
        let name = job["metadata"]["name"].as_str().unwrap().to_owned();
        if self.jobs.contains_key(&name) {
            return reply(409, &failure(409, "it exists already"));
        }
        let version = self.next();
        let metadata = json!({"name": name, "namespace": "jobs", "uid": format!("uid-{version}"),
            "resourceVersion": version, "creationTimestamp": "2026-01-01T00:00:00Z"});
        job["metadata"] = metadata;
        self.jobs.insert(name.clone(), job.clone());
        let status = self.operator.as_ref().and_then(|operator| operator(&job));
        if let Some(status) = status {
            self.change(&name, |job| job["status"] = status);
        }
        if let Some(left) = self.lost_answers.checked_sub(1) {
            self.lost_answers = left;
            return reply(504, &failure(504, "request timed out"));
        }
        reply(201, &job)
    }

    /// Everything after that version.
    fn watch(&mut self, query: &str) -> Response {
        let part = |name: &str| query.split('&').find_map(|part| part.strip_prefix(name)).unwrap_or_default();
        let name = part("fieldSelector=metadata.name%3D");
        let since: u64 = part("resourceVersion=").parse().unwrap();
        assert!(!name.is_empty() && !part("timeoutSeconds=").is_empty(), "{query}");
        let (sender, receiver) = mpsc::unbounded_channel();
        for event in &self.history {
            let metadata = &event["object"]["metadata"];
            let version: u64 = metadata["resourceVersion"].as_str().unwrap().parse().unwrap();
            if metadata["name"] == name && version > since {
                sender.send(event.clone()).unwrap();
            }
        }
        self.watchers.push(sender);
        let events = futures::stream::unfold(receiver, |mut receiver| async move {
            let event: Value = receiver.recv().await?;
            Some((Ok::<_, std::io::Error>(format!("{event}\n")), receiver))
        });
        Body::from_stream(events).into_response()
    }

    fn patch(&mut self, name: &str, headers: &HeaderMap, patch: &Value) -> Response {
        assert_eq!(headers[header::CONTENT_TYPE], "application/merge-patch+json");
        let Some(job) = self.jobs.get(name) else { return reply(404, &failure(404, "no such CiJob")) };
        if patch["metadata"]["uid"].as_str().is_some_and(|uid| job["metadata"]["uid"] != uid) {
            return reply(409, &failure(409, "the UID differs"));
        }
        let fields = patch["spec"].as_object().unwrap().clone();
        self.change(name, |job| job["spec"].as_object_mut().unwrap().extend(fields));
        reply(200, &self.jobs[name])
    }
}

fn exec(server: &ApiServer, pod: &str, query: &str, request: Request) -> Response {
    let container = query.split('&').find_map(|part| part.strip_prefix("container=")).unwrap().to_owned();
    assert!(
        query.ends_with("command=%2F.roadstead%2Fagent%2Fstage-agent&command=attach"),
        "the admission policy would refuse {query}"
    );
    assert!(query.contains("stdin=true") && query.contains("stdout=true") && query.contains("stderr=true"));
    let (agent, cut, mut breaker) = {
        let mut world = server.world();
        let known = world.jobs.values().any(|job| job["status"]["pod"]["name"] == pod);
        if !known {
            return reply(404, &failure(404, &format!("pods \"{pod}\" not found")));
        }
        (
            world.agents.get(&container).cloned(),
            world.cuts.pop_front().unwrap_or(usize::MAX),
            world.breaker.subscribe(),
        )
    };
    let key = derive_accept_key(request.headers()[header::SEC_WEBSOCKET_KEY].as_bytes());
    tokio::spawn(async move {
        let upgraded = hyper::upgrade::on(request).await.unwrap();
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        match agent {
            Some(run_dir) => tokio::select! {
                () = relay(socket, run_dir, cut) => {}
                _ = breaker.changed() => {}
            },
            None => not_found(socket, &container).await,
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::UPGRADE, "websocket")
        .header(header::CONNECTION, "Upgrade")
        .header(header::SEC_WEBSOCKET_ACCEPT, key)
        .header(header::SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io")
        .body(Body::empty())
        .unwrap()
}

type Server = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// As since Kubernetes 1.30: the API server accepts the WebSocket before it asks the kubelet.
async fn not_found(mut socket: Server, container: &str) {
    let message = format!("unable to upgrade connection: container not found (\"{container}\")");
    let _ = socket.send(channel(3, failure(500, &message).to_string().as_bytes())).await;
    let _ = socket.close(None).await;
    while let Some(Ok(_)) = socket.next().await {}
}

fn channel(number: u8, bytes: &[u8]) -> Message {
    let mut message = vec![number];
    message.extend_from_slice(bytes);
    Message::Binary(message.into())
}

/// Relays between the WebSocket and the agent's exec'd end, until it breaks.
async fn relay(socket: Server, run_dir: PathBuf, cut: usize) {
    let mut attach = tokio::process::Command::new(env!("CARGO_BIN_EXE_stage-agent"))
        .args(["attach", "--any-server", "--run-dir"])
        .arg(run_dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (attach.stdin.take(), attach.stdout.take().unwrap());
    let (mut send, mut receive) = socket.split();
    let input = async {
        while let Some(Ok(message)) = receive.next().await {
            let Message::Binary(bytes) = message else { continue };
            if bytes.first() == Some(&255) {
                // The end of standard input.
                stdin = None;
            } else if let Some(pipe) = &mut stdin {
                // An agent's end that is gone shows on its standard output.
                let _ = pipe.write_all(&bytes[1..]).await;
            }
        }
    };
    let output = async {
        let (mut left, mut buffer) = (cut, vec![0; 32 * 1024]);
        loop {
            let len = stdout.read(&mut buffer).await.unwrap_or(0);
            if len == 0 {
                let _ = send.send(channel(3, br#"{"metadata":{},"status":"Success"}"#)).await;
                let _ = send.close().await;
                // The shim closes the connection.
                std::future::pending::<()>().await;
            }
            let through = len.min(left);
            left -= through;
            if through > 0 && send.send(channel(1, &buffer[..through])).await.is_err() {
                return;
            }
            if left == 0 {
                return;
            }
        }
    };
    tokio::select! {
        () = input => {}
        () = output => {}
    }
    let _ = attach.kill().await;
}
