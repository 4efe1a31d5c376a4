//! Services beside the job's scripts: how they are reached, what they get, and what is said of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::ListParams;
use roadstead_crds::jobclass::{OnExceed, Resources};
use roadstead_crds::labels::JOB_ID;
use roadstead_crds::status::ServiceState;
use roadstead_crds::{CiJob, Phase, Reason};
use roadstead_e2e::coordinator::{Image, JobSpec};
use roadstead_e2e::harness::{Backend, JobResult};
use roadstead_e2e::installation::Installation;

use crate::{DEADLINE, SOON};

/// A web server that shows its environment, some time after its start.
const SERVE: &str = "mkdir -p /tmp/www && env >/tmp/www/env && sleep 2 && exec httpd -f -p 8080 -h /tmp/www";

fn web(bench: &Installation) -> Result<Image> {
    Ok(Image::new(bench.image("busybox")?).entrypoint(["/bin/sh", "-c"]).command([SERVE]))
}

fn secrets(bench: &Installation) -> Api<Secret> {
    Api::namespaced(bench.client.clone(), bench.job_namespace())
}

async fn secrets_of(bench: &Installation, spec: &JobSpec) -> Result<Vec<Secret>> {
    let params = ListParams::default().labels(&format!("{JOB_ID}={}", spec.id));
    Ok(secrets(bench).list(&params).await.context("cannot list secrets")?.items)
}

