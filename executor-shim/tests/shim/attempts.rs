//! Stages that are tried again, and calls that come at the same time.

use std::fs;

use roadstead_crds::names::pod_name;
use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::calls::{Attempt, until};
use crate::pod::{Pod, ready, running};

/// Whether the shim has heard of a script that could not be started.
const COMPLAINT: &str = "the output cannot be stored";

#[tokio::test]
async fn a_section_that_could_not_be_run_is_tried_again_as_often_as_the_job_asks() {
    let (_server, pod, mut attempt) = ready().await;
    // Where the agent in `helper` keeps output.
    let spool = pod.path("helper/spool");
    let away = pod.path("helper/away");
    fs::rename(&spool, &away).unwrap();

    let once = attempt.run("get_sources", "echo not reached").await;
    once.assert(2);
    assert!(once.stderr.contains(COMPLAINT) && !once.stderr.contains("tried again"), "{once:?}");

    attempt.env = vec![("CUSTOM_ENV_EXECUTOR_JOB_SECTION_ATTEMPTS".into(), "2".into())];
    let twice = attempt.run("get_sources", "echo not reached").await;
    twice.assert(2);
    assert_eq!(twice.stderr.matches(COMPLAINT).count(), 2, "{twice:?}");
    assert!(twice.stderr.contains("; the stage get_sources is tried again (2 of 2)\n"), "{twice:?}");
    let script = attempt.run("restore_cache", "echo not reached").await;
    assert!(!script.stderr.contains("tried again"), "{script:?}");

    let begun = attempt.path("stderr");
    let mut child = attempt.command(&["run", attempt.path("script").to_str().unwrap(), "get_sources"]);
    fs::write(attempt.path("script"), format!("echo x >> {}", pod.path("runs").display())).unwrap();
    let child = child.stderr(fs::File::create(&begun).unwrap()).spawn().unwrap();
    let heard = || fs::read_to_string(&begun).unwrap().contains("tried again").then_some(());
    until("the first try", heard).await;
    fs::rename(&away, &spool).unwrap();
    crate::calls::finish(child).await.assert(0);
    assert_eq!(fs::read_to_string(pod.path("runs")).unwrap(), "x\n");
    let records = attempt.state()["stages"].clone();
    let last: Vec<_> =
        records.as_array().unwrap().iter().rev().take(2).map(|stage| stage["end"].clone()).collect();
    assert_eq!(last, ["succeeded", "errored"]);
}

#[tokio::test]
async fn a_script_that_fails_is_not_tried_again() {
    let (_server, pod, mut attempt) = ready().await;
    attempt.env = vec![("CUSTOM_ENV_EXECUTOR_JOB_SECTION_ATTEMPTS".into(), "9".into())];
    let runs = pod.path("runs");
    let called = attempt.run("get_sources", &format!("echo x >> {}; exit 3", runs.display())).await;
    called.assert(1);
    assert_eq!(fs::read_to_string(&runs).unwrap(), "x\n");
}

#[tokio::test]
async fn a_number_of_attempts_that_is_none_is_said_once() {
    let (_server, _pod, mut attempt) = ready().await;
    attempt.env = vec![("CUSTOM_ENV_EXECUTOR_JOB_SECTION_ATTEMPTS".into(), "many".into())];
    let first = attempt.run("prepare_script", "true").await;
    first.assert(0);
    assert_eq!(
        first.stderr,
        "WARNING: EXECUTOR_JOB_SECTION_ATTEMPTS is not a number from 1 to 10; 1 is used\n"
    );
    assert_eq!(attempt.run("get_sources", "true").await.assert(0).stderr, "");
}

#[tokio::test]
async fn a_second_call_at_the_same_time_starts_nothing_and_disturbs_nothing() {
    let (_server, pod, attempt) = ready().await;
    let (runs, go) = (pod.path("runs"), pod.path("go"));
    let script =
        format!("echo x >> {}; while [ ! -e {} ]; do sleep 0.05; done; exit 7", runs.display(), go.display());
    let first = attempt.start("build_script", &script);
    until("the script", || fs::metadata(&runs).ok()).await;
    let second = attempt.run("build_script", &script).await;
    second.assert(2);
    assert_eq!(
        second.stderr,
        "the stage build_script was not started: another call of executor-shim runs the stage build_script of this job at the moment\n"
    );
    fs::write(&go, "").unwrap();
    crate::calls::finish(first).await.assert(1);
    assert_eq!(attempt.exit_code().as_deref(), Some("7\n"));
    assert_eq!(fs::read_to_string(&runs).unwrap(), "x\n");
}

