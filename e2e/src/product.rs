//! Installing the product's chart.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::exec::{self, capture, succeeds};
use crate::hash::Key;
use crate::progress::Progress;
use crate::provider::Provider;
use crate::state::{ClusterDir, replace};

/// Installs or upgrades the chart with the cluster's images, unless the same chart with the same values is there already.
///
/// # Errors
/// When helm refuses, or what it installed does not become ready.
pub fn install(
    progress: &Progress,
    dir: &ClusterDir,
    cluster: &Cluster,
    workspace: &Path,
    provider: &dyn Provider,
) -> Result<()> {
    let chart = workspace.join("charts/roadstead");
    let release = &cluster.release;
    let values = values(cluster, provider.supply().pull_policy())?;
    let overlay = provider.overlay(cluster)?;
    let key = Key::new()
        .tree("chart", &chart)?
        .part("values", values.to_string())
        .part("overlay", overlay.to_string())
        .finish();
    let record = dir.file("installed");
    let same = fs::read_to_string(&record).is_ok_and(|installed| installed == key);
    if same
        && succeeds(cluster.command("helm").args([
            "status",
            &release.name,
            "--namespace",
            &release.namespace,
        ]))
    {
        progress.say("product: is installed in this version");
        return Ok(());
    }
    let (file, further) = (dir.file("values.json"), dir.file("overlay.json"));
    replace(&file, format!("{values:#}\n"))?;
    replace(&further, format!("{overlay:#}\n"))?;
    let mut helm = cluster.command("helm");
    helm.args(["upgrade", "--install", &release.name])
        .arg(&chart)
        .args([
            "--namespace",
            &release.namespace,
            "--create-namespace",
            "--wait",
            "--timeout",
            "120s",
            "--values",
        ])
        .arg(&file)
        .arg("--values")
        .arg(&further);
    let installed = exec::logged(progress, "product: helm upgrade", &mut helm, &dir.log("helm"));
    installed.with_context(|| state_of_pods(cluster))?;
    replace(&record, key)?;
    progress.say("product: installed and ready");
    Ok(())
}

/// The chart's values for this cluster.
fn values(cluster: &Cluster, pull_policy: &str) -> Result<Value> {
    let image = |name: &str| -> Result<Value> {
        let reference = cluster.image(name)?;
        let (repository, tag) = reference.rsplit_once(':').context("the image's name has no tag")?;
        Ok(json!({"image": {"repository": repository, "tag": tag, "pullPolicy": pull_policy}}))
    };
    Ok(json!({
        "operator": image("operator")?,
        "helper": image("helper")?,
        "agent": image("agent")?,
        "shim": image("executor-shim")?,
        "jobNamespaces": [cluster.release.job_namespace, cluster.release.second_job_namespace()],
    }))
}

/// What an error message tells about the pods: their state and the operator's last words.
fn state_of_pods(cluster: &Cluster) -> String {
    let mut said = vec!["the pods of the release:".to_owned()];
    let namespace = &cluster.release.namespace;
    let mut list = cluster.kubectl(["get", "pods", "--output", "wide", "--namespace", namespace]);
    let mut events = cluster.kubectl(["get", "events", "--namespace", namespace]);
    for command in [&mut list, &mut events] {
        said.push(capture(command).unwrap_or_else(|error| format!("{error:#}")));
    }
    said.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::Release;

    fn cluster(images: &[&str]) -> Cluster {
        let images = images.iter().map(|name| ((*name).into(), format!("roadstead/{name}:0.1.0-abc")));
        Cluster {
            provider: "host".into(),
            kubeconfig: "/k".into(),
            node: "n".into(),
            host_address: std::net::Ipv4Addr::LOCALHOST,
            bins: vec![],
            images: images.collect(),
            release: Release::default(),
            shim: None,
            host: None,
        }
    }

    #[test]
    fn values_name_every_image_by_its_content() {
        let images = ["operator", "helper", "agent", "executor-shim"];
        let values = values(&cluster(&images), "Never").unwrap();
        assert_eq!(values["agent"]["image"]["repository"], "roadstead/agent");
        assert_eq!(values["operator"]["image"]["tag"], "0.1.0-abc");
        assert_eq!(values["helper"]["image"]["pullPolicy"], "Never");
        assert_eq!(values["jobNamespaces"], json!(["ci-jobs", "ci-jobs-2"]));
    }

    #[test]
    fn a_missing_image_is_named() {
        let error = values(&cluster(&["operator", "helper"]), "Never").unwrap_err();
        assert!(error.to_string().contains("agent"), "{error}");
    }
}
