//! Waiting for the node, and bringing images to it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, anyhow};

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
    let blame =
        |error: Error, component: Component| anyhow!("{error:#}\n{}", explain(dir, cluster, component));
    wait::until("API server", API_DEADLINE, POLL, || {
        capture(&mut cluster.kubectl(["get", "--raw=/readyz"])).map(Some)
    })
    .map_err(|error| blame(error, Component::Apiserver))?;
    progress.say("kube-apiserver: ready");
    let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    wait::until("node", NODE_DEADLINE, POLL, || {
        let status = capture(&mut cluster.kubectl(["get", "node", &cluster.node, "-o", ready]))?;
        Ok((status == "True").then_some(()))
    })
    .map_err(|error| blame(error, Component::Kubelet))?;
    progress.say("kubelet: node Ready");
    // Without its account, a namespace refuses pods.
    wait::until("service account of the namespace default", NODE_DEADLINE, POLL, || {
        capture(&mut cluster.kubectl(["get", "serviceaccount", "default", "-o", "name"])).map(Some)
    })
    .map_err(|error| blame(error, Component::ControllerManager))?;
    Ok(())
}

/// Names the component that is at fault: the first one that does not run or had to be started again, or else the one
/// that was waited for. Its log says why; if it never came to write one, the supervisor's does.
fn explain(dir: &ClusterDir, cluster: &Cluster, awaited: Component) -> String {
    let status = match cluster.status() {
        Ok(status) => status,
        Err(error) => return format!("{error:#}; {}", quote(&dir.log("supervisor"))),
    };
    let name = unsteady(&status).unwrap_or(awaited.name());
    let log = dir.log(name);
    let empty = fs::metadata(&log).map_or(true, |meta| meta.len() == 0);
    let log = if empty { dir.log("supervisor") } else { log };
    format!("{status}\n{name}: {}", quote(&log))
}

/// The first component in a status text that is not simply running since its first start.
fn unsteady(status: &str) -> Option<&str> {
    status.lines().find_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            [_, "running", _, "1"] | [] => None,
            [name, ..] => Some(*name),
        }
    })
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

/// Takes away versions of the given images' repositories that are not among them, and images that have lost their
/// name to a newer one. What still runs from one keeps running: a container holds its own snapshot.
pub(super) fn remove_old_versions(cluster: &Cluster, images: &[Archive]) -> Result<()> {
    let listed = capture(&mut cluster.ctr(["images", "list"])?)?;
    for old in old_versions(&listed, images) {
        succeeds(&mut cluster.ctr(["images", "remove", old])?);
    }
    Ok(())
}

/// The entries to remove from `ctr images list` (columns: name, type, digest …). Beside each name there is an entry
/// `sha256:…` for the same digest, which Kubernetes made.
fn old_versions<'a>(listed: &'a str, images: &[Archive]) -> Vec<&'a str> {
    let entries = listed.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_whitespace();
        Some((columns.next()?, columns.nth(1)?))
    });
    let (unnamed, named): (Vec<_>, Vec<_>) = entries.partition(|(name, _)| name.starts_with("sha256:"));
    let is_old = |name: &str| {
        let same = |image: &Archive| repository(&image.reference) == repository(name);
        images.iter().any(same) && !images.iter().any(|image| image.reference == name)
    };
    let (old, kept): (Vec<_>, Vec<_>) = named.into_iter().partition(|(name, _)| is_old(name));
    let lost = unnamed.into_iter().filter(|(_, digest)| !kept.iter().any(|(_, own)| own == digest));
    old.into_iter().chain(lost).map(|(name, _)| name).collect()
}

fn repository(name: &str) -> &str {
    name.rsplit_once(':').map_or(name, |(repository, _)| repository)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restless_component_is_blamed() {
        let status = "etcd running 6 1\ncontainerd running 7 3\nkube-apiserver waiting - 0";
        assert_eq!(unsteady(status), Some("containerd"));
        assert_eq!(unsteady("etcd running 6 1\nkube-apiserver waiting - 0"), Some("kube-apiserver"));
        assert_eq!(unsteady("etcd running 6 1"), None);
    }

    #[test]
    fn other_tags_of_the_same_repository_and_nameless_images_are_old() {
        let image = Archive {
            name: "agent".into(),
            reference: "docker.io/roadstead/agent:2".into(),
            key: "k".into(),
            path: "/a".into(),
        };
        let listed = "REF TYPE DIGEST SIZE PLATFORMS LABELS\n\
                      docker.io/roadstead/agent:1 t sha256:a1 1 MiB linux/amd64 -\n\
                      docker.io/roadstead/agent:2 t sha256:a2 1 MiB linux/amd64 -\n\
                      docker.io/roadstead/agent2:1 t sha256:b1 1 MiB linux/amd64 -\n\
                      sha256:c1 t sha256:a1 1 MiB linux/amd64 -\n\
                      sha256:c2 t sha256:a2 1 MiB linux/amd64 -\n\
                      sha256:c3 t sha256:b1 1 MiB linux/amd64 -\n";
        assert_eq!(old_versions(listed, &[image]), ["docker.io/roadstead/agent:1", "sha256:c1"]);
    }
}
