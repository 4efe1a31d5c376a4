//! An administrator's hands in a job: its CiJob is deleted or edited, or the operator is taken away.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::conditions::is_deleted;
use kube::runtime::wait::await_condition;
use roadstead_crds::{CiJob, Reason};
use serde_json::{Value, json};

use super::judge::{BEGIN, Load, ended, final_reason};
use super::lifecycle::endless;
use super::losses::{gated, let_go, pod, slow_checkout};
use super::{DEADLINE, EVERY_BYTE, Fault, Finding, SOON, Site, system_failure};
use crate::exec::capture;

/// The faults.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "cijob-deleted-at-start",
        what: "somebody deletes the CiJob as soon as it has a pod",
        right: "succeeds with every byte: gitlab-runner prepares it again",
        needs_host: false,
        alone: false,
        not_theirs: Some("it has no object for a job"),
        run: |site| Box::pin(deleted_at_start(site)),
    },
    Fault {
        name: "cijob-deleted-in-queue",
        what: "somebody deletes the CiJob while it waits for room in its class",
        right: "succeeds with every byte when there is room: gitlab-runner prepares it again",
        needs_host: false,
        alone: false,
        not_theirs: Some("it has no object for a job"),
        run: |site| Box::pin(deleted_in_queue(site)),
    },
    Fault {
        name: "cijob-deleted-in-checkout",
        what: "somebody deletes the CiJob during the checkout",
        right: "fails as the system's failure, and the pod goes",
        needs_host: false,
        alone: false,
        not_theirs: Some("it has no object for a job"),
        run: |site| Box::pin(deleted_in_checkout(site)),
    },
    Fault {
        name: "cijob-edited",
        what: "somebody edits labels, annotations and the request of the CiJob while the job runs",
        right: EVERY_BYTE,
        needs_host: false,
        alone: false,
        not_theirs: Some("it has no object for a job"),
        run: |site| Box::pin(edited(site)),
    },
    Fault {
        name: "report-by-hand",
        what: "somebody writes into the CiJob that the job was canceled, while it runs",
        right: "ends at once, the CiJob says Canceled, and the pod goes",
        needs_host: false,
        alone: false,
        not_theirs: Some("it has no object for a job"),
        run: |site| Box::pin(reported_by_hand(site)),
    },
    Fault {
        name: "operator-away-at-the-end",
        what: "the operator is away while the job ends",
        right: "succeeds with every byte, and the operator says so and removes the pod when it is back",
        needs_host: false,
        alone: true,
        not_theirs: Some("it has no operator"),
        run: |site| Box::pin(away_at_the_end(site)),
    },
    Fault {
        name: "operator-away-as-pod-goes",
        what: "the operator is away while somebody deletes the pod",
        right: "fails as the system's failure when the operator is back, and the job log says why",
        needs_host: false,
        alone: true,
        not_theirs: Some("it has no operator"),
        run: |site| Box::pin(away_as_the_pod_goes(site)),
    },
];

/// A line of 10 numbers every 0.2 s, for 2 s.
const LOAD: Load = Load { chunks: 10, numbers: 10, pause: 2 };

async fn delete_cijob(site: &Site<'_>, job: i64) -> Result<()> {
    let name = name_of(site, job).await?;
    let deleted = site.bench.cijobs().delete(&name, &DeleteParams::default()).await;
    deleted.context("cannot delete the CiJob").map(drop)
}

async fn name_of(site: &Site<'_>, job: i64) -> Result<String> {
    site.bench.cijob_of(job).await?.metadata.name.context("a CiJob without a name")
}

async fn patch(site: &Site<'_>, name: &str, patch: Value) -> kube::Result<CiJob> {
    site.bench.cijobs().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
}

async fn deleted_at_start(site: &Site<'_>) -> Result<Finding> {
    let spec = LOAD.script(site.job()?);
    let job = site.start_in(&gated(site).await?, &spec).await?;
    pod(site, spec.id, 1).await?;
    delete_cijob(site, spec.id).await?;
    let since = Instant::now();
    // Its next CiJob's.
    let_go(site, spec.id, 1).await?;
    job.wait_log(&format!("{BEGIN}\n"), DEADLINE).await?;
    let recovery = since.elapsed();
    let result = job.finish(DEADLINE).await?;
    let mut finding = LOAD.judge(spec.id, &result, Some(recovery));
    if result.calls_of("prepare").len() != 2 {
        finding.wrong.push(format!("it was prepared {} times", result.calls_of("prepare").len()));
    }
    Ok(finding)
}

async fn deleted_in_queue(site: &Site<'_>) -> Result<Finding> {
    let class = site.class(|class| class.spec.concurrency.max = Some(1)).await?;
    let first = site.start_in(&class, &site.job()?.script(["echo running", "sleep 300"])).await?;
    first.wait_log("running\n", DEADLINE).await?;
    let spec = LOAD.script(site.job()?);
    let job = site.start_in(&class, &spec).await?;
    job.wait_log("Waiting for room", DEADLINE).await?;
    delete_cijob(site, spec.id).await?;
    job.wait_log("the job's CiJob was deleted while its pod started", DEADLINE).await?;
    first.abort();
    first.finish(DEADLINE).await?;
    let since = Instant::now();
    job.wait_log(&format!("{BEGIN}\n"), DEADLINE).await?;
    let recovery = since.elapsed();
    Ok(LOAD.judge(spec.id, &job.finish(DEADLINE).await?, Some(recovery)))
}

