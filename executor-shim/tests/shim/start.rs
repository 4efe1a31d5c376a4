//! `config`, `prepare` and `cleanup` against a small API server.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::calls::{Attempt, Called, admitted, ended, finish, until};

async fn config(server: &ApiServer) -> (Attempt, Called) {
    let attempt = Attempt::new(server);
    let called = attempt.call(&["config"]).await;
    (attempt, called)
}

#[tokio::test]
async fn config_asks_and_answers() {
    let server = ApiServer::start().await;
    server.operator(|job| Some(admitted(job)));
    let (attempt, called) = config(&server).await;
    called.assert(0);
    assert_eq!(called.stderr, "");
    let answer: Value = serde_json::from_str(&called.stdout).unwrap();
    let job = server.job();
    let name = job["metadata"]["name"].as_str().unwrap();
    assert_eq!(answer["builds_dir"], "/builds");
    assert_eq!(answer["shell"], "sh");
    assert_eq!(answer["hostname"], job["status"]["pod"]["name"]);
    assert_eq!(answer["job_env"], json!({"ROADSTEAD_JOB": name, "ROADSTEAD_NAMESPACE_OF_JOB": "jobs"}));
    assert!(name.starts_with("cij-42-"), "the id of the file, not of the environment: {name}");
    assert_eq!(job["spec"]["request"]["server"], "http://gitlab.test");
    assert_eq!(server.world().requests.len(), 2, "{:?}", server.world().requests);

    let state = attempt.state();
    assert_eq!(
        (state["cijob"].as_str(), state["cijobUid"].as_str()),
        (Some(name), job["metadata"]["uid"].as_str())
    );
    for secret in ["hunter2", "glcbt"] {
        assert!(!state.to_string().contains(secret) && !job.to_string().contains(secret));
    }
}

#[tokio::test]
async fn an_answer_that_was_lost_is_found_again() {
    let server = ApiServer::start().await;
    server.operator(|job| Some(admitted(job)));
    let attempt = Attempt::new(&server);
    // The API server takes the job, and its answer does not arrive.
    server.world().lose_next_answer();
    attempt.call(&["config"]).await.assert(0);
    assert_eq!(server.requests("POST").len(), 2);
    assert_eq!(server.world().jobs.len(), 1);
}

#[tokio::test]
async fn a_job_of_that_name_that_is_not_ours_is_left_alone() {
    let server = ApiServer::start().await;
    server.operator(|job| Some(admitted(job)));
    let (attempt, called) = config(&server).await;
    called.assert(0);
    // The same directory once more: the same name, asked for at another time.
    let called = attempt.call(&["config"]).await;
    called.assert(2);
    assert!(called.stderr.contains("exists already and is another job's"), "{called:?}");
    assert_eq!(called.stdout, "");
    attempt.call(&["cleanup"]).await.assert(0);
    assert_eq!(server.requests("PATCH").len(), 0, "it must not be let go of");
}

#[tokio::test]
async fn what_the_api_server_refuses_is_said() {
    let server = ApiServer::start().await;
    for (code, message, sentence) in [
        (403, "cijobs is forbidden", "not allowed to create the CiJob jobs/cij-42-"),
        (422, "spec is invalid", "cannot create the CiJob jobs/cij-42-"),
        (401, "Unauthorized", "the API server does not accept the shim's credentials"),
    ] {
        server.fail("POST", code, message);
        let (attempt, called) = config(&server).await;
        called.assert(2);
        assert!(called.stderr.contains(sentence) && called.stderr.contains(message), "{called:?}");
        assert_eq!((called.stdout.as_str(), called.stderr.lines().count()), ("", 1));
        let before = server.world().requests.len();
        attempt.call(&["cleanup"]).await.assert(0);
        assert_eq!(server.world().requests.len(), before, "there is nothing to let go of");
    }
}

#[tokio::test]
async fn trouble_of_the_api_server_is_waited_out() {
    let server = ApiServer::start().await;
    server.operator(|job| Some(admitted(job)));
    server.fail("POST", 503, "starting");
    server.fail("POST", 500, "etcdserver: leader changed");
    server.fail("POST", 429, "slow down");
    let (_attempt, called) = config(&server).await;
    called.assert(0);
}

