//! Nodes by tag, and what else of its pod a job may choose.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use roadstead_crds::{CiJob, CiJobStatus, JobClass, Phase, Reason, names};
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::installation::Installation;
use serde_json::{Value, json};

use crate::{DEADLINE, SOON};

/// Changes parts of a class by JSON, for what is long in Rust.
fn change(class: &mut JobClass, field: &str, value: Value) -> Result<()> {
    let mut spec = serde_json::to_value(&class.spec)?;
    spec[field] = value;
    class.spec = serde_json::from_value(spec)?;
    Ok(())
}

/// The pod of a job whose script runs.
async fn pod(bench: &Installation, spec: &JobSpec) -> Result<Pod> {
    let name = bench.cijob_of(spec.id).await?.status.and_then(|status| status.pod).context("no pod")?.name;
    bench.pods().get(&name).await.context("cannot read the pod")
}

/// Labels every node, which leaves other jobs alone.
async fn label_nodes(bench: &Installation, key: &str, value: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(bench.client.clone());
    for node in nodes.list(&ListParams::default()).await.context("cannot list nodes")? {
        let name = node.metadata.name.context("a node without a name")?;
        let patch = Patch::Merge(json!({"metadata": {"labels": {key: value}}}));
        nodes.patch(&name, &PatchParams::default(), &patch).await.context("cannot label a node")?;
    }
    Ok(())
}

/// Asks the operator for a job with tags, without a runner. The pod finds no client, so what matters is where
/// it is put.
async fn ask(bench: &Installation, class: &str, tags: &[&str]) -> Result<CiJob> {
    let id = JobSpec::fresh().id;
    let job = json!({
        "apiVersion": "roadstead.dev/v1alpha1",
        "kind": "CiJob",
        "metadata": {"name": names::cijob_name("https://gitlab.example", id, "e2e")},
        "spec": {"request": {
            "server": "https://gitlab.example",
            "job": {"id": id, "name": "placed", "stage": "test"},
            "project": {"id": 5, "path": "grp/proj"},
            "ref": {"name": "main", "type": "branch", "sha": ""},
            "tags": tags, "tagSource": "Job", "className": class,
            "image": {"name": bench.image("busybox")?},
            "timeoutSeconds": 600, "requestedAt": "2026-01-02T03:04:05.000006Z",
        }},
    });
    let job: CiJob = serde_json::from_value(job)?;
    bench.cijobs().create(&PostParams::default(), &job).await.context("cannot create a CiJob")
}

/// Waits until the job is as it should be, and deletes it.
async fn seen(
    bench: &Installation,
    job: &CiJob,
    what: &str,
    is: impl Fn(&CiJobStatus) -> bool,
) -> Result<(CiJobStatus, Option<Pod>)> {
    let name = job.metadata.name.as_deref().context("no name")?;
    let condition = |job: Option<&CiJob>| job.and_then(|job| job.status.as_ref()).is_some_and(&is);
    let found = bench.wait_cijob(name, what, SOON, condition).await?;
    let status = found.status.context("no status")?;
    let pod = match &status.pod {
        Some(pod) => bench.pods().get_opt(&pod.name).await.context("cannot read the pod")?,
        None => None,
    };
    bench.cijobs().delete(name, &DeleteParams::default()).await.context("cannot delete the CiJob")?;
    Ok((status, pod))
}

