//! Sources over HTTP from the coordinator.

use std::process::Command;

use axum::http::StatusCode;

use super::{Fake, SOON};
use crate::coordinator::tests::request;
use crate::coordinator::{Coordinator, CoordinatorConfig, Endpoint, JobSpec, ServedRepo};
use crate::gitrepo::{Commit, GitRepo};

pub(super) struct Server {
    pub(super) coordinator: Coordinator,
    repository: ServedRepo,
    commits: Vec<String>,
    _folder: tempfile::TempDir,
}

pub(super) async fn server() -> Server {
    let folder = tempfile::tempdir().unwrap();
    let coordinator =
        Coordinator::start(CoordinatorConfig::new("127.0.0.1:0".parse().unwrap())).await.unwrap();
    let lib =
        GitRepo::create(folder.path().join("lib.git"), &[Commit::new("lib").file("lib.txt", "library\n")]);
    let lib = lib.unwrap();
    coordinator.serve("grp/lib", &lib);
    let commits = [
        Commit::new("one").file("README", "one\n"),
        Commit::new("two").file("README", "two\n").executable("run.sh", "#!/bin/sh\necho run\n"),
        Commit::new("three").file("README", "three\n").submodule("lib", "../lib.git", lib.head()),
    ];
    let repository = GitRepo::create(folder.path().join("proj.git"), &commits).unwrap();
    let served = coordinator.serve("grp/proj", &repository);
    Server { coordinator, repository: served, commits: repository.commits().to_vec(), _folder: folder }
}

impl Server {
    pub(super) fn fake(&self) -> Fake {
        Fake::new().with(|config| *config = config.clone().coordinator(&self.coordinator))
    }

    pub(super) fn job(&self) -> JobSpec {
        JobSpec::fresh().checkout(&self.repository)
    }
}

#[tokio::test]
async fn the_commit_is_checked_out() {
    let server = server().await;
    let fake = server.fake();
    let spec =
        server.job().script(["cat README", "git rev-parse HEAD", "git log --oneline | wc -l"]).git_depth(2);
    let result = fake.run(&spec).await;
    result.assert_success();
    let out = result.call("build_script").stdout_text();
    assert!(out.contains("\nthree\n") && out.contains(&format!("\n{}\n", server.commits[2])), "{out}");
    assert!(out.ends_with("\n2\n"), "the depth is 2: {out}");
    let log = result.call("get_sources").stdout_text();
    assert!(log.contains("Fetching changes with git depth set to 2..."));
    assert!(
        log.contains(&format!("Checking out {} as detached HEAD (ref is main)...", &server.commits[2][..8]))
    );
    // The token is nowhere in the checkout.
    let project = fake.path("builds/grp/proj");
    let config = std::fs::read_to_string(project.join(".git/config")).unwrap_or_default();
    assert!(!config.contains(&spec.token), "{config}");
    assert!(!fake.path("builds/grp/proj.tmp/.gitlab-runner.ext.conf").exists());
}

#[tokio::test]
async fn tokens_end_with_their_jobs() {
    let server = server().await;
    let fake = server.fake();
    let spec = server.job().script(["true"]);
    fake.run(&spec).await.assert_success();
    let url = format!("{}/grp/proj.git", server.coordinator.url())
        .replace("http://", &format!("http://gitlab-ci-token:{}@", spec.token));
    let output = tokio::task::spawn_blocking(move || {
        Command::new("git").args(["ls-remote", &url]).env("GIT_TERMINAL_PROMPT", "0").output().unwrap()
    })
    .await
    .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("403"), "{output:?}");
}

#[tokio::test]
async fn nobody_can_push() {
    let server = server().await;
    let spec = server.job().script([
        "git -c user.name=x -c user.email=x@x commit --allow-empty -qm x",
        "if git push $CI_REPOSITORY_URL HEAD:refs/heads/evil; then echo pushed; else echo refused; fi",
    ]);
    let result = server.fake().run(&spec).await;
    result.assert_success();
    assert!(result.log_contains("\nrefused\n"), "{}", result.text());
}

#[tokio::test]
async fn a_second_job_reuses_the_checkout_and_cleans_it() {
    let server = server().await;
    let fake = server.fake();
    let dirty = ["echo dirt > dirt.txt; echo changed > README; git config --local core.pager evil"];
    fake.run(&server.job().sha(&server.commits[1]).script(dirty)).await.assert_success();
    let spec = server.job().script(["cat README; ls; git config --get core.pager || echo clean"]);
    let result = fake.run(&spec).await;
    result.assert_success();
    let out = result.call("build_script").stdout_text();
    assert!(out.contains("\nthree\n") && !out.contains("dirt.txt") && out.contains("\nclean\n"), "{out}");
    assert!(!result.call("get_sources").stdout_text().contains("Cloning into"));
    assert!(fake.path("builds/grp/proj/.git").exists());
}

