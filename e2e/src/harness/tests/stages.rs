//! Which stages a job has, and what their scripts do.

use super::super::Outcome;
use super::Fake;
use crate::coordinator::{Artifact, Cache, JobSpec};

#[tokio::test]
async fn everything_that_a_job_can_have() {
    let fake = Fake::new();
    let first = JobSpec::new(41).name("build");
    let spec = JobSpec::new(42)
        .script(["mkdir -p out vendor; echo a > out/a"])
        .step("release", ["echo release $TAG"])
        .variable("TAG", "v1")
        .after_script(["echo status is $CI_JOB_STATUS"])
        .artifact(Artifact::paths(["out/"]).name("out"))
        .cache(Cache::new("key", ["vendor/"]))
        .dependency(&first, "artifacts.zip");
    let result = fake.run(&spec).await;
    result.assert_success();
    assert_eq!(
        result.stages(),
        [
            "config",
            "prepare",
            "prepare_script",
            "get_sources",
            "restore_cache",
            "download_artifacts",
            "build_script",
            "step_release",
            "after_script",
            "archive_cache",
            "upload_artifacts_on_success",
            "cleanup_file_variables",
            "cleanup"
        ]
    );
    assert!(result.call("after_script").stdout_text().contains("\nstatus is success\n"));
    assert!(result.call("step_release").stdout_text().contains("$ echo release v1\u{1b}[0;m\nrelease v1\n"));
    let helper = fake.read("helper-calls");
    let lines: Vec<&str> = helper.lines().collect();
    assert_eq!(lines[0], "cache-extractor --file ../../../cache/grp/proj/key/cache.zip --timeout 10");
    let token = &spec.token;
    assert_eq!(lines[1], format!("artifacts-downloader --url http://gitlab.invalid --token {token} --id 41"));
    assert_eq!(
        lines[2],
        "cache-archiver --file ../../../cache/grp/proj/key/cache.zip --timeout 10 --path vendor/"
    );
    assert!(lines[3].starts_with(&format!(
        "artifacts-uploader --url http://gitlab.invalid --token {token} --id 42 --timeout 1h0m0s"
    )));
    assert!(
        lines[3].ends_with(
            "--path out/ --name out --expire-in 1 day --artifact-format zip --artifact-type archive"
        )
    );
}

#[tokio::test]
async fn failed_jobs_save_what_is_wanted_of_failures() {
    let spec = JobSpec::new(43)
        .script(["exit 5"])
        .after_script(["echo status is $CI_JOB_STATUS"])
        .artifact(Artifact::paths(["out/"]).when("on_failure"))
        .artifact(Artifact::paths(["never/"]))
        .cache(Cache::new("key", ["vendor/"]).when("always"));
    let fake = Fake::new();
    let result = fake.run(&spec).await;
    result.assert_script_failure(5);
    assert_eq!(
        result.stages()[5..],
        [
            "build_script",
            "after_script",
            "archive_cache_on_failure",
            "upload_artifacts_on_failure",
            "cleanup_file_variables",
            "cleanup"
        ]
    );
    assert!(result.call("after_script").stdout_text().contains("status is failed"));
    assert!(!fake.read("helper-calls").contains("never/"));
    assert_eq!(result.call("cleanup").env("CUSTOM_ENV_CI_JOB_STATUS").as_deref(), Some("failed"));
}

#[tokio::test]
async fn steps_stop_at_the_first_failure() {
    let result = Fake::new().run(&JobSpec::new(44).script(["exit 3"]).step("release", ["echo no"])).await;
    result.assert_script_failure(3);
    assert!(result.calls_of("step_release").is_empty());
}

#[tokio::test]
async fn a_failing_after_script_counts_only_when_asked_for() {
    let spec = || JobSpec::fresh().script(["true"]).after_script(["exit 4"]);
    let result = Fake::new().run(&spec()).await;
    result.assert_success();
    assert!(result.log_contains("after_script failed, but job will continue unaffected: exit status 4"));
    let strict = spec().variable("AFTER_SCRIPT_IGNORE_ERRORS", "false");
    Fake::new().run(&strict).await.assert_script_failure(4);
    let failed = JobSpec::fresh().script(["exit 7"]).after_script(["exit 4"]);
    Fake::new().run(&failed.variable("AFTER_SCRIPT_IGNORE_ERRORS", "false")).await.assert_script_failure(7);
}

#[tokio::test]
async fn an_empty_after_script_is_no_stage() {
    let none: [&str; 0] = [];
    let result = Fake::new().run(&JobSpec::new(45).script(["true"]).after_script(none)).await;
    assert!(result.calls_of("after_script").is_empty());
}

