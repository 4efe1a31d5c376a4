//! Credentials of registries that a job brings: where they are used, and that they are nowhere else.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::ListParams;
use roadstead_crds::labels::JOB_ID;
use roadstead_crds::status::CiJobStatus;
use roadstead_crds::{JobClass, Reason};
use roadstead_e2e::coordinator::{Image, JobSpec};
use roadstead_e2e::harness::RunningJob;
use roadstead_e2e::installation::Installation;
use serde_json::json;

use crate::{DEADLINE, SOON};

/// Where the registry listens on its node. A node's own address needs no certificates.
const REGISTRY: &str = "127.0.0.1:15080";

/// The two that may look into it, each at one part: what GitLab sends, and what the job says itself.
const ACCOUNTS: [(&str, &str, &str); 2] =
    [("/v2/gitlabs", "gitlab-ci-token", "of-gitlab"), ("/v2/jobs", "somebody", "of-the-job")];

/// The second of them as HTTP and a Docker configuration have it.
const OF_THE_JOB: &str = "c29tZWJvZHk6b2YtdGhlLWpvYg==";

/// A registry that has nothing, and says so only to those two: a job on the network of its node.
async fn registry(bench: &Installation) -> Result<RunningJob> {
    let on_node = |class: &mut JobClass| {
        class.spec.pod.overlay = json!({"spec": {"hostNetwork": true}}).as_object().cloned();
    };
    let class = bench.class("e2e-registry", on_node).await?;
    let lines = ACCOUNTS.map(|(part, user, password)| format!("{part}:{user}:{password}"));
    let spec = JobSpec::fresh().image(bench.image("busybox")?).script([
        format!("printf '%s\\n' {} >accounts && mkdir empty", lines.join(" ")),
        format!("httpd -p {REGISTRY} -c $PWD/accounts -h $PWD/empty"),
        "echo the registry listens; sleep 600".to_owned(),
    ]);
    let job = bench.harness_of(class)?.start(&spec).await?;
    job.wait_log("the registry listens", DEADLINE).await?;
    Ok(job)
}

async fn secrets_of(bench: &Installation, spec: &JobSpec) -> Result<Vec<Secret>> {
    let secrets: Api<Secret> = Api::namespaced(bench.client.clone(), bench.job_namespace());
    let params = ListParams::default().labels(&format!("{JOB_ID}={}", spec.id));
    Ok(secrets.list(&params).await.context("cannot list secrets")?.items)
}

async fn status(bench: &Installation, spec: &JobSpec) -> Result<CiJobStatus> {
    let name = bench.cijob_of(spec.id).await?.metadata.name.context("no name")?;
    bench.wait_finished(&name, SOON).await?.status.context("no status")
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_pull_with_the_credentials_of_the_job() -> Result<()> {
    let bench = Installation::join().await?;
    let registry = registry(&bench).await?;
    let [gitlabs, jobs] = ["gitlabs", "jobs"].map(|part| format!("{REGISTRY}/{part}/image:1"));
    let config = json!({"auths": {
        format!("{REGISTRY}/jobs"): {"auth": OF_THE_JOB}, "unused.example": {"auth": "eDp5"},
    }});
    let asking = || {
        let (_, user, password) = ACCOUNTS[0];
        JobSpec::fresh().credential(REGISTRY, user, password).script(["echo not reached"])
    };
    let none = || JobSpec::fresh().script(["echo not reached"]);
    for (spec, image, let_in) in [
        (none().image(&gitlabs), &gitlabs, false),
        (asking().image(&gitlabs), &gitlabs, true),
        (asking().image(&jobs), &jobs, false),
        (asking().image(&jobs).raw("DOCKER_AUTH_CONFIG", config.to_string()), &jobs, true),
        (asking().image(bench.image("busybox")?).service(Image::new(&gitlabs)), &gitlabs, true),
    ] {
        let result = bench.harness()?.run(&spec, DEADLINE).await?;
        result.assert_script_failure(1);
        // Who is let in is told that there is no such image; others are told nothing.
        let (found, denied) = (format!("{image}: not found"), "authorization failed");
        let text = result.text();
        assert_eq!((text.contains(&found), text.contains(denied)), (let_in, !let_in), "{text}");
        assert_eq!(status(&bench, &spec).await?.reason, Some(Reason::ImageNotFound));
        let cijob = serde_json::to_string(&bench.cijob_of(spec.id).await?)?;
        for secret in ["of-gitlab", OF_THE_JOB, "eDp5"] {
            assert!(!cijob.contains(secret) && !text.contains(secret), "{secret} is in {cijob} or in {text}");
        }
    }
    registry.cancel();
    registry.finish(DEADLINE).await?;
    Ok(())
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
