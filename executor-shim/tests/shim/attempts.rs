//! Stages that are tried again, and calls that come at the same time.

use std::fs;

use crate::calls::until;
use crate::pod::ready;

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
