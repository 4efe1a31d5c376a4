//! The node, or the cluster for its sake, takes a job's pod away, and the job has to be told why.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Pod, Toleration};
use kube::api::{Patch, PatchParams};
use kube::runtime::wait::await_condition;
use roadstead_crds::{Reason, labels};
use serde_json::json;

use super::components::Back;
use super::judge::{BEGIN, Load, ended, longest_silence};
use super::objects::Applied;
use super::{DEADLINE, EVERY_BYTE, Fault, Finding, SHORT, SOON, Site, system_failure};
use crate::cluster::{Action, Cluster, Component};
use crate::coordinator::JobSpec;
use crate::exec::capture;
use crate::harness::{Outcome, RunningJob};

/// The faults.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "node-lost",
        what: "the kubelet is away and the cluster gives the node up",
        right: "fails as the system's failure, and the job log names the node; its pod goes when the node is back",
        needs_host: true,
        alone: true,
        not_theirs: Some("its pods tolerate a lost node for five minutes, and no setting of it changes that"),
        run: |site| Box::pin(node_lost(site)),
    },
    Fault {
        name: "node-drained",
        what: "`kubectl drain` empties the node of the job's pod, whose script does not listen",
        right: "fails as the system's failure, and the job log says why at once",
        needs_host: true,
        alone: true,
        not_theirs: None,
        run: |site| Box::pin(node_drained(site)),
    },
    Fault {
        name: "preempted",
        what: "a pod of a higher PriorityClass takes the place of the job's",
        right: "fails as the system's failure, and the job log says why",
        needs_host: true,
        alone: false,
        not_theirs: Some("it cannot ask for the resource that the two pods want"),
        run: |site| Box::pin(preempted(site)),
    },
    Fault {
        name: "storage-exceeded",
        what: "the script writes more than its container's limit of ephemeral storage",
        right: "fails as the author's mistake, and the job log names the limit and how to ask for more",
        needs_host: true,
        alone: false,
        not_theirs: None,
        run: |site| Box::pin(storage_exceeded(site)),
    },
    Fault {
        name: "sandbox-killed",
        what: "the process that holds the pod's namespaces gets SIGKILL",
        right: "fails as the system's failure",
        needs_host: true,
        alone: false,
        not_theirs: None,
        run: |site| Box::pin(sandbox_killed(site)),
    },
    Fault {
        name: "image-removed",
        what: "the job's image is removed from the node while the job runs",
        right: EVERY_BYTE,
        needs_host: true,
        alone: false,
        not_theirs: None,
        run: |site| Box::pin(image_removed(site)),
    },
];

/// How soon after the cluster knows it the job log has to say it. The kubelet takes up to two seconds of it to tell the
/// containers (it works on a pod about once a second, and these have just begun), the shim 0.3 s; the rest is for a busy
/// machine.
const TOLD_WITHIN: Duration = Duration::from_secs(4);

/// A line of 10 numbers every 0.2 s, for 3 s.
const SHORT_LOAD: Load = Load { chunks: 15, numbers: 10, pause: 2 };

/// A resource that the node has once.
const BERTH: &str = "roadstead.test/berth";

/// A script that runs until something ends it, and that no SIGTERM ends.
fn deaf(site: &Site<'_>) -> Result<JobSpec> {
    let script = ["trap '' TERM; echo run''ning", "i=0; while [ $i -lt 300 ]; do sleep 1; i=$((i+1)); done"];
    Ok(site.job()?.script(script))
}

/// Whether the cluster has decided that the pod ends.
fn given_up(pod: Option<&Pod>) -> bool {
    let Some(pod) = pod else { return true };
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    pod.metadata.deletion_timestamp.is_some()
        || status.and_then(|status| status.phase.as_deref()) == Some("Failed")
        || conditions.iter().any(|one| one.type_ == "DisruptionTarget" && one.status == "True")
}

/// Waits until the cluster knows that the pod ends, and then until the job log says why. How long the second took.
async fn told(site: &Site<'_>, job: &RunningJob, pod: &str, words: &str) -> Result<Duration> {
    let known = tokio::time::timeout(SOON, await_condition(site.pods(), pod, given_up)).await;
    known.context("the cluster keeps the pod")?.context("the watch failed")?;
    let since = Instant::now();
    if site.is_ours() {
        job.wait_log(words, SOON).await?;
    }
    Ok(since.elapsed())
}

