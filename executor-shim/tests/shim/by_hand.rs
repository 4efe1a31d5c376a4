//! Jobs by hand: the real binary, a small API server, and the agent's real binary.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::apiserver::ApiServer;
use crate::calls::{Called, ended, finish, shim, until};
use crate::pod::{Pod, running};

/// Somebody with a kubeconfig.
struct Hand {
    dir: TempDir,
}

impl Hand {
    fn new(server: &ApiServer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("kubeconfig"), server.kubeconfig()).unwrap();
        std::fs::create_dir(dir.path().join("tmp")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = shim();
        command
            .env("KUBECONFIG", self.path("kubeconfig"))
            .env("ROADSTEAD_STATE_DIR", self.path("state"))
            .env("TMPDIR", self.path("tmp"))
            .stdin(Stdio::piped());
        command
    }

    async fn start(&self, request: &Value) -> Child {
        let mut child = self.command().spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(request.to_string().as_bytes()).await.unwrap();
        child
    }

    async fn ask(&self, request: &Value) -> (Value, Called) {
        let called = finish(self.start(request).await).await;
        (answer(&called), called)
    }

    /// Directories of jobs that are still remembered.
    fn remembered(&self) -> usize {
        std::fs::read_dir(self.path("state")).map_or(0, Iterator::count)
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.remembered(), 0);
        assert_eq!(std::fs::read_dir(self.path("tmp")).unwrap().count(), 0);
    }
}

/// The one JSON object on standard output.
fn answer(called: &Called) -> Value {
    assert_eq!(called.stdout.matches('\n').count(), 1, "{called:?}");
    let value: Value = serde_json::from_str(&called.stdout).unwrap();
    assert!(value.is_object(), "{called:?}");
    value
}

/// A cluster in which jobs run at once.
async fn ready() -> (ApiServer, Pod, Hand) {
    let server = ApiServer::start().await;
    let pod = Pod::start(&server);
    let builds = pod.path("");
    server.operator(move |job| {
        let mut status = running(job);
        status["config"]["buildsDir"] = json!(builds);
        status["config"]["shell"] = json!("bash");
        status["timeouts"]["orphanSeconds"] =
            job["spec"]["request"]["keepSeconds"].as_i64().map_or(json!(120), Value::from);
        Some(status)
    });
    let hand = Hand::new(&server);
    (server, pod, hand)
}

#[tokio::test]
async fn a_run_does_it_all() {
    let (server, _pod, hand) = ready().await;
    let (answer, called) =
        hand.ask(&json!({"command": "run", "script": ["echo hello", "echo oh >&2"]})).await;
    called.assert(0);
    let job = server.job();
    assert_eq!(answer["job"], job["metadata"]["name"]);
    assert!(answer["durationMs"].as_i64().unwrap() >= 0);
    assert_eq!(
        (answer["command"].as_str(), answer["exitCode"].as_i64(), answer["outputTruncated"].as_bool()),
        (Some("run"), Some(0), Some(false))
    );
    let output = answer["output"].as_str().unwrap();
    assert!(output.len() == 9 && output.contains("hello\n") && output.contains("oh\n"), "{answer}");
    assert!(called.stderr.contains("hello\n") && called.stderr.contains("oh\n"), "{called:?}");
    assert_eq!(job["spec"]["request"]["server"], "by-hand");
    assert_eq!(job["spec"]["report"]["outcome"], "Succeeded");
    hand.assert_nothing_left();
}

