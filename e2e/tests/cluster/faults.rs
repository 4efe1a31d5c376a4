//! What breaks in the middle.

use anyhow::{Context as _, Result};
use kube::api::{DeleteParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use roadstead_crds::{Phase, Reason};
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::installation::Installation;

use crate::{DEADLINE, SOON};

/// Law: a script runs only in the pod that it was meant for, and a deleted pod is no success.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_recreated_under_the_same_name_by_someone_else_is_refused() -> Result<()> {
    let bench = Installation::join().await?;
    let spec = JobSpec::fresh()
        .image(bench.image("busybox")?)
        .script(["echo running", "sleep 300"])
        .after_script(["echo after"]);
    let job = bench.harness()?.start(&spec).await?;
    job.wait_log("running", DEADLINE).await?;
    let pod = bench.cijob_of(spec.id).await?.status.and_then(|status| status.pod).context("no pod")?;
    let pods = bench.pods();
    let mut copy = pods.get(&pod.name).await.context("cannot read the pod")?;
    let uid = copy.metadata.uid.take().context("a pod without UID")?;
    let now = DeleteParams::default().grace_period(0);
    pods.delete(&pod.name, &now).await.context("cannot delete the pod")?;
    tokio::time::timeout(SOON, await_condition(pods.clone(), &pod.name, conditions::is_deleted(&uid)))
        .await
        .context("the pod stays")?
        .context("the watch failed")?;
    // The same containers with the same agent, only not the operator's.
    copy.metadata.resource_version = None;
    copy.metadata.owner_references = None;
    copy.metadata.creation_timestamp = None;
    copy.status = None;
    if let Some(spec) = copy.spec.as_mut() {
        spec.node_name = None;
    }
    let impostor = pods.create(&PostParams::default(), &copy).await.context("cannot create the impostor")?;
    let result = job.finish(DEADLINE).await?;
    result.assert_system_failure();
    assert!(!result.text().contains("\nafter\n"), "after_script ran in the impostor:\n{}", result.text());
    // Of a lost pod the shim has the last word, and gitlab-runner is told before the operator is.
    let name = bench.cijob_of(spec.id).await?.metadata.name.context("no name")?;
    let status = bench.wait_finished(&name, SOON).await?.status.context("no status")?;
    assert_eq!(status.phase, Some(Phase::Errored));
    assert!(matches!(status.reason, Some(Reason::PodDeleted | Reason::PodImpostor)), "{status:#?}");
    // It is not Roadstead's to delete.
    let still = pods.get_opt(&pod.name).await.context("cannot read the impostor")?;
    assert_eq!(still.and_then(|pod| pod.metadata.uid), impostor.metadata.uid);
    pods.delete(&pod.name, &now).await.context("cannot delete the impostor")?;
    Ok(())
}
