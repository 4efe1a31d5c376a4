//! How long the scripts of a class may run.

use std::time::Duration;

use anyhow::{Context as _, Result};
use roadstead_crds::jobclass::Timeouts;
use roadstead_crds::{Phase, Reason};
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::harness::{Backend, RunnerConfig};
use roadstead_e2e::installation::Installation;

use crate::{DEADLINE, SOON, stands};

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