/// Adds to a finding how soon the job log said why.
fn in_time(mut finding: Finding, after: Duration) -> Finding {
    finding.recovery = Some(after);
    if after > TOLD_WITHIN {
        finding.wrong.push(format!("the job log said why only after {:.1} s", after.as_secs_f64()));
    }
    finding
}

/// How a job has to end that the cluster took away.
async fn taken_away(site: &Site<'_>, job: RunningJob, pod: &str, words: &str) -> Result<Finding> {
    let after = told(site, &job, pod, words).await?;
    let since = Instant::now();
    let result = job.finish(DEADLINE).await?;
    if !site.is_ours() {
        return ended(site, &result, system_failure, words, &[], after + since.elapsed()).await;
    }
    let reasons = [Reason::PodEvicted];
    Ok(in_time(ended(site, &result, system_failure, words, &reasons, after).await?, after))
}

/// The taint with which the cluster's node controller gives a node up. Where no node is left at all it does not, so
/// this does.
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Takes the taint away again, whatever happens to the one who put it.
struct Tainted<'a>(&'a Cluster);

impl Drop for Tainted<'_> {
    fn drop(&mut self) {
        let taint = format!("{UNREACHABLE}:NoExecute-");
        // The node controller may have been faster.
        let _ = capture(&mut self.0.kubectl(["taint", "node", &self.0.node, &taint]));
    }
}

async fn node_lost(site: &Site<'_>) -> Result<Finding> {
    let class = site
        .class(|class| {
            class.spec.pod.tolerations = vec![Toleration {
                key: Some(UNREACHABLE.to_owned()),
                operator: Some("Exists".to_owned()),
                effect: Some("NoExecute".to_owned()),
                toleration_seconds: Some(0),
                ..Toleration::default()
            }];
        })
        .await?;
    let spec = deaf(site)?;
    let job = site.start_in(&class, &spec).await?;
    job.wait_log("running", DEADLINE).await?;
    let pod = site.pod_of(spec.id).await?;
    let cluster = &site.bench.cluster;
    let _back = Back::of(cluster, Component::Kubelet);
    cluster.control(Action::Stop, Component::Kubelet)?;
    let _reachable = Tainted(cluster);
    let taint = format!("{UNREACHABLE}=:NoExecute");
    capture(&mut cluster.kubectl(["taint", "node", &cluster.node, &taint]))?;
    taken_away(site, job, &pod, &format!("on node \"{}\"", cluster.node)).await
}

/// Lets pods onto the node again, whatever happens to the one who closed it.
struct Uncordoned<'a>(&'a Site<'a>);

impl Drop for Uncordoned<'_> {
    fn drop(&mut self) {
        let cluster = &self.0.bench.cluster;
        // Whoever comes next is told by its own failure.
        let _ = capture(&mut cluster.kubectl(["uncordon", &cluster.node]));
    }
}

async fn node_drained(site: &Site<'_>) -> Result<Finding> {
    let spec = deaf(site)?;
    let job = site.start(&spec).await?;
    job.wait_log("running", DEADLINE).await?;
    let pod = site.pod_of(spec.id).await?;
    let cluster = &site.bench.cluster;
    let _open = Uncordoned(site);
    let label = if site.is_ours() { labels::JOB_ID } else { "drained" };
    if !site.is_ours() {
        let mark = Patch::Merge(json!({"metadata": {"labels": {label: spec.id.to_string()}}}));
        site.pods().patch(&pod, &PatchParams::default(), &mark).await.context("cannot mark the pod")?;
    }
    let selector = format!("--pod-selector={label}={}", spec.id);
    let mut drain = tokio::process::Command::from(cluster.kubectl([
        "drain",
        &cluster.node,
        &selector,
        "--force",
        "--delete-emptydir-data",
        "--timeout=60s",
    ]));
    let drained = async { drain.output().await.context("cannot start kubectl") };
    let (finding, drained) = tokio::try_join!(taken_away(site, job, &pod, "Eviction API"), drained)?;
    if !drained.status.success() {
        bail!("kubectl drain: {}", String::from_utf8_lossy(&drained.stderr));
    }
    Ok(finding)
}

