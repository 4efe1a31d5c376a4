//! The release in a cluster that has others: its namespaces, its classes, and its end.

use anyhow::{Context as _, Result, ensure};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client};
use roadstead_crds::JobClass;
use serde_json::{Map, Value, json};

use super::block_on;
use super::definitions::{self, Found};
use crate::cluster::Cluster;
use crate::exec::{capture, succeeds};
use crate::installation::client_of;
use crate::progress::Progress;
use crate::release::Release;
use crate::state::{ClusterDir, replace, workspace};

/// Marks the namespaces that this provider made. The value is the release's name.
const MARK: &str = "roadstead.dev/e2e";
/// The classes that the chart brings.
const CLASSES: [&str; 2] = ["default", "hardened"];

/// Values of the chart for a release beside others.
pub(super) fn values(cluster: &Cluster, found: &Found) -> Result<Value> {
    let chart = workspace().join("charts/roadstead");
    let text = capture(cluster.command("helm").args(["show", "values"]).arg(chart))?;
    let defaults: Value = serde_yaml::from_str(&text).context("the chart's values are not YAML")?;
    let mut specs = Map::new();
    for name in CLASSES {
        let spec = &defaults["classes"]["specs"][name];
        ensure!(spec.is_object(), "the chart has no class {name}");
        specs.insert(cluster.release.class(name), spec.clone());
        // The classes of these names are shared, and somebody else's.
        specs.insert(name.to_owned(), Value::Null);
    }
    Ok(json!({
        "crds": {"install": *found != Found::Fitting},
        "createJobNamespaces": false,
        "classes": {"specs": specs},
        "rbac": {"aggregateToView": false},
    }))
}

/// Makes the release's namespaces, or finds them as it made them.
pub(super) fn make_namespaces(dir: &ClusterDir, cluster: &Cluster) -> Result<()> {
    let release = &cluster.release;
    let secure = "pod-security.kubernetes.io/enforce";
    let second = release.second_job_namespace();
    for (name, level) in
        [(&release.namespace, "restricted"), (&release.job_namespace, "baseline"), (&second, "baseline")]
    {
        let query = format!("jsonpath={{.metadata.labels.{}}}", MARK.replace('.', "\\."));
        let mut get = cluster.kubectl(["get", "namespace", name, "--ignore-not-found", "-o", "name"]);
        if capture(&mut get)?.trim().is_empty() {
            let labels = json!({MARK: release.name, secure: level});
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
            let file = dir.file("namespace.json");
            replace(&file, namespace.to_string())?;
            capture(cluster.kubectl(["create", "--filename"]).arg(&file))?;
        } else {
            let mark = capture(&mut cluster.kubectl(["get", "namespace", name, "-o", &query]))?;
            ensure!(
                mark == release.name,
                "the namespace {name} exists and is not this clone's: nothing is done"
            );
        }
    }
    Ok(())
}

/// Takes the release away. Repeated, it does what is left.
pub(super) fn remove(progress: &Progress, cluster: &Cluster) -> Result<()> {
    let release = &cluster.release;
    let place = ["--namespace", &release.namespace];
    if succeeds(cluster.command("helm").args(["status", &release.name]).args(place)) {
        let mut helm = cluster.command("helm");
        helm.args(["uninstall", &release.name, "--wait", "--timeout", "120s"]).args(place);
        capture(&mut helm)?;
    }
    // A client lives as long as its runtime.
    block_on(async { remove_classes(&client_of(&cluster.kubeconfig).await?, release).await })?;
    for name in [&release.second_job_namespace(), &release.job_namespace, &release.namespace] {
        let selector = format!("{MARK}={}", release.name);
        let field = format!("metadata.name={name}");
        let mut list = cluster.kubectl(["get", "namespaces", "-o", "name", "-l", &selector]);
        if capture(list.args(["--field-selector", &field]))?.trim().is_empty() {
            continue;
        }
        capture(cluster.kubectl(["delete", "namespace", name]).args(["--wait=true", "--timeout=180s"]))?;
    }
    let definitions =
        block_on(async { definitions::remove(&client_of(&cluster.kubeconfig).await?, release).await })?;
    if let Some(what) = definitions {
        progress.say(format_args!("cluster: {what}"));
    }
    Ok(())
}

/// Removes the release's classes, those that tests made too. A cluster without the definition has none.
async fn remove_classes(client: &Client, release: &Release) -> Result<()> {
    let classes: Api<JobClass> = Api::all(client.clone());
    let list = match classes.list(&ListParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        list => list.context("cannot list JobClasses")?,
    };
    for class in list.items {
        let name = class.metadata.name.unwrap_or_default();
        if name.starts_with(&release.class_prefix) {
            let deleted = classes.delete(&name, &DeleteParams::default()).await;
            deleted.with_context(|| format!("cannot remove the class {name}"))?;
        }
    }
    Ok(())
}