/// The operator has lost the job's pod.
fn lose(server: &ApiServer) -> String {
    let mut status = server.job()["status"].clone();
    let name = status["pod"]["name"].as_str().unwrap().to_owned();
    status["phase"] = json!("Starting");
    status["reason"] = json!("PodEvicted");
    status["message"] = json!("The cluster took the pod away.");
    status["lostPod"] = json!({"name": name, "reason": "PodEvicted", "message": status["message"],
        "since": "2026-01-01T00:00:00.000000Z"});
    let mut world = server.world();
    world.agents.clear();
    drop(world);
    server.set_status(&status);
    server.world().cut_all();
    name
}

/// Plays the operator: gives the job another pod once the shim has asked for one.
async fn replace(server: &ApiServer, lost: &str) -> Pod {
    until("the wish for another pod", || (server.job()["spec"]["replace"] == lost).then_some(())).await;
    let pod = Pod::start(server);
    let job = server.job();
    let mut status = running(&job);
    let metadata = |field: &str| job["metadata"][field].as_str().unwrap().to_owned();
    status["pod"]["name"] = json!(pod_name(&metadata("name"), &metadata("uid"), 2));
    status["pod"]["attempt"] = json!(2);
    status["lostPod"] = job["status"]["lostPod"].clone();
    server.set_status(&status);
    pod
}

fn pod_of(state: &Value) -> String {
    state["pod"]["name"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_pod_that_is_lost_while_it_starts_is_replaced() {
    let server = ApiServer::start().await;
    server.operator(|job| Some(running(job)));
    let attempt = Attempt::new(&server);
    attempt.call(&["config"]).await.assert(0);
    let prepare = attempt.command(&["prepare"]).spawn().unwrap();
    until("a try to reach it", || (!server.requests("/exec?").is_empty()).then_some(())).await;
    let lost = lose(&server);
    let _pod = replace(&server, &lost).await;
    let called = crate::calls::finish(prepare).await;
    called.assert(0);
    assert_eq!(called.stderr.matches("class default").count(), 1, "{called:?}");
    assert_eq!(called.stderr.matches("takes its place\n").count(), 1, "{called:?}");
    assert_ne!(pod_of(&attempt.state()), lost);
    assert_eq!(server.requests("PATCH ").len(), 1);
    attempt.run("build_script", "exit 3").await.assert(1);
}

#[tokio::test]
async fn a_checkout_that_was_not_begun_moves_to_the_pod_that_takes_the_place_of_the_lost_one() {
    let (server, old, attempt) = ready().await;
    attempt.run("prepare_script", "true").await.assert(0);
    let lost = lose(&server);
    drop(old);
    let child = attempt.start("get_sources", "echo checked out");
    let _pod = replace(&server, &lost).await;
    let called = crate::calls::finish(child).await;
    called.assert(0);
    assert_eq!(called.stdout, "checked out\n");
    assert!(
        called.stderr.contains("takes its place\n") && !called.stderr.contains("class default"),
        "{called:?}"
    );
    // From here on something would be missing in another pod.
    lose(&server);
    let called = attempt.run("build_script", "echo not reached").await;
    called.assert(2);
    assert_eq!(called.stderr, "The cluster took the pod away.\n");
    assert_eq!(server.job()["spec"]["replace"], lost);
}

#[tokio::test]
async fn a_checkout_that_was_begun_is_begun_again_only_where_the_job_asks_for_it() {
    for (attempts, code) in [("1", 2), ("2", 0)] {
        let (server, old, mut attempt) = ready().await;
        attempt.env = vec![("CUSTOM_ENV_EXECUTOR_JOB_SECTION_ATTEMPTS".into(), attempts.into())];
        let (begun, go) = (attempt.path("begun"), attempt.path("go"));
        let script = format!("echo x >> {}; [ -e {} ] || sleep 1000", begun.display(), go.display());
        let child = attempt.start("get_sources", &script);
        until("the script", || fs::metadata(&begun).ok()).await;
        fs::write(&go, "").unwrap();
        drop(old);
        let lost = lose(&server);
        let pod = if code == 0 { Some(replace(&server, &lost).await) } else { None };
        let called = crate::calls::finish(child).await;
        called.assert(code);
        let times = fs::read_to_string(&begun).unwrap().lines().count();
        assert_eq!(times.to_string(), attempts, "{called:?}");
        assert_eq!(server.job()["spec"].get("replace").is_some(), pod.is_some(), "{called:?}");
    }
}
