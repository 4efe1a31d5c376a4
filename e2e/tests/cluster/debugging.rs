//! What docs/debugging.md says about running one stage of a job alone.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::harness::{Backend, Driver};
use roadstead_e2e::installation::Installation;
use roadstead_e2e::program;
use tokio::process::Command;

use crate::{DEADLINE, SOON};

const DOCUMENT: &str = include_str!("../../../docs/debugging.md");

/// The script of the document that keeps what gitlab-runner gives to the shim.
fn keeping_driver(bench: &Installation) -> Result<(Driver, PathBuf)> {
    let (_, rest) = DOCUMENT.split_once("```sh\n").context("no script in the document")?;
    let (script, _) = rest.split_once("```").context("the script has no end")?;
    ensure!(script.contains("/usr/local/bin/executor-shim"), "{script}");
    let shim = bench.shim().to_str().context("an odd path")?;
    let (path, kept) = (bench.dir().join("keeping"), bench.dir().join("kept"));
    program::write(&path, &script.replace("/usr/local/bin/executor-shim", shim))?;
    Ok((Driver::shim(&path), kept))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stage_of_a_saved_job_runs_alone_and_verbosely() -> Result<()> {
    let bench = Installation::join().await?;
    let (driver, kept) = keeping_driver(&bench)?;
    let runner = bench.runner_with(driver).env("ROADSTEAD_DEBUG_DIR", &kept);
    for backend in Backend::available(&runner)? {
        let script = ["echo \"the variable is $GREETING\"", "exit 5"];
        let spec =
            JobSpec::fresh().image(bench.image("busybox")?).variable("GREETING", "hello").script(script);
        backend.run(&spec, DEADLINE).await?.assert_script_failure(5);

        let mut folders = std::fs::read_dir(&kept).context("nothing was kept")?;
        let folder = folders.next().context("no folder")??.path();
        ensure!(folders.next().is_none(), "more than one attempt was kept");
        let alone = |stage: &str, format: &str| {
            let mut command = Command::new(bench.shim());
            command
                .env_clear()
                .env("PATH", std::env::var_os("PATH").unwrap_or_default())
                .env("KUBECONFIG", &bench.kubeconfig)
                .env("TMPDIR", &folder)
                .env("JOB_RESPONSE_FILE", folder.join("response.json"))
                .env("BUILD_EXIT_CODE_FILE", folder.join("exit_code"))
                .args(["run", "--log", "debug", "--log-format", format])
                .arg(folder.join(stage))
                .arg(stage)
                .kill_on_drop(true);
            command
        };
        for format in ["text", "json"] {
            let output = tokio::time::timeout(DEADLINE, alone("build_script", format).output()).await??;
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            assert_eq!(std::fs::read_to_string(folder.join("exit_code"))?, "5\n");
            let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(stdout.contains("the variable is hello"), "{stdout}");
            assert!(stderr.contains("connected to the agent"), "{stderr}");
            assert!(stderr.contains("the stage has ended"), "{stderr}");
            assert!(!stdout.contains("the stage has ended"), "diagnostics on standard output:\n{stdout}");
            assert!(!stderr.contains("hello"), "a variable is in the diagnostics:\n{stderr}");
            let objects = stderr.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok());
            assert_eq!(objects, format == "json", "{stderr}");
        }
        let mut cleanup = Command::new(bench.shim());
        cleanup.env("KUBECONFIG", &bench.kubeconfig).env("TMPDIR", &folder).arg("cleanup");
        ensure!(tokio::time::timeout(DEADLINE, cleanup.status()).await??.success(), "cleanup failed");
        bench.wait_no_pods(spec.id, SOON).await?;
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(())
}
