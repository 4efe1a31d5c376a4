//! Somebody ends a part of a job: its pod, its object, its process, its client.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, EvictParams};
use kube::runtime::wait::await_condition;
use roadstead_crds::Reason;
use roadstead_crds::labels::BUILD_CONTAINER;

use super::judge::{ended, final_reason};
use super::{DEADLINE, Fault, Finding, SOON, Site, system_failure};
use crate::coordinator::JobSpec;
use crate::exec::capture;
use crate::harness::{Outcome, RunningJob};

/// The faults.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "shell-killed",
        what: "the script's shell gets SIGKILL",
        right: "fails with exit code 137 at once",
        needs_host: false,
        alone: false,
        not_theirs: None,
        run: |site| Box::pin(shell_killed(site)),
    },
    Fault {
        name: "out-of-memory",
        what: "the script takes more memory than its container may have",
        right: "fails with exit code 137, and the job log says why",
        needs_host: false,
        alone: false,
        not_theirs: None,
        run: |site| Box::pin(out_of_memory(site)),
    },
    Fault {
        name: "container-killed",
        what: "the first process of the build container gets SIGKILL from outside",
        right: "fails as the system's failure, and what the script had said is delivered",
        needs_host: true,
        alone: false,
        not_theirs: None,
        run: |site| Box::pin(container_killed(site)),
    },
    Fault {
        name: "pod-deleted",
        what: "somebody deletes the pod",
        right: "fails as the system's failure, and the job log says why",
        needs_host: false,
        alone: false,
        not_theirs: None,
        run: |site| Box::pin(pod_deleted(site)),
    },
    Fault {
        name: "pod-evicted",
        what: "the pod is evicted, as when its node is drained",
        right: "fails as the system's failure, and the job log says why",
        needs_host: false,
        alone: false,
        not_theirs: None,
        run: |site| Box::pin(pod_evicted(site)),
    },
    Fault {
        name: "cijob-deleted",
        what: "somebody deletes the CiJob",
        right: "fails as the system's failure, and the pod goes",
        needs_host: false,
        alone: false,
        not_theirs: Some("it has no object for a job"),
        run: |site| Box::pin(cijob_deleted(site)),
    },
    Fault {
        name: "runner-killed",
        what: "gitlab-runner gets SIGKILL; the shim lives on",
        right: "ends within the class's orphan time as ClientLost",
        needs_host: false,
        alone: false,
        not_theirs: None,
        run: |site| Box::pin(client_lost(site, false)),
    },
    Fault {
        name: "runner-and-shim-killed",
        what: "gitlab-runner and the shim get SIGKILL, as when their machine is gone",
        right: "ends within the class's orphan time as ClientLost",
        needs_host: false,
        alone: false,
        not_theirs: Some("it has no shim"),
        run: |site| Box::pin(client_lost(site, true)),
    },
];

fn killed(outcome: &Outcome) -> bool {
    *outcome == Outcome::ScriptFailure { exit_code: 137 }
}

/// A job that runs until something ends it.
pub(super) async fn endless(site: &Site<'_>) -> Result<(JobSpec, RunningJob)> {
    let spec = site.job()?.script(["echo run''ning", "sleep 300"]);
    let job = site.start(&spec).await?;
    job.wait_log("running", DEADLINE).await?;
    Ok((spec, job))
}

async fn shell_killed(site: &Site<'_>) -> Result<Finding> {
    let spec = site.job()?.script(["echo run''ning", "kill -9 $$", "sleep 300"]);
    let job = site.start(&spec).await?;
    job.wait_log("running", DEADLINE).await?;
    let since = Instant::now();
    let result = job.finish(DEADLINE).await?;
    ended(site, &result, killed, "running", &[Reason::ScriptFailed], since.elapsed()).await
}

async fn out_of_memory(site: &Site<'_>) -> Result<Finding> {
    let spec = site.job()?.script(["echo run''ning", "dd if=/dev/zero of=/dev/null bs=268435456 count=1"]);
    let job = site.start_with_limit(&spec, "memory", "64Mi").await?;
    job.wait_log("running", DEADLINE).await?;
    let since = Instant::now();
    let result = job.finish(DEADLINE).await?;
    // Which of the two it is depends on the control groups: v1 kills the process, v2 the container.
    ended(site, &result, killed, "memory", &[Reason::ScriptFailed, Reason::OutOfMemory], since.elapsed())
        .await
}