#[tokio::test]
async fn failing_uploads_fail_the_job() {
    let fake = Fake::new().hook("helper", r#"[ "$1" = artifacts-uploader ] && exit 6"#);
    let result = fake.run(&JobSpec::new(46).script(["true"]).artifact(Artifact::paths(["x"]))).await;
    result.assert_script_failure(6);
    assert_eq!(result.calls_of("cleanup_file_variables").len(), 1);
}

#[tokio::test]
async fn without_the_helper_caches_and_artifacts_are_skipped_with_a_warning() {
    let fake = Fake::new();
    std::fs::remove_file(fake.path("bin/gitlab-runner")).unwrap();
    let fake = fake.with(|config| {
        config.process_env.push(("PATH".into(), "/usr/bin:/bin".into()));
    });
    let spec =
        JobSpec::new(47).script(["true"]).artifact(Artifact::paths(["x"])).cache(Cache::new("k", ["v"]));
    let result = fake.run(&spec).await;
    result.assert_success();
    assert!(result.log_contains("Missing gitlab-runner. Uploading artifacts is disabled."));
    assert!(result.log_contains("Missing gitlab-runner. Extracting cache is disabled."));
}

#[tokio::test]
async fn scripts_carry_every_value_through_the_quotes() {
    let value = "it's \"quoted\" $HOME `date` \\ \t ünïcödé \u{1}";
    let spec = JobSpec::new(48)
        .raw("TRICKY", value)
        .script(["printf '<%s>\\n' \"$TRICKY\"", "cat <<EOT\nline one\n$TRICKY\nEOT"]);
    for flags in [&[][..], &[("FF_POSIXLY_CORRECT_ESCAPES", true)], &[("FF_USE_LEGACY_BASH_EVAL", true)]] {
        let fake = Fake::new().with(|config| {
            config.feature_flags = flags.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect();
        });
        let result = fake.run(&spec).await;
        result.assert_success();
        let out = result.call("build_script").stdout_text();
        assert!(out.contains(&format!("<{value}>\n")), "{flags:?}: {out}");
        assert!(out.contains(&format!("line one\n{value}\n")), "{flags:?}: {out}");
        assert!(out.contains("$ cat <<EOT # collapsed multi-line command"), "{flags:?}: {out}");
    }
}

#[tokio::test]
async fn scripts_read_nothing_and_stop_at_the_first_error() {
    let fake = Fake::new();
    let result =
        fake.run(&JobSpec::new(49).script(["cat; echo read", "false | true", "echo not reached"])).await;
    result.assert_script_failure(1);
    let out = result.call("build_script").stdout_text();
    assert!(out.contains("\nread\n") && !out.contains("\nnot reached"), "{out}");
    let script = result.call("build_script").script.clone().unwrap();
    assert!(script.starts_with("#!/usr/bin/env bash\n\ntrap 'exit 1' TERM\n"), "{script}");
    assert!(script.contains("set -o pipefail") && script.contains("set -o errexit"));
    assert!(script.contains("(trap 'exit 1' TERM; eval $'"));
    assert!(script.ends_with(") < /dev/null\nexit 0\n"));
}

#[tokio::test]
async fn file_variables_live_until_the_end_of_the_job() {
    let fake = Fake::new();
    let spec = JobSpec::new(50)
        .file("KUBECFG", "line1\nline2")
        .secret_file("CERT", "pem")
        .script(["cat \"$KUBECFG\"", "echo; echo \"$KUBECFG $CERT\"", "cat $CERT"])
        .after_script(["cat \"$KUBECFG\""]);
    let result = fake.run(&spec).await;
    result.assert_success();
    let tmp = fake.path("builds/grp/proj.tmp");
    let out = result.call("build_script").stdout_text();
    assert!(out.contains("line1\nline2"), "{out}");
    assert!(out.contains(&format!("{0}/KUBECFG {0}/CERT", tmp.display())), "{out}");
    assert!(result.call("after_script").stdout_text().contains("line1\nline2"));
    assert!(!tmp.join("KUBECFG").exists() && !tmp.join("CERT").exists());
    assert!(!tmp.join("gitlab_runner_env").exists());
}

#[tokio::test]
async fn variables_pass_from_stage_to_stage_by_the_env_file() {
    let spec = JobSpec::new(51)
        .script(["echo \"FOUND=treasure\" >> \"$GITLAB_ENV\""])
        .after_script(["echo found $FOUND"]);
    let result = Fake::new().run(&spec).await;
    assert!(result.call("after_script").stdout_text().contains("\nfound treasure\n"));
}

#[tokio::test]
async fn a_clone_path_needs_permission() {
    let spec = JobSpec::new(52).script(["pwd"]).variable("GIT_CLONE_PATH", "$CI_BUILDS_DIR/own");
    let result = Fake::new().run(&spec).await;
    assert!(
        matches!(&result.outcome, Outcome::ConfigurationError { message } if message.contains("custom_build_dir"))
    );
    assert_eq!(result.stages(), ["config", "cleanup"]);
    let fake = Fake::new().with(|config| config.custom_build_dir = true);
    let result = fake.run(&spec).await;
    result.assert_success();
    assert!(result.call("build_script").stdout_text().ends_with("/builds/own\n"));
}

#[tokio::test]
async fn the_runner_s_own_scripts_surround_the_user_s() {
    let fake = Fake::new().with(|config| {
        config.pre_build_script = "echo before".to_owned();
        config.post_build_script = "echo behind".to_owned();
    });
    let result = fake.run(&JobSpec::new(53).script(["echo user"])).await;
    let out = result.call("build_script").stdout_text();
    let place = |text: &str| out.find(&format!("\n{text}\n")).unwrap_or_else(|| panic!("{text}: {out}"));
    assert!(place("before") < place("user") && place("user") < place("behind"));
}
