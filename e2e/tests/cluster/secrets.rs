//! A masked variable is in the pod's processes and nowhere else.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::installation::Installation;

use crate::DEADLINE;

fn text_of(mut command: Command) -> Result<String> {
    let output = command.output().context("cannot run a command")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

/// Every file below a folder.
fn files(dir: &std::path::Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_masked_value_is_nowhere_but_in_the_job() -> Result<()> {
    let bench = Installation::join().await?;
    let canary = format!("canary-{}", JobSpec::fresh().id);
    let file_canary = format!("file-{canary}");
    // The control: a value that must be found, so that a search of the wrong place fails the test.
    let witness = format!("witness-{}", JobSpec::fresh().id);
    let spec = JobSpec::fresh()
        .name(&witness)
        .image(bench.image("debian-git")?)
        .masked("DEPLOY_TOKEN", &canary)
        .file("DEPLOY_KEY", &file_canary)
        .script([
            "test -n \"$DEPLOY_TOKEN\" && test ${#DEPLOY_TOKEN} -gt 10 && echo has the token",
            "test -s \"$DEPLOY_KEY\" && echo has the key",
            "exit 7",
        ]);
    let result = bench.harness()?.run(&spec, DEADLINE).await?;
    result.assert_script_failure(7);
    assert!(result.text().contains("has the token") && result.text().contains("has the key"));

    let host = bench.cluster.host_parts()?;
    let mut witnesses = 0;
    for path in files(&host.etcd.data)? {
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        witnesses += usize::from(contains(&content, &witness));
        for secret in [&canary, &file_canary, &spec.token] {
            assert!(!contains(&content, secret), "{secret} is in {}", path.display());
        }
    }
    assert!(witnesses > 0, "the search of etcd did not even find the job's name");

    let operator = format!("deploy/{}", bench.release().operator());
    let places = [
        ("Events", text_of(bench.cluster.kubectl(["get", "events", "-A", "-o", "json"]))?),
        (
            "CiJobs",
            text_of(bench.cluster.kubectl(["get", "cij", "-n", bench.job_namespace(), "-o", "json"]))?,
        ),
        (
            "the operator's log",
            text_of(bench.cluster.kubectl(["logs", "-n", bench.system_namespace(), &operator]))?,
        ),
        ("the shim's log at level debug", fs::read_to_string(bench.shim_log()).context("no shim log")?),
        ("the audit log", fs::read_to_string(&host.audit_log).context("no audit log")?),
    ];
    for (place, text) in places {
        assert!(!text.trim().is_empty(), "{place}: nothing to search");
        for secret in [&canary, &file_canary, &spec.token] {
            assert!(!text.contains(secret.as_str()), "{secret} is in {place}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_masked_value_in_a_field_of_the_object_refuses_the_job_by_the_fields_name() -> Result<()> {
    let bench = Installation::join().await?;
    let spec = JobSpec::fresh()
        .masked("REGISTRY_SECRET", "very-secret-path")
        .image("registry.example/very-secret-path/image:1")
        .script(["echo not reached"]);
    let result = bench.harness()?.run(&spec, DEADLINE).await?;
    result.assert_script_failure(1);
    let log = result.text();
    assert!(log.contains("image"), "{log}");
    assert!(!log.contains("very-secret-path"), "{log}");
    assert!(bench.cijobs_of(spec.id).await?.is_empty());
    Ok(())
}