async fn container_killed(site: &Site<'_>) -> Result<Finding> {
    let (spec, job) = endless(site).await?;
    let name = site.pod_of(spec.id).await?;
    // The kubelet reports it later than the job runs in it.
    let known = |pod: Option<&Pod>| pod.and_then(build_container).is_some();
    let pod = tokio::time::timeout(SOON, await_condition(site.pods(), &name, known)).await;
    let pod = pod.context("the kubelet does not say which container it is")?.context("the watch failed")?;
    let id = pod.as_ref().and_then(build_container).context("the pod is gone")?;
    capture(&mut site.bench.cluster.ctr(["tasks", "kill", "--signal", "SIGKILL", &id])?)?;
    let since = Instant::now();
    let result = job.finish(DEADLINE).await?;
    ended(site, &result, system_failure, "running", &[Reason::ContainerTerminated], since.elapsed()).await
}

/// The container runtime's name of the build container.
fn build_container(pod: &Pod) -> Option<String> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    let id = containers.iter().find(|container| container.name == BUILD_CONTAINER)?.container_id.as_ref()?;
    Some(id.trim_start_matches("containerd://").to_owned())
}

async fn pod_deleted(site: &Site<'_>) -> Result<Finding> {
    let (spec, job) = endless(site).await?;
    let pod = site.pod_of(spec.id).await?;
    let soon = DeleteParams::default().grace_period(1);
    site.pods().delete(&pod, &soon).await.context("cannot delete the pod")?;
    let since = Instant::now();
    let result = job.finish(DEADLINE).await?;
    ended(site, &result, system_failure, "deleted", &[Reason::PodDeleted], since.elapsed()).await
}

async fn pod_evicted(site: &Site<'_>) -> Result<Finding> {
    let (spec, job) = endless(site).await?;
    let pod = site.pod_of(spec.id).await?;
    let soon = EvictParams {
        delete_options: Some(DeleteParams::default().grace_period(1)),
        ..EvictParams::default()
    };
    site.pods().evict(&pod, &soon).await.context("cannot evict the pod")?;
    let since = Instant::now();
    let result = job.finish(DEADLINE).await?;
    ended(site, &result, system_failure, "evict", &[Reason::PodEvicted], since.elapsed()).await
}

async fn cijob_deleted(site: &Site<'_>) -> Result<Finding> {
    let (spec, job) = endless(site).await?;
    let name = site.bench.cijob_of(spec.id).await?.metadata.name.unwrap_or_default();
    let cijobs = site.bench.cijobs();
    cijobs.delete(&name, &DeleteParams::default()).await.context("cannot delete the CiJob")?;
    let since = Instant::now();
    let result = job.finish(DEADLINE).await?;
    ended(site, &result, system_failure, "deleted", &[], since.elapsed()).await
}

async fn client_lost(site: &Site<'_>, with_shim: bool) -> Result<Finding> {
    let orphan = Duration::from_secs(10);
    let spec = site.job()?.script(["echo run''ning", "sleep 300"]);
    let job = if site.is_ours() {
        let class = site.class(|class| class.spec.timeouts.orphan_seconds = 10).await?;
        site.start_in(&class, &spec).await?
    } else {
        site.start(&spec).await?
    };
    job.wait_log("running", DEADLINE).await?;
    job.kill_runner();
    let result = job.finish(DEADLINE).await?;
    if with_shim {
        result.orphan.as_ref().context("no shim was running")?.kill();
    }
    if !site.is_ours() {
        // Nobody tells the job's end; that its pod goes is judged as for every job.
        return Ok(Finding { job: spec.id, ..Finding::default() });
    }
    let since = Instant::now();
    let reason = final_reason(site, spec.id).await?;
    let recovery = since.elapsed();
    let mut finding = Finding { job: spec.id, recovery: Some(recovery), ..Finding::default() };
    if reason != Some(Reason::ClientLost) {
        finding.wrong.push(format!("the CiJob says {reason:?}"));
    }
    // A shim that lives on stops the script first, within its grace.
    let grace = if with_shim { Duration::ZERO } else { Duration::from_secs(15) };
    if recovery > orphan + grace + Duration::from_secs(15) {
        finding.wrong.push(format!("it ended only after {:.1} s", recovery.as_secs_f64()));
    }
    Ok(finding)
}
