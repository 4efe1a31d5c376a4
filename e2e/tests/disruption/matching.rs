//! What a job meets that no class takes. The class `default` takes what others leave, so it is changed meanwhile.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use kube::api::{DeleteParams, Patch, PatchParams};
use roadstead_crds::jobclass::{Matching, Mode};
use roadstead_crds::{JobClass, Reason};
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::installation::Installation;
use serde_json::{Value, json};

use crate::{DEADLINE, SOON, alone};

const PROJECT: &str = "matching/none";

async fn patch_default(bench: &Installation, matching: Value) -> Result<()> {
    let patch = Patch::Merge(json!({ "spec": { "match": matching } }));
    let patched = bench.classes().patch("default", &PatchParams::default(), &patch).await;
    patched.context("cannot change the class default")?;
    bench.class_judged("default", SOON).await.map(drop)
}

fn change(class: &mut JobClass, tags: &[&str]) {
    let tags = Some(tags.iter().map(|tag| (*tag).to_owned()).collect());
    class.spec.matching = Some(Matching { tags, projects: vec![PROJECT.to_owned()], ..Matching::default() });
    // Before whatever classes other tests have left.
    class.spec.priority = 9;
}

async fn no_class(bench: &Installation) -> Result<()> {
    // One that audits would take the job. It is there where a test of one has failed.
    let _ = bench.classes().delete("e2e-match-audit", &DeleteParams::default()).await;
    for (name, tags) in [("e2e-none-docker", "docker"), ("e2e-none-gpu", "gpu")] {
        bench.class(name, |class| change(class, &[tags])).await?;
        bench.class_judged(name, SOON).await?;
    }
    let job = || -> Result<JobSpec> {
        let spec = JobSpec::fresh().image(bench.image("busybox")?).project(PROJECT, 77);
        Ok(spec.tags(["gpu", "linux"]).script(["echo it runs"]))
    };
    let spec = job()?;
    let result = bench.harness()?.run(&spec, DEADLINE).await?;
    result.assert_script_failure(1);
    let lines = [
        "No JobClass takes this job (its tags: gpu, linux; branch main, not protected; project matching/none):",
        "- e2e-none-docker: it does not have the tags gpu, linux",
        "- e2e-none-gpu: it does not have the tag linux",
        "- default: its expression is false for the job",
    ];
    for line in lines {
        assert!(
            // The last line of all ends the sentence.
            result.text().lines().any(|written| written.trim_end_matches('.').ends_with(line)),
            "no {line:?} in\n{}",
            result.text()
        );
    }
    let status = bench.cijob_of(spec.id).await?.status.context("no status")?;
    assert_eq!((status.reason, &status.pod), (Some(Reason::NoClassMatches), &None));

    // One that only audits lets it run, and says what would have been.
    bench
        .class("e2e-none-gpu", |class| {
            change(class, &["gpu"]);
            class.spec.mode = Mode::Audit;
        })
        .await?;
    bench.class_judged("e2e-none-gpu", SOON).await?;
    let spec = job()?;
    let result = bench.harness()?.run(&spec, DEADLINE).await?;
    result.assert_success();
    let status = bench.cijob_of(spec.id).await?.status.context("no status")?;
    assert_eq!(status.class.as_deref(), Some("e2e-none-gpu"));
    let audited = status.conditions.iter().find(|condition| condition.type_ == "Audited");
    let audited = &audited.context("no condition Audited")?.message;
    assert!(
        audited.starts_with("If JobClass \"e2e-none-gpu\" were enforced: no JobClass takes this job ("),
        "{audited}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_no_class_takes_fails_with_a_line_for_each_class() -> Result<()> {
    let _alone = alone().await;
    let bench = Arc::new(Installation::join().await?);
    // A task of its own, so that what was changed is put back also where it panics.
    let outcome = tokio::spawn({
        let bench = Arc::clone(&bench);
        async move {
            let others = json!({ "expression": "!job.project.path.startsWith('matching/')" });
            patch_default(&bench, others).await?;
            no_class(&bench).await
        }
    });
    let outcome = outcome.await;
    for class in ["e2e-none-docker", "e2e-none-gpu"] {
        // It may not have come to that.
        let _ = bench.classes().delete(class, &DeleteParams::default()).await;
    }
    patch_default(&bench, json!(null)).await?;
    outcome.context("a part of the test panicked")?
}
