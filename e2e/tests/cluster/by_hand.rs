//! Jobs by hand, without gitlab-runner: a JSON object in, a JSON object out.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use roadstead_crds::{CiJob, Phase, Reason, labels};
use roadstead_e2e::installation::Installation;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use crate::{DEADLINE, SOON};

/// What one call came to.
#[derive(Debug)]
struct Called {
    code: Option<i32>,
    answer: Value,
    stderr: String,
}

impl Called {
    #[track_caller]
    fn assert(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    fn text(&self, field: &str) -> &str {
        self.answer[field].as_str().unwrap_or_default()
    }
}

/// The shim as a person calls it, who has the account of the shim.
fn shim(bench: &Installation) -> Command {
    let mut command = Command::new(bench.shim());
    command
        .env("KUBECONFIG", &bench.kubeconfig)
        .env("ROADSTEAD_NAMESPACE", bench.job_namespace())
        .env("ROADSTEAD_CLASS", bench.class_name("default"))
        .env("ROADSTEAD_STATE_DIR", bench.dir().join("hand"))
        .env("ROADSTEAD_LOG", "trace")
        .env("ROADSTEAD_LOG_FILE", bench.shim_log())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn start(bench: &Installation, request: impl ToString) -> Result<Child> {
    let mut child = shim(bench).spawn().context("cannot start the shim")?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(request.to_string().as_bytes()).await.context("cannot write the request")?;
    Ok(child)
}

async fn finish(child: Child) -> Result<Called> {
    let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await;
    let output = output.context("the call does not end")?.context("cannot wait for the shim")?;
    let stdout = String::from_utf8(output.stdout).context("standard output is not UTF-8")?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let answer = serde_json::from_str(&stdout).with_context(|| format!("no object: {stdout}\n{stderr}"))?;
    Ok(Called { code: output.status.code(), answer, stderr })
}

async fn ask(bench: &Installation, request: impl ToString) -> Result<Called> {
    finish(start(bench, request).await?).await
}

async fn cijob(bench: &Installation, name: &str) -> Result<CiJob> {
    bench.cijobs().get(name).await.with_context(|| format!("cannot read the CiJob {name}"))
}

async fn pods_of(bench: &Installation, name: &str) -> Result<Vec<Pod>> {
    let params = ListParams::default().labels(&format!("{}={name}", labels::CIJOB));
    Ok(bench.pods().list(&params).await.context("cannot list pods")?.items)
}

/// Waits until the job is over and its pod is gone, and returns it.
async fn over(bench: &Installation, name: &str) -> Result<CiJob> {
    let job = Box::pin(bench.wait_finished(name, SOON)).await?;
    for pod in pods_of(bench, name).await? {
        let (name, uid) = (pod.metadata.name.context("no name")?, pod.metadata.uid.unwrap_or_default());
        let gone = kube::runtime::conditions::is_deleted(&uid);
        let gone = Box::pin(kube::runtime::wait::await_condition(bench.pods(), &name, gone));
        tokio::time::timeout(SOON, gone).await.with_context(|| format!("the pod {name} stays"))??;
    }
    Ok(job)
}

#[tokio::test(flavor = "multi_thread")]
async fn services_by_hand_have_the_variables_of_the_job() -> Result<()> {
    let bench = Installation::join().await?;
    let image = bench.image("busybox")?;
    let serve = "mkdir /tmp/www && env >/tmp/www/env && exec httpd -f -p 8081 -h /tmp/www";
    let service = json!({
        "name": image, "alias": "web", "entrypoint": ["/bin/sh", "-c"], "command": [serve],
        "variables": {"OWN": "its-own", "HEALTHCHECK_TCP_PORT": "8081"},
    });
    let request = json!({
        "command": "run", "image": image, "variables": {"SHARED": "of-the-job"}, "services": [service],
        "script": ["wget -q -O - http://web:8081/env | grep -E '^(OWN|SHARED)=' | sort"],
    });
    let called = ask(&bench, request).await?.assert(0);
    assert_eq!(called.text("output"), "OWN=its-own\nSHARED=of-the-job\n", "{called:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_by_hand_does_it_all() -> Result<()> {
    let bench = Installation::join().await?;
    let image = bench.image("busybox")?;
    for container in ["build", "helper"] {
        let script = json!(["echo to stdout", "echo to stderr >&2", "pwd"]);
        let request = json!({"command": "run", "image": image, "script": script, "container": container});
        let called = ask(&bench, &request).await?.assert(0);
        assert_eq!(called.answer["exitCode"], 0);
        assert_eq!(called.answer["outputTruncated"], false);
        for text in [called.text("output"), &called.stderr] {
            assert!(text.contains("to stdout\n") && text.contains("to stderr\n"), "{called:#?}");
        }
        assert_eq!(called.text("output").lines().count(), 3, "only what the script wrote: {called:#?}");

        let job = over(&bench, called.text("job")).await?;
        assert_eq!(job.status.as_ref().and_then(|status| status.phase), Some(Phase::Succeeded));
        let stages = job.spec.report.context("no report")?.stages;
        assert_eq!(stages.len(), 1, "{stages:#?}");
        assert_eq!(stages[0].container, container);
        let request = &job.spec.request;
        assert_eq!(
            (request.server.as_str(), request.project.path.as_str(), request.job.id),
            ("by-hand", "by-hand", 0)
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_fails_by_hand_hands_its_exit_code_on() -> Result<()> {
    let bench = Installation::join().await?;
    let script = json!(["echo before", "(exit 7)", "echo never reached"]);
    let request = json!({"command": "run", "image": bench.image("debian-git")?, "script": script});
    let called = ask(&bench, &request).await?.assert(7);
    assert_eq!((called.answer["exitCode"].as_i64(), called.text("output")), (Some(7), "before\n"));
    assert_eq!(called.answer.get("error"), None);
    let job = over(&bench, called.text("job")).await?;
    assert_eq!(job.status.and_then(|status| status.phase), Some(Phase::Failed));
    assert_eq!(job.spec.report.and_then(|report| report.exit_code), Some(7));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_much_output_by_hand_the_end_is_answered() -> Result<()> {
    let bench = Installation::join().await?;
    let script =
        json!(["i=0; while [ $i -lt 100000 ]; do echo \"line number $i\"; i=$((i+1)); done", "exit 3"]);
    let request = json!({"command": "run", "image": bench.image("busybox")?, "script": script});
    let called = ask(&bench, &request).await?.assert(3);
    assert_eq!(called.answer["outputTruncated"], true);
    assert_eq!(called.text("output").len(), 1024 * 1024);
    assert!(called.text("output").ends_with("\nline number 99999\n"));
    assert_eq!(called.stderr.lines().filter(|line| line.starts_with("line number ")).count(), 100_000);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_by_hand_keeps_its_pod_its_files_and_its_variables() -> Result<()> {
    let bench = Installation::join().await?;
    let canary = format!("canary-{}", std::process::id());
    let odd = "it's \"odd\" $HOME `x` \\ \u{1}\u{7f}\u{20ac}\nand\ttwo lines";
    let request = json!({"command": "initialize", "image": bench.image("debian-git")?,
        "variables": {"ODD": odd, "CANARY": canary}});
    let started = ask(&bench, &request).await?.assert(0);
    let name = started.text("job").to_owned();
    assert_eq!(started.text("image"), bench.image("debian-git")?);

    let run = |script: Value, container: &str| json!({"command": "run", "job": name, "script": script, "container": container});
    let called =
        ask(&bench, run(json!(["printf %s \"$ODD\"", "echo kept > note"]), "build")).await?.assert(0);
    assert_eq!(called.text("output"), odd);
    let called = ask(&bench, run(json!(["cat note", "echo $CANARY"]), "helper")).await?.assert(0);
    assert_eq!(called.text("output"), format!("kept\n{canary}\n"));
    let pods = pods_of(&bench, &name).await?;
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0].metadata.name.as_deref(), Some(started.text("pod")));

    // The name is the control: a search of the wrong place must not pass.
    for (place, text) in [
        ("CiJobs", serde_json::to_string(&cijob(&bench, &name).await?)?),
        ("pods", serde_json::to_string(&pods)?),
        ("Events", events(&bench)?),
        ("the shim's log", std::fs::read_to_string(bench.shim_log()).context("no log")?),
    ] {
        assert!(text.contains(&name), "{place} do not even know {name}");
        assert!(!text.contains(&canary), "{canary} is in {place}");
    }

    for _ in 0..2 {
        let cleaned = ask(&bench, json!({"command": "cleanup", "job": name})).await?.assert(0);
        assert_eq!(cleaned.answer, json!({"command": "cleanup", "job": name}));
    }
    let job = over(&bench, &name).await?;
    assert_eq!(job.status.and_then(|status| status.phase), Some(Phase::Succeeded));
    let called = ask(&bench, run(json!(["echo"]), "build")).await?.assert(2);
    assert!(called.text("error").contains("is not known here"), "{called:#?}");
    Ok(())
}

fn events(bench: &Installation) -> Result<String> {
    let output = bench.cluster.kubectl(["get", "events", "-A", "-o", "json"]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_request_by_hand_is_said_and_leaves_nothing() -> Result<()> {
    let bench = Installation::join().await?;
    for (request, words) in [
        ("hello".to_owned(), "standard input is not JSON"),
        (String::new(), "standard input is empty"),
        (json!({"command": "start"}).to_string(), "\"start\" is no command"),
        (json!({"command": "run", "scripts": ["x"]}).to_string(), "\"scripts\" is no field"),
        (json!({"command": "run", "script": []}).to_string(), "the field \"script\" is empty"),
        (json!({"command": "cleanup"}).to_string(), "the field \"job\" is missing"),
        (
            json!({"command": "run", "script": ["x"], "job": "cij-0-0000000000"}).to_string(),
            "is not known here",
        ),
    ] {
        let called = ask(&bench, &request).await?.assert(2);
        assert!(
            called.text("error").starts_with(words) || called.text("error").contains(words),
            "{called:#?}"
        );
        assert_eq!(called.answer["kind"], "request");
        assert_eq!(called.answer.get("exitCode"), None);
        assert_eq!(called.stderr.lines().count(), 1, "{called:#?}");
    }
    // The cluster refuses it: the image cannot be one.
    let request = json!({"command": "run", "image": "Not An Image", "script": ["echo"]});
    let called = ask(&bench, &request).await?.assert(2);
    assert_eq!(called.answer["kind"], "request");
    let job = over(&bench, called.text("job")).await?;
    assert_eq!(job.status.and_then(|status| status.reason), Some(Reason::InvalidImageName));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_by_hand_whose_pod_is_gone_is_over() -> Result<()> {
    let bench = Installation::join().await?;
    let request = json!({"command": "initialize", "image": bench.image("busybox")?});
    let started = ask(&bench, &request).await?.assert(0);
    let (name, pod) = (started.text("job"), started.text("pod"));
    bench
        .pods()
        .delete(pod, &DeleteParams::default().grace_period(0))
        .await
        .context("cannot delete the pod")?;
    over(&bench, name).await?;
    let called = ask(&bench, json!({"command": "run", "job": name, "script": ["echo"]})).await?.assert(2);
    assert!(
        called.text("error").contains("has ended: ") && called.text("error").contains(pod),
        "{called:#?}"
    );
    ask(&bench, json!({"command": "cleanup", "job": name})).await?.assert(0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_by_hand_ends_without_a_client_in_the_time_that_it_asked_for() -> Result<()> {
    let bench = Installation::join().await?;
    let request = json!({"command": "initialize", "image": bench.image("busybox")?, "keepSeconds": 10});
    let started = ask(&bench, &request).await?.assert(0);
    assert_eq!(started.answer["keepSeconds"], 10);
    let name = started.text("job");
    // A script that fails in helper does not keep it any longer.
    let script = json!({"command": "run", "job": name, "script": ["exit 4"], "container": "helper"});
    ask(&bench, script).await?.assert(4);
    let begin = std::time::Instant::now();
    let job = over(&bench, name).await?;
    let took = begin.elapsed();
    assert!(took > Duration::from_secs(8), "it ended after {took:?} already");
    let status = job.status.context("no status")?;
    assert_eq!(status.reason, Some(Reason::ClientLost));
    let message = status.message.unwrap_or_default();
    assert!(message.contains("for 10 s") && message.contains("by hand"), "{message}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_to_a_run_by_hand_leaves_nothing() -> Result<()> {
    let bench = Installation::join().await?;
    let script = json!(["trap 'echo told; exit 1' TERM", "echo begun", "sleep 300 & wait"]);
    let request = json!({"command": "run", "image": bench.image("debian-git")?, "script": script});
    let mut child = start(&bench, &request).await?;
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    let stderr = child.stderr.as_mut().context("no standard error")?;
    while !seen.windows(6).any(|window| window == b"begun\n") {
        let len = tokio::time::timeout(DEADLINE, stderr.read(&mut buffer)).await??;
        ensure!(len > 0, "it ended early: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..len]);
    }
    let pid = child.id().context("it has ended")?;
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT).context("cannot send a signal")?;
    let called = finish(child).await?.assert(130);
    assert_eq!(called.text("kind"), "interrupted");
    assert!(called.text("output").starts_with("begun\ntold\n"), "{called:#?}");
    let job = over(&bench, called.text("job")).await?;
    assert_eq!(job.status.and_then(|status| status.phase), Some(Phase::Canceled));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_not_there_is_no_mistake_of_a_request_by_hand() -> Result<()> {
    let bench = Installation::join().await?;
    let mut command = shim(&bench);
    let mut child = command.env("KUBECONFIG", bench.dir().join("nowhere")).spawn()?;
    let request = json!({"command": "run", "script": ["echo"]}).to_string();
    child.stdin.take().context("no standard input")?.write_all(request.as_bytes()).await?;
    let called = finish(child).await?.assert(3);
    assert_eq!(called.text("kind"), "system");
    Ok(())
}
