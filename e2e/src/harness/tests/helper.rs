//! Sources, caches and artifacts with the helper commands of a real gitlab-runner, through both runners.

use super::super::{Backend, JobResult, real};
use super::checkout::{Server, server};
use super::{Fake, SOON};
use crate::coordinator::{Artifact, Cache, JobSpec};

/// A driver in whose scripts `gitlab-runner` is the real one; `None` where there is none.
fn fake(server: &Server) -> Option<Fake> {
    let Some(program) = real::program() else {
        eprintln!("there is no real gitlab-runner to call");
        return None;
    };
    let fake = server.fake();
    std::fs::remove_file(fake.path("bin/gitlab-runner")).unwrap();
    let said = std::process::Command::new(&program).arg("--version").output().unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    let version = said.lines().find_map(|line| line.strip_prefix("Version:")).unwrap().trim().to_owned();
    std::os::unix::fs::symlink(program, fake.path("bin/gitlab-runner")).unwrap();
    Some(fake.with(|config| config.version = version))
}

async fn run(backend: &Backend, spec: &JobSpec) -> JobResult {
    let result = backend.run(spec, SOON).await.unwrap();
    result.assert_success();
    result
}

#[tokio::test]
async fn artifacts_travel_from_job_to_job() {
    let server = server().await;
    let Some(fake) = fake(&server) else { return };
    for backend in Backend::available(&fake.config).unwrap() {
        let first = server
            .job()
            .name("build")
            .variable("RUNNER_GENERATE_ARTIFACTS_METADATA", "true")
            .script(["mkdir -p out; echo \"made by $CI_JOB_ID\" > out/made; head -c 3000000 /dev/urandom > out/big"])
            .artifact(Artifact::paths(["out/"]).name("result"));
        let result = run(&backend, &first).await;
        let stored = server.coordinator.job(first.id).unwrap().artifacts;
        assert_eq!(stored[0].filename, "result.zip", "{}", result.text());
        assert!(stored[0].content.len() > 3_000_000 && stored[0].content.starts_with(b"PK"));

        let second = server.job().script(["cat out/made"]).dependency(&first, "result.zip");
        let result = run(&backend, &second).await;
        assert!(result.log_contains(&format!("\nmade by {}\n", first.id)), "{}", result.text());
    }
}

#[tokio::test]
async fn caches_stay_for_the_next_job() {
    let server = server().await;
    let Some(fake) = fake(&server) else { return };
    for backend in Backend::available(&fake.config).unwrap() {
        let key = format!("key-{}", backend.name());
        let job = || server.job().cache(Cache::new(key.clone(), ["vendor/"]));
        run(&backend, &job().script(["mkdir -p vendor; echo kept > vendor/lib"])).await;
        let result = run(&backend, &job().script(["cat vendor/lib"])).await;
        assert!(result.log_contains("\nkept\n"), "{}", result.text());
        assert!(result.log_contains("Successfully extracted cache"), "{}", result.text());
        assert!(fake.path(&format!("cache/grp/proj/{key}/cache.zip")).exists());
    }
}

#[tokio::test]
async fn sources_and_submodules_come_through_both_runners() {
    let server = server().await;
    let Some(fake) = fake(&server) else { return };
    for backend in Backend::available(&fake.config).unwrap() {
        for strategy in ["clone", "fetch"] {
            let spec = server
                .job()
                .variable("GIT_STRATEGY", strategy)
                .variable("GIT_SUBMODULE_STRATEGY", "recursive")
                .script(["cat README lib/lib.txt; git status --short | wc -l"]);
            let result = run(&backend, &spec).await;
            assert!(result.log_contains("\nthree\nlibrary\n0\n"), "{}: {}", backend.name(), result.text());
        }
    }
}
