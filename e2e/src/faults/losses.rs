//! The pod is taken away while another one could still do the same.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use kube::api::{DeleteParams, EvictParams, Patch, PatchParams};
use roadstead_crds::{CiJob, Reason};
use serde_json::json;

use super::judge::{BEGIN, Load, ended};
use super::{DEADLINE, Fault, Finding, SOON, Site, system_failure};
use crate::coordinator::JobSpec;
use crate::gitrepo::{Commit, GitRepo};
use crate::harness::RunningJob;

/// The faults.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "pod-deleted-at-start",
        what: "somebody deletes the pod as soon as there is one",
        right: "succeeds with every byte in another pod, and the script runs once",
        needs_host: false,
        alone: false,
        not_theirs: Some(MOMENT),
        run: |site| Box::pin(deleted_at_start(site)),
    },
    Fault {
        name: "pod-evicted-in-checkout",
        what: "the pod is evicted during the checkout, which the job lets be tried twice",
        right: "succeeds with every byte in another pod, and the script runs once",
        needs_host: false,
        alone: false,
        not_theirs: Some(MOMENT),
        run: |site| Box::pin(evicted_in_checkout(site)),
    },
    Fault {
        name: "pods-evicted-in-checkout",
        what: "the pod is evicted during the checkout, and the one that takes its place as well",
        right: "fails as the system's failure, and the job log says why",
        needs_host: false,
        alone: false,
        not_theirs: Some(MOMENT),
        run: |site| Box::pin(evicted_twice(site)),
    },
];

/// Why GitLab's own executor is left out.
const MOMENT: &str =
    "when its pod is there or takes another's place is read from Roadstead's object for the job";

/// A line of 10 numbers every 0.2 s, for 1 s.
const LOAD: Load = Load { chunks: 5, numbers: 10, pause: 2 };

/// Waits for the job's pod of that number, and gives its name.
pub async fn pod(site: &Site<'_>, job: i64, attempt: i32) -> Result<String> {
    let began = Instant::now();
    let name = loop {
        match site.bench.cijobs_of(job).await?.into_iter().next() {
            Some(job) => break job.metadata.name.context("a CiJob without a name")?,
            None if began.elapsed() > SOON => anyhow::bail!("there is no CiJob for {SOON:?}"),
            None => tokio::time::sleep(super::SHORT).await,
        }
    };
    let there = |job: Option<&CiJob>| {
        let pod = job.and_then(|job| job.status.as_ref()?.pod.as_ref());
        pod.is_some_and(|pod| pod.attempt == attempt && pod.uid.is_some())
    };
    let found = site.bench.wait_cijob(&name, "in a pod", SOON, there).await?;
    Ok(found.status.and_then(|status| status.pod).context("no pod")?.name)
}

/// A class whose pods go to no node before somebody lets them. No fault comes too late for their start.
pub async fn gated(site: &Site<'_>) -> Result<String> {
    let overlay = json!({"spec": {"schedulingGates": [{"name": "roadstead.test/fault"}]}});
    site.class(|class| class.spec.pod.overlay = overlay.as_object().cloned()).await
}

/// Lets the job's pod of that number go to a node.
pub async fn let_go(site: &Site<'_>, job: i64, attempt: i32) -> Result<()> {
    let name = pod(site, job, attempt).await?;
    let open = Patch::Merge(json!({"spec": {"schedulingGates": null}}));
    let patched = site.pods().patch(&name, &PatchParams::default(), &open).await;
    patched.context("cannot let the pod go").map(drop)
}

/// A job whose checkout says where it is, and comes to no end in the first so many pods.
pub fn slow_checkout(site: &Site<'_>, spec: JobSpec, pods: u32) -> Result<JobSpec> {
    let files = Commit::new("first").file("greeting", "hello\n");
    let repository = GitRepo::create(site.bench.dir().join(format!("{}.git", spec.id)), &[files])?;
    let served = site.bench.coordinator.serve(&format!("faults/{}", spec.id), &repository);
    Ok(spec
        .checkout(&served)
        .hook(
            "pre_get_sources_script",
            [
                "pod=$(cat /etc/hostname); echo checking out in $pod",
                &format!("if [ ${{pod##*-}} -le {pods} ]; then sleep 300; fi"),
            ],
        )
        .variable("EXECUTOR_JOB_SECTION_ATTEMPTS", "3"))
}

async fn evict(site: &Site<'_>, job: &RunningJob, id: i64, attempt: i32) -> Result<()> {
    let name = pod(site, id, attempt).await?;
    job.wait_log(&format!("checking out in {name}"), DEADLINE).await?;
    let options = Some(DeleteParams::default().grace_period(1));
    let soon = EvictParams { delete_options: options, ..EvictParams::default() };
    site.pods().evict(&name, &soon).await.context("cannot evict the pod").map(drop)
}

/// The job succeeded in its second pod.
async fn in_the_second(site: &Site<'_>, mut finding: Finding) -> Result<Finding> {
    let status = site.bench.cijob_of(finding.job).await?.status.context("a CiJob without a status")?;
    let attempt = status.pod.map(|pod| pod.attempt);
    if attempt != Some(2) || status.lost_pod.is_none() {
        finding.wrong.push(format!("it ended in pod {attempt:?} and had lost {:?}", status.lost_pod));
    }
    Ok(finding)
}

async fn deleted_at_start(site: &Site<'_>) -> Result<Finding> {
    let spec = LOAD.script(site.job()?);
    let job = site.start_in(&gated(site).await?, &spec).await?;
    let name = pod(site, spec.id, 1).await?;
    let soon = DeleteParams::default().grace_period(1);
    site.pods().delete(&name, &soon).await.context("cannot delete the pod")?;
    let since = Instant::now();
    let_go(site, spec.id, 2).await?;
    job.wait_log(&format!("{BEGIN}\n"), DEADLINE).await?;
    let recovery = since.elapsed();
    let result = job.finish(DEADLINE).await?;
    let mut finding = LOAD.judge(spec.id, &result, Some(recovery));
    if !result.text().contains("takes its place") {
        finding.wrong.push("the job log does not say that another pod takes its place".to_owned());
    }
    in_the_second(site, finding).await
}

async fn evicted_in_checkout(site: &Site<'_>) -> Result<Finding> {
    let spec = slow_checkout(site, LOAD.script(site.job()?), 1)?;
    let job = site.start(&spec).await?;
    evict(site, &job, spec.id, 1).await?;
    let since = Instant::now();
    let second = pod(site, spec.id, 2).await?;
    job.wait_log(&format!("checking out in {second}"), DEADLINE).await?;
    let recovery = since.elapsed();
    let finding = LOAD.judge(spec.id, &job.finish(DEADLINE).await?, Some(recovery));
    in_the_second(site, finding).await
}

async fn evicted_twice(site: &Site<'_>) -> Result<Finding> {
    let spec = slow_checkout(site, LOAD.script(site.job()?), 2)?;
    let job = site.start(&spec).await?;
    evict(site, &job, spec.id, 1).await?;
    evict(site, &job, spec.id, 2).await?;
    let since = Instant::now();
    let result = job.finish(DEADLINE).await?;
    let mut finding =
        ended(site, &result, system_failure, "evict", &[Reason::PodEvicted], since.elapsed()).await?;
    if since.elapsed() > Duration::from_secs(60) {
        finding.wrong.push("it ended only after a minute".to_owned());
    }
    Ok(finding)
}
