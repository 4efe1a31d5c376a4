//! What jobs ask for with their variables, and what their class makes of it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use kube::api::PostParams;
use roadstead_crds::jobclass::{JobClassSpec, OnExceed, OnForbidden, Resources};
use roadstead_crds::labels::BUILD_CONTAINER;
use roadstead_crds::quantity::Quantity;
use roadstead_crds::status::OverrideOutcome;
use roadstead_crds::{CiJob, JobClass, Phase, Reason};
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::harness::JobResult;
use roadstead_e2e::installation::Installation;

use crate::{DEADLINE, SOON};

fn amounts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, amount)| ((*name).to_owned(), (*amount).to_owned())).collect()
}

fn bounded(on_exceed: OnExceed) -> Resources {
    Resources {
        requests: amounts(&[("cpu", "50m"), ("memory", "64Mi")]),
        limits: amounts(&[("memory", "256Mi")]),
        max: amounts(&[("cpu", "1"), ("memory", "512Mi")]),
        min: amounts(&[("memory", "32Mi")]),
        on_exceed,
        on_forbidden: OnForbidden::Ignore,
    }
}

async fn run(bench: &Installation, class: &str, spec: &JobSpec) -> Result<JobResult> {
    bench.harness_of(class)?.run(spec, DEADLINE).await
}

/// The CiJob after its end.
async fn finished(bench: &Installation, spec: &JobSpec) -> Result<CiJob> {
    let name = bench.cijob_of(spec.id).await?.metadata.name.context("no name")?;
    bench.wait_finished(&name, SOON).await
}

