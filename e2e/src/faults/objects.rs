//! The job's image is not to be had, or somebody writes into the job's objects.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::wait::await_condition;
use roadstead_crds::{CiJob, Reason};
use serde_json::{Value, json};

use super::judge::{BEGIN, Load, ended, longest_silence};
use super::{DEADLINE, Fault, Finding, SOON, Site, is_ready, system_failure};
use crate::exec::capture;
use crate::harness::Outcome;

/// The faults.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "registry-down",
        what: "the registry of the job's image refuses connections",
        right: "fails as the system's failure, with the node's own words",
        needs_host: false,
        alone: false,
        not_theirs: None,
        run: |site| Box::pin(registry_down(site)),
    },
    Fault {
        name: "registry-asks-for-credentials",
        what: "the registry of the job's image answers that it wants credentials",
        right: "fails as the author's mistake within seconds, with the registry's own words",
        needs_host: true,
        alone: false,
        not_theirs: None,
        run: |site| Box::pin(registry_asks(site)),
    },
    Fault {
        name: "status-removed",
        what: "somebody removes the CiJob's status while the job runs and its class is full",
        right: "succeeds with every byte, in the same pod, and the script runs once",
        needs_host: false,
        alone: false,
        not_theirs: Some("it has no object for a job"),
        run: |site| Box::pin(status_removed(site)),
    },
];

/// A line of 10 numbers every 0.2 s, for 3 s.
const SHORT_LOAD: Load = Load { chunks: 15, numbers: 10, pause: 2 };

/// Objects that are there until this is dropped.
pub(super) struct Applied<'a> {
    site: &'a Site<'a>,
    file: String,
}

impl<'a> Applied<'a> {
    pub(super) fn new(site: &'a Site<'a>, name: &str, objects: &[Value]) -> Result<Self> {
        let path = site.bench.dir().join(name);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        fs::write(&path, list.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
        let applied = Self { site, file: path.display().to_string() };
        capture(&mut site.bench.cluster.kubectl(["apply", "--filename", &applied.file]))?;
        Ok(applied)
    }
}

impl Drop for Applied<'_> {
    fn drop(&mut self) {
        let delete = ["delete", "--ignore-not-found", "--wait=false", "--filename", &self.file];
        // Whoever comes next is told by its own failure.
        let _ = capture(&mut self.site.bench.cluster.kubectl(delete));
    }
}

async fn registry_down(site: &Site<'_>) -> Result<Finding> {
    // Nobody listens on the node's port 1.
    let spec = site.job()?.image("localhost:1/none:1").script(["true"]);
    let since = Instant::now();
    let result = site.start(&spec).await?.finish(DEADLINE).await?;
    let words = "connection refused";
    ended(site, &result, system_failure, words, &[Reason::ImagePullFailed], since.elapsed()).await
}

/// How soon a registry's answer has to have ended the job.
const ANSWERED_WITHIN: Duration = Duration::from_secs(15);

/// A pod that answers on the node's loopback: to no other address does a container runtime speak plain HTTP.
fn locked_registry(name: &str, image: &str, port: u16) -> Value {
    let serve =
        format!("echo /:somebody:secret > /tmp/locked; exec httpd -f -p 127.0.0.1:{port} -c /tmp/locked");
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        // Job namespaces allow no pod in the node's network.
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "hostNetwork": true,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "registry",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", serve],
                "readinessProbe": {"tcpSocket": {"host": "127.0.0.1", "port": port}, "periodSeconds": 1},
            }],
        },
    })
}

async fn registry_asks(site: &Site<'_>) -> Result<Finding> {
    let spec = site.job()?.script(["true"]);
    let port = site.random.clone().u16(20_000..30_000);
    let name = format!("roadstead-fault-{}", spec.id);
    let registry = locked_registry(&name, site.bench.image("busybox")?, port);
    let _there = Applied::new(site, "registry.json", &[registry])?;
    let pods: Api<Pod> = Api::namespaced(site.bench.client.clone(), "default");
    let serves = tokio::time::timeout(SOON, await_condition(pods, &name, is_ready)).await;
    serves.context("the registry does not serve")?.context("the watch failed")?;
    let spec = spec.image(format!("localhost:{port}/kept:1"));
    let job = site.start(&spec).await?;
    let since = Instant::now();
    let result = job.finish(DEADLINE).await?;
    let after = since.elapsed();
    if !site.is_ours() {
        // Whose mistake it is said to be is not held against it.
        return ended(site, &result, |outcome| *outcome != Outcome::Success, "", &[], after).await;
    }
    let users = |outcome: &Outcome| matches!(outcome, Outcome::ScriptFailure { .. });
    let mut finding =
        ended(site, &result, users, "401 Unauthorized", &[Reason::ImageNotFound], after).await?;
    if after > ANSWERED_WITHIN {
        finding.wrong.push(format!("it ended only after {:.1} s", after.as_secs_f64()));
    }
    Ok(finding)
}

async fn status_removed(site: &Site<'_>) -> Result<Finding> {
    // The job itself is all that its class has room for.
    let class = site.class(|class| class.spec.concurrency.max = Some(1)).await?;
    let spec = SHORT_LOAD.script(site.job()?);
    let job = site.start_in(&class, &spec).await?;
    job.wait_log(&format!("{BEGIN}\n"), DEADLINE).await?;
    let before = site.bench.cijob_of(spec.id).await?;
    let name = before.metadata.name.unwrap_or_default();
    let before = before.status.and_then(|status| status.pod).context("the job has no pod")?;
    let nothing = Patch::Merge(json!({"status": null}));
    site.bench
        .cijobs()
        .patch_status(&name, &PatchParams::default(), &nothing)
        .await
        .context("cannot remove the status")?;
    let there = |job: Option<&CiJob>| {
        let pod = job.and_then(|job| job.status.as_ref()?.pod.as_ref());
        pod.is_some_and(|pod| pod.node.is_some())
    };
    let after = site.bench.wait_cijob(&name, "in a pod again", SOON, there).await?;
    let recovery = longest_silence(&job).await?;
    let mut finding = SHORT_LOAD.judge(spec.id, &job.finish(DEADLINE).await?, Some(recovery));
    let after = after.status.and_then(|status| status.pod);
    if after.as_ref() != Some(&before) {
        finding.wrong.push(format!("it was in {before:?} and is in {after:?}"));
    }
    Ok(finding)
}
