//! What happens where there is no room: concurrency of a class, quotas of a namespace.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use roadstead_crds::jobclass::{ClassJobs, Matching, RefMatching};
use roadstead_crds::{CiJob, JobClass, JobClassStatus, Phase, Reason};
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::harness::{Harness, RunnerConfig, RunningJob};
use roadstead_e2e::installation::Installation;
use serde_json::json;

use crate::{DEADLINE, SOON, stands};

fn position(job: &CiJob) -> Option<i32> {
    job.status.as_ref()?.queue.as_ref()?.position
}

/// A job that runs until it is stopped.
fn endless(bench: &Installation) -> Result<JobSpec> {
    Ok(JobSpec::fresh().image(bench.image("busybox")?).script(["echo running", "sleep 300"]))
}

fn quick(bench: &Installation) -> Result<JobSpec> {
    Ok(JobSpec::fresh().image(bench.image("busybox")?).script(["echo running"]))
}

fn runner(bench: &Installation, class: &str) -> RunnerConfig {
    bench.runner().env("ROADSTEAD_CLASS", class)
}

/// Starts a job and waits until it waits for this reason.
async fn start_and_wait(
    bench: &Installation,
    harness: &Harness,
    spec: &JobSpec,
    reason: Reason,
) -> Result<(RunningJob, String)> {
    let job = harness.start(spec).await?;
    job.wait_stage("prepare", DEADLINE).await?;
    let name = bench.cijob_of(spec.id).await?.metadata.name.context("no name")?;
    bench.wait_cijob(&name, "waiting for room", SOON, stands(Phase::Queued, reason)).await?;
    Ok((job, name))
}

/// What the status of a job that waits for a quota says. While it tries, it says something else for a moment.
async fn words_of_the_quota(bench: &Installation, name: &str) -> Result<String> {
    let waits = stands(Phase::Queued, Reason::QuotaExceeded);
    let job = bench.wait_cijob(name, "waiting for the quota", SOON, waits).await?;
    Ok(job.status.and_then(|status| status.message).unwrap_or_default())
}

