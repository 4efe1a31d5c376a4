//! What breaks in the middle.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::api::{DeleteParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use roadstead_crds::{CiJob, Phase, Reason};
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::harness::Harness;
use roadstead_e2e::installation::Installation;

use crate::{DEADLINE, SOON};

/// Law: a stream that is cut goes on at the byte where it was cut, and the script runs once.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_stream_goes_on_where_it_was() -> Result<()> {
    let bench = Installation::join().await?;
    let (proxy, kubeconfig) = bench.proxied().await?;
    let spec = JobSpec::fresh().image(bench.image("debian-git")?).script([
        "echo x >> \"$CI_PROJECT_DIR.runs\"",
        "seq 1 400000; sleep 2; seq 400001 800000; sleep 2; seq 800001 1000000",
        "echo runs: $(wc -l < \"$CI_PROJECT_DIR.runs\")",
    ]);
    let harness = Harness::new(bench.runner().env("KUBECONFIG", &kubeconfig))?;
    let job = harness.start(&spec).await?;
    // One cut in the midst of bytes, one in silence.
    job.wait_log("\n1000\n", DEADLINE).await?;
    proxy.cut();
    job.wait_log("\n400000\n", DEADLINE).await?;
    proxy.cut();
    job.wait_log("\n800000\n", DEADLINE).await?;
    proxy.cut();
    let result = job.finish(DEADLINE).await?;
    result.assert_success();
    let output = String::from_utf8_lossy(&result.call("build_script").stdout).into_owned();
    let numbers: Vec<u32> = output.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.iter().copied().eq(1..=1_000_000), "{} numbers", numbers.len());
    assert!(output.contains("runs: 1"));
    let report = bench.cijob_of(spec.id).await?.spec.report.context("no report")?;
    assert!(report.reconnects >= 2, "{report:#?}");
    Ok(())
}

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
    let job = bench.cijob_of(spec.id).await?;
    let status = job.status.context("no status")?;
    assert_eq!(status.phase, Some(Phase::Errored));
    assert!(matches!(status.reason, Some(Reason::PodDeleted | Reason::PodImpostor)), "{status:#?}");
    // It is not Roadstead's to delete.
    let still = pods.get_opt(&pod.name).await.context("cannot read the impostor")?;
    assert_eq!(still.and_then(|pod| pod.metadata.uid), impostor.metadata.uid);
    pods.delete(&pod.name, &now).await.context("cannot delete the impostor")?;
    Ok(())
}

/// Law: a pod that goes away under a job is the system's failure, said in the job log.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_is_a_system_failure_that_says_so() -> Result<()> {
    let bench = Installation::join().await?;
    let spec = JobSpec::fresh().image(bench.image("busybox")?).script(["echo running", "sleep 300"]);
    let job = bench.harness()?.start(&spec).await?;
    job.wait_log("running", DEADLINE).await?;
    let pod = bench.cijob_of(spec.id).await?.status.and_then(|status| status.pod).context("no pod")?;
    bench
        .pods()
        .delete(&pod.name, &DeleteParams::default().grace_period(1))
        .await
        .context("cannot delete the pod")?;
    let deleted = std::time::Instant::now();
    let result = job.finish(DEADLINE).await?;
    assert!(deleted.elapsed() < Duration::from_secs(40), "the shim noticed after {:?}", deleted.elapsed());
    result.assert_system_failure();
    assert!(result.text().contains("deleted"), "{}", result.text());
    let finished =
        |job: Option<&CiJob>| job.and_then(|job| job.status.as_ref()?.phase).is_some_and(Phase::is_final);
    let name = bench.cijob_of(spec.id).await?.metadata.name.context("no name")?;
    let found = bench.wait_cijob(&name, "finished", SOON, finished).await?;
    assert_eq!(found.status.and_then(|status| status.reason), Some(Reason::PodDeleted));
    Ok(())
}
