//! Which class takes a job, and what the job log says where the one that is named does not.
//!
//! Every class here takes jobs of one project below `matching/` only, so that no other test's job gets it. What a
//! job meets that no class at all takes is among the tests that have the cluster to themselves: the class `default`
//! takes whatever these do not.

use anyhow::{Context as _, Result, ensure};
use axum::http::StatusCode;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use kube::api::DeleteParams;
use kube::runtime::watcher;
use roadstead_crds::jobclass::{Matching, Mode, RefMatching};
use roadstead_crds::{CiJob, JobClass, Reason};
use roadstead_e2e::coordinator::{Endpoint, JobSpec};
use roadstead_e2e::harness::{Harness, JobResult};
use roadstead_e2e::installation::Installation;
use serde_json::json;

use crate::{DEADLINE, SOON};

/// A project of these tests.
fn project(name: &str) -> String {
    format!("matching/{name}")
}

/// A job of a project of these tests, with these tags.
fn job(bench: &Installation, name: &str, tags: &[&str]) -> Result<JobSpec> {
    let spec = JobSpec::fresh().image(bench.image("busybox")?).project(project(name), 77);
    Ok(spec.tags(tags.iter().copied()).script(["echo it runs"]))
}

/// A class for one project of these tests, as the operator sees it.
async fn class(
    bench: &Installation,
    name: &str,
    matching: Matching,
    change: impl FnOnce(&mut JobClass),
) -> Result<JobClass> {
    let name = bench
        .class(&format!("e2e-match-{name}"), |class| {
            class.spec.matching = Some(matching);
            change(class);
        })
        .await?;
    bench.class_judged(&name, SOON).await
}

fn for_project(name: &str) -> Matching {
    Matching { projects: vec![project(name)], ..Matching::default() }
}

fn tagged(name: &str, tags: &[&str], run_untagged: bool) -> Matching {
    let tags = Some(tags.iter().map(|tag| (*tag).to_owned()).collect());
    Matching { tags, run_untagged: Some(run_untagged), ..for_project(name) }
}

fn condition<'a>(job: &'a CiJob, kind: &str) -> Option<&'a Condition> {
    job.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == kind)
}

fn class_condition<'a>(class: &'a JobClass, kind: &str) -> Option<&'a Condition> {
    class.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == kind)
}

/// The job ran in that class; the CiJob says why it did.
async fn assert_ran(bench: &Installation, result: &JobResult, id: i64, class: &str) -> Result<CiJob> {
    result.assert_success();
    let job = bench.cijob_of(id).await?;
    let status = job.status.as_ref().context("no status")?;
    assert_eq!(status.class.as_deref(), Some(class), "{status:#?}");
    let admitted = condition(&job, "Admitted").context("not admitted")?;
    assert!(admitted.message.starts_with(&format!("JobClass \"{class}\" admits the job: ")), "{admitted:?}");
    Ok(job)
}

/// The job failed as its author's mistake, with these words in its log, and had no pod.
async fn assert_refused(bench: &Installation, result: &JobResult, id: i64, words: &str) -> Result<()> {
    result.assert_script_failure(1);
    ensure!(result.text().contains(words), "no {words:?} in\n{}", result.text());
    let status = bench.cijob_of(id).await?.status.context("no status")?;
    assert_eq!(status.reason, Some(Reason::NoClassMatches));
    assert_eq!(status.pod, None, "a refused job has no pod");
    Ok(())
}

/// An example of GitLab's page on runners, the runner's tags being the class's.
struct Example {
    name: &'static str,
    tags: &'static [&'static str],
    run_untagged: bool,
    /// Tags of jobs that run.
    run: &'static [&'static [&'static str]],
    /// Tags of jobs that are stuck, and what is said of them.
    stuck: &'static [(&'static [&'static str], &'static str)],
}