/// A pod's container has no standard input to write to.
#[tokio::test]
async fn a_request_may_be_in_a_file() {
    let (_server, _pod, hand) = ready().await;
    let file = hand.path("request.json");
    std::fs::write(&file, r#"{"command":"run","script":["echo hello"]}"#).unwrap();
    let called = finish(hand.command().arg("--request").arg(&file).spawn().unwrap()).await;
    called.assert(0);
    assert_eq!(answer(&called)["output"], "hello\n");
    let called = finish(hand.command().arg("--request=/nonexistent").spawn().unwrap()).await;
    called.assert(2);
    assert!(answer(&called)["error"].as_str().unwrap().contains("/nonexistent"), "{called:?}");
    hand.assert_nothing_left();
}

#[tokio::test]
async fn the_exit_code_is_the_scripts_and_can_be_told_from_the_shims_own() {
    let (server, _pod, hand) = ready().await;
    for code in [1, 2, 3, 7, 130, 255] {
        let request = json!({"command": "run", "script": ["echo one", format!("exit {code}"), "echo two"]});
        let (answer, called) = hand.ask(&request).await;
        called.assert(code);
        assert_eq!((answer["exitCode"].as_i64(), answer.get("error")), (Some(code.into()), None));
        assert_eq!(answer["output"], "one\n");
        assert_eq!(server.job()["spec"]["report"]["exitCode"], code);
        server.world().jobs.clear();
    }
    let (answer, called) = hand.ask(&json!({"command": "run", "script": ["kill -9 $$"]})).await;
    called.assert(137);
    assert_eq!((answer["exitCode"].as_i64(), answer["signal"].as_i64()), (Some(137), Some(9)));
    hand.assert_nothing_left();
}

#[tokio::test]
async fn of_much_output_the_end_is_answered_and_all_of_it_is_shown() {
    let (_server, _pod, hand) = ready().await;
    let script = "i=0; while [ $i -lt 200000 ]; do echo \"line $i\"; i=$((i+1)); done";
    let (answer, called) = hand.ask(&json!({"command": "run", "script": [script]})).await;
    called.assert(0);
    assert_eq!(answer["outputTruncated"], true);
    let output = answer["output"].as_str().unwrap();
    assert_eq!(output.len(), 1024 * 1024);
    assert!(output.ends_with("\nline 199999\n"));
    let shown: Vec<&str> = called.stderr.lines().filter(|line| line.starts_with("line ")).collect();
    assert_eq!((shown.len(), shown[0], shown[199_999]), (200_000, "line 0", "line 199999"));
}

#[tokio::test]
async fn a_session_keeps_its_variables_and_its_files() {
    let (server, pod, hand) = ready().await;
    let value = "it's \"odd\" $HOME `x`\n\ttwo lines \u{1b}\u{20ac}";
    let canary = "canary-5f1e";
    let request = json!({"command": "initialize", "image": "alpine:3.20", "keepSeconds": 77,
        "variables": {"ODD": value, "CANARY": canary}});
    let (started, called) = hand.ask(&request).await;
    called.assert(0);
    let name = started["job"].as_str().unwrap().to_owned();
    assert_eq!(
        (started["command"].as_str(), started["namespace"].as_str(), started["class"].as_str()),
        (Some("initialize"), Some("jobs"), Some("default"))
    );
    assert_eq!((started["keepSeconds"].as_i64(), started["timeoutSeconds"].as_i64()), (Some(77), Some(3600)));
    assert!(!server.job().to_string().contains(canary), "{}", server.job());
    for entry in std::fs::read_dir(hand.path("state").join(&name)).unwrap().flatten() {
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{entry:?}");
    }

    let run = |script: Value, container: &str| json!({"command": "run", "job": name, "script": script, "container": container});
    let (answer, called) = hand.ask(&run(json!(["printf %s \"$ODD\"", "echo note > note"]), "build")).await;
    called.assert(0);
    assert_eq!(answer["output"], value);
    assert_eq!(std::fs::read_to_string(pod.path("note")).unwrap(), "note\n");
    let (answer, called) = hand.ask(&run(json!(["cat note", "echo $CANARY", "exit 7"]), "helper")).await;
    called.assert(7);
    assert_eq!(answer["output"], format!("note\n{canary}\n"));
    assert_eq!(server.requests("container=helper").len(), 2, "one to start, one to run");

    for _ in 0..2 {
        let (answer, called) = hand.ask(&json!({"command": "cleanup", "job": name})).await;
        called.assert(0);
        assert_eq!(answer, json!({"command": "cleanup", "job": name}));
    }
    let report = server.job()["spec"]["report"].clone();
    assert_eq!((report["outcome"].as_str(), report["exitCode"].as_i64()), (Some("Failed"), Some(7)));
    let stages: Vec<_> =
        report["stages"].as_array().unwrap().iter().map(|stage| stage["container"].clone()).collect();
    assert_eq!(stages, ["build", "helper"]);
    hand.assert_nothing_left();

    let (answer, called) = hand.ask(&run(json!(["echo"]), "build")).await;
    called.assert(2);
    assert!(answer["error"].as_str().unwrap().contains("is not known here"), "{answer}");
}

#[tokio::test]
async fn a_job_that_has_ended_or_is_gone_is_named() {
    let (server, _pod, hand) = ready().await;
    for case in ["ended", "reported", "gone"] {
        let (started, called) = hand.ask(&json!({"command": "initialize"})).await;
        called.assert(0);
        let name = started["job"].as_str().unwrap();
        let words = match case {
            "ended" => {
                server.set_status(&ended("Errored", "ClientLost", "nobody spoke to the pod for 10 s"));
                "has ended: nobody spoke to the pod for 10 s"
            }
            "reported" => {
                let elsewhere = Hand::new(&server);
                let cleanup = |namespace| json!({"command": "cleanup", "job": name, "namespace": namespace});
                elsewhere.ask(&cleanup("others")).await.1.assert(0);
                assert!(server.job()["spec"]["report"].is_null(), "it is not there");
                elsewhere.ask(&cleanup("jobs")).await.1.assert(0);
                "has ended"
            }
            _ => {
                server.world().delete();
                "is gone from the cluster"
            }
        };
        let (answer, called) = hand.ask(&json!({"command": "run", "job": name, "script": ["echo"]})).await;
        called.assert(2);
        assert_eq!(answer["kind"], "request");
        assert!(answer["error"].as_str().unwrap().contains(words), "{case}: {answer}");
        assert!(called.stderr.lines().count() == 1 && called.stderr.contains(words), "{called:?}");
        hand.assert_nothing_left();
        server.world().jobs.clear();
    }
}

#[tokio::test]
async fn a_script_at_a_time() {
    let (_server, pod, hand) = ready().await;
    let (started, _) = hand.ask(&json!({"command": "initialize"})).await;
    let run = |script: &str| json!({"command": "run", "job": started["job"], "script": [script]});
    let first = hand.start(&run("echo > begun; while [ ! -e end ]; do sleep 0.05; done")).await;
    until("the script", || pod.path("begun").exists().then_some(())).await;
    let (answer, called) = hand.ask(&run("echo")).await;
    called.assert(2);
    assert!(answer["error"].as_str().unwrap().contains("another call runs a script"), "{answer}");
    std::fs::write(pod.path("end"), "").unwrap();
    finish(first).await.assert(0);
}

#[tokio::test]
async fn what_cannot_be_started_leaves_nothing() {
    let server = ApiServer::start().await;
    let hand = Hand::new(&server);
    for (status, exit, kind) in [
        (ended("Failed", "InvalidImageName", "the image is wrong"), 2, "request"),
        (ended("Errored", "PodRejected", "the quota is used up"), 3, "system"),
    ] {
        for command in ["run", "initialize"] {
            let status = status.clone();
            server.operator(move |_| Some(status.clone()));
            let mut request = json!({"command": command});
            if command == "run" {
                request["script"] = json!(["echo"]);
            }
            let (answer, called) = hand.ask(&request).await;
            called.assert(exit);
            assert_eq!((answer["command"].as_str(), answer["kind"].as_str()), (Some(command), Some(kind)));
            assert_eq!(called.stderr.lines().last(), answer["error"].as_str());
            assert!(server.job()["spec"]["report"].is_object(), "it was not let go of");
            server.world().jobs.clear();
            hand.assert_nothing_left();
        }
    }
}

#[tokio::test]
async fn a_request_that_is_refused_here_does_not_reach_the_cluster() {
    let server = ApiServer::start().await;
    let hand = Hand::new(&server);
    for request in [
        json!({"command": "run", "script": []}),
        json!({"command": "run", "script": ["x"], "image": "x".repeat(2000)}),
        json!({"command": "initialize", "keepSeconds": 1}),
        json!({"command": "cleanup", "job": "cij-42-0123456789"}),
    ] {
        let (answer, called) = hand.ask(&request).await;
        called.assert(2);
        assert_eq!(
            (answer["kind"].as_str(), called.stderr.lines().count()),
            (Some("request"), 1),
            "{called:?}"
        );
    }
    assert!(server.world().requests.is_empty());
    hand.assert_nothing_left();
}

#[tokio::test]
async fn a_signal_ends_the_script_and_the_job_of_a_run() {
    let (server, pod, hand) = ready().await;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let started = pod.path("started");
        let request = json!({"command": "run", "script": ["echo before", "echo $$ > started", "sleep 1000"]});
        let child = hand.start(&request).await;
        let script = || std::fs::read_to_string(&started).ok()?.trim().parse().ok();
        let script = Pid::from_raw(until("the script", script).await);
        kill(Pid::from_raw(child.id().unwrap().cast_signed()), signal).unwrap();
        let called = finish(child).await;
        called.assert(130);
        let answer = answer(&called);
        assert_eq!(answer["kind"], "interrupted");
        assert!(answer["output"].as_str().unwrap().starts_with("before\n"), "{answer}");
        until("the end of the script", || kill(script, None).is_err().then_some(())).await;
        assert_eq!(server.job()["spec"]["report"]["outcome"], "Canceled");
        std::fs::remove_file(&started).unwrap();
        server.world().jobs.clear();
        hand.assert_nothing_left();
    }
}

