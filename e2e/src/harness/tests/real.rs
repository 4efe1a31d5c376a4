//! The same jobs through the played and, where there is one, a real gitlab-runner.

use std::time::Duration;

use super::super::{Backend, Outcome};
use super::{Fake, SOON};
use crate::coordinator::{Coordinator, CoordinatorConfig, JobSpec};

async fn backends() -> (Fake, Vec<Backend>) {
    let coordinator =
        Coordinator::start(CoordinatorConfig::new("127.0.0.1:0".parse().unwrap())).await.unwrap();
    let fake = Fake::new().with(|config| *config = config.clone().coordinator(&coordinator));
    let backends = Backend::available(&fake.config).unwrap();
    (fake, backends)
}

#[tokio::test]
async fn a_job_succeeds() {
    let (_fake, backends) = backends().await;
    for backend in backends {
        let spec =
            JobSpec::fresh().script(["echo hello from $CI_JOB_ID"]).after_script(["echo $CI_JOB_STATUS"]);
        let result = backend.run(&spec, SOON).await.unwrap();
        result.assert_success();
        assert!(result.log_contains(&format!("\nhello from {}\n", spec.id)), "{}", result.text());
        assert!(result.log_contains("Using Custom executor with driver fake 1.0..."), "{}", backend.name());
        assert!(result.log_contains("\nsuccess\n"), "{}", backend.name());
        let (first, line) = (result.first_output().unwrap(), result.first_line().unwrap());
        assert!(first <= line && line < SOON, "{}: {first:?} {line:?}", backend.name());
        assert!(result.when("hello from").unwrap() >= first);
    }
}

#[tokio::test]
async fn exit_codes_arrive() {
    let (_fake, backends) = backends().await;
    for backend in backends {
        let result = backend.run(&JobSpec::fresh().script(["exit 42"]), SOON).await.unwrap();
        result.assert_script_failure(42);
        assert!(result.log_contains("Job failed: exit status 42"), "{}", result.text());
    }
}

#[tokio::test]
async fn system_failures_are_told_apart() {
    let (fake, _) = backends().await;
    let fake = fake.hook("run", r#"[ "$2" = build_script ] && exit 2"#);
    for backend in Backend::available(&fake.config).unwrap() {
        let result = backend.run(&JobSpec::fresh().script(["true"]), SOON).await.unwrap();
        assert_eq!(
            result.outcome,
            Outcome::SystemFailure { message: "exit status 2".to_owned() },
            "{}",
            backend.name()
        );
    }
}

#[tokio::test]
async fn cancels_run_after_script() {
    let (_fake, backends) = backends().await;
    for backend in backends {
        let spec = JobSpec::fresh()
            .script(["echo begun; sleep 300"])
            .after_script(["echo status is $CI_JOB_STATUS"]);
        let job = backend.start(&spec).await.unwrap();
        job.wait_log("\nbegun\n", SOON).await.unwrap();
        job.wait_stage("build_script", SOON).await.unwrap();
        job.cancel();
        // A real runner learns of it with its next update: up to half a minute for a silent job.
        let result = job.finish(SOON * 2).await.unwrap();
        assert_eq!(result.outcome, Outcome::Canceled, "{}", backend.name());
        assert!(result.log_contains("\nstatus is canceled\n"), "{}", result.text());
    }
}

#[tokio::test]
async fn script_timeouts_are_told() {
    let (_fake, backends) = backends().await;
    for backend in backends {
        let spec = JobSpec::fresh()
            .script(["sleep 300"])
            .after_script(["echo status is $CI_JOB_STATUS"])
            .variable("RUNNER_SCRIPT_TIMEOUT", "1s");
        let result = backend.run(&spec, SOON).await.unwrap();
        assert!(matches!(result.outcome, Outcome::TimedOut { .. }), "{}", result.text());
        assert!(result.log_contains("\nstatus is timedout\n"), "{}", result.text());
    }
}

#[tokio::test]
async fn killed_runners_leave_the_job_open() {
    let (fake, _) = backends().await;
    let fake = fake.hook("cleanup", "touch $FAKE_DIR/cleaned");
    for backend in Backend::available(&fake.config).unwrap() {
        let job = backend.start(&JobSpec::fresh().script(["echo begun; sleep 5"])).await.unwrap();
        job.wait_log("\nbegun\n", SOON).await.unwrap();
        job.kill_runner();
        let result = job.finish(Duration::from_secs(10)).await.unwrap();
        assert_eq!(result.outcome, Outcome::RunnerKilled, "{}", backend.name());
        if let Some(orphan) = result.orphan {
            orphan.wait(SOON).await.expect("the script is short");
        }
        assert!(!fake.path("cleaned").exists(), "{}", backend.name());
    }
}