#[tokio::test]
async fn strategies_differ() {
    let server = server().await;
    let fake = server.fake();
    let script = ["touch left-over; ls -a | tr '\\n' ' '; pwd"];
    let run = |strategy: &'static str| {
        fake.run_strategy(server.job().variable("GIT_STRATEGY", strategy).script(script))
    };
    let none = run("none").await;
    assert!(!none.contains("README") && none.contains("/grp/proj\n"), "{none}");
    let fetch = run("fetch").await;
    assert!(fetch.contains("README"), "{fetch}");
    let none = run("none").await;
    assert!(none.contains("README"), "what is there stays: {none}");
    let clone = run("clone").await;
    assert!(clone.contains("README"), "{clone}");
    let empty = run("empty").await;
    assert!(!empty.contains("README") && empty.contains("/grp/proj-empty\n"), "{empty}");
}

impl Fake {
    async fn run_strategy(&self, spec: JobSpec) -> String {
        let result = self.run(&spec).await;
        result.assert_success();
        result.call("build_script").stdout_text()
    }
}

#[tokio::test]
async fn submodules_come_with_the_job_s_token() {
    let server = server().await;
    for strategy in ["normal", "recursive"] {
        let spec = server
            .job()
            .variable("GIT_SUBMODULE_STRATEGY", strategy)
            .script(["cat lib/lib.txt", "cd lib && git fetch -q origin && echo fetched"]);
        let result = server.fake().run(&spec).await;
        result.assert_success();
        let out = result.call("build_script").stdout_text();
        assert!(out.contains("\nlibrary\n") && out.contains("\nfetched\n"), "{out}");
    }
    let spec = server.job().script(["ls lib | wc -l"]);
    let result = server.fake().run(&spec).await;
    assert!(result.call("build_script").stdout_text().ends_with("\n0\n"));
}

#[tokio::test]
async fn failed_fetches_are_tried_again() {
    let server = server().await;
    server.coordinator.fail_next(Endpoint::Git, 1, StatusCode::BAD_GATEWAY);
    let spec = server.job().script(["cat README"]).variable("GET_SOURCES_ATTEMPTS", "2");
    let result = server.fake().run(&spec).await;
    result.assert_success();
    assert_eq!(result.calls_of("get_sources").len(), 2);
    assert_eq!(result.calls_of("clear_worktree").len(), 1);
    server.coordinator.fail_next(Endpoint::Git, 1, StatusCode::BAD_GATEWAY);
    // Git ends with 128 when a server answers so.
    server.fake().run(&server.job().script(["cat README"])).await.assert_script_failure(128);
}

#[tokio::test]
async fn hooks_surround_the_checkout() {
    let server = server().await;
    let fake = server.fake().with(|config| {
        config.pre_get_sources_script = "echo 1-config".to_owned();
        config.post_get_sources_script = "echo 4-config".to_owned();
    });
    let spec = || {
        server
            .job()
            .hook("pre_get_sources_script", ["echo 2-job"])
            .hook("post_get_sources_script", ["echo 3-job; cat README"])
            .script(["true"])
    };
    let result = fake.run(&spec()).await;
    result.assert_success();
    let out = result.call("get_sources").stdout_text();
    let places: Vec<usize> = ["\n1-config\n", "\n2-job\n", "Fetching", "\n3-job\nthree\n", "\n4-config\n"]
        .iter()
        .map(|text| out.find(text).unwrap_or_else(|| panic!("{text}: {out}")))
        .collect();
    assert!(places.is_sorted(), "{places:?}: {out}");
    let none = fake.run(&spec().variable("GIT_STRATEGY", "none")).await;
    assert!(!none.call("get_sources").stdout_text().contains("2-job"));
}

#[tokio::test]
async fn the_coordinator_knows_who_runs() {
    let server = server().await;
    let fake = server.fake();
    let spec = server.job().tags(["zeta", "k8s"]).script(["echo begun; sleep 300"]);
    let job = fake.harness().start(&spec).await.unwrap();
    job.wait_log("begun\n", SOON).await.unwrap();
    let url = format!("{}/api/v4/job", server.coordinator.url());
    let answer = request("GET", &url, &[("JOB-TOKEN", &spec.token)], b"").await;
    assert_eq!(answer.status, 200);
    let body = answer.json();
    assert_eq!((&body["id"], &body["tag_list"]), (&spec.id.into(), &serde_json::json!(["k8s", "zeta"])));
    job.cancel();
    job.finish(SOON).await.unwrap();
    assert_eq!(request("GET", &url, &[("JOB-TOKEN", &spec.token)], b"").await.status, 401);
    assert!(server.coordinator.job(spec.id).unwrap().state.is_final());
}