#[tokio::test]
async fn a_signal_while_the_job_starts_leaves_nothing() {
    let server = ApiServer::start().await;
    let hand = Hand::new(&server);
    for request in [json!({"command": "run", "script": ["echo"]}), json!({"command": "initialize"})] {
        let child = hand.start(&request).await;
        until("the job", || (!server.world().jobs.is_empty()).then_some(())).await;
        kill(Pid::from_raw(child.id().unwrap().cast_signed()), Signal::SIGINT).unwrap();
        let called = finish(child).await;
        called.assert(130);
        assert_eq!(answer(&called)["kind"], "interrupted");
        assert_eq!(server.job()["spec"]["report"]["outcome"], "Canceled");
        server.world().jobs.clear();
        hand.assert_nothing_left();
    }
}

#[tokio::test]
async fn the_end_of_the_answers_reader_ends_the_run() {
    let (server, pod, hand) = ready().await;
    let started = pod.path("started");
    let mut child = hand.start(&json!({"command": "run", "script": ["echo > started", "sleep 1000"]})).await;
    until("the script", || started.exists().then_some(())).await;
    drop(child.stdout.take());
    let status = tokio::time::timeout(Duration::from_secs(60), child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(130));
    assert_eq!(server.job()["spec"]["report"]["outcome"], "Canceled");
}