async fn preempted(site: &Site<'_>) -> Result<Finding> {
    let node = &site.bench.cluster.node;
    let capacity = json!({"status": {"capacity": {BERTH: "1"}}}).to_string();
    let one = ["patch", "node", node, "--subresource=status", "--type=merge", "--patch", &capacity];
    capture(&mut site.bench.cluster.kubectl(one))?;
    let class = site
        .class(|class| {
            class.spec.resources.build.limits.insert(BERTH.to_owned(), "1".to_owned());
        })
        .await?;
    let spec = deaf(site)?;
    let job = site.start_in(&class, &spec).await?;
    job.wait_log("running", DEADLINE).await?;
    let pod = site.pod_of(spec.id).await?;
    let name = format!("roadstead-fault-{}", spec.id);
    let priority = json!({
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": name},
        "value": 1000,
    });
    let image = site.bench.image("busybox")?;
    let other = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": site.namespace()},
        "spec": {
            "priorityClassName": name,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "other",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "60"],
                "resources": {"limits": {BERTH: "1"}},
            }],
        },
    });
    let _there = Applied::new(site, "preemption.json", &[priority, other])?;
    taken_away(site, job, &pod, "higher priority").await
}

async fn storage_exceeded(site: &Site<'_>) -> Result<Finding> {
    let spec = site.job()?.script([
        "echo run''ning",
        "dd if=/dev/zero of=/much bs=1048576 count=96",
        "i=0; while [ $i -lt 120 ]; do sleep 1; i=$((i+1)); done",
    ]);
    let job = site.start_with_limit(&spec, "ephemeral-storage", "32Mi").await?;
    job.wait_log("running", DEADLINE).await?;
    let pod = site.pod_of(spec.id).await?;
    // The kubelet finds either the container or the whole pod above the limit.
    let words = "32Mi of ephemeral storage";
    let after = told(site, &job, &pod, words).await?;
    let since = Instant::now();
    let result = job.finish(DEADLINE).await?;
    if !site.is_ours() {
        // Whose mistake it is said to be is not held against it.
        let failed = |outcome: &Outcome| *outcome != Outcome::Success;
        return ended(site, &result, failed, words, &[], after + since.elapsed()).await;
    }
    let users = |outcome: &Outcome| matches!(outcome, Outcome::ScriptFailure { .. });
    let finding = ended(site, &result, users, words, &[Reason::StorageExceeded], after).await?;
    let mut finding = in_time(finding, after);
    if !result.text().contains("KUBERNETES_EPHEMERAL_STORAGE_LIMIT") {
        finding.wrong.push("the job log does not name the variable".to_owned());
    }
    Ok(finding)
}

async fn sandbox_killed(site: &Site<'_>) -> Result<Finding> {
    let spec = deaf(site)?;
    let job = site.start(&spec).await?;
    job.wait_log("running", DEADLINE).await?;
    let name = site.pod_of(spec.id).await?;
    let pod = site.pods().get(&name).await.context("cannot read the pod")?;
    let uid = pod.metadata.uid.context("a pod without UID")?;
    let filter =
        format!("labels.\"io.kubernetes.pod.uid\"=={uid},labels.\"io.cri-containerd.kind\"==sandbox");
    let sandbox = capture(&mut site.bench.cluster.ctr(["containers", "ls", "--quiet", &filter])?)?;
    let sandbox = sandbox.trim();
    if sandbox.is_empty() || sandbox.contains('\n') {
        bail!("the runtime does not have one sandbox of the pod but {sandbox:?}");
    }
    capture(&mut site.bench.cluster.ctr(["tasks", "kill", "--signal", "SIGKILL", sandbox])?)?;
    let since = Instant::now();
    let result = job.finish(DEADLINE).await?;
    ended(site, &result, system_failure, "running", &[Reason::ContainerTerminated], since.elapsed()).await
}

async fn image_removed(site: &Site<'_>) -> Result<Finding> {
    let load = SHORT_LOAD;
    let mut spec = JobSpec::fresh();
    let image = format!("roadstead.test/removed:{}", spec.id);
    let busybox = site.bench.image("busybox")?;
    let cluster = &site.bench.cluster;
    capture(&mut cluster.ctr(["images", "tag", busybox, &image])?)?;
    spec = load.script(spec.image(&image));
    let job = site.start(&spec).await?;
    job.wait_log(&format!("{BEGIN}\n"), DEADLINE).await?;
    capture(&mut cluster.ctr(["images", "rm", "--sync", &image])?)?;
    let since = Instant::now();
    while capture(&mut cluster.ctr(["images", "ls", "--quiet"])?)?.lines().any(|line| line == image) {
        if since.elapsed() > SOON {
            bail!("the node keeps the image {image}");
        }
        tokio::time::sleep(SHORT).await;
    }
    let recovery = longest_silence(&job).await?;
    Ok(load.judge(spec.id, &job.finish(DEADLINE).await?, Some(recovery)))
}
