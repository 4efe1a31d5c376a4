//! How scripts end, and what GitLab hears of it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use roadstead_crds::Phase;
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::harness::Backend;
use roadstead_e2e::installation::Installation;

use crate::DEADLINE;

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_arrive_as_they_were() -> Result<()> {
    let bench = Installation::join().await?;
    for backend in Backend::available(&bench.runner())? {
        for code in [0, 1, 2, 42, 137] {
            let spec =
                JobSpec::fresh().image(bench.image("busybox")?).script([format!("echo before; exit {code}")]);
            let result = backend.run(&spec, DEADLINE).await?;
            if code == 0 {
                result.assert_success();
            } else {
                result.assert_script_failure(code);
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_command_in_the_middle_fails_the_job_and_says_so_in_the_object() -> Result<()> {
    let bench = Installation::join().await?;
    let spec = JobSpec::fresh()
        .image(bench.image("debian-git")?)
        .script(["echo one", "(exit 3)", "echo never reached"])
        .after_script(["echo after"]);
    let result = bench.harness()?.run(&spec, DEADLINE).await?;
    result.assert_script_failure(3);
    let output = String::from_utf8_lossy(&result.call("build_script").stdout).into_owned();
    assert!(!output.lines().any(|line| line == "never reached"), "{output}");
    assert!(result.stages().contains(&"after_script"));
    let name = bench.cijob_of(spec.id).await?.metadata.name.context("no name")?;
    let job = bench.wait_finished(&name, crate::SOON).await?;
    assert_eq!(job.status.and_then(|status| status.phase), Some(Phase::Failed));
    assert_eq!(job.spec.report.and_then(|report| report.exit_code), Some(3));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_process_that_keeps_stdout_does_not_hold_the_stage() -> Result<()> {
    let bench = Installation::join().await?;
    for backend in Backend::available(&bench.runner())? {
        let spec = JobSpec::fresh()
            .image(bench.image("debian-git")?)
            .script(["sleep 600 & echo started $!", "echo done"])
            .after_script(["pgrep sleep || grep -l sleep /proc/[0-9]*/comm | wc -l"]);
        let result = backend.run(&spec, Duration::from_mins(1)).await?;
        result.assert_success();
    }
    Ok(())
}