/// <https://docs.gitlab.com/ci/runners/configure_runners/#control-jobs-that-a-runner-can-run>
const EXAMPLES: [Example; 4] = [
    Example {
        name: "only-tagged",
        tags: &["docker"],
        run_untagged: false,
        run: &[&["docker"]],
        stuck: &[(&["hello"], "it does not have the tag hello"), (&[], "it does not take jobs without tags")],
    },
    Example {
        name: "untagged-too",
        tags: &["docker"],
        run_untagged: true,
        run: &[&[], &["docker"]],
        stuck: &[],
    },
    Example {
        name: "untagged-only",
        tags: &[],
        run_untagged: true,
        run: &[&[]],
        stuck: &[(&["docker"], "it takes jobs without tags only")],
    },
    Example {
        name: "several-tags",
        tags: &["docker", "shell", "gpu"],
        run_untagged: false,
        run: &[&["docker", "shell", "gpu"], &["docker", "shell"]],
        stuck: &[(&["docker", "shell", "windows-2025"], "it does not have the tag windows-2025")],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn tags_work_as_gitlabs_page_on_runners_says() -> Result<()> {
    let bench = Installation::join().await?;
    let chosen = bench.harness()?;
    for Example { name, tags, run_untagged, run, stuck } in EXAMPLES {
        class(&bench, name, tagged(name, tags, run_untagged), |_| {}).await?;
        let class = format!("e2e-match-{name}");
        for tags in run {
            let spec = job(&bench, name, tags)?;
            let result = chosen.run(&spec, DEADLINE).await?;
            assert_ran(&bench, &result, spec.id, &class).await?;
        }
        let named = bench.harness_of(&class)?;
        for (tags, why) in stuck {
            let spec = job(&bench, name, tags)?;
            let result = named.run(&spec, DEADLINE).await?;
            let words = format!("JobClass \"{class}\", which the runner asks for, does not take this job (");
            assert_refused(&bench, &result, spec.id, &words).await?;
            assert!(result.text().contains(why), "no {why:?} in\n{}", result.text());
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_travel_from_gitlabs_api_to_the_pods_node_selector() -> Result<()> {
    let bench = Installation::join().await?;
    let name = "placed";
    let placement = json!({"rules": [{"tags": ["e2e-near"], "nodeSelector": {"kubernetes.io/os": "linux"}}]});
    let placement = serde_json::from_value(placement)?;
    class(&bench, name, tagged(name, &["e2e-near"], false), |class| class.spec.placement = placement).await?;
    let spec = JobSpec::fresh().image(bench.image("busybox")?).project(project(name), 77);
    let spec = spec.tags(["e2e-near"]).script(["echo running", "sleep 300"]);
    let running = bench.harness()?.start(&spec).await?;
    running.wait_log("running", DEADLINE).await?;
    let job = bench.cijob_of(spec.id).await?;
    let pod = job.status.as_ref().and_then(|status| status.pod.as_ref()).context("no pod")?;
    let pod = bench.pods().get(&pod.name).await.context("cannot read the pod")?;
    running.cancel();
    running.finish(DEADLINE).await?;

    let asked = bench.coordinator.requests();
    assert!(asked.iter().any(|request| request.path == "/api/v4/job" && request.status == 200), "{asked:?}");
    let request = serde_json::to_value(&job.spec.request)?;
    assert_eq!((&request["tags"], &request["tagSource"]), (&json!(["e2e-near"]), &json!("Job")));
    let selector = pod.spec.and_then(|spec| spec.node_selector);
    assert_eq!(serde_json::to_value(selector)?, json!({"kubernetes.io/os": "linux"}));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_gitlabs_and_no_variables() -> Result<()> {
    let bench = Installation::join().await?;
    let name = "forged";
    class(&bench, name, tagged(name, &["privileged"], false), |_| {}).await?;
    let spec = job(&bench, name, &["docker"])?
        .runner_tags(["docker", "privileged"])
        .variable("CI_RUNNER_TAGS", "[\"privileged\"]")
        .variable("CI_JOB_TAGS", "[\"privileged\"]")
        .variable("CI_API_V4_URL", "http://127.0.0.1:1/api/v4")
        .variable("ROADSTEAD_TAG_SOURCE", "none");
    let result = bench.harness_of("e2e-match-forged")?.run(&spec, DEADLINE).await?;
    assert_refused(&bench, &result, spec.id, "it does not have the tag docker").await?;
    let request = bench.cijob_of(spec.id).await?.spec.request;
    assert_eq!(request.tags, ["docker"]);
    assert_eq!(request.user_login.as_deref(), Some("tester"));

    // The runner's tags stand for the job's only where the runner's administrator says so.
    let spec = job(&bench, name, &[])?.runner_tags(["privileged"]);
    let harness = Harness::new(bench.runner().env("ROADSTEAD_TAG_SOURCE", "runner"))?;
    let result = harness.run(&spec, DEADLINE).await?;
    assert_ran(&bench, &result, spec.id, "e2e-match-forged").await?;
    let words = "The runner's tags (privileged) stand for the job's";
    assert!(result.log_contains(words), "{}", result.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gitlab_that_does_not_tell_the_tags_is_a_system_failure() -> Result<()> {
    let bench = Installation::join().await?;
    bench.coordinator.fail_next(Endpoint::CurrentJob, 3, StatusCode::UNAUTHORIZED);
    let spec = job(&bench, "unreachable", &[])?;
    let result = bench.harness()?.run(&spec, DEADLINE).await?;
    result.assert_system_failure();
    let gitlab = bench.coordinator.url();
    let words = format!("cannot ask GitLab at {gitlab}/api/v4/job for the job's tags: it answers 401");
    assert!(result.log_contains(&words), "{}", result.text());
    assert!(!result.text().contains(&spec.token));
    assert!(bench.cijobs_of(spec.id).await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_for_protected_refs_takes_neither_others_nor_forks() -> Result<()> {
    let bench = Installation::join().await?;
    let name = "protected";
    let refs = RefMatching { protected_only: true, names: vec![] };
    class(&bench, name, Matching { refs, ..for_project(name) }, |_| {}).await?;
    let spec = job(&bench, name, &[])?.protected(Some(true));
    let result = bench.harness()?.run(&spec, DEADLINE).await?;
    assert_ran(&bench, &result, spec.id, "e2e-match-protected").await?;

    let named = bench.harness_of("e2e-match-protected")?;
    let why = "it takes jobs of protected refs only, and this ref is not protected";
    // What a variable says is not what GitLab says.
    let forged = job(&bench, name, &[])?.protected(Some(false)).variable("CI_COMMIT_REF_PROTECTED", "true");
    let fork = job(&bench, name, &[])?
        .git_ref("refs/merge-requests/4/head")
        .protected(Some(true))
        .variable("CI_MERGE_REQUEST_SOURCE_PROJECT_ID", "78");
    for spec in [forged, fork] {
        let result = named.run(&spec, DEADLINE).await?;
        assert_refused(&bench, &result, spec.id, why).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_higher_priority_takes_the_job() -> Result<()> {
    let bench = Installation::join().await?;
    let name = "priority";
    class(&bench, "priority-low", tagged(name, &["x"], false), |_| {}).await?;
    class(&bench, "priority-high", tagged(name, &["x", "y"], false), |class| class.spec.priority = 7).await?;
    let spec = job(&bench, name, &["x"])?;
    let result = bench.harness()?.run(&spec, DEADLINE).await?;
    let job = assert_ran(&bench, &result, spec.id, "e2e-match-priority-high").await?;
    let why = "its priority 7 is above that of \"e2e-match-priority-low\" (0)";
    assert!(condition(&job, "Admitted").is_some_and(|admitted| admitted.message.contains(why)), "{job:#?}");
    Ok(())
}

/// Waits for an Event of this reason on an object, and returns what it says.
async fn event(bench: &Installation, object: &str, reason: &str) -> Result<String> {
    use futures::{StreamExt as _, TryStreamExt as _};
    let events: Api<Event> = Api::namespaced(bench.client.clone(), bench.job_namespace());
    let of_object = watcher::Config::default().fields(&format!("involvedObject.name={object}"));
    let seen = watcher(events, of_object).try_filter_map(async |event| {
        Ok(match event {
            watcher::Event::Apply(event) | watcher::Event::InitApply(event) => Some(event),
            _ => None,
        })
    });
    let mut seen = std::pin::pin!(seen);
    let wanted = async {
        while let Some(event) = seen.next().await {
            let event = event.context("cannot watch Events")?;
            if event.reason.as_deref() == Some(reason) {
                return event.message.context("an Event without words");
            }
        }
        anyhow::bail!("the watch ended")
    };
    tokio::time::timeout(SOON, wanted).await.with_context(|| format!("no Event {reason} on {object}"))?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_that_audits_says_what_it_would_have_refused() -> Result<()> {
    let bench = Installation::join().await?;
    let name = "audit";
    class(&bench, name, tagged(name, &["gpu"], false), |class| class.spec.mode = Mode::Audit).await?;
    let spec = job(&bench, name, &[])?;
    let result = bench.harness_of("e2e-match-audit")?.run(&spec, DEADLINE).await?;
    // It would take every job that no class takes.
    bench
        .classes()
        .delete("e2e-match-audit", &DeleteParams::default())
        .await
        .context("cannot delete the class")?;
    let job = assert_ran(&bench, &result, spec.id, "e2e-match-audit").await?;
    let audited = condition(&job, "Audited").context("no condition Audited")?;
    let words = "JobClass \"e2e-match-audit\", which the runner asks for, would refuse this job: it does not take jobs without tags.";
    assert_eq!((audited.status.as_str(), audited.message.as_str()), ("True", words));
    let name = job.metadata.name.context("no name")?;
    assert_eq!(event(&bench, &name, "Audited").await?, words);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_that_cannot_be_used_says_why_and_takes_no_job() -> Result<()> {
    let bench = Installation::join().await?;
    let name = "invalid";
    let matching = Matching {
        namespaces: vec!["ci//x".to_owned()],
        expression: Some("job.projct.path == 'x'".to_owned()),
        ..for_project(name)
    };
    let judged = class(&bench, name, matching, |_| {}).await?;
    let valid = class_condition(&judged, "Valid").context("no condition Valid")?;
    assert_eq!(valid.status, "False");
    for words in ["atch.namespaces[0] \"ci//x\" is not a pattern", "`job` has no field `projct`"] {
        assert!(valid.message.contains(words), "{valid:?}");
    }
    let spec = job(&bench, name, &[])?;
    let result = bench.harness_of("e2e-match-invalid")?.run(&spec, DEADLINE).await?;
    result.assert_system_failure();
    let words = "JobClass \"e2e-match-invalid\", which the runner asks for, is not valid, and the administrator has to correct it: ";
    assert!(result.log_contains(words), "{}", result.text());

    let good = class(&bench, name, for_project(name), |_| {}).await?;
    assert_eq!(class_condition(&good, "Valid").context("no condition Valid")?.status, "True");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expression_that_fails_is_the_administrators_mistake_and_marks_the_class() -> Result<()> {
    let bench = Installation::join().await?;
    let name = "fails";
    let matching = Matching { expression: Some("job.tags[5] == 'x'".to_owned()), ..for_project(name) };
    class(&bench, name, matching, |_| {}).await?;
    let spec = job(&bench, name, &[])?;
    let result = bench.harness()?.run(&spec, DEADLINE).await?;
    result.assert_system_failure();
    let words = "The expression of JobClass \"e2e-match-fails\" fails for this job";
    assert!(result.log_contains(words), "{}", result.text());
    let marked = |class: Option<&JobClass>| {
        class.is_some_and(|class| class_condition(class, "ExpressionFailed").is_some())
    };
    let waited = kube::runtime::wait::await_condition(bench.classes(), "e2e-match-fails", marked);
    tokio::time::timeout(SOON, waited).await.context("the class is not marked")??;
    Ok(())
}