#[tokio::test]
async fn a_refused_job_fails_by_whose_doing_it_is() {
    for (phase, reason, code) in
        [("Failed", "InvalidImageName", 1), ("Errored", "ClassNotFound", 2), ("Errored", "ClassInvalid", 2)]
    {
        let server = ApiServer::start().await;
        server.operator(move |_| Some(ended(phase, reason, "this is why")));
        let (attempt, called) = config(&server).await;
        called.assert(code);
        assert_eq!((called.stdout.as_str(), called.stderr.as_str()), ("", "this is why\n"));
        attempt.call(&["cleanup"]).await.assert(0);
        let report = &server.job()["spec"]["report"];
        assert_eq!(
            (report["outcome"].as_str(), report["message"].as_str()),
            (Some(phase), Some("this is why"))
        );
    }
}

#[tokio::test]
async fn watches_that_expire_or_end_are_taken_up_again() {
    let server = ApiServer::start().await;
    server.fail("watch=true", 410, "too old resource version");
    server.fail("GET /apis", 500, "no");
    let attempt = Attempt::new(&server);
    let call = tokio::spawn(finish(attempt.command(&["config"]).spawn().unwrap()));
    until("a watch after a look", || {
        let world = server.world();
        let watches: Vec<_> = world.requests.iter().filter(|line| line.contains("watch=true")).collect();
        (watches.len() == 2).then_some(())
    })
    .await;
    // Then the API server restarts: every watch ends, with an error event in one of them.
    let expired = crate::apiserver::failure(410, "too old resource version");
    server.world().tell(&json!({"type": "ERROR", "object": expired}));
    until("a third watch", || (server.requests("watch=true").len() == 3).then_some(())).await;
    server.world().end_watches();
    until("a fourth watch", || (server.requests("watch=true").len() == 4).then_some(())).await;
    server.world().tell(&json!({"type": "BOOKMARK", "object": {"kind": "CiJob", "apiVersion": "roadstead.dev/v1alpha1", "metadata": {"resourceVersion": "150"}}}));
    let status = admitted(&server.job());
    server.set_status(&status);
    call.await.unwrap().assert(0);
}

#[tokio::test]
async fn a_deleted_job_is_not_waited_for() {
    let server = ApiServer::start().await;
    let attempt = Attempt::new(&server);
    let call = tokio::spawn(finish(attempt.command(&["config"]).spawn().unwrap()));
    until("a watch", || (server.requests("watch=true").len() == 1).then_some(())).await;
    server.world().delete();
    let called = call.await.unwrap();
    called.assert(2);
    assert_eq!(called.stderr, "the job's CiJob was deleted\n");
    attempt.call(&["cleanup"]).await.assert(0);
}

#[tokio::test]
async fn a_signal_ends_config_and_prepare_at_once() {
    let server = ApiServer::start().await;
    for command in ["config", "prepare"] {
        let attempt = Attempt::new(&server);
        if command == "prepare" {
            server.operator(|job| Some(admitted(job)));
            attempt.call(&["config"]).await.assert(0);
        }
        let before = server.requests("watch=true").len();
        let child = attempt.command(&[command]).spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().unwrap().cast_signed());
        let call = tokio::spawn(finish(child));
        until("a watch", || (server.requests("watch=true").len() > before).then_some(())).await;
        let start = Instant::now();
        nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
        call.await.unwrap().assert(2);
        assert!(start.elapsed() < Duration::from_secs(2));
        attempt.call(&["cleanup"]).await.assert(0);
        let name = attempt.path("").display().to_string();
        let reports: Vec<_> =
            server.world().jobs.values().map(|job| job["spec"]["report"]["outcome"].clone()).collect();
        assert_eq!(reports.last(), Some(&json!("Canceled")), "{name}");
        server.world().jobs.clear();
    }
}

#[tokio::test]
async fn prepare_tells_what_the_job_waits_for_and_why_it_fails() {
    let server = ApiServer::start().await;
    server.operator(|job| Some(admitted(job)));
    let (attempt, called) = config(&server).await;
    called.assert(0);
    let call = tokio::spawn(finish(attempt.command(&["prepare"]).spawn().unwrap()));
    until("a watch", || (server.requests("watch=true").len() == 2).then_some(())).await;
    let mut status = admitted(&server.job());
    status["phase"] = json!("Starting");
    status["reason"] = json!("Unschedulable");
    status["message"] = json!("0/1 nodes are available: 1 Insufficient cpu");
    server.set_status(&status);
    status["pod"]["uid"] = json!("pod-uid");
    status["pod"]["node"] = json!("node-1");
    status["reason"] = json!("ImagePullFailed");
    status["message"] = json!("pulling image with hunter2hunter2");
    server.set_status(&status);
    // No container is there, so eight tries and no more.
    until("eight tries", || (server.requests("/exec").len() == 8).then_some(())).await;
    server.set_status(&ended("Failed", "ImageNotFound", "the image alpine:3.20 does not exist"));
    let called = call.await.unwrap();
    called.assert(1);
    let name = server.job()["metadata"]["name"].as_str().unwrap().to_owned();
    let pod = status["pod"]["name"].as_str().unwrap();
    let expected = [
        format!("Job jobs/{name}, class default"),
        "Waiting for a node: 0/1 nodes are available: 1 Insufficient cpu".to_owned(),
        "pulling image with [MASKED]".to_owned(),
        format!("Pod {pod} starts on node node-1"),
        "the image alpine:3.20 does not exist".to_owned(),
    ];
    assert_eq!(called.stderr.lines().collect::<Vec<_>>(), expected);
    assert_eq!(called.stdout, "");
    attempt.call(&["cleanup"]).await.assert(0);
    assert_eq!(server.job()["spec"]["report"]["outcome"], "Failed");
}