async fn deleted_in_checkout(site: &Site<'_>) -> Result<Finding> {
    let spec = slow_checkout(site, LOAD.script(site.job()?), 1)?;
    let job = site.start(&spec).await?;
    job.wait_log("checking out in cij-", DEADLINE).await?;
    delete_cijob(site, spec.id).await?;
    let since = Instant::now();
    let result = job.finish(DEADLINE).await?;
    ended(site, &result, system_failure, "the job's CiJob was deleted", &[], since.elapsed()).await
}

async fn edited(site: &Site<'_>) -> Result<Finding> {
    let spec = LOAD.script(site.job()?);
    let job = site.start(&spec).await?;
    job.wait_log(&format!("{BEGIN}\n"), DEADLINE).await?;
    let name = name_of(site, spec.id).await?;
    let notes = json!({"metadata": {"labels": {"kept": "yes"}, "annotations": {"note": "seen"}}});
    patch(site, &name, notes).await.context("cannot edit labels and annotations")?;
    let mut taken = Vec::new();
    for change in [json!({"request": {"timeoutSeconds": 1}}), json!({"request": null}), json!({"hold": true})]
    {
        if patch(site, &name, json!({"spec": change})).await.is_ok() {
            taken.push(change.to_string());
        }
    }
    let mut finding = LOAD.judge(spec.id, &job.finish(DEADLINE).await?, None);
    if !taken.is_empty() {
        finding.wrong.push(format!("the API server took {}", taken.join(", ")));
    }
    Ok(finding)
}

async fn reported_by_hand(site: &Site<'_>) -> Result<Finding> {
    let (spec, job) = endless(site).await?;
    let name = name_of(site, spec.id).await?;
    patch(site, &name, json!({"spec": {"report": {"outcome": "Canceled"}}}))
        .await
        .context("cannot report")?;
    let since = Instant::now();
    let result = job.finish(DEADLINE).await?;
    ended(site, &result, system_failure, "canceled", &[Reason::Canceled], since.elapsed()).await
}

/// The operators are away until this is dropped.
struct Away<'a> {
    site: &'a Site<'a>,
    replicas: String,
}

impl<'a> Away<'a> {
    fn take(site: &'a Site<'a>) -> Result<Self> {
        let (namespace, operator) = (site.bench.system_namespace(), site.bench.release().operator());
        let name = format!("deploy/{operator}");
        let replicas = ["get", &name, "--namespace", namespace, "--output", "jsonpath={.spec.replicas}"];
        let replicas = capture(&mut site.bench.cluster.kubectl(replicas))?;
        let away = Self { site, replicas: replicas.trim().to_owned() };
        ensure!(!away.replicas.is_empty(), "the operator has no number of replicas");
        away.scale("0")?;
        let selector = format!("--selector={}", super::components::OPERATOR);
        let gone = ["wait", "--for=delete", "pod", "--namespace", namespace, &selector, "--timeout=60s"];
        capture(&mut site.bench.cluster.kubectl(gone)).context("the operators do not go")?;
        Ok(away)
    }

    fn scale(&self, replicas: &str) -> Result<()> {
        let bench = self.site.bench;
        let (name, replicas) =
            (format!("deploy/{}", bench.release().operator()), format!("--replicas={replicas}"));
        let scale = ["scale", &name, "--namespace", bench.system_namespace(), &replicas];
        capture(&mut bench.cluster.kubectl(scale)).context("cannot scale the operator").map(drop)
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        // That it is not back is told by whoever waits for it next.
        let _ = self.scale(&self.replicas);
    }
}

async fn away_at_the_end(site: &Site<'_>) -> Result<Finding> {
    let load = Load { chunks: 40, ..LOAD };
    let spec = load.script(site.job()?);
    let job = site.start(&spec).await?;
    job.wait_log(&format!("{BEGIN}\n"), DEADLINE).await?;
    let away = Away::take(site)?;
    let mut finding = load.judge(spec.id, &job.finish(DEADLINE).await?, None);
    drop(away);
    let since = Instant::now();
    let reason = final_reason(site, spec.id).await?;
    finding.recovery = Some(since.elapsed());
    if reason != Some(Reason::Succeeded) {
        finding.wrong.push(format!("the CiJob says {reason:?}"));
    }
    Ok(finding)
}

async fn away_as_the_pod_goes(site: &Site<'_>) -> Result<Finding> {
    let (spec, job) = endless(site).await?;
    let away = Away::take(site)?;
    let name = site.pod_of(spec.id).await?;
    let uid = site.pods().get(&name).await.context("cannot read the pod")?.metadata.uid.unwrap_or_default();
    let soon = DeleteParams::default().grace_period(1);
    site.pods().delete(&name, &soon).await.context("cannot delete the pod")?;
    let gone = tokio::time::timeout(SOON, await_condition(site.pods(), &name, is_deleted(&uid))).await;
    gone.context("the pod does not go")?.context("the watch failed")?;
    drop(away);
    let since = Instant::now();
    let result = job.finish(DEADLINE).await?;
    ended(site, &result, system_failure, "gone", &[Reason::PodDeleted], since.elapsed()).await
}
