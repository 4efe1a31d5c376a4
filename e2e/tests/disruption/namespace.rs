//! A job namespace that is deleted while a job runs in it.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use kube::runtime::wait::{await_condition, conditions};
use roadstead_crds::{CiJob, JobClass};
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::harness::{Harness, Outcome};
use roadstead_e2e::installation::Installation;
use serde_json::{Value, json};

use crate::{DEADLINE, SOON, alone};

/// What the release has in a namespace.
struct Kept<'a> {
    bench: &'a Installation,
    namespace: &'a str,
    file: PathBuf,
}

impl<'a> Kept<'a> {
    fn of(bench: &'a Installation, namespace: &'a str) -> Result<Self> {
        let get = |what: &str| -> Result<Value> {
            let text = kubectl(bench, &["get", what, "--namespace", namespace, "--output", "json"])?;
            serde_json::from_slice(&text).context("kubectl prints no JSON")
        };
        let mut objects = vec![get(&format!("namespace/{namespace}"))?];
        objects.extend(get("roles,rolebindings")?["items"].as_array().cloned().unwrap_or_default());
        for object in &mut objects {
            for private in ["uid", "resourceVersion", "creationTimestamp", "managedFields"] {
                object["metadata"].as_object_mut().context("no metadata")?.remove(private);
            }
        }
        let file = bench.dir().join("namespace.json");
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        std::fs::write(&file, list.to_string()).context("cannot keep what is in the namespace")?;
        Ok(Self { bench, namespace, file })
    }

    /// Makes it again, once the namespace is gone.
    fn bring_back(&self) -> Result<()> {
        let Self { bench, namespace, file } = self;
        kubectl(bench, &["wait", "--for=delete", &format!("namespace/{namespace}"), "--timeout=60s"])?;
        kubectl(bench, &["apply", "--filename", &file.display().to_string()])?;
        let account =
            ["wait", "--for=create", "serviceaccount/default", "--timeout=60s", "--namespace", namespace];
        kubectl(bench, &account).map(drop)
    }
}

fn kubectl(bench: &Installation, args: &[&str]) -> Result<Vec<u8>> {
    let output = bench.cluster.kubectl([]).args(args).output().context("cannot run kubectl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl {}: {said}", args.join(" "));
    Ok(output.stdout)
}

/// Deletes the namespace under a job. Does not panic: the namespace has to be brought back.
async fn deleted_under(
    harness: &Harness,
    bench: &Installation,
    spec: &JobSpec,
    namespace: &str,
) -> Result<()> {
    let running = harness.start(spec).await?;
    running.wait_log("running\n", DEADLINE).await?;
    let namespaces: Api<Namespace> = Api::all(bench.client.clone());
    let uid = namespaces.get(namespace).await?.metadata.uid.context("no UID")?;
    namespaces.delete(namespace, &DeleteParams::default()).await.context("cannot delete it")?;
    let gone = await_condition(namespaces, namespace, conditions::is_deleted(&uid));
    tokio::time::timeout(SOON, gone).await.context("the namespace is still there")??;
    let result = running.finish(DEADLINE).await?;
    // Its pod or its CiJob, whichever went first.
    let told = matches!(result.outcome, Outcome::SystemFailure { .. }) && result.log_contains("deleted");
    ensure!(told, "{:?}\n{}", result.outcome, result.text());
    // The operator goes on elsewhere.
    let elsewhere = JobSpec::fresh().image(bench.image("busybox")?).script(["echo here"]);
    let result = harness.run(&elsewhere, DEADLINE).await?;
    ensure!(result.outcome == Outcome::Success, "{}", result.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_deleted_takes_its_jobs_with_it_and_waits_for_nobody() -> Result<()> {
    let _alone = alone().await;
    let bench = Installation::join().await?;
    let namespace = bench.release().second_job_namespace();
    let allow = |class: &mut JobClass| class.spec.allow.namespace = vec![namespace.clone()];
    let class = bench.class("e2e-deleted-namespace", allow).await?;
    let harness = bench.harness_of(&class)?;
    let job = |script: &[&str]| -> Result<JobSpec> {
        let job = JobSpec::fresh().image(bench.image("busybox")?).script(script.iter().copied());
        Ok(job.variable("KUBERNETES_NAMESPACE_OVERWRITE", namespace.as_str()))
    };
    let kept = Kept::of(&bench, &namespace)?;
    let deleted = deleted_under(&harness, &bench, &job(&["echo running", "sleep 300"])?, &namespace).await;
    // Whoever comes next wants it, however that went.
    kept.bring_back()?;
    deleted?;
    // The operator goes on there as well.
    harness.run(&job(&["echo again"])?, DEADLINE).await?.assert_success();
    let jobs: Api<CiJob> = Api::namespaced(bench.client.clone(), &namespace);
    assert_eq!(jobs.list(&ListParams::default()).await?.items.len(), 1);
    Ok(())
}