fn selector(pod: Option<Pod>) -> Result<Value> {
    let spec = pod.and_then(|pod| pod.spec).context("there is no pod")?;
    Ok(serde_json::to_value(spec.node_selector)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_choose_the_node() -> Result<()> {
    let bench = Installation::join().await?;
    label_nodes(&bench, "e2e.example/pool", "near").await?;
    let rules = json!({"rules": [
        {"tags": ["near"], "nodeSelector": {"e2e.example/pool": "near"}},
        {"tags": ["far"], "nodeSelector": {"e2e.example/zone": "far"},
         "tolerations": [{"key": "e2e.example/far", "operator": "Exists", "effect": "NoSchedule"}]},
    ]});
    let mut changed = Ok(());
    let class = bench.class("e2e-tags", |class| changed = change(class, "placement", rules)).await?;
    changed?;

    let near = ask(&bench, &class, &["near", "linux"]).await?;
    let bound = |status: &CiJobStatus| status.pod.as_ref().is_some_and(|pod| pod.node.is_some());
    let (status, pod) = seen(&bench, &near, "on a node", bound).await?;
    assert_eq!(selector(pod)?, json!({"e2e.example/pool": "near", "kubernetes.io/os": "linux"}));
    let applied: Vec<_> = status.overrides.iter().filter_map(|row| row.applied.as_deref()).collect();
    assert_eq!(applied, ["e2e.example/pool=near", "kubernetes.io/os=linux"]);

    // No node has what the other tag asks for.
    let far = ask(&bench, &class, &["far"]).await?;
    let waits = |status: &CiJobStatus| status.reason == Some(Reason::Unschedulable);
    let (status, pod) = seen(&bench, &far, "unschedulable", waits).await?;
    assert_eq!(selector(pod)?, json!({"e2e.example/zone": "far"}));
    let message = status.message.context("no message")?;
    let words = ": it does not have the labels that the job's node selector or affinity asks for";
    assert!(
        message.starts_with("No node can take the job's pod yet: ") && message.contains(words),
        "{message}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_cannot_be_is_refused_unless_the_class_maps_it() -> Result<()> {
    let bench = Installation::join().await?;
    label_nodes(&bench, "e2e.example/macs", "none").await?;
    let mapped = json!({"rules": [{"tags": ["osx"], "nodeSelector": {"e2e.example/macs": "none"}}]});
    let mut changed = Ok(());
    let macs = bench.class("e2e-macs", |class| changed = change(class, "placement", mapped)).await?;
    changed?;
    let plain = bench.class("e2e-plain", |_| {}).await?;

    let refused = ask(&bench, &plain, &["osx"]).await?;
    let failed = |status: &CiJobStatus| status.phase == Some(Phase::Failed);
    let (status, pod) = seen(&bench, &refused, "refused", failed).await?;
    assert_eq!((status.reason, pod), (Some(Reason::OverrideRefused), None));
    let sentence = format!(
        "Tag \"osx\" asks for macOS, and JobClass \"{plain}\" runs jobs in Linux containers: remove the tag, or use one of a runner on macOS."
    );
    assert_eq!(status.message.as_deref(), Some(sentence.as_str()));

    let taken = ask(&bench, &macs, &["osx"]).await?;
    let bound = |status: &CiJobStatus| status.pod.as_ref().is_some_and(|pod| pod.node.is_some());
    let (_, pod) = seen(&bench, &taken, "on a node", bound).await?;
    assert_eq!(selector(pod)?, json!({"e2e.example/macs": "none"}));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn account_labels_and_nodes_are_chosen_where_a_pattern_matches_whole() -> Result<()> {
    let bench = Installation::join().await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(bench.client.clone(), bench.job_namespace());
    let account = ServiceAccount {
        metadata: ObjectMeta { name: Some("ci-e2e".to_owned()), ..ObjectMeta::default() },
        ..ServiceAccount::default()
    };
    let force = PatchParams::apply("roadstead-e2e").force();
    accounts
        .patch("ci-e2e", &force, &Patch::Apply(&account))
        .await
        .context("cannot create a ServiceAccount")?;
    let allow = json!({
        "serviceAccount": ["ci-.*"], "podLabels": ["team=[a-z]+"], "podAnnotations": ["note=.*"],
        "nodeSelector": ["kubernetes\\.io/os=.*"], "tolerations": ["spot(=true)?:NoSchedule"],
    });
    let mut changed = Ok(());
    let class = bench.class("e2e-allow", |class| changed = change(class, "allow", allow)).await?;
    changed?;

    let spec = JobSpec::fresh()
        .image(bench.image("busybox")?)
        .variable("KUBERNETES_SERVICE_ACCOUNT_OVERWRITE", "ci-e2e")
        .variable("KUBERNETES_POD_LABELS_1", "team=ship")
        .variable("KUBERNETES_POD_ANNOTATIONS_1", "note=from $CI_PROJECT_PATH")
        .variable("KUBERNETES_NODE_SELECTOR_OS", "kubernetes.io/os=linux")
        .variable("KUBERNETES_NODE_TOLERATIONS_1", "spot=true:NoSchedule")
        .script(["echo running", "sleep 300"]);
    let job = bench.harness_of(&class)?.start(&spec).await?;
    job.wait_log("running", DEADLINE).await?;
    let pod = pod(&bench, &spec).await?;
    job.cancel();
    job.finish(Duration::from_secs(60)).await?;
    let placed = pod.spec.context("no spec")?;
    assert_eq!(placed.service_account_name.as_deref(), Some("ci-e2e"));
    assert_eq!(placed.automount_service_account_token, Some(false));
    assert_eq!(serde_json::to_value(&placed.node_selector)?, json!({"kubernetes.io/os": "linux"}));
    let tolerations = placed.tolerations.context("no tolerations")?;
    assert!(tolerations.iter().any(|one| one.key.as_deref() == Some("spot")), "{tolerations:?}");
    assert_eq!(pod.metadata.labels.context("no labels")?["team"], "ship");
    assert_eq!(pod.metadata.annotations.context("no annotations")?["note"], "from grp/proj");

    for (name, value, words) in [
        ("KUBERNETES_SERVICE_ACCOUNT_OVERWRITE", "prod-ci-e2e", "allows, which is one that matches ci-.*."),
        ("KUBERNETES_POD_LABELS_1", "team=Ship", "is not a pod label that"),
        ("KUBERNETES_POD_LABELS_1", "roadstead.dev/cijob=x", "must not name a label of Roadstead's"),
        ("KUBERNETES_NODE_TOLERATIONS_1", "", "KUBERNETES_NODE_TOLERATIONS_1=\"\" is not a toleration that"),
    ] {
        let spec = JobSpec::fresh()
            .image(bench.image("busybox")?)
            .variable(name, value)
            .script(["echo not reached"]);
        let result = bench.harness_of(&class)?.run(&spec, DEADLINE).await?;
        result.assert_script_failure(1);
        assert!(result.log_contains(words), "no {words:?} in\n{}", result.text());
        bench.wait_no_pods(spec.id, SOON).await?;
    }
    Ok(())
}
