//! The main path: checkout, scripts, objects.

use anyhow::{Context as _, Result};
use roadstead_crds::Phase;
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::gitrepo::{Commit, GitRepo};
use roadstead_e2e::harness::Backend;
use roadstead_e2e::installation::Installation;

use crate::{DEADLINE, SOON};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_checks_out_its_repository_and_runs_its_scripts() -> Result<()> {
    let bench = Installation::join().await?;
    let files = Commit::new("first")
        .file("greeting", "hello from the repository\n")
        .executable("test.sh", "#!/bin/sh\ngrep -q hello greeting && echo tested\n");
    let repository = GitRepo::create(bench.dir().join("repo.git"), &[files])?;
    let served = bench.coordinator.serve("group/project", &repository);
    for backend in Backend::available(&bench.runner())? {
        let spec = JobSpec::fresh()
            .image(bench.image("debian-git")?)
            .checkout(&served)
            .script(["cat greeting", "./test.sh", "git status --short | wc -l", "pwd", "echo done > result"])
            .after_script(["cat result", "echo \"status $CI_JOB_STATUS\""]);
        let result = backend.run(&spec, DEADLINE).await?;
        result.assert_success();
        let log = result.text();
        for line in ["hello from the repository", "tested", "/builds/group/project", "status success"] {
            assert!(log.contains(line), "no {line:?} in the log of {}:\n{log}", backend.name());
        }

        let name = bench.cijob_of(spec.id).await?.metadata.name.context("a CiJob without a name")?;
        let job = bench.wait_finished(&name, SOON).await?;
        let status = job.status.context("a finished CiJob without a status")?;
        assert_eq!(status.phase, Some(Phase::Succeeded), "{status:#?}");
        assert_eq!(status.class, Some(bench.class_name("default")));
        assert!(
            status.pod.as_ref().is_some_and(|pod| pod.node.is_some() && pod.uid.is_some()),
            "{status:#?}"
        );
        assert!(status.start.build_ms.is_some() && status.start.first_byte_ms.is_some(), "{status:#?}");
        let report = job.spec.report.context("no report")?;
        let stages: Vec<_> =
            report.stages.iter().map(|stage| (stage.name.as_str(), stage.container.as_str())).collect();
        for expected in [("get_sources", "helper"), ("build_script", "build"), ("after_script", "build")] {
            assert!(stages.contains(&expected), "{stages:?} lack {expected:?}");
        }
        bench.wait_no_pods(spec.id, SOON).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_jobs_at_once_do_not_mix() -> Result<()> {
    let bench = Installation::join().await?;
    let harness = bench.harness()?;
    let mut jobs = Vec::new();
    for number in 0..8 {
        let spec = JobSpec::fresh()
            .image(bench.image("busybox")?)
            .script([format!("i=0; while [ $i -lt 200 ]; do echo job-{number}-line-$i; i=$((i+1)); done")]);
        jobs.push((number, harness.start(&spec).await?));
    }
    for (number, job) in jobs {
        let result = job.finish(DEADLINE).await?;
        result.assert_success();
        let output = String::from_utf8_lossy(&result.call("build_script").stdout).into_owned();
        let lines: Vec<&str> = output.lines().filter(|line| line.starts_with("job-")).collect();
        let expected: Vec<String> = (0..200).map(|line| format!("job-{number}-line-{line}")).collect();
        assert_eq!(lines, expected);
    }
    Ok(())
}
