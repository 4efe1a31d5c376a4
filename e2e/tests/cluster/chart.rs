//! What a platform team does with the chart: check it, install it, upgrade it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use roadstead_e2e::installation::Installation;
use serde_json::json;

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/roadstead")
}

fn helm(bench: &Installation, args: &[&str], chart: &Path) -> Result<Output> {
    let mut helm = bench.cluster.command("helm");
    let output = helm.args(args).arg(chart).output().context("cannot run helm")?;
    ensure!(output.status.success(), "helm {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

/// The release's own values, so that an upgrade with them changes nothing else.
fn upgrade(bench: &Installation, chart: &Path) -> Result<()> {
    let args = [
        "upgrade",
        &bench.release().name,
        "--namespace",
        bench.system_namespace(),
        "--reuse-values",
        "--wait",
        "--timeout",
        "60s",
    ];
    helm(bench, &args, chart).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chart_is_clean_and_refuses_values_that_mean_nothing() -> Result<()> {
    let bench = Installation::join().await?;
    helm(&bench, &["lint", "--strict"], &chart())?;
    for (set, word) in [("jobNamspaces={a}", "jobNamspaces"), ("jobNamespaces={Not_A_Name}", "jobNamespaces")]
    {
        let refused = helm(&bench, &["template", "roadstead", "--namespace", "x", "--set", set], &chart());
        let error = format!("{:#}", refused.err().context(set)?);
        assert!(error.contains(word), "{error}");
    }
    Ok(())
}

/// `helm test` runs a job end to end, says what is wrong where it cannot, and leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn helm_test_runs_a_job_or_says_why_it_cannot() -> Result<()> {
    let bench = Installation::join().await?;
    let test = || -> Result<(bool, String)> {
        let mut helm = bench.cluster.command("helm");
        helm.args(["test", &bench.release().name, "--namespace", bench.system_namespace()]);
        let output = helm.args(["--timeout", "120s"]).output().context("cannot run helm")?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    };
    let (succeeded, said) = test()?;
    assert!(succeeded, "{said}");
    assert!(said.contains("A job ran in cij-") && said.contains("\"exitCode\":0"), "{said}");

    let class = |name: &str| -> Result<()> {
        let mut helm = bench.cluster.command("helm");
        helm.args(["upgrade", &bench.release().name, "--namespace", bench.system_namespace()]);
        helm.args(["--reuse-values", "--set", &format!("test.class={name}")]).arg(chart());
        let output = helm.output().context("cannot run helm")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    class("no-such-class")?;
    let (succeeded, said) = test()?;
    class("")?;
    assert!(!succeeded, "{said}");
    assert!(said.contains("no-such-class") && said.contains("JobClass"), "{said}");

    let pods: Api<Pod> = Api::namespaced(bench.client.clone(), bench.system_namespace());
    let left = pods.list(&ListParams::default().labels("app.kubernetes.io/component=test")).await?;
    assert!(left.items.iter().all(|pod| pod.metadata.deletion_timestamp.is_some()), "{left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_meets_the_restricted_pod_security_standard() -> Result<()> {
    let bench = Installation::join().await?;
    let answer = bench
        .cluster
        .kubectl(["label", "--dry-run=server", "--overwrite", "namespace", bench.system_namespace()])
        .arg("pod-security.kubernetes.io/enforce=restricted")
        .output()
        .context("cannot run kubectl")?;
    assert!(answer.status.success(), "{answer:?}");
    // The API server checks the pods that are there and warns of those that break the standard.
    assert!(!String::from_utf8_lossy(&answer.stderr).contains("Warning"), "{answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_renews_the_definitions_and_keeps_a_changed_class() -> Result<()> {
    let bench = Installation::join().await?;
    let described = |text: &str| Patch::Merge(json!({"spec": {"description": text}}));
    let (classes, hardened) = (bench.classes(), bench.class_name("hardened"));
    let before = classes.get(&hardened).await.context("no class hardened")?;
    let parameters = PatchParams::default();
    classes
        .patch(&hardened, &parameters, &described("changed by hand"))
        .await
        .context("cannot change a class")?;

    let copy = bench.dir().join("chart");
    let status = std::process::Command::new("cp").arg("-rL").arg(chart()).arg(&copy).status()?;
    ensure!(status.success(), "cannot copy the chart");
    let file = copy.join("files/crds/roadstead.dev_cijobs.yaml");
    let text = fs::read_to_string(&file).context("the chart has no definition of CiJob")?;
    let marked =
        text.replacen("How the job ended. With it", "Marked by a test. How the job ended. With it", 1);
    ensure!(marked != text, "the definition has no such description");
    fs::write(&file, marked).context("cannot change the copy")?;
    upgrade(&bench, &copy)?;

    let crds: Api<CustomResourceDefinition> = Api::all(bench.client.clone());
    let marked = || async {
        let crd = crds.get("cijobs.roadstead.dev").await.context("no definition of CiJob")?;
        anyhow::Ok(serde_json::to_string(&crd).context("not JSON")?.contains("Marked by a test"))
    };
    assert!(marked().await?, "the upgrade did not renew the definition");
    let after = classes.get(&hardened).await.context("no class hardened")?;
    assert_eq!(after.metadata.uid, before.metadata.uid);
    assert_eq!(after.spec.description.as_deref(), Some("changed by hand"));

    upgrade(&bench, &chart())?;
    assert!(!marked().await?, "the upgrade back did not renew the definition");
    let original = before.spec.description.unwrap_or_default();
    classes.patch(&hardened, &parameters, &described(&original)).await.context("cannot restore a class")?;
    Ok(())
}
