//! Installing the product's chart.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::exec::{self, capture, succeeds};
use crate::hash::Key;
use crate::images::Archive;
use crate::progress::Progress;
use crate::state::{ClusterDir, replace};

/// The operator's namespace.
pub const SYSTEM_NAMESPACE: &str = "roadstead-system";
/// The namespace that jobs run in; the chart makes it.
pub const JOB_NAMESPACE: &str = "ci-jobs";
/// The release's name.
const RELEASE: &str = "roadstead";

/// Installs or upgrades the chart, unless the same chart with the same values is there already.
///
/// # Errors
/// When helm refuses, or what it installed does not become ready.
pub fn install(
    progress: &Progress,
    dir: &ClusterDir,
    cluster: &Cluster,
    workspace: &Path,
    images: &[Archive],
) -> Result<()> {
    let chart = workspace.join("charts/roadstead");
    let values = values(images)?;
    let key = Key::new().tree("chart", &chart)?.part("values", values.to_string()).finish();
    let record = dir.file("installed");
    let same = fs::read_to_string(&record).is_ok_and(|installed| installed == key);
    if same && succeeds(cluster.command("helm").args(["status", RELEASE, "--namespace", SYSTEM_NAMESPACE])) {
        progress.say("product: is installed in this version");
        return Ok(());
    }
    let file = dir.file("values.json");
    replace(&file, format!("{values:#}\n"))?;
    let mut helm = cluster.command("helm");
    helm.args(["upgrade", "--install", RELEASE])
        .arg(&chart)
        .args([
            "--namespace",
            SYSTEM_NAMESPACE,
            "--create-namespace",
            "--wait",
            "--timeout",
            "120s",
            "--values",
        ])
        .arg(&file);
    let installed = exec::logged(progress, "product: helm upgrade", &mut helm, &dir.log("helm"));
    installed.with_context(|| state_of_pods(cluster))?;
    replace(&record, key)?;
    progress.say("product: installed and ready");
    Ok(())
}

/// The chart's values for this cluster.
fn values(images: &[Archive]) -> Result<Value> {
    let image = |name: &str| -> Result<Value> {
        let image = images.iter().find(|image| image.name == name);
        let image = image.with_context(|| format!("the image {name} was not built"))?;
        let (repository, tag) =
            image.short_reference().rsplit_once(':').context("the image's name has no tag")?;
        // Images are imported, so there is nowhere to pull one from.
        Ok(json!({"image": {"repository": repository, "tag": tag, "pullPolicy": "Never"}}))
    };
    Ok(json!({
        "operator": image("operator")?,
        "helper": image("helper")?,
        "agent": image("agent")?,
        "jobNamespaces": [JOB_NAMESPACE],
    }))
}

/// What an error message tells about the pods: their state and the operator's last words.
fn state_of_pods(cluster: &Cluster) -> String {
    let mut said = vec!["the pods of the release:".to_owned()];
    let mut list = cluster.kubectl(["get", "pods", "--output", "wide", "--namespace", SYSTEM_NAMESPACE]);
    let mut events = cluster.kubectl(["get", "events", "--namespace", SYSTEM_NAMESPACE]);
    for command in [&mut list, &mut events] {
        said.push(capture(command).unwrap_or_else(|error| format!("{error:#}")));
    }
    said.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> Archive {
        Archive {
            name: name.into(),
            reference: format!("docker.io/roadstead/{name}:0.1.0-abc"),
            key: "k".into(),
            path: "/x".into(),
        }
    }

    #[test]
    fn values_name_every_image_by_its_content() {
        let images = ["operator", "helper", "agent"].map(image);
        let values = values(&images).unwrap();
        assert_eq!(values["agent"]["image"]["repository"], "roadstead/agent");
        assert_eq!(values["operator"]["image"]["tag"], "0.1.0-abc");
        assert_eq!(values["jobNamespaces"], json!(["ci-jobs"]));
    }

    #[test]
    fn a_missing_image_is_named() {
        let error = values(&[image("operator"), image("helper")]).unwrap_err();
        assert!(error.to_string().contains("agent"), "{error}");
    }
}
