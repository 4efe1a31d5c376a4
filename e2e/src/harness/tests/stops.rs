//! Cancels, timeouts, and the runner's own end.

use std::time::Duration;

use super::super::{CallExit, Outcome};
use super::{Fake, SOON};
use crate::coordinator::{Artifact, JobSpec};

/// A job that says it has begun and then does nothing for long.
fn slow() -> JobSpec {
    JobSpec::fresh()
        .script(["echo begun; sleep 300; echo never"])
        .after_script(["echo status is $CI_JOB_STATUS"])
        .artifact(Artifact::paths(["out/"]).when("always"))
}

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

fn signals(call: &super::super::CallRecord) -> Vec<i32> {
    call.signals.iter().map(|(_, signal)| *signal).collect()
}

#[tokio::test]
async fn a_cancel_stops_the_script_and_nothing_else() {
    let fake = Fake::new();
    let job = fake.harness().start(&slow()).await.unwrap();
    job.wait_log("begun\n", SOON).await.unwrap();
    job.cancel();
    let result = job.finish(SOON).await.unwrap();
    assert_eq!(result.outcome, Outcome::Canceled);
    assert_eq!(signals(result.call("build_script")), [SIGTERM]);
    assert_eq!(result.call("build_script").code(), Some(2));
    assert!(result.call("after_script").stdout_text().contains("status is canceled"));
    assert_eq!(
        result.stages()[5..],
        ["after_script", "upload_artifacts_on_failure", "cleanup_file_variables", "cleanup"]
    );
    assert!(!result.log_contains("\nnever"));
    assert!(result.duration() < Duration::from_mins(1));
}

#[tokio::test]
async fn a_cancel_before_the_script_ends_the_job() {
    let fake = Fake::new().hook("prepare", "trap 'exit 2' TERM; sleep 300 & echo preparing; wait");
    let job = fake.harness().start(&slow()).await.unwrap();
    job.wait_log("preparing", SOON).await.unwrap();
    job.cancel();
    let result = job.finish(SOON).await.unwrap();
    assert_eq!(result.outcome, Outcome::Canceled);
    assert_eq!(result.stages(), ["config", "prepare", "cleanup"]);
    assert_eq!(signals(result.call("prepare")), [SIGTERM]);
}

#[tokio::test]
async fn exit_1_during_a_canceled_prepare_looks_like_the_user_s_fault() {
    let fake = Fake::new().hook("prepare", "trap 'exit 1' TERM; sleep 300 & echo preparing; wait");
    let job = fake.harness().start(&slow()).await.unwrap();
    job.wait_log("preparing", SOON).await.unwrap();
    job.cancel();
    job.finish(SOON).await.unwrap().assert_script_failure(1);
}

#[tokio::test]
async fn a_cancel_in_after_script_comes_too_late() {
    let fake = Fake::new();
    let spec = JobSpec::fresh().script(["true"]).after_script(["echo late; sleep 0.5; echo finished"]);
    let job = fake.harness().start(&spec).await.unwrap();
    job.wait_log("late\n", SOON).await.unwrap();
    job.cancel();
    let result = job.finish(SOON).await.unwrap();
    result.assert_success();
    assert!(result.log_contains("\nfinished\n"));
}

#[tokio::test]
async fn an_abort_stops_everything() {
    let fake = Fake::new();
    let job = fake.harness().start(&slow()).await.unwrap();
    job.wait_log("begun\n", SOON).await.unwrap();
    job.abort();
    let result = job.finish(SOON).await.unwrap();
    assert_eq!(result.outcome, Outcome::Canceled);
    assert_eq!(result.stages()[4..], ["build_script", "cleanup"]);
}

#[tokio::test]
async fn the_runner_s_sigterm_is_an_interruption() {
    let fake = Fake::new();
    let job = fake.harness().start(&slow()).await.unwrap();
    job.wait_log("begun\n", SOON).await.unwrap();
    job.interrupt();
    let result = job.finish(SOON).await.unwrap();
    assert_eq!(result.outcome, Outcome::Interrupted);
    assert_eq!(result.stages()[4..], ["build_script", "cleanup"]);
    assert!(result.log_contains("Job failed: aborted: terminated"));
}

