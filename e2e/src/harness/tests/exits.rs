//! What exit codes mean, and what is tried again.

use std::time::Duration;

use super::super::Outcome;
use super::Fake;
use crate::coordinator::JobSpec;

fn job() -> JobSpec {
    JobSpec::fresh().script(["echo ran"])
}

/// A driver whose `build_script` ends as told.
fn driver_that(ends: &str) -> Fake {
    Fake::new().hook("run", &format!("if [ \"$2\" = build_script ]; then {ends}; fi"))
}

#[tokio::test]
async fn the_script_s_own_code_arrives() {
    for code in [1, 2, 3, 42, 137, 255] {
        let result = Fake::new().run(&JobSpec::fresh().script([format!("exit {code}")])).await;
        result.assert_script_failure(code);
        assert!(result.log_contains(&format!("ERROR: Job failed: exit status {code}")));
        assert_eq!(result.call("build_script").code(), Some(1));
    }
}

#[tokio::test]
async fn the_table_of_exit_codes() {
    let file = |content: &str| format!("printf '{content}' > \"$BUILD_EXIT_CODE_FILE\"; exit 1");
    let table: [(String, Option<i64>); 10] = [
        ("exit 1".to_owned(), Some(1)),
        (file("42\\n"), Some(42)),
        (file("42"), Some(42)),
        (file("0\\n"), Some(0)),
        (file("42 \\n"), None),
        (file(""), None),
        (file("text\\n"), None),
        ("exit 2".to_owned(), None),
        ("exit 3".to_owned(), None),
        ("kill -9 $$".to_owned(), None),
    ];
    for (ends, code) in table {
        let result = driver_that(&ends).run(&job()).await;
        match code {
            Some(code) => result.assert_script_failure(code),
            None => result.assert_system_failure(),
        };
        // A failed stage of the user is not tried again.
        assert_eq!(result.calls_of("build_script").len(), 1, "{ends}");
        assert_eq!(result.calls_of("cleanup").len(), 1, "{ends}");
    }
}

#[tokio::test]
async fn messages_are_the_runner_s() {
    for (ends, message) in [
        ("exit 2", "Job failed (system failure): exit status 2"),
        (
            "exit 9",
            "unknown Custom executor executable exit code 9; executable execution terminated with: exit status 9",
        ),
        (
            "kill -9 $$",
            "unknown Custom executor executable exit code -1; executable execution terminated with: signal: killed",
        ),
    ] {
        let result = driver_that(ends).run(&job()).await;
        assert!(result.log_contains(message), "{}", result.text());
    }
}

#[tokio::test]
async fn a_stale_code_file_is_read_again() {
    // The runner never removes the file; a driver that does not either hands on an old code.
    let fake = Fake::new().hook(
        "run",
        r#"case "$2" in get_sources) echo 9 > "$BUILD_EXIT_CODE_FILE"; exit 0;; build_script) exit 1;; esac"#,
    );
    fake.run(&job()).await.assert_script_failure(9);
}

#[tokio::test]
async fn prepare_is_tried_three_times_with_a_cleanup_after_each() {
    let fake = Fake::new().hook("prepare", "echo try >> $FAKE_DIR/tries; exit 2");
    let result = fake.run(&job()).await;
    result.assert_system_failure();
    let once = ["config", "prepare", "cleanup"];
    assert_eq!(result.stages(), [once, once, once].concat());
    let dirs: std::collections::HashSet<_> = result.tmpdirs.iter().collect();
    assert_eq!(dirs.len(), 3, "each try has a folder of its own");
    assert!(result.tmpdirs.iter().all(|dir| !dir.exists()));
    assert_eq!(result.calls.iter().map(|call| call.attempt).collect::<Vec<_>>(), [1, 1, 1, 2, 2, 2, 3, 3, 3]);
    assert!(result.log_contains("Preparation failed: exit status 2"));
}

