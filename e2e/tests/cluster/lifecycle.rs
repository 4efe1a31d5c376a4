//! Cancel, timeouts, retries, and what is left when somebody dies.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use roadstead_crds::{CiJob, Phase, Reason};
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::harness::{Backend, Driver, Harness, Outcome};
use roadstead_e2e::installation::Installation;
use roadstead_e2e::program;

use crate::{DEADLINE, SOON};

fn phase_is(phase: Phase) -> impl Fn(Option<&CiJob>) -> bool {
    move |job| job.and_then(|job| job.status.as_ref()?.phase) == Some(phase)
}

fn reason_of(job: &CiJob) -> Option<Reason> {
    job.status.as_ref()?.reason
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_ends_the_script_and_runs_after_script() -> Result<()> {
    let bench = Installation::join().await?;
    let spec = JobSpec::fresh()
        .image(bench.image("debian-git")?)
        .script(["echo running", "sleep 300"])
        .after_script([
            "echo \"after $CI_JOB_STATUS\"",
            "cat /proc/[0-9]*/comm | grep -c '^sleep$' || echo no sleep left",
        ]);
    let job = bench.harness()?.start(&spec).await?;
    job.wait_log("running", DEADLINE).await?;
    job.cancel();
    let result = job.finish(Duration::from_secs(60)).await?;
    assert!(matches!(result.outcome, Outcome::Canceled), "{:?}", result.outcome);
    let log = result.text();
    assert!(log.contains("after canceled"), "{log}");
    assert!(log.contains("no sleep left"), "{log}");
    let name = bench.cijob_of(spec.id).await?.metadata.name.context("no name")?;
    bench.wait_cijob(&name, "Canceled", SOON, phase_is(Phase::Canceled)).await?;
    bench.wait_no_pods(spec.id, SOON).await
}

#[tokio::test(flavor = "multi_thread")]
async fn force_cancel_during_the_checkout_leaves_nothing() -> Result<()> {
    let bench = Installation::join().await?;
    let spec = JobSpec::fresh().image(bench.image("debian-git")?).script(["echo running", "sleep 300"]);
    let job = bench.harness()?.start(&spec).await?;
    job.wait_stage("prepare", DEADLINE).await?;
    job.abort();
    let result = job.finish(Duration::from_secs(60)).await?;
    assert!(matches!(result.outcome, Outcome::Canceled), "{:?}", result.outcome);
    assert!(!result.stages().contains(&"after_script"));
    bench.wait_no_pods(spec.id, SOON).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_runner_is_dead_ends_at_its_timeout() -> Result<()> {
    let bench = Installation::join().await?;
    let spec = JobSpec::fresh()
        .image(bench.image("busybox")?)
        .timeout(Duration::from_secs(15))
        // The shim notices that its reader is gone and stops the stage; what stays is an idle pod.
        .script(["echo running", "sleep 300"]);
    let job = bench.harness()?.start(&spec).await?;
    job.wait_log("running", DEADLINE).await?;
    let name = bench.cijob_of(spec.id).await?.metadata.name.context("no name")?;
    job.kill_runner();
    let found =
        bench.wait_cijob(&name, "TimedOut", Duration::from_secs(60), phase_is(Phase::TimedOut)).await?;
    assert_eq!(reason_of(&found), Some(Reason::DeadlineExceeded));
    assert!(found.status.and_then(|status| status.message).is_some_and(|message| message.contains("15 s")));
    bench.wait_no_pods(spec.id, SOON).await
}

/// A driver that fails a stage in the way the cluster might, some number of times.
fn failing_driver(bench: &Installation, stage: &str, times: u32) -> Result<Driver> {
    let script = bench.dir().join(format!("failing-{stage}-{times}"));
    let count = bench.dir().join(format!("failing-{stage}-{times}.count"));
    let text = format!(
        "#!/bin/bash\nif [ \"$1\" = {stage} ]; then echo x >> {count}; if [ $(wc -l < {count}) -le {times} ]; then \
         echo 'injected failure' >&2; exit $SYSTEM_FAILURE_EXIT_CODE; fi; fi\nexec {shim} \"$@\"\n",
        count = count.display(),
        shim = bench.shim().display(),
    );
    program::write(&script, &text)?;
    Ok(Driver::shim(&script))
}

#[tokio::test(flavor = "multi_thread")]
async fn prepare_that_fails_twice_succeeds_the_third_time() -> Result<()> {
    let bench = Installation::join().await?;
    let driver = failing_driver(&bench, "prepare", 2)?;
    let spec = JobSpec::fresh().image(bench.image("busybox")?).script(["echo made it"]);
    let result = Harness::new(bench.runner_with(driver))?.run(&spec, DEADLINE).await?;
    result.assert_success();
    assert_eq!(result.calls_of("prepare").len(), 3);
    let jobs = bench.cijobs_of(spec.id).await?;
    assert_eq!(jobs.len(), 3, "one CiJob per attempt");
    bench.wait_no_pods(spec.id, SOON).await
}

/// The class that the runner names is missing: the system's failure, so gitlab-runner tries three times.
#[tokio::test(flavor = "multi_thread")]
async fn prepare_that_fails_three_times_fails_the_job_and_leaves_no_pod() -> Result<()> {
    let bench = Installation::join().await?;
    for backend in Backend::available(&bench.runner().env("ROADSTEAD_CLASS", "no-such-class"))? {
        let spec = JobSpec::fresh().image(bench.image("busybox")?).script(["echo not reached"]);
        let result = backend.run(&spec, DEADLINE).await?;
        result.assert_system_failure();
        let log = result.text();
        assert!(log.contains("JobClass") && log.contains("no-such-class"), "{log}");
        let jobs = bench.cijobs_of(spec.id).await?;
        assert_eq!(jobs.len(), 3);
        assert!(jobs.iter().all(|job| reason_of(job) == Some(Reason::ClassNotFound)));
        bench.wait_no_pods(spec.id, SOON).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_restarts_leaves_the_job_alone() -> Result<()> {
    let bench = Installation::join().await?;
    let spec = JobSpec::fresh().image(bench.image("busybox")?).script([
        "echo running",
        "i=0; while [ $i -lt 12 ]; do echo tick $i; sleep 1; i=$((i+1)); done",
        "echo over",
    ]);
    let job = bench.harness()?.start(&spec).await?;
    job.wait_log("tick 0", DEADLINE).await?;
    let before = bench.cijob_of(spec.id).await?.status.and_then(|status| status.pod);
    let (namespace, operator) = (bench.system_namespace(), format!("deploy/{}", bench.release().operator()));
    for args in [
        ["delete", "pod", "-n", namespace, "-l", "app.kubernetes.io/component=operator", "--force"]
            .as_slice(),
        ["rollout", "status", "-n", namespace, &operator, "--timeout=60s"].as_slice(),
    ] {
        let status =
            bench.cluster.command("kubectl").args(args).stdout(std::process::Stdio::null()).status()?;
        ensure!(status.success(), "kubectl {args:?} failed");
    }
    let result = job.finish(DEADLINE).await?;
    result.assert_success();
    let output = String::from_utf8_lossy(&result.call("build_script").stdout).into_owned();
    for tick in 0..12 {
        assert_eq!(output.lines().filter(|line| *line == format!("tick {tick}")).count(), 1, "{output}");
    }
    assert_eq!(bench.cijob_of(spec.id).await?.status.and_then(|status| status.pod), before);
    let name = bench.cijob_of(spec.id).await?.metadata.name.context("no name")?;
    bench.wait_cijob(&name, "Succeeded", SOON, phase_is(Phase::Succeeded)).await?;
    bench.wait_no_pods(spec.id, SOON).await
}

/// gitlab-runner calls cleanup once, but a second call, or one on its own, must do no harm.
#[tokio::test(flavor = "multi_thread")]
async fn cleanup_twice_alone_and_with_everything_gone_succeeds() -> Result<()> {
    let bench = Installation::join().await?;
    let driver = bench.dir().join("twice");
    let text = format!(
        "#!/bin/bash\n{shim} \"$@\"; code=$?\nif [ \"$1\" = cleanup ]; then {shim} cleanup || exit 3; \
         rm -rf \"$TMPDIR\"/*; {shim} cleanup || exit 4; fi\nexit $code\n",
        shim = bench.shim().display(),
    );
    program::write(&driver, &text)?;
    let spec = JobSpec::fresh().image(bench.image("busybox")?).script(["echo fine"]);
    let result = Harness::new(bench.runner_with(Driver::shim(&driver)))?.run(&spec, DEADLINE).await?;
    result.assert_success();
    let cleanup = result.call("cleanup");
    assert_eq!(cleanup.code(), Some(0), "{cleanup:?}");
    assert!(cleanup.duration().is_some_and(|took| took < Duration::from_secs(10)), "{cleanup:?}");
    bench.wait_no_pods(spec.id, SOON).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_job_goes_after_its_ttl() -> Result<()> {
    let bench = Installation::join().await?;
    let class = bench.class("e2e-ttl", |class| class.spec.timeouts.ttl_seconds_after_finished = 2).await?;
    let spec = JobSpec::fresh().image(bench.image("busybox")?).script(["echo fine"]);
    let result = bench.harness_of(class)?.run(&spec, DEADLINE).await?;
    result.assert_success();
    let gone = async {
        while !bench.cijobs_of(spec.id).await?.is_empty() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(SOON, gone).await.context("the CiJob outlived its TTL")?
}
