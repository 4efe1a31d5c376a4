//! Credentials of registries that a job brings: where they are used, and that they are nowhere else.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::conditions::is_deleted;
use kube::runtime::wait::await_condition;
use roadstead_crds::Reason;
use roadstead_crds::labels::JOB_ID;
use roadstead_crds::status::CiJobStatus;
use roadstead_e2e::coordinator::{Image, JobSpec};
use roadstead_e2e::installation::Installation;
use serde_json::json;

use crate::{DEADLINE, SOON};

/// Where the registry listens on its node. A node's own address needs no certificates.
const REGISTRY: &str = "127.0.0.1:15080";
const PORT: i32 = 15080;

/// Name of its pod, which is none of Roadstead's, in a namespace that lets it use the node's network.
const POD: &str = "e2e-registry";
const NAMESPACE: &str = "default";

/// The two that may look into it, each at one part: what GitLab sends, and what the job says itself.
const ACCOUNTS: [(&str, &str, &str); 2] =
    [("/v2/gitlabs", "gitlab-ci-token", "of-gitlab"), ("/v2/jobs", "somebody", "of-the-job")];

/// The second of them as HTTP and a Docker configuration have it.
const OF_THE_JOB: &str = "c29tZWJvZHk6b2YtdGhlLWpvYg==";

/// Starts a registry that has nothing, and says so only to those two. What an earlier run has left is replaced.
async fn start_registry(bench: &Installation) -> Result<Api<Pod>> {
    let pods: Api<Pod> = Api::namespaced(bench.client.clone(), NAMESPACE);
    stop_registry(&pods).await?;
    let lines = ACCOUNTS.map(|(part, user, password)| format!("{part}:{user}:{password}"));
    let script = format!(
        "mkdir -p /tmp/empty && printf '%s\\n' {} >/tmp/accounts && exec httpd -f -p {PORT} -c /tmp/accounts -h /tmp/empty",
        lines.join(" ")
    );
    let pod = serde_json::from_value(json!({
        "metadata": {"name": POD},
        "spec": {"hostNetwork": true, "terminationGracePeriodSeconds": 0, "containers": [{
            "name": "registry", "image": bench.image("busybox")?, "imagePullPolicy": "Never",
            "command": ["/bin/sh", "-c", script],
            "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
        }]},
    }))?;
    pods.create(&PostParams::default(), &pod).await.context("cannot create the registry")?;
    let ready = |pod: Option<&Pod>| {
        let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
        conditions.into_iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True")
    };
    let waited = tokio::time::timeout(DEADLINE, await_condition(pods.clone(), POD, ready)).await;
    waited.context("the registry does not become ready")??;
    Ok(pods)
}

async fn stop_registry(pods: &Api<Pod>) -> Result<()> {
    let Some(pod) = pods.get_opt(POD).await.context("cannot look for the registry")? else { return Ok(()) };
    let uid = pod.metadata.uid.context("no UID")?;
    pods.delete(POD, &DeleteParams::default()).await.context("cannot delete the registry")?;
    tokio::time::timeout(SOON, await_condition(pods.clone(), POD, is_deleted(&uid)))
        .await
        .context("the registry does not go")??;
    Ok(())
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
    let registry = start_registry(&bench).await?;
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
        (asking().image(&jobs).raw("DOCKER_AUTH_CONFIG", config.to_string()), &jobs, true),
        (asking().image(bench.image("busybox")?).service(Image::new(&gitlabs)), &gitlabs, true),
    ] {
        let result = bench.harness()?.run(&spec, DEADLINE).await?;
        result.assert_script_failure(1);
        // Who is let in is told that there is no such image; others are told nothing.
        let text = result.text();
        let denied = ["401 Unauthorized", "authorization failed"].iter().any(|words| text.contains(words));
        let found = text.contains(&format!("{image}: not found"));
        // A kubelet tries all credentials that fit, and tells of each.
        assert!(found == let_in && (let_in || denied), "{text}");
        assert_eq!(status(&bench, &spec).await?.reason, Some(Reason::ImageNotFound));
        let cijob = serde_json::to_string(&bench.cijob_of(spec.id).await?)?;
        for secret in ["of-gitlab", OF_THE_JOB, "eDp5"] {
            assert!(!cijob.contains(secret) && !text.contains(secret), "{secret} is in {cijob} or in {text}");
        }
    }
    stop_registry(&registry).await
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