#[tokio::test]
async fn the_third_try_may_work_and_config_remembers_the_place() {
    let fake =
        Fake::new().hook("prepare", r#"echo x >> $FAKE_DIR/n; [ "$(wc -l < $FAKE_DIR/n)" -lt 3 ] && exit 2"#);
    let result = fake.run(&job()).await;
    result.assert_success();
    assert_eq!(result.calls_of("prepare").len(), 3);
    assert_eq!(result.calls_of("cleanup").len(), 3);
    let configs = result.calls_of("config");
    assert_eq!(configs[0].env("CUSTOM_ENV_CI_PROJECT_DIR").as_deref(), Some(""));
    let builds = fake.path("builds/grp/proj").to_string_lossy().into_owned();
    assert_eq!(configs[1].env("CUSTOM_ENV_CI_PROJECT_DIR"), Some(builds));
}

#[tokio::test]
async fn a_user_s_mistake_in_prepare_is_not_tried_again() {
    let fake = Fake::new().hook("prepare", "echo no such image >&2; exit 1");
    let result = fake.run(&job()).await;
    result.assert_script_failure(1);
    assert_eq!(result.stages(), ["config", "prepare", "cleanup"]);
    assert!(result.log_contains("no such image"));
}

#[tokio::test]
async fn pauses_between_tries_are_three_seconds() {
    let fake = Fake::new().hook("prepare", "exit 2").with(|config| {
        config.prepare_retry_interval =
            super::RunnerConfig::new(config.driver.clone()).prepare_retry_interval;
    });
    let result = fake.run(&job()).await;
    let starts: Vec<_> = result.calls_of("config").iter().map(|call| call.started).collect();
    assert!(starts[1].since(starts[0]) >= Duration::from_secs(3));
    // It waits even when there is nothing left to try.
    assert!(result.ended.since(result.call("cleanup").ended.unwrap()) >= Duration::from_millis(2900));
}

#[tokio::test]
async fn what_config_says_is_checked() {
    let said = |text: &str| Fake::new().hook("config", &format!("printf '%s' '{text}'; exit 0"));
    let result = said("{not json").run(&job()).await;
    result.assert_system_failure();
    assert_eq!(result.calls_of("config").len(), 3);

    let result = said(r#"{"builds_dir":""}"#).run(&job()).await;
    assert!(
        matches!(&result.outcome, Outcome::ConfigurationError { message } if message.contains("builds_dir"))
    );
    assert_eq!(result.stages(), ["config", "cleanup"]);

    let result = said(r#"{"shell":"fish"}"#).run(&job()).await;
    assert!(
        matches!(&result.outcome, Outcome::SystemFailure { message } if message == "shell fish not found")
    );
}

#[tokio::test]
async fn a_config_that_says_nothing_changes_nothing() {
    let fake = Fake::new().hook("config", "exit 0");
    let dirs = [fake.path("b"), fake.path("c")].map(|path| path.to_string_lossy().into_owned());
    let fake = fake.with(|config| [config.builds_dir, config.cache_dir] = dirs.clone());
    let result = fake.run(&job()).await;
    result.assert_success();
    assert_eq!(result.call("prepare").env("CUSTOM_ENV_CI_BUILDS_DIR"), Some(dirs[0].clone()));
    assert!(result.log_contains("Using Custom executor..."));
}

#[tokio::test]
async fn a_failing_cleanup_only_warns() {
    let result = Fake::new().hook("cleanup", "exit 2").run(&job()).await;
    result.assert_success();
    assert!(result.log_contains("WARNING: Cleanup script failed: exit status 2"));
}

#[tokio::test]
async fn stages_of_the_runner_are_tried_as_often_as_the_job_says() {
    let fake = Fake::new().hook(
        "run",
        r#"if [ "$2" = get_sources ]; then echo x >> $FAKE_DIR/n; [ "$(wc -l < $FAKE_DIR/n)" -lt 3 ] && exit 1; fi"#,
    );
    let result = fake.run(&job().variable("GET_SOURCES_ATTEMPTS", "3")).await;
    result.assert_success();
    assert_eq!(
        result.stages()[2..7],
        ["prepare_script", "get_sources", "clear_worktree", "get_sources", "get_sources"]
    );

    let result = Fake::new()
        .hook("run", r#"[ "$2" = get_sources ] && exit 2"#)
        .run(&job().variable("GET_SOURCES_ATTEMPTS", "2").after_script(["echo after"]))
        .await;
    result.assert_system_failure();
    assert_eq!(result.calls_of("get_sources").len(), 2);
    assert!(result.calls_of("build_script").is_empty() && result.calls_of("after_script").is_empty());
    assert_eq!(result.stages().last(), Some(&"cleanup"));
    assert_eq!(result.calls_of("cleanup_file_variables").len(), 1);
    // The user's part never began, so the status never changed.
    assert_eq!(result.call("cleanup").env("CUSTOM_ENV_CI_JOB_STATUS").as_deref(), Some("running"));
}

#[tokio::test]
async fn a_failing_prepare_script_ends_everything() {
    let result = Fake::new().hook("run", r#"[ "$2" = prepare_script ] && exit 2"#).run(&job()).await;
    result.assert_system_failure();
    assert_eq!(result.stages(), ["config", "prepare", "prepare_script", "cleanup"]);
    assert!(result.log_contains("prepare environment: exit status 2. Check"));
}
