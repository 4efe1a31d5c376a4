//! Waiting for the node, and bringing images to it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cluster::{Cluster, Component};
use crate::exec::{capture, quote, succeeds};
use crate::images::Archive;
use crate::progress::Progress;
use crate::state::{ClusterDir, replace};
use crate::wait;

/// From the supervisor's start to an API server that is ready, on a machine that compiles at the same time.
const API_DEADLINE: Duration = Duration::from_secs(120);
/// From there to a ready node.
const NODE_DEADLINE: Duration = Duration::from_secs(120);
/// A kubectl call costs about a tenth of a second by itself.
const POLL: Duration = Duration::from_millis(100);

pub(super) fn wait_ready(progress: &Progress, dir: &ClusterDir, cluster: &Cluster) -> Result<()> {
    let blame = |component: Component| quote(&dir.log(component.name()));
    wait::until("API server", API_DEADLINE, POLL, || {
        capture(&mut cluster.kubectl(["get", "--raw=/readyz"])).map(Some)
    })
    .with_context(|| blame(Component::Apiserver))?;
    progress.say("kube-apiserver: ready");
    let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    wait::until("node", NODE_DEADLINE, POLL, || {
        let status = capture(&mut cluster.kubectl(["get", "node", &cluster.node, "-o", ready]))?;
        Ok((status == "True").then_some(()))
    })
    .with_context(|| blame(Component::Kubelet))?;
    progress.say("kubelet: node Ready");
    // Without its account, a namespace refuses pods.
    wait::until("service account of the namespace default", NODE_DEADLINE, POLL, || {
        capture(&mut cluster.kubectl(["get", "serviceaccount", "default", "-o", "name"])).map(Some)
    })
    .with_context(|| blame(Component::ControllerManager))?;
    Ok(())
}

/// Which version of which image was imported: the image's name and its key.
type Imported = BTreeMap<String, String>;

pub(super) fn load_images(
    progress: &Progress,
    dir: &ClusterDir,
    cluster: &Cluster,
    images: &[Archive],
) -> Result<()> {
    let record = dir.file("images.json");
    let mut imported: Imported =
        fs::read(&record).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let listed = capture(&mut cluster.ctr(["images", "list", "--quiet"])?)?;
    let there: Vec<&str> = listed.lines().collect();
    for image in images {
        if imported.get(&image.reference) == Some(&image.key) && there.contains(&image.reference.as_str()) {
            continue;
        }
        import(cluster, &image.path)
            .with_context(|| format!("cannot import the image {}", image.reference))?;
        imported.insert(image.reference.clone(), image.key.clone());
        let text = serde_json::to_vec_pretty(&imported).context("cannot record the images")?;
        replace(&record, text)?;
        progress.say(format_args!("images: imported {}", image.reference));
    }
    Ok(())
}

fn import(cluster: &Cluster, archive: &Path) -> Result<()> {
    let path = archive.to_str().context("the archive's path is not UTF-8")?;
    capture(&mut cluster.ctr(["images", "import", "--all-platforms", path])?).map(drop)
}

/// Takes away versions of the given images' repositories that are not among them. What still runs from one keeps
/// running: a container holds its own snapshot.
pub(super) fn remove_old_versions(cluster: &Cluster, images: &[Archive]) -> Result<()> {
    let listed = capture(&mut cluster.ctr(["images", "list", "--quiet"])?)?;
    for old in old_versions(listed.lines(), images) {
        succeeds(&mut cluster.ctr(["images", "remove", old])?);
    }
    Ok(())
}

fn old_versions<'a>(there: impl Iterator<Item = &'a str>, images: &[Archive]) -> Vec<&'a str> {
    let repository = |name: &'a str| name.rsplit_once(':').map_or(name, |(repository, _)| repository);
    there
        .filter(|name| {
            let same = |image: &&Archive| {
                image.reference.rsplit_once(':').map(|(own, _)| own) == Some(repository(name))
            };
            images.iter().any(|image| same(&image)) && !images.iter().any(|image| image.reference == *name)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_tags_of_the_same_repository_are_old() {
        let image = |reference: &str| Archive {
            name: "agent".into(),
            reference: reference.into(),
            key: "k".into(),
            path: "/a".into(),
        };
        let images = [image("docker.io/roadstead/agent:2")];
        let there =
            ["docker.io/roadstead/agent:1", "docker.io/roadstead/agent:2", "docker.io/roadstead/agent2:1"];
        assert_eq!(old_versions(there.into_iter(), &images), ["docker.io/roadstead/agent:1"]);
    }
}
