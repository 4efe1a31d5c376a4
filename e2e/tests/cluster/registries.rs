//! Credentials of registries that a job brings: where they are used, and that they are nowhere else.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::ListParams;
use roadstead_crds::labels::JOB_ID;
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::installation::Installation;

use crate::DEADLINE;

async fn secrets_of(bench: &Installation, spec: &JobSpec) -> Result<Vec<Secret>> {
    let secrets: Api<Secret> = Api::namespaced(bench.client.clone(), bench.job_namespace());
    let params = ListParams::default().labels(&format!("{JOB_ID}={}", spec.id));
    Ok(secrets.list(&params).await.context("cannot list secrets")?.items)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_needs_no_credentials_has_no_secret() -> Result<()> {
    let bench = Installation::join().await?;
    let spec = JobSpec::fresh()
        .credential("registry.example", "gitlab-ci-token", "of-gitlab")
        .image(bench.image("busybox")?)
        .script(["echo reached; sleep 300"]);
    let job = bench.harness()?.start(&spec).await?;
    job.wait_log("reached", DEADLINE).await?;
    assert!(secrets_of(&bench, &spec).await?.is_empty());
    assert!(!bench.cijob_of(spec.id).await?.spec.request.registry_credentials);
    job.cancel();
    job.finish(DEADLINE).await?;
    Ok(())
}