/// Waits until nothing is stored for the job any more.
async fn wait_no_secrets(bench: &Installation, spec: &JobSpec) -> Result<()> {
    let begin = Instant::now();
    loop {
        let left = secrets_of(bench, spec).await?.len();
        if left == 0 {
            return Ok(());
        }
        ensure!(begin.elapsed() < SOON, "{left} secrets of the job are left");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The CiJob after its end.
async fn finished(bench: &Installation, spec: &JobSpec) -> Result<CiJob> {
    let name = bench.cijob_of(spec.id).await?.metadata.name.context("no name")?;
    bench.wait_finished(&name, SOON).await
}

async fn run(bench: &Installation, spec: &JobSpec) -> Result<JobResult> {
    bench.harness()?.run(spec, DEADLINE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_ready_under_its_names_and_has_its_variables() -> Result<()> {
    let bench = Installation::join().await?;
    for backend in Backend::available(&bench.runner())? {
        is_served(&bench, &backend).await.with_context(|| format!("through {}", backend.name()))?;
    }
    Ok(())
}

async fn is_served(bench: &Installation, backend: &Backend) -> Result<()> {
    let canary = format!("canary-{}", JobSpec::fresh().id);
    // What GitLab makes of the image's name: without port and tag, and with hyphens for slashes.
    let image = bench.image("busybox")?.rsplit_once(':').context("no tag")?.0;
    let (host, path) = image.split_once('/').context("no registry")?;
    let by_image = format!("{}-{}", host.split(':').next().unwrap_or(host), path.replace('/', "-"));
    let service = web(bench)?
        .alias("web, other-web")
        .variable("HEALTHCHECK_TCP_PORT", "8080")
        .variable("OWN", "own and $SHARED and $DEPLOY_TOKEN");
    let spec = JobSpec::fresh()
        .image(bench.image("busybox")?)
        .variable("SHARED", "shared")
        .masked("DEPLOY_TOKEN", &canary)
        .service(service)
        .script([
            // It listens only after a while, so the first try tells whether that was waited for.
            "wget -q -O env http://web:8080/env",
            "wget -q -O - http://other-web:8080/env | cmp - env && echo the same by its other alias",
            &format!("wget -q -O - http://{by_image}:8080/env | cmp - env && echo the same by its image"),
            "grep -q '^SHARED=shared$' env && grep -q \"^CI_PROJECT_DIR=$CI_PROJECT_DIR$\" env && echo public variables",
            "grep -q \"^OWN=own and shared and $DEPLOY_TOKEN$\" env && echo its own variables",
            // Nor in what gitlab-runner tells the executor of all services.
            "test $(grep -o \"$DEPLOY_TOKEN\" env | wc -l) = 1 && echo no others",
            "echo reached; sleep 300",
        ]);
    let job = backend.start(&spec).await?;
    job.wait_log("reached", DEADLINE).await?;
    let stored = secrets_of(bench, &spec).await?;
    ensure!(stored.len() == 1, "{} secrets", stored.len());
    let secret = &stored[0];
    let cijob = bench.cijob_of(spec.id).await?;
    let owners = secret.metadata.owner_references.clone().unwrap_or_default();
    assert_eq!(
        owners.iter().map(|owner| owner.uid.as_str()).collect::<Vec<_>>(),
        [cijob.metadata.uid.as_deref().context("no UID")?]
    );
    job.cancel();
    let result = job.finish(DEADLINE).await?;
    for line in [
        "the same by its other alias",
        "the same by its image",
        "public variables",
        "its own variables",
        "no others",
    ] {
        assert!(result.log_contains(line), "no {line:?} in\n{}", result.text());
    }
    let told = format!("Service {} runs in the container svc-0", bench.image("busybox")?);
    assert!(result.log_contains(&told), "{}", result.text());

    let finished = finished(bench, &spec).await?;
    assert_eq!(finished.status.as_ref().context("no status")?.services[0].state, ServiceState::Ready);
    wait_no_secrets(bench, &spec).await?;
    bench.wait_no_pods(spec.id, SOON).await?;
    let output = bench
        .cluster
        .kubectl(["get", "events", "-n", bench.job_namespace(), "-o", "json"])
        .output()
        .context("cannot run kubectl")?;
    let events = String::from_utf8_lossy(&output.stdout).into_owned();
    let log = std::fs::read_to_string(bench.shim_log()).context("no shim log")?;
    assert!(events.contains(&spec.id.to_string()) && log.contains(&spec.id.to_string()), "nothing to search");
    for (place, text) in
        [("the CiJob", serde_json::to_string(&finished)?), ("Events", events), ("the shim's log", log)]
    {
        assert!(!text.contains(&canary), "{canary} is in {place}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_without_a_service_that_is_not_ready_or_has_ended() -> Result<()> {
    let bench = Installation::join().await?;
    let class = bench.class("e2e-ready", |class| class.spec.services.ready_seconds = 1).await?;
    let image = bench.image("busybox")?;
    let shell = |script: &str| Image::new(image).entrypoint(["/bin/sh", "-c", script]);
    let spec = JobSpec::fresh()
        .image(image)
        .service(shell("sleep 300").variable("HEALTHCHECK_TCP_PORT", "9"))
        .service(shell("exit 3"))
        .service(Image::new(image).entrypoint(["/no/such/program"]))
        .script(["echo the script runs"]);
    let result = bench.harness_of(class)?.run(&spec, DEADLINE).await?;
    result.assert_success();
    for line in [
        "in the container svc-0 takes no connections at its port yet (HEALTHCHECK_TCP_PORT); the job goes on",
        "in the container svc-1 has ended: exit code 3",
        "in the container svc-2 has ended: exit code 128",
        "/no/such/program",
        "the script runs",
    ] {
        assert!(result.log_contains(line), "no {line:?} in\n{}", result.text());
    }
    let status = finished(&bench, &spec).await?.status.context("no status")?;
    assert_eq!((status.phase, status.reason), (Some(Phase::Succeeded), Some(Reason::Succeeded)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_bounded_by_their_class() -> Result<()> {
    let bench = Installation::join().await?;
    let image = bench.image("busybox")?.to_owned();
    let amount = |memory: &str| BTreeMap::from([("memory".to_owned(), memory.to_owned())]);
    let class = bench
        .class("e2e-services", |class| {
            class.spec.services.allowed = vec![image.clone()];
            class.spec.resources.services = Resources {
                limits: amount("32Mi"),
                max: amount("64Mi"),
                on_exceed: OnExceed::Clamp,
                ..Resources::default()
            };
        })
        .await?;
    let sleep = || Image::new(&image).entrypoint(["sleep", "300"]);
    let spec = JobSpec::fresh()
        .image(&image)
        .variable("KUBERNETES_SERVICE_MEMORY_LIMIT", "48Mi")
        .service(sleep())
        .service(sleep().variable("KUBERNETES_SERVICE_MEMORY_LIMIT", "1Gi"))
        .script(["echo the script runs"]);
    let result = bench.harness_of(&class)?.run(&spec, DEADLINE).await?;
    result.assert_success();
    for line in [
        "  svc-0 memory limit  48Mi   at most 64Mi  48Mi     KUBERNETES_SERVICE_MEMORY_LIMIT",
        "  svc-1 memory limit  1Gi    at most 64Mi  64Mi     KUBERNETES_SERVICE_MEMORY_LIMIT, within the class's bounds",
    ] {
        assert!(result.log_contains(line), "no {line:?} in\n{}", result.text());
    }
    let resources = finished(&bench, &spec).await?.status.context("no status")?.resources;
    assert_eq!((&resources["svc-0"].limits, &resources["svc-1"].limits), (&amount("48Mi"), &amount("64Mi")));

    let spec = JobSpec::fresh().image(&image).service(Image::new("postgres:16")).script(["echo not reached"]);
    let result = bench.harness_of(&class)?.run(&spec, DEADLINE).await?;
    result.assert_script_failure(1);
    let sentence = format!("JobClass \"{class}\" does not allow the service \"postgres:16\", only {image}");
    assert!(result.log_contains(&sentence), "{}", result.text());
    let status = finished(&bench, &spec).await?.status.context("no status")?;
    assert_eq!((status.reason, status.pod), (Some(Reason::OverrideRefused), None));
    assert!(secrets_of(&bench, &spec).await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_cannot_be_pulled_fails_the_job_as_its_own_image_would() -> Result<()> {
    let bench = Installation::join().await?;
    let image = "127.0.0.1:9/nobody/nothing:1";
    let spec = JobSpec::fresh()
        .image(bench.image("busybox")?)
        .service(Image::new(image).pull_policy(["never"]))
        .script(["echo not reached"]);
    let result = run(&bench, &spec).await?;
    result.assert_script_failure(1);
    assert!(!result.log_contains("not reached") && result.log_contains(image), "{}", result.text());
    let status = finished(&bench, &spec).await?.status.context("no status")?;
    assert_eq!(status.reason, Some(Reason::ImageNotFound));
    wait_no_secrets(&bench, &spec).await
}