#[tokio::test]
async fn a_cluster_out_of_reach_is_no_mistake_of_the_request() {
    let server = ApiServer::start().await;
    let hand = Hand::new(&server);
    std::fs::write(hand.path("kubeconfig"), "{").unwrap();
    let requests = [
        json!({"command": "run", "script": ["x"]}),
        json!({"command": "initialize"}),
        json!({"command": "cleanup", "job": "cij-0-0123456789"}),
    ];
    for request in requests {
        let (answer, called) = hand.ask(&request).await;
        called.assert(3);
        assert_eq!(
            (answer["command"].clone(), answer["kind"].as_str()),
            (request["command"].clone(), Some("system"))
        );
        assert_eq!(called.stderr.lines().count(), 1, "{called:?}");
        hand.assert_nothing_left();
    }
}

#[tokio::test]
async fn nothing_secret_is_left_in_the_diagnostics() {
    let (server, _pod, hand) = ready().await;
    let mut command = hand.command();
    command.env("ROADSTEAD_LOG", "trace").env("ROADSTEAD_LOG_FILE", hand.path("log"));
    let mut child = command.spawn().unwrap();
    let request = json!({"command": "run", "script": ["echo the output"], "variables": {"A": "canary-1"}});
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(request.to_string().as_bytes()).await.unwrap();
    drop(stdin);
    finish(child).await.assert(0);
    let log = std::fs::read_to_string(hand.path("log")).unwrap();
    assert!(log.lines().count() > 2, "{log}");
    for secret in ["canary-1", "the output"] {
        assert!(!log.contains(secret), "{secret} in\n{log}");
        assert!(!server.job().to_string().contains(secret), "{secret} in {}", server.job());
    }
}

#[tokio::test]
async fn a_terminal_gets_help_instead_of_silence() {
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut command = shim();
    command.stdin(Stdio::from(terminal.slave));
    let called = finish(command.spawn().unwrap()).await;
    called.assert(2);
    assert_eq!(called.stdout, "");
    assert!(called.stderr.contains("Jobs by hand:") && called.stderr.contains("Usage:"), "{called:?}");
    drop(terminal.master);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Without a cluster: whatever comes in, one object goes out, and the exit code fits it.
    #[test]
    fn whatever_is_asked_one_object_is_answered(
        input in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..100),
            "\\{\"command\":\"(run|initialize|cleanup|x)\"(,\"(script|job|image|tags|variables|y)\":(\\[\"x\"\\]|\"\\PC{0,5}\"|\\{\"A\":\"b\"\\}|null|7)){0,3}\\}"
                .prop_map(String::into_bytes),
        ]
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_executor-shim"));
        command.env_clear().env("HOME", dir.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // What is too much is not read, which is no error here.
        let _ = child.stdin.take().unwrap().write_all(&input);
        let output = child.wait_with_output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let expected = match answer["kind"].as_str() {
            Some("request") => 2,
            Some("system") => 3,
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(output.status.code(), Some(expected));
        prop_assert!(answer["error"].as_str().is_some_and(|error| !error.is_empty()));
        let stderr = String::from_utf8(output.stderr).unwrap();
        prop_assert_eq!(stderr.lines().count(), 1);
    }
}

/// Reads the first bytes of a script's output while it runs.
#[tokio::test]
async fn output_is_shown_as_it_comes() {
    let (_server, pod, hand) = ready().await;
    let request =
        json!({"command": "run", "script": ["echo first", "while [ ! -e end ]; do sleep 0.05; done"]});
    let mut child = hand.start(&request).await;
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    let stderr = child.stderr.as_mut().unwrap();
    while !seen.windows(6).any(|window| window == b"first\n") {
        let len =
            tokio::time::timeout(Duration::from_secs(60), stderr.read(&mut buffer)).await.unwrap().unwrap();
        assert!(len > 0, "it ended before");
        seen.extend_from_slice(&buffer[..len]);
    }
    std::fs::write(pod.path("end"), "").unwrap();
    finish(child).await.assert(0);
}
