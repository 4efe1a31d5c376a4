//! Stages that gitlab-runner or the shim tries again.

use anyhow::{Context as _, Result};
use http::StatusCode;
use roadstead_e2e::coordinator::{Endpoint, JobSpec};
use roadstead_e2e::gitrepo::{Commit, GitRepo};
use roadstead_e2e::harness::Harness;
use roadstead_e2e::installation::Installation;

use crate::{DEADLINE, SOON};

/// gitlab-runner calls the stage again, with another one in between that empties the work tree: all in the same pod.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkout_that_failed_is_tried_again_in_the_same_pod() -> Result<()> {
    let bench = Installation::join().await?;
    let files = Commit::new("first").file("greeting", "hello from the repository\n");
    let repository = GitRepo::create(bench.dir().join("repo.git"), &[files])?;
    let spec = JobSpec::fresh()
        .image(bench.image("debian-git")?)
        .checkout(&bench.coordinator.serve("group/project", &repository))
        .variable("GET_SOURCES_ATTEMPTS", "3")
        .hook("pre_get_sources_script", ["echo x >> \"$CI_PROJECT_DIR.tries\""])
        .script(["cat greeting", "echo tries: $(wc -l < \"$CI_PROJECT_DIR.tries\")"]);
    bench.coordinator.fail_next(Endpoint::Git, 2, StatusCode::BAD_GATEWAY);
    let result = Harness::new(bench.runner().quick_retries())?.run(&spec, DEADLINE).await?;
    result.assert_success();
    let calls = ["get_sources", "clear_worktree", "build_script"].map(|stage| result.calls_of(stage).len());
    assert_eq!(calls, [3, 1, 1]);
    let log = result.text();
    assert!(log.contains("hello from the repository") && log.contains("tries: 3"), "{log}");
    let jobs = bench.cijobs_of(spec.id).await?;
    assert_eq!(jobs.len(), 1);
    let pod = jobs[0].status.as_ref().and_then(|status| status.pod.as_ref()).context("no pod")?;
    assert_eq!(pod.attempt, 1);
    bench.wait_no_pods(spec.id, SOON).await
}