#[tokio::test]
async fn the_job_s_timeout_leaves_only_the_cleanup() {
    let result = Fake::new().run(&slow().timeout(Duration::from_secs(6))).await;
    assert!(matches!(&result.outcome, Outcome::TimedOut { message } if message.contains("longer than 6s")));
    assert_eq!(result.stages()[4..], ["build_script", "cleanup"]);
    assert!(result.duration() >= Duration::from_secs(6));
}

#[tokio::test]
async fn a_script_s_timeout_leaves_time_for_the_rest() {
    let result = Fake::new().run(&slow().variable("RUNNER_SCRIPT_TIMEOUT", "1s")).await;
    assert!(matches!(result.outcome, Outcome::TimedOut { .. }), "{:?}", result.outcome);
    assert!(result.call("after_script").stdout_text().contains("status is timedout"));
    assert_eq!(
        result.stages()[5..],
        ["after_script", "upload_artifacts_on_failure", "cleanup_file_variables", "cleanup"]
    );
    assert!(result.log_contains("step_script could not run to completion because the timeout was exceeded"));
}

#[tokio::test]
async fn an_after_script_s_timeout_only_warns() {
    let spec = JobSpec::fresh()
        .script(["true"])
        .after_script(["sleep 300"])
        .variable("RUNNER_AFTER_SCRIPT_TIMEOUT", "500ms");
    let result = Fake::new().run(&spec).await;
    result.assert_success();
    assert_eq!(signals(result.call("after_script")), [SIGTERM]);
}

#[tokio::test]
async fn timeouts_that_make_no_sense_are_ignored() {
    for (value, warning) in [
        ("soon", "Ignoring malformed RUNNER_SCRIPT_TIMEOUT timeout: soon"),
        ("-1s", "Ignoring relative RUNNER_SCRIPT_TIMEOUT timeout: -1s"),
        ("100h", "RUNNER_SCRIPT_TIMEOUT timeout: 100h is longer than job timeout. Setting to job timeout"),
    ] {
        let spec = JobSpec::fresh().script(["true"]).variable("RUNNER_SCRIPT_TIMEOUT", value);
        let result = Fake::new().run(&spec).await;
        result.assert_success();
        assert!(result.log_contains(warning), "{}", result.text());
    }
}

#[tokio::test]
async fn preparing_has_a_timeout_of_its_own() {
    let fake = Fake::new()
        .hook("prepare", "trap 'exit 2' TERM; sleep 300 & wait")
        .with(|config| config.prepare_timeout = Some(Duration::from_secs(4)));
    let result = fake.run(&slow()).await;
    assert!(matches!(&result.outcome, Outcome::TimedOut { message } if message.contains("prepare timeout")));
    assert_eq!(result.stages(), ["config", "prepare", "cleanup"]);
}