/// What the build container of a job whose script runs cannot exceed.
async fn limits(bench: &Installation, spec: &JobSpec) -> Result<BTreeMap<String, String>> {
    let name = bench.cijob_of(spec.id).await?.status.and_then(|status| status.pod).context("no pod")?.name;
    let pod = bench.pods().get(&name).await.context("cannot read the pod")?;
    let containers = pod.spec.context("no spec")?.containers;
    let build = containers.into_iter().find(|container| container.name == BUILD_CONTAINER);
    let limits = build.and_then(|build| build.resources?.limits).context("no limits")?;
    Ok(limits.into_iter().map(|(name, amount)| (name, amount.0)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_asks_for_within_its_bounds_is_what_its_container_gets() -> Result<()> {
    let bench = Installation::join().await?;
    let class =
        bench.class("e2e-choice", |class| class.spec.resources.build = bounded(OnExceed::Reject)).await?;
    let spec = JobSpec::fresh()
        .image(bench.image("busybox")?)
        .variable("SIZE", "128")
        .variable("KUBERNETES_MEMORY_LIMIT", "64Mi")
        .variable("KUBERNETES_MEMORY_LIMIT", "${SIZE}Mi")
        .variable("KUBERNETES_CPU_LIMIT", "0.5")
        .variable("KUBERNETES_EPHEMERAL_STORAGE_LIMIT", "1Gi")
        .script(["echo running", "sleep 300"]);
    let job = bench.harness_of(&class)?.start(&spec).await?;
    job.wait_log("running", DEADLINE).await?;
    // As the API server writes them.
    assert_eq!(limits(&bench, &spec).await?, amounts(&[("cpu", "500m"), ("memory", "128Mi")]));
    job.cancel();
    let log = job.finish(DEADLINE).await?.text();
    for line in [
        "What the job asked for, by JobClass ",
        "  build cpu limit                0.5    at most 1      0.5      KUBERNETES_CPU_LIMIT",
        "  build ephemeral-storage limit  1Gi    -              -        KUBERNETES_EPHEMERAL_STORAGE_LIMIT, ignored: the class does not let jobs choose",
        "  build memory limit             128Mi  32Mi to 512Mi  128Mi    KUBERNETES_MEMORY_LIMIT",
    ] {
        assert!(log.contains(line), "no {line:?} in\n{log}");
    }
    let status = finished(&bench, &spec).await?.status.context("no status")?;
    assert_eq!(status.resources["build"].limits, amounts(&[("cpu", "0.5"), ("memory", "128Mi")]));
    let outcomes: Vec<_> = status.overrides.iter().map(|row| row.outcome).collect();
    assert_eq!(outcomes, [OverrideOutcome::Applied, OverrideOutcome::Forbidden, OverrideOutcome::Applied]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_may_set_what_its_containers_use_together() -> Result<()> {
    let bench = Installation::join().await?;
    let pod = Resources { max: amounts(&[("memory", "512Mi"), ("cpu", "2")]), ..Resources::default() };
    let class = bench.class("e2e-pod-resources", |class| class.spec.resources.pod = pod).await?;
    let spec = JobSpec::fresh()
        .image(bench.image("busybox")?)
        .variable("KUBERNETES_POD_MEMORY_LIMIT", "256Mi")
        .variable("KUBERNETES_POD_CPU_REQUEST", "300m")
        .script(["echo running", "sleep 300"]);
    let job = bench.harness_of(&class)?.start(&spec).await?;
    job.wait_log("running\n", DEADLINE).await?;
    let name = bench.cijob_of(spec.id).await?.status.and_then(|status| status.pod).context("no pod")?.name;
    let pod = bench.pods().get(&name).await.context("cannot read the pod")?.spec.context("no spec")?;
    job.cancel();
    let log = job.finish(DEADLINE).await?.text();
    let resources = pod.resources.context("the pod has no resources of its own")?;
    assert_eq!(resources.limits.unwrap_or_default()["memory"].0, "256Mi");
    assert_eq!(resources.requests.unwrap_or_default()["cpu"].0, "300m");
    let line = "  pod memory limit  256Mi  at most 512Mi  256Mi    KUBERNETES_POD_MEMORY_LIMIT";
    assert!(log.contains(line), "no {line:?} in\n{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_class_allows_is_refused_or_clamped() -> Result<()> {
    let bench = Installation::join().await?;
    let reject =
        bench.class("e2e-reject", |class| class.spec.resources.build = bounded(OnExceed::Reject)).await?;
    let clamp =
        bench.class("e2e-clamp", |class| class.spec.resources.build = bounded(OnExceed::Clamp)).await?;
    let asking = || -> Result<JobSpec> {
        let spec = JobSpec::fresh().image(bench.image("busybox")?);
        Ok(spec.variable("KUBERNETES_MEMORY_LIMIT", "64Gi").script(["echo reached"]))
    };

    let spec = asking()?;
    let result = run(&bench, &reject, &spec).await?;
    result.assert_script_failure(1);
    let sentence = format!(
        "KUBERNETES_MEMORY_LIMIT=64Gi asks for more memory of the build container than JobClass \"{reject}\" allows, which is at most 512Mi."
    );
    assert!(result.log_contains(&sentence), "{}", result.text());
    let status = finished(&bench, &spec).await?.status.context("no status")?;
    assert_eq!((status.phase, status.reason), (Some(Phase::Failed), Some(Reason::OverrideRefused)));
    assert_eq!(status.pod, None, "no pod was made");

    let spec = asking()?;
    let result = run(&bench, &clamp, &spec).await?;
    result.assert_success();
    let line = "  build memory limit  64Gi   32Mi to 512Mi  512Mi    KUBERNETES_MEMORY_LIMIT, within the class's bounds";
    assert!(result.log_contains(line), "no {line:?} in\n{}", result.text());
    let status = finished(&bench, &spec).await?.status.context("no status")?;
    assert_eq!(status.resources["build"].limits["memory"], "512Mi");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_amount_and_what_is_secret_never_reaches_the_cluster() -> Result<()> {
    let bench = Installation::join().await?;
    for (variable, value, words) in [
        ("KUBERNETES_CPU_LIMIT", "two", "KUBERNETES_CPU_LIMIT=\"two\" must be a Kubernetes quantity"),
        ("KUBERNETES_MEMORY_LIMIT", "0", "KUBERNETES_MEMORY_LIMIT=\"0\" must be more than 0"),
        (
            "KUBERNETES_POD_ANNOTATIONS_1",
            "note=$SECRET",
            "KUBERNETES_POD_ANNOTATIONS_1 contains the value of a masked variable",
        ),
        ("KUBERNETES_BEARER_TOKEN", "$SECRET", "KUBERNETES_BEARER_TOKEN cannot be overridden"),
    ] {
        let spec = JobSpec::fresh()
            .image(bench.image("busybox")?)
            .masked("SECRET", "hunter2hunter2")
            .variable(variable, value)
            .script(["echo not reached"]);
        let result = bench.harness()?.run(&spec, DEADLINE).await?;
        result.assert_script_failure(1);
        assert!(result.log_contains(words), "no {words:?} in\n{}", result.text());
        assert!(!result.log_contains("hunter2hunter2"), "{}", result.text());
        assert!(bench.cijobs_of(spec.id).await?.is_empty(), "{variable}");
    }
    Ok(())
}

/// The API server's own rule on requests and limits, as a class has it, agrees with
/// [`Quantity`] on what is an amount and on which is more.
#[tokio::test(flavor = "multi_thread")]
async fn amounts_are_read_as_the_api_server_reads_them() -> Result<()> {
    const TEXTS: [&str; 42] = [
        "0",
        "1",
        "+1",
        "-1",
        "01",
        "1.",
        ".5",
        "0.5",
        "500m",
        "1k",
        "1K",
        "1Ki",
        "1ki",
        "1e3",
        "1E3",
        "1e-3",
        "1E",
        "1e",
        "12E",
        "8Ei",
        "9Ei",
        "9223372036854775807",
        "9223372036854775808",
        "0.1n",
        "1n",
        "1u",
        "1 ",
        " 1",
        "1 Gi",
        "1Gi",
        "1G",
        "1.5Gi",
        "1536Mi",
        "2GB",
        "lots",
        "1.2.3",
        "1i",
        "--1",
        "+",
        "Ki",
        "1e1.5",
        "0.9999999999",
    ];
    let bench = Installation::join().await?;
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let amount = |text: &str| Quantity::parse(text).ok().filter(|amount| !amount.is_negative());
    let mut checked = 0;
    for (index, request) in TEXTS.iter().enumerate() {
        // Each with itself and with some others of all kinds.
        for distance in [0, 1, 8, 19] {
            let limit = TEXTS[(index + distance) % TEXTS.len()];
            let mut spec = JobClassSpec::default();
            spec.resources.build = Resources {
                requests: amounts(&[("memory", request)]),
                limits: amounts(&[("memory", limit)]),
                ..Resources::default()
            };
            let answer = bench
                .classes()
                .create(&dry_run, &JobClass::new(&bench.class_name("e2e-amounts"), spec))
                .await;
            let (accepted, told) = match answer {
                Ok(_) => (true, String::new()),
                Err(kube::Error::Api(status)) if status.code == 422 => (false, status.message.clone()),
                Err(error) => return Err(error).context("the API server does not answer"),
            };
            let expected = match (amount(request), amount(limit)) {
                (Some(request), Some(limit)) => request <= limit,
                _ => false,
            };
            assert_eq!(accepted, expected, "request {request:?}, limit {limit:?}: {told}");
            checked += 1;
        }
    }
    assert_eq!(checked, 4 * TEXTS.len());
    Ok(())
}
