//! Jobs with services against a small API server: what is stored for them, and what scripts wait for.

use std::time::{Duration, Instant};

use roadstead_crds::names;
use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::calls::{Attempt, admitted, finish, response, until};
use crate::pod::{Pod, running};

/// The job of most tests with two services.
fn with_services() -> Value {
    let mut job = response();
    job["variables"] = json!([
        {"key": "PASSWORD", "value": "hunter2hunter2", "masked": true},
        {"key": "DATABASE", "value": "shop", "public": true},
    ]);
    job["services"] = json!([
        {"name": "postgres:16", "alias": "db", "variables": [
            {"key": "POSTGRES_PASSWORD", "value": "$PASSWORD"}, {"key": "HEALTHCHECK_TCP_PORT", "value": "5432"}]},
        {"name": "redis:7"},
    ]);
    job
}

fn services(first: &Value, second: &str) -> Value {
    let mut postgres = json!({"container": "svc-0", "image": "postgres:16"});
    postgres.as_object_mut().unwrap().extend(first.as_object().unwrap().clone());
    json!([postgres, {"container": "svc-1", "image": "redis:7", "state": second}])
}

/// What a Secret holds, as text.
fn data(secret: &Value) -> Vec<(String, String)> {
    let secret: k8s_openapi::api::core::v1::Secret = serde_json::from_value(secret.clone()).unwrap();
    let text = |bytes: k8s_openapi::ByteString| String::from_utf8(bytes.0).unwrap();
    secret.data.unwrap().into_iter().map(|(name, value)| (name, text(value))).collect()
}