/// Two projects share one place: they take turns, whoever has more jobs in the queue.
#[tokio::test(flavor = "multi_thread")]
async fn projects_take_turns_where_there_is_one_place() -> Result<()> {
    let bench = Installation::join().await?;
    let limit = |class: &mut JobClass| class.spec.concurrency.max = Some(1);
    let class = bench.class("e2e-queue", limit).await?;
    let harness = Harness::new(runner(&bench, &class))?;
    let holder = harness.start(&endless(&bench)?.project("grp/ants", 101)).await?;
    holder.wait_log("running", DEADLINE).await?;

    let mut waiting = vec![];
    for (path, project) in [("grp/ants", 101), ("grp/ants", 101), ("grp/bees", 102), ("grp/bees", 102)] {
        let spec = quick(&bench)?.project(path, project);
        let (job, name) = start_and_wait(&bench, &harness, &spec, Reason::ConcurrencyLimit).await?;
        waiting.push((spec, job, name));
    }
    // Ants have been served, so the bees' first job is the next.
    for (index, expected) in [(2, 1), (0, 2), (3, 3), (1, 4)] {
        let name = &waiting[index].2;
        let there = move |job: Option<&CiJob>| job.and_then(position) == Some(expected);
        bench.wait_cijob(name, &format!("at position {expected}"), SOON, there).await?;
    }
    holder.abort();
    holder.finish(DEADLINE).await?;

    let mut starts = vec![];
    for (_, job, name) in waiting {
        let result = job.finish(DEADLINE).await?;
        result.assert_success();
        let log = result.text();
        assert!(
            log.contains("Waiting for room for ") && log.contains("of its jobs run, at most 1 may"),
            "{log}"
        );
        // gitlab-runner is done a moment before the operator is.
        let job = bench.wait_finished(&name, SOON).await?;
        let status = job.status.as_ref().context("no status")?;
        assert_eq!(status.queue, None, "{status:#?}");
        // By the operator's clock.
        let created = status.start.pod_created_ms.context("it has had no pod")?;
        let started = job.spec.request.requested_at.0.as_millisecond() + created;
        let finished = status.finished_at.as_ref().map(|time| time.0.as_millisecond());
        starts.push((started, finished, job.spec.request.project.path.clone()));
    }
    starts.sort();
    let order: Vec<_> = starts.iter().map(|(_, _, path)| path.as_str()).collect();
    assert_eq!(order, ["grp/bees", "grp/ants", "grp/bees", "grp/ants"]);
    for pair in starts.windows(2) {
        let [(_, Some(end), _), (start, _, _)] = pair else { anyhow::bail!("unfinished: {pair:?}") };
        assert!(start >= end, "two ran at once: {starts:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_too_long_for_room_is_told_for_what() -> Result<()> {
    let bench = Installation::join().await?;
    let class = bench
        .class("e2e-queue-timeout", |class| {
            class.spec.concurrency.max_per_project = Some(1);
            class.spec.timeouts.queue_seconds = 15;
        })
        .await?;
    let config = runner(&bench, &class);
    let harness = Harness::new(config)?;
    let holder = harness.start(&endless(&bench)?).await?;
    holder.wait_log("running", DEADLINE).await?;
    let spec = quick(&bench)?;
    let (job, name) = start_and_wait(&bench, &harness, &spec, Reason::ConcurrencyLimit).await?;
    let ended = stands(Phase::TimedOut, Reason::QueueTimeout);
    let ended = bench.wait_cijob(&name, "out of patience", SOON, ended).await?;
    let message = ended.status.and_then(|status| status.message).unwrap_or_default();
    for words in ["15 s", "timeouts.queueSeconds", class.as_str(), "concurrency.maxPerProject"] {
        assert!(message.contains(words), "no {words:?} in {message:?}");
    }
    // gitlab-runner tries again, as after any failure of the system.
    job.wait_log("Will be retried", DEADLINE).await?;
    job.abort();
    let result = job.finish(DEADLINE).await?;
    assert!(result.log_contains("timeouts.queueSeconds"), "{}", result.text());
    holder.abort();
    holder.finish(DEADLINE).await?;
    Ok(())
}

/// Who is canceled, and whose CiJob somebody deletes, waits no longer and holds nobody up; a raised limit lets in who
/// is left.
#[tokio::test(flavor = "multi_thread")]
async fn the_queue_closes_up_behind_who_leaves_and_a_raised_limit_opens_it() -> Result<()> {
    let bench = Installation::join().await?;
    let class = bench.class("e2e-queue-leave", |class| class.spec.concurrency.max = Some(1)).await?;
    let harness = Harness::new(runner(&bench, &class))?;
    let holder = harness.start(&endless(&bench)?).await?;
    holder.wait_log("running", DEADLINE).await?;
    let mut waiting = vec![];
    for _ in 0..3 {
        let spec = quick(&bench)?;
        let (job, name) = start_and_wait(&bench, &harness, &spec, Reason::ConcurrencyLimit).await?;
        waiting.push((spec, job, name));
    }
    let [(canceled, first, first_name), (_, second, second_name), (_, last, last_name)] =
        waiting.try_into().ok().context("three jobs wait")?;

    first.cancel();
    let result = first.finish(DEADLINE).await?;
    assert!(!result.log_contains("running"), "{}", result.text());
    let left = bench.wait_finished(&first_name, SOON).await?;
    assert_eq!(left.status.context("no status")?.phase, Some(Phase::Canceled));
    bench.wait_no_pods(canceled.id, SOON).await?;

    bench.cijobs().delete(&second_name, &DeleteParams::default()).await.context("cannot delete the CiJob")?;
    second.wait_log("was deleted", SOON).await?;
    let first_in_line = |job: Option<&CiJob>| job.and_then(position) == Some(1);
    second.abort();
    second.finish(DEADLINE).await?;
    bench.wait_cijob(&last_name, "the first in the queue", SOON, first_in_line).await?;

    let raise = Patch::Merge(json!({"spec": {"concurrency": {"max": 2}}}));
    let raised = bench.classes().patch(&class, &PatchParams::default(), &raise).await;
    raised.context("cannot raise the limit")?;
    last.finish(DEADLINE).await?.assert_success();
    holder.abort();
    holder.finish(DEADLINE).await?;
    Ok(())
}

/// Waits until the class counts these jobs.
async fn counted(bench: &Installation, class: &str, jobs: ClassJobs) -> Result<JobClassStatus> {
    let is =
        move |class: Option<&JobClass>| class.and_then(|class| class.status.as_ref()?.jobs) == Some(jobs);
    let wait = Box::pin(kube::runtime::wait::await_condition(bench.classes(), class, is));
    let found = tokio::time::timeout(SOON, wait).await;
    let found =
        found.with_context(|| format!("class {class} never had {jobs:?}"))?.context("the watch failed")?;
    found.and_then(|class| class.status).context("no status")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_counts_its_jobs_and_names_whom_it_refused() -> Result<()> {
    let bench = Installation::join().await?;
    let holder = endless(&bench)?.protected(Some(true));
    // Of its own in each run: jobs of an earlier one are there for an hour, and count.
    let class = bench
        .class(&format!("e2e-counts-{}", holder.id), |class| {
            class.spec.concurrency.max = Some(1);
            let refs = RefMatching { protected_only: true, names: vec![] };
            class.spec.matching = Some(Matching { refs, ..Matching::default() });
            // Who names no class must not get this one.
            class.spec.priority = -1000;
        })
        .await?;
    let harness = Harness::new(runner(&bench, &class))?;
    let holder = harness.start(&holder).await?;
    holder.wait_log("running", DEADLINE).await?;
    let spec = quick(&bench)?.protected(Some(true));
    let (job, _) = start_and_wait(&bench, &harness, &spec, Reason::ConcurrencyLimit).await?;
    let refused = quick(&bench)?.protected(Some(false));
    harness.run(&refused, DEADLINE).await?.assert_script_failure(1);

    let jobs = ClassJobs { matched: 3, running: 1, queued: 1, rejected: 1 };
    let status = counted(&bench, &class, jobs).await?;
    let rejection = status.last_rejection.context("nobody was refused")?;
    assert_eq!(rejection.reason, Reason::NoClassMatches);
    assert_eq!(Some(rejection.name), bench.cijob_of(refused.id).await?.metadata.name);
    assert!(rejection.message.contains("protected"), "{}", rejection.message);

    holder.abort();
    holder.finish(DEADLINE).await?;
    job.finish(DEADLINE).await?.assert_success();
    counted(&bench, &class, ClassJobs { running: 0, queued: 0, ..jobs }).await?;
    bench.classes().delete(&class, &DeleteParams::default()).await?;
    Ok(())
}

/// A quota that counts only the pods of one priority class, and has room for one.
async fn narrow_quota(bench: &Installation, name: &str) -> Result<Api<ResourceQuota>> {
    let params = PatchParams::apply("roadstead-e2e").force();
    let priority = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
        "metadata": {"name": name}, "value": 0, "description": "pods that a test counts"});
    let priorities: Api<PriorityClass> = Api::all(bench.client.clone());
    priorities
        .patch(name, &params, &Patch::Apply(&priority))
        .await
        .context("cannot create a PriorityClass")?;
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": {
        "hard": {"pods": "1"},
        "scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": "In", "values": [name]}]}}});
    let quotas: Api<ResourceQuota> = Api::namespaced(bench.client.clone(), bench.job_namespace());
    quotas.patch(name, &params, &Patch::Apply(&quota)).await.context("cannot create a ResourceQuota")?;
    let counted = |quota: Option<&ResourceQuota>| {
        quota.and_then(|quota| quota.status.as_ref()?.hard.as_ref()).is_some_and(|hard| !hard.is_empty())
    };
    let wait = kube::runtime::wait::await_condition(quotas.clone(), name, counted);
    tokio::time::timeout(SOON, wait).await.context("nobody counts for the quota")??;
    Ok(quotas)
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_wait_for_a_quota_and_start_when_it_frees_up() -> Result<()> {
    let bench = Installation::join().await?;
    let class = bench.class_name("e2e-quota");
    let quotas = narrow_quota(&bench, &class).await?;
    let overlay = json!({"spec": {"priorityClassName": class}});
    let class =
        bench.class("e2e-quota", |class| class.spec.pod.overlay = overlay.as_object().cloned()).await?;
    let harness = Harness::new(runner(&bench, &class))?;
    let holder = harness.start(&endless(&bench)?).await?;
    holder.wait_log("running", DEADLINE).await?;

    let first = quick(&bench)?;
    let (job, name) = start_and_wait(&bench, &harness, &first, Reason::QuotaExceeded).await?;
    let second = quick(&bench)?;
    let (other, _) = start_and_wait(&bench, &harness, &second, Reason::QuotaExceeded).await?;
    let message = words_of_the_quota(&bench, &name).await?;
    assert!(message.contains("has no room for the job's pod: by ") && message.contains(&class), "{message}");

    holder.abort();
    holder.finish(DEADLINE).await?;
    for (job, spec) in [(job, &first), (other, &second)] {
        let result = job.finish(DEADLINE).await?;
        result.assert_success();
        assert!(result.log_contains("has no room"), "{}", result.text());
        bench.wait_no_pods(spec.id, SOON).await?;
    }
    let status = bench.cijobs().get(&name).await?.status.context("no status")?;
    assert!(status.start.room_ms.is_some() && status.queue.is_none(), "{status:#?}");

    quotas.delete(&class, &DeleteParams::default()).await?;
    Api::<PriorityClass>::all(bench.client.clone()).delete(&class, &DeleteParams::default()).await?;
    Ok(())
}