#[tokio::test]
async fn exec_that_is_not_allowed_is_said_at_once() {
    let server = ApiServer::start().await;
    server.operator(|job| {
        let mut status = admitted(job);
        status["pod"]["uid"] = json!("pod-uid");
        status["pod"]["node"] = json!("node-1");
        Some(status)
    });
    server.fail("/exec", 403, "denied by policy roadstead-exec");
    let (attempt, _) = config(&server).await;
    let called = attempt.call(&["prepare"]).await;
    called.assert(2);
    assert!(called.stderr.contains("denied by policy roadstead-exec"), "{called:?}");
    assert_eq!(server.requests("/exec").len(), 1);
}

#[tokio::test]
async fn cleanup_is_one_patch_and_can_be_repeated() {
    let server = ApiServer::start().await;
    server.operator(|job| Some(admitted(job)));
    let (mut attempt, _) = config(&server).await;
    let before = server.world().requests.len();
    server.fail("PATCH", 503, "starting");
    let called = attempt.call(&["cleanup"]).await;
    assert_eq!((called.assert(0).stdout.as_str(), called.stderr.as_str()), ("", ""));
    let requests = server.world().requests[before..].to_vec();
    assert!(requests.len() == 2 && requests.iter().all(|line| line.starts_with("PATCH ")), "{requests:?}");
    assert_eq!(server.job()["spec"]["report"]["outcome"], "Canceled");
    assert!(!attempt.path("roadstead.json").exists());

    // Once more, with only the names that config handed on: the report stays as it is.
    let report = server.job()["spec"]["report"].clone();
    let name = server.job()["metadata"]["name"].as_str().unwrap().to_owned();
    attempt.env = vec![("ROADSTEAD_JOB".into(), name), ("ROADSTEAD_NAMESPACE_OF_JOB".into(), "jobs".into())];
    attempt.call(&["cleanup"]).await.assert(0);
    assert_eq!(server.job()["spec"]["report"], report);
    // With the object gone.
    server.world().delete();
    attempt.call(&["cleanup"]).await.assert(0);
    // With no report yet and no records.
    let (other, _) = config(&server).await;
    std::fs::remove_file(other.path("roadstead.json")).unwrap();
    std::fs::remove_file(other.path("response.json")).unwrap();
    attempt.env[0].1 = server.job()["metadata"]["name"].as_str().unwrap().to_owned();
    attempt.call(&["cleanup"]).await.assert(0);
    assert_eq!(server.job()["spec"]["report"]["message"], "the records of the job were lost");
}

#[tokio::test]
async fn a_cluster_out_of_reach_holds_cleanup_up_for_ten_seconds_at_most() {
    let server = ApiServer::start().await;
    server.operator(|job| Some(admitted(job)));
    let (attempt, _) = config(&server).await;
    for _ in 0..100 {
        server.fail("PATCH", 503, "starting");
    }
    let start = Instant::now();
    let called = attempt.call(&["cleanup"]).await;
    called.assert(0);
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    assert!(called.stderr.starts_with("the job's pod is left to the cluster"), "{called:?}");
    assert!(called.stderr.contains("starting"), "{called:?}");
}

#[tokio::test]
async fn a_proxy_that_is_not_meant_for_the_cluster_is_not_used() {
    let server = ApiServer::start().await;
    server.operator(|job| Some(admitted(job)));
    let mut attempt = Attempt::new(&server);
    attempt.env = vec![
        ("HTTPS_PROXY".into(), "http://127.0.0.1:1".into()),
        ("NO_PROXY".into(), "localhost,127.0.0.0/8".into()),
    ];
    attempt.call(&["config"]).await.assert(0);
}
