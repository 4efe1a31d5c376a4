//! Jobs that ask for another namespace than their runner's.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, ResourceExt as _};
use roadstead_crds::{CiJob, JobClass, Phase, Reason};
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::installation::Installation;

use crate::{DEADLINE, SOON, stands};

const VARIABLE: &str = "KUBERNETES_NAMESPACE_OVERWRITE";

fn allow(namespace: &str) -> impl FnOnce(&mut JobClass) {
    move |class| {
        class.spec.allow.namespace = vec![namespace.to_owned()];
        class.spec.concurrency.max = Some(1);
    }
}

fn job(bench: &Installation) -> Result<JobSpec> {
    Ok(JobSpec::fresh().image(bench.image("busybox")?))
}

/// The CiJob of a GitLab job in a namespace.
async fn cijob(jobs: &Api<CiJob>, spec: &JobSpec) -> Result<Option<CiJob>> {
    let list = jobs.list(&ListParams::default()).await.context("cannot list CiJobs")?;
    Ok(list.items.into_iter().find(|job| job.spec.request.job.id == spec.id))
}

/// A class counts its jobs of all namespaces.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_in_the_namespace_that_it_asks_for_and_counts_there_too() -> Result<()> {
    let bench = Installation::join().await?;
    let second = bench.release().second_job_namespace();
    let class = bench.class("e2e-namespaces", allow(&second)).await?;
    let harness = bench.harness_of(&class)?;
    let holder = harness.start(&job(&bench)?.script(["echo running", "sleep 300"])).await?;
    holder.wait_log("running", DEADLINE).await?;

    let spec = job(&bench)?.variable(VARIABLE, second.as_str()).script(["echo it runs"]);
    let other = harness.start(&spec).await?;
    other.wait_stage("prepare", DEADLINE).await?;
    let jobs: Api<CiJob> = Api::namespaced(bench.client.clone(), &second);
    let found = cijob(&jobs, &spec).await?.context("no CiJob in the second namespace")?;
    let name = found.name_any();
    let waits = await_condition(jobs.clone(), &name, stands(Phase::Queued, Reason::ConcurrencyLimit));
    tokio::time::timeout(SOON, waits).await.context("it does not wait for the other namespace's job")??;
    holder.abort();
    holder.finish(DEADLINE).await?;
    let result = other.finish(DEADLINE).await?;
    result.assert_success();

    let succeeded = await_condition(jobs.clone(), &name, stands(Phase::Succeeded, Reason::Succeeded));
    let found = tokio::time::timeout(SOON, succeeded).await.context("it has not succeeded")??;
    let status = found.and_then(|job| job.status).context("no status")?;
    let row = status.overrides.iter().find(|row| row.source == VARIABLE).context("not reported")?;
    assert_eq!((row.what.as_str(), row.applied.as_deref()), ("namespace", Some(second.as_str())));
    let pod = status.pod.context("no pod")?;
    let pods: Api<Pod> = Api::namespaced(bench.client.clone(), &second);
    let uid = pod.uid.unwrap_or_default();
    let gone = await_condition(pods, &pod.name, conditions::is_deleted(&uid));
    tokio::time::timeout(SOON, gone).await.context("the pod is left")??;
    assert!(bench.cijobs_of(spec.id).await?.is_empty(), "nothing is in the runner's namespace");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_not_for_the_job_is_refused() -> Result<()> {
    let bench = Installation::join().await?;
    let second = bench.release().second_job_namespace();
    let closed = bench.class("e2e-closed", |_| {}).await?;
    let open = bench.class("e2e-open", allow(".*")).await?;
    for (class, namespace, words) in [
        (
            &closed,
            second.as_str(),
            "does not let jobs choose a namespace: remove KUBERNETES_NAMESPACE_OVERWRITE",
        ),
        (&open, "kube-system", "=\"kube-system\" is no namespace that this runner may use for jobs: "),
        (&open, "Kube_System", "=\"Kube_System\" must be the name of a namespace"),
    ] {
        let spec = job(&bench)?.variable(VARIABLE, namespace).script(["echo not reached"]);
        let result = bench.harness_of(class)?.run(&spec, DEADLINE).await?;
        result.assert_script_failure(1);
        assert!(result.log_contains(words), "no {words:?} in\n{}", result.text());
        let jobs: Api<CiJob> = Api::namespaced(bench.client.clone(), &second);
        let pod = cijob(&jobs, &spec).await?.and_then(|job| job.status?.pod);
        assert_eq!(pod, None, "a refused job has no pod");
    }
    Ok(())
}
