//! Images of all kinds, and images that are not there.

use std::time::Duration;

use anyhow::{Context as _, Result};
use roadstead_crds::Reason;
use roadstead_crds::jobclass::AgentSource;
use roadstead_e2e::coordinator::{Image, JobSpec};
use roadstead_e2e::gitrepo::{Commit, GitRepo};
use roadstead_e2e::installation::Installation;

use crate::{DEADLINE, SOON};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_a_user_of_its_own_can_work_in_the_checkout() -> Result<()> {
    let bench = Installation::join().await?;
    let repository = GitRepo::create(bench.dir().join("repo.git"), &[Commit::new("first").file("a", "a\n")])?;
    let served = bench.coordinator.serve("group/user", &repository);
    let spec = JobSpec::fresh().image(bench.image("debian-user")?).checkout(&served).script([
        "id -u",
        "test $(id -u) = 1000",
        "echo changed >> a && git diff --stat && mkdir -p new/dir && echo wrote",
    ]);
    let result = bench.harness()?.run(&spec, DEADLINE).await?;
    result.assert_success();
    assert!(result.text().contains("1 file changed"), "{}", result.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sudo_works_where_the_image_has_it() -> Result<()> {
    let bench = Installation::join().await?;
    let spec = JobSpec::fresh().image(bench.image("debian-sudo")?).script([
        "test $(id -u) = 1000",
        "test $(sudo id -u) = 0",
        "echo root by sudo",
    ]);
    let result = bench.harness()?.run(&spec, DEADLINE).await?;
    result.assert_success();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_nothing_but_busybox_runs_bash_dialect() -> Result<()> {
    let bench = Installation::join().await?;
    let spec = JobSpec::fresh()
        .image(bench.image("busybox")?)
        .variable("QUOTED", "it's \"quoted\"\nin two lines")
        .script(["echo \"$QUOTED\"", "readlink /proc/$$/exe"]);
    let result = bench.harness()?.run(&spec, DEADLINE).await?;
    result.assert_success();
    assert!(result.text().contains("it's \"quoted\"\nin two lines"), "{}", result.text());
    assert!(result.text().contains("busybox"), "{}", result.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hardened_class_runs_without_root_and_without_a_way_to_it() -> Result<()> {
    let bench = Installation::join().await?;
    let repository = GitRepo::create(bench.dir().join("repo.git"), &[Commit::new("first").file("a", "a\n")])?;
    let served = bench.coordinator.serve("group/hardened", &repository);
    let spec = JobSpec::fresh().image(bench.image("debian-sudo")?).checkout(&served).script([
        "test $(id -u) != 0",
        "grep -q 'NoNewPrivs:.1' /proc/self/status && echo no new privileges",
        "if sudo -n id -u; then exit 9; fi",
        "git log --oneline | cat",
    ]);
    let harness = bench.harness_of(bench.class_name("hardened"))?;
    let result = harness.run(&spec, DEADLINE).await?;
    result.assert_success();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_comes_in_a_container_of_its_own_where_the_helper_lacks_it() -> Result<()> {
    let bench = Installation::join().await?;
    let helper = bench.image("debian-git")?.to_owned();
    let class = bench
        .class("e2e-container", |class| {
            class.spec.helper.agent = AgentSource::Container;
            class.spec.helper.image = Some(helper);
            // The agent has to do with a read-only root.
            let context = class.spec.pod.container_security_context.get_or_insert_default();
            context.read_only_root_filesystem = Some(true);
        })
        .await?;
    let spec = JobSpec::fresh().image(bench.image("busybox")?).script(["touch /x || echo read-only root"]);
    let harness = bench.harness_of(class)?;
    let result = harness.run(&spec, DEADLINE).await?;
    result.assert_success();
    assert!(result.text().contains("read-only root"), "{}", result.text());
    // The helper image of this class has no gitlab-runner-helper, and the log says what that means.
    assert!(result.text().contains("gitlab-runner"), "{}", result.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_image_is_told_in_seconds() -> Result<()> {
    let bench = Installation::join().await?;
    for (policy, reason, outcome_is_script) in
        [("never", Reason::ImageNotFound, true), ("if-not-present", Reason::ImagePullFailed, false)]
    {
        // Port 9 of loopback refuses connections, so the pull fails in the way of a registry that is down.
        let image = "127.0.0.1:9/nobody/nothing:1";
        let spec =
            JobSpec::fresh().image_with(Image::new(image).pull_policy([policy])).script(["echo not reached"]);
        let result = bench.harness()?.run(&spec, DEADLINE).await?;
        if outcome_is_script {
            result.assert_script_failure(1);
        } else {
            result.assert_system_failure();
        }
        assert!(result.text().contains(image), "{}", result.text());
        let took = result.calls_of("prepare")[0].duration().context("prepare has no end")?;
        assert!(took < Duration::from_secs(20), "prepare took {took:?}");
        let name = bench.cijobs_of(spec.id).await?[0].metadata.name.clone().context("no name")?;
        let job = bench.wait_finished(&name, SOON).await?;
        assert_eq!(job.status.and_then(|status| status.reason), Some(reason));
        bench.wait_no_pods(spec.id, SOON).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_which_nothing_can_run_is_the_jobs_mistake() -> Result<()> {
    let bench = Installation::join().await?;
    for (image, words) in
        [("no-shell", "has no /bin/sh"), ("foreign", "is for another CPU architecture than the node's")]
    {
        let spec = JobSpec::fresh().image(bench.image(image)?).script(["echo not reached"]);
        let result = bench.harness()?.run(&spec, DEADLINE).await?;
        result.assert_script_failure(1);
        assert!(result.text().contains(words), "no {words:?} in\n{}", result.text());
        let took = result.calls_of("prepare")[0].duration().context("prepare has no end")?;
        assert!(took < Duration::from_secs(20), "prepare took {took:?}");
        let name = bench.cijobs_of(spec.id).await?[0].metadata.name.clone().context("no name")?;
        let job = bench.wait_finished(&name, SOON).await?;
        assert_eq!(job.status.and_then(|status| status.reason), Some(Reason::ImageUnusable));
        bench.wait_no_pods(spec.id, SOON).await?;
    }
    Ok(())
}
