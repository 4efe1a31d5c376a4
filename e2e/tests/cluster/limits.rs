//! How long the scripts of a class may run.

use std::time::Duration;

use anyhow::{Context as _, Result};
use roadstead_crds::jobclass::Timeouts;
use roadstead_crds::{Phase, Reason};
use roadstead_e2e::coordinator::{Artifact, JobSpec};
use roadstead_e2e::harness::{Backend, Harness, Outcome, RunnerConfig};
use roadstead_e2e::installation::Installation;

use crate::{DEADLINE, SOON, stands};

/// In seconds.
const HOUR: i64 = 3600;

async fn runner(
    bench: &Installation,
    name: &str,
    limit: impl FnOnce(&mut Timeouts),
) -> Result<(RunnerConfig, String)> {
    let class = bench
        .class(name, |class| {
            limit(&mut class.spec.timeouts);
            class.spec.timeouts.termination_grace_seconds = 1;
        })
        .await?;
    Ok((bench.runner().env("ROADSTEAD_CLASS", &class), class))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_exceeds_the_classs_limit_is_ended_and_after_script_runs() -> Result<()> {
    let bench = Installation::join().await?;
    let (config, class) =
        runner(&bench, "e2e-script-limit", |timeouts| timeouts.script_seconds = Some(2)).await?;
    for backend in Backend::available(&config)? {
        let spec = JobSpec::fresh()
            .image(bench.image("debian-git")?)
            .script(["echo running", "sleep 300"])
            .after_script(["echo \"after $CI_JOB_STATUS\""]);
        let result = backend.run(&spec, DEADLINE).await?;
        result.assert_script_failure(124);
        let log = result.text();
        for words in ["ran longer than the 2 s", &class, "timeouts.scriptSeconds", "after failed"] {
            assert!(log.contains(words), "no {words:?} in the log of {}:\n{log}", backend.name());
        }
        let name = bench.cijob_of(spec.id).await?.metadata.name.context("no name")?;
        let ended = stands(Phase::TimedOut, Reason::ScriptTimeout);
        bench.wait_cijob(&name, "out of time", SOON, ended).await?;
        bench.wait_no_pods(spec.id, SOON).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_script_has_a_limit_that_fails_nothing() -> Result<()> {
    let bench = Installation::join().await?;
    let (config, class) =
        runner(&bench, "e2e-after-script-limit", |timeouts| timeouts.after_script_seconds = Some(2)).await?;
    for backend in Backend::available(&config)? {
        let spec = JobSpec::fresh()
            .image(bench.image("busybox")?)
            .script(["echo fine"])
            .after_script(["echo tidying", "sleep 300"]);
        let result = backend.run(&spec, Duration::from_secs(60)).await?;
        result.assert_success();
        let log = result.text();
        assert!(log.contains("timeouts.afterScriptSeconds") && log.contains(&class), "{log}");
    }
    Ok(())
}

/// GitLab's three examples of a runner's maximum job timeout and a project's of 2 hours.
#[tokio::test(flavor = "multi_thread")]
async fn the_smaller_timeout_applies_as_gitlabs_page_on_runners_says() -> Result<()> {
    let bench = Installation::join().await?;
    let none = Timeouts::default().job_seconds;
    for (example, of_class, effective) in
        [("larger", 24 * HOUR, 2 * HOUR), ("not-configured", none, 2 * HOUR), ("smaller", HOUR / 2, HOUR / 2)]
    {
        let (config, _) =
            runner(&bench, &format!("e2e-timeout-{example}"), |timeouts| timeouts.job_seconds = of_class)
                .await?;
        let spec = JobSpec::fresh()
            .image(bench.image("busybox")?)
            .timeout(Duration::from_hours(2))
            .script(["echo running", "sleep 300"]);
        let job = Harness::new(config)?.start(&spec).await?;
        job.wait_log("running\n", DEADLINE).await?;
        let status = bench.cijob_of(spec.id).await?.status.context("no status")?;
        let granted = status.timeouts.context("no timeouts")?.job_seconds;
        let pod = bench.pods().get(&status.pod.context("no pod")?.name).await?;
        job.abort();
        job.finish(DEADLINE).await?;
        assert_eq!(granted, effective, "{example}");
        // The kubelet's own clock, for the case that nobody else's runs.
        let deadline = pod.spec.and_then(|spec| spec.active_deadline_seconds).context("no deadline")?;
        assert!((effective..effective + 120).contains(&deadline), "{example}: {deadline}");
    }
    Ok(())
}

/// The page's job whose script takes longer than its limit, at a twentieth of the time: `after_script` and the upload
/// have what the job has left.
#[tokio::test(flavor = "multi_thread")]
async fn a_script_out_of_time_leaves_time_for_after_script_and_upload() -> Result<()> {
    let bench = Installation::join().await?;
    for backend in Backend::available(&bench.runner())? {
        let spec = JobSpec::fresh()
            .image(bench.image("busybox")?)
            .timeout(Duration::from_mins(10))
            .artifact(Artifact::paths(["output.txt"]).when("on_failure"))
            .variable("RUNNER_SCRIPT_TIMEOUT", "3s")
            .variable("RUNNER_AFTER_SCRIPT_TIMEOUT", "30s")
            .script(["echo 'Starting build...' | tee output.txt", "sleep 120", "echo 'Build finished.'"])
            .after_script([
                "echo 'Starting clean-up...'",
                "sleep 1",
                "echo \"Clean-up after $CI_JOB_STATUS.\"",
            ]);
        let result = backend.run(&spec, DEADLINE).await?;
        let log = result.text();
        assert!(matches!(result.outcome, Outcome::TimedOut { .. }), "{:?}\n{log}", result.outcome);
        for words in ["\nStarting build...", "\nStarting clean-up...", "\nClean-up after timedout."] {
            assert!(log.contains(words), "no {words:?} in the log of {}:\n{log}", backend.name());
        }
        assert!(!log.contains("\nBuild finished."), "{log}");
        if !backend.is_real() {
            assert_eq!(result.calls_of("upload_artifacts_on_failure").len(), 1, "{:?}", result.stages());
        }
        bench.wait_no_pods(spec.id, SOON).await?;
    }
    Ok(())
}