#[tokio::test]
async fn fetching_has_a_timeout_of_its_own() {
    let fake = Fake::new()
        .hook("run", r#"if [ "$2" = get_sources ]; then trap 'exit 2' TERM; sleep 300 & wait; fi"#)
        .with(|config| config.get_sources_timeout = Some(Duration::from_secs(2)));
    let result = fake.run(&slow()).await;
    assert!(
        matches!(&result.outcome, Outcome::TimedOut { message } if message.contains("get_sources timeout"))
    );
    assert_eq!(result.stages()[2..], ["prepare_script", "get_sources", "cleanup"]);
}

#[tokio::test]
async fn a_call_s_own_timeout_is_tried_again_but_exit_0_counts() {
    let limit = |fake: Fake| fake.with(|config| config.prepare_exec_timeout = Duration::from_secs(2));
    let fake = limit(Fake::new().hook("prepare", "trap 'exit 2' TERM; sleep 300 & wait"));
    let result = fake.run(&JobSpec::fresh().script(["true"])).await;
    result.assert_system_failure();
    assert_eq!(result.calls_of("prepare").len(), 3);
    let fake = limit(Fake::new().hook("prepare", "trap 'exit 0' TERM; sleep 300 & wait"));
    fake.run(&JobSpec::fresh().script(["true"])).await.assert_success();
}

#[tokio::test]
async fn who_ignores_sigterm_gets_sigkill() {
    let fake = Fake::new()
        .hook("run", r#"if [ "$2" = build_script ]; then trap '' TERM; echo begun; sleep 300; fi"#)
        .with(|config| config.graceful_kill_timeout = Duration::from_millis(400));
    let job = fake.harness().start(&slow()).await.unwrap();
    job.wait_log("begun\n", SOON).await.unwrap();
    job.cancel();
    let result = job.finish(SOON).await.unwrap();
    let call = result.call("build_script");
    assert_eq!(signals(call), [SIGTERM, SIGKILL]);
    assert_eq!(call.exit, Some(CallExit::Signal(SIGKILL)));
    assert!(call.signals[1].0.since(call.signals[0].0) >= Duration::from_millis(400));
    assert_eq!(result.outcome, Outcome::Canceled);
}

#[tokio::test]
async fn who_leaves_the_group_and_holds_the_pipe_is_given_up() {
    let fake = Fake::new()
        .hook(
            "run",
            r#"if [ "$2" = build_script ]; then
                setsid bash -c 'echo $$ > $FAKE_DIR/pid; echo begun; exec sleep 30' & wait
            fi"#,
        )
        .with(|config| {
            config.graceful_kill_timeout = Duration::from_millis(300);
            config.force_kill_timeout = Duration::from_millis(300);
        });
    let job = fake.harness().start(&slow()).await.unwrap();
    job.wait_log("begun\n", SOON).await.unwrap();
    job.cancel();
    let result = job.finish(SOON).await.unwrap();
    assert_eq!(result.call("build_script").exit, Some(CallExit::Dormant));
    assert_eq!(result.outcome, Outcome::Canceled);
    let pid: i32 = fake.read("pid").trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_killed_runner_leaves_its_driver_alone() {
    // The driver notices that nobody reads any more only when it writes.
    let fake = Fake::new().hook(
        "run",
        r#"if [ "$2" = build_script ]; then
            trap '' PIPE
            echo begun
            while echo tick 2> /dev/null; do sleep 0.05; done
            echo "noticed $$" > $FAKE_DIR/noticed
            exit 7
        fi"#,
    );
    let job = fake.harness().start(&slow()).await.unwrap();
    job.wait_log("begun\n", SOON).await.unwrap();
    job.kill_runner();
    let result = job.finish(SOON).await.unwrap();
    assert_eq!(result.outcome, Outcome::RunnerKilled);
    assert!(result.calls_of("cleanup").is_empty());
    assert!(result.call("build_script").exit.is_none());
    assert!(signals(result.call("build_script")).is_empty());
    let orphan = result.orphan.expect("the driver was running");
    let status = orphan.wait(SOON).await.expect("it ends by itself");
    assert_eq!(status.code(), Some(7));
    assert_eq!(fake.read("noticed"), format!("noticed {}\n", orphan.pid));
}

#[tokio::test]
async fn a_runner_killed_between_two_calls_leaves_no_orphan() {
    let fake = Fake::new();
    let spec = JobSpec::fresh().script(["true"]);
    let harness = fake.harness();
    let job = harness.start(&spec).await.unwrap();
    job.kill_runner();
    let result = job.finish(SOON).await.unwrap();
    assert_eq!(result.outcome, Outcome::RunnerKilled);
    assert!(result.orphan.is_none() && result.calls.is_empty());
}

#[tokio::test]
async fn a_deadline_says_what_happened_so_far() {
    let fake = Fake::new();
    let job = fake.harness().start(&slow()).await.unwrap();
    job.wait_log("begun\n", SOON).await.unwrap();
    let error = job.wait_log("nothing", Duration::from_millis(50)).await.unwrap_err().to_string();
    assert!(error.contains("begun"), "{error}");
    job.cancel();
    job.finish(SOON).await.unwrap();
}