#[tokio::test]
async fn variables_are_stored_for_an_admitted_job_before_its_pod_is_made() {
    let server = ApiServer::start().await;
    server.operator(|job| Some(admitted(job)));
    let attempt = Attempt::with(&server, &with_services());
    let called = attempt.call(&["config"]).await;
    assert_eq!(called.assert(0).stderr, "");

    let job = server.job();
    let (name, uid) = (job["metadata"]["name"].as_str().unwrap(), job["metadata"]["uid"].as_str().unwrap());
    assert_eq!(job["spec"]["hold"], false);
    let verbs: Vec<_> = server
        .world()
        .requests
        .iter()
        .filter(|line| !line.contains("watch=true"))
        .map(|line| {
            line.split(['?', ' ']).take(2).map(|part| part.rsplit('/').next().unwrap().to_owned()).collect()
        })
        .collect::<Vec<Vec<String>>>();
    let expected = [["POST", "cijobs"], ["POST", "secrets"], ["POST", "secrets"], ["PATCH", name]]
        .map(|pair| pair.map(str::to_owned).to_vec());
    assert_eq!(verbs, expected);

    let secrets = server.world().secrets.clone();
    let names = [0, 1].map(|place| names::service_secret_name(name, uid, place));
    assert_eq!(secrets.keys().cloned().collect::<Vec<_>>(), names);
    let first = &secrets[&names[0]];
    assert_eq!(
        first["metadata"]["ownerReferences"],
        json!([{"apiVersion": "roadstead.dev/v1alpha1", "kind": "CiJob", "name": name, "uid": uid}])
    );
    let has = |secret: &Value, name: &str| {
        data(secret).into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
    };
    assert_eq!(has(first, "POSTGRES_PASSWORD").as_deref(), Some("hunter2hunter2"));
    assert_eq!(has(first, "DATABASE").as_deref(), Some("shop"));
    assert_eq!(has(first, "CI_PROJECT_DIR").as_deref(), Some("/builds/grp/proj"));
    // What is not public is for those who refer to it.
    assert_eq!(has(first, "PASSWORD"), None);
    assert_eq!(has(&secrets[&names[1]], "POSTGRES_PASSWORD"), None);
    for text in [job.to_string(), attempt.state().to_string(), called.stdout.clone()] {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[tokio::test]
async fn a_job_that_is_refused_leaves_no_secret() {
    let server = ApiServer::start().await;
    server.operator(|_| Some(crate::calls::ended("Failed", "OverrideRefused", "no such service")));
    let attempt = Attempt::with(&server, &with_services());
    attempt.call(&["config"]).await.assert(1);
    assert!(server.world().secrets.is_empty());
}

#[tokio::test]
async fn a_secret_whose_creation_was_not_confirmed_is_the_jobs() {
    let server = ApiServer::start().await;
    server.operator(|job| Some(admitted(job)));
    let counted = "Operation cannot be fulfilled on resourcequotas \"objects\": the object has been modified";
    for (code, words) in [(503, "starting"), (409, counted)] {
        let attempt = Attempt::with(&server, &with_services());
        server.fail("POST /api/v1/namespaces/jobs/secrets", code, words);
        attempt.call(&["config"]).await.assert(0);
        assert_eq!(server.world().secrets.len(), 2, "{words}");
        assert_eq!(server.job()["spec"]["hold"], false);
        server.world().jobs.clear();
        server.world().secrets.clear();
    }
    // The CiJob and the first Secret are stored, and the answers lost.
    let attempt = Attempt::with(&server, &with_services());
    server.world().lose_next_answer();
    server.world().lose_next_answer();
    attempt.call(&["config"]).await.assert(0);
    assert_eq!(server.world().secrets.len(), 2);
    server.world().jobs.clear();
    server.world().secrets.clear();

    let attempt = Attempt::with(&server, &with_services());
    server.fail("POST /api/v1/namespaces/jobs/secrets", 403, "secrets is forbidden");
    let called = attempt.call(&["config"]).await;
    called.assert(2);
    assert!(called.stderr.starts_with("not allowed to create the Secret jobs/cij-42-"), "{called:?}");
    assert!(!called.stderr.contains("hunter2"));
    assert_eq!(server.job()["spec"]["hold"], true);
}

#[tokio::test]
async fn scripts_wait_until_services_are_ready() {
    let server = ApiServer::start().await;
    server.operator(|job| Some(admitted(job)));
    let attempt = Attempt::with(&server, &with_services());
    attempt.call(&["config"]).await.assert(0);
    let _pod = Pod::start(&server);
    let mut status = running(&server.job());
    let steps = [("Waiting", "Waiting"), ("Running", "Waiting"), ("Running", "Ready"), ("Ready", "Ready")];
    let call = tokio::spawn(finish(attempt.command(&["prepare"]).spawn().unwrap()));
    until("a watch", || (server.requests("watch=true").len() == 2).then_some(())).await;
    for (first, second) in steps {
        assert!(!call.is_finished(), "before {first} and {second}");
        status["services"] = services(&json!({"state": first}), second);
        server.set_status(&status);
        until("both agents are reached", || (server.requests("/exec").len() >= 2).then_some(())).await;
    }
    let called = call.await.unwrap();
    called.assert(0);
    for line in
        ["Service postgres:16 runs in the container svc-0", "Service redis:7 runs in the container svc-1"]
    {
        assert!(called.stderr.lines().any(|one| one == line), "{called:?}");
    }
}

#[tokio::test]
async fn what_does_not_become_ready_or_ends_is_said_and_the_job_goes_on() {
    let server = ApiServer::start().await;
    let job = with_services();
    server.operator(|job| {
        let mut status = running(job);
        status["services"] = services(&json!({"state": "Running"}), "Ready");
        status["timeouts"]["readySeconds"] = json!(1);
        Some(status)
    });
    let _pod = Pod::start(&server);
    let attempt = Attempt::with(&server, &job);
    attempt.call(&["config"]).await.assert(0);
    let start = Instant::now();
    let called = attempt.call(&["prepare"]).await;
    called.assert(0);
    assert!(start.elapsed() >= Duration::from_secs(1));
    let warning =
        "WARNING: the service postgres:16 in the container svc-0 takes no connections at its port yet";
    assert!(called.stderr.contains(warning), "{called:?}");

    // A script that succeeds has nothing to explain, and asks nobody.
    let mut status = server.job()["status"].clone();
    status["services"] = services(&json!({"state": "Ended", "ended": "exit code 3"}), "Ready");
    server.set_status(&status);
    let looks = || {
        server
            .world()
            .requests
            .iter()
            .filter(|line| line.starts_with("GET ") && line.contains("/cijobs/"))
            .count()
    };
    let before = looks();
    let called = attempt.run("prepare_script", "true").await;
    assert_eq!((called.assert(0).stderr.as_str(), looks()), ("", before));
    let called = attempt.run("build_script", "exit 4").await;
    called.assert(1);
    assert_eq!(
        called.stderr,
        "WARNING: the service postgres:16 in the container svc-0 has ended: exit code 3\n"
    );
    assert_eq!(looks(), before + 1);
    let called = attempt.run("after_script", "exit 4").await;
    assert_eq!(called.stderr, "", "it has been said");
}
