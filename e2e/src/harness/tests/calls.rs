//! Arguments, environment, files and pipes of the driver's calls.

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use super::super::{CallExit, CallKind, Stream};
use super::Fake;
use crate::coordinator::{Image, JobSpec, Variable};

#[tokio::test]
async fn a_plain_job_calls_everything_once_in_order() {
    let fake = Fake::new();
    let result = fake.run(&JobSpec::new(1).script(["echo hello"])).await;
    result.assert_success();
    assert_eq!(
        result.stages(),
        [
            "config",
            "prepare",
            "prepare_script",
            "get_sources",
            "build_script",
            "cleanup_file_variables",
            "cleanup"
        ]
    );
    assert!(result.call("prepare_script").stdout_text().starts_with("Running on "));
    assert!(
        result.call("build_script").stdout_text().ends_with("\u{1b}[32;1m$ echo hello\u{1b}[0;m\nhello\n")
    );
    assert!(result.log_contains("Using Custom executor with driver fake 1.0..."));
    assert!(result.log_contains("Job succeeded"));
    // What `config` prints and what `cleanup` says is not in the job log.
    assert!(!result.log_contains("builds_dir") && !result.log_contains("cleaned"));
    assert!(!result.log_contains("a warning"));
    assert_eq!(result.call("cleanup").stderr_text(), "a warning\n");
}

#[tokio::test]
async fn arguments_and_files_are_the_runner_s() {
    // Each call writes down what it sees of its process and its files.
    let look = r#"stat -c '%a %n' "$JOB_RESPONSE_FILE" ${1:+"$1"} >> "$FAKE_DIR/files"
        echo "$PWD $(readlink /proc/self/fd/0) $(ps -o pgid= -p $$ | tr -d ' ')=$$" >> "$FAKE_DIR/process""#;
    let mut fake = Fake::new();
    for stage in ["config", "prepare", "run", "cleanup"] {
        fake = fake.hook(stage, look);
    }
    let result = fake.run(&JobSpec::new(2).script(["true"])).await;
    result.assert_success();

    let tmpdir = &result.tmpdirs[0];
    assert_eq!(result.tmpdirs.len(), 1);
    assert!(!tmpdir.exists(), "the folder goes with the cleanup");
    assert!(tmpdir.file_name().unwrap().to_str().unwrap().starts_with("custom-executor"));
    for line in fake.read("process").lines() {
        let mut words = line.split(' ');
        assert_eq!(words.next(), tmpdir.to_str());
        assert_eq!(words.next(), Some("/dev/null"));
        let (group, pid) = words.next().unwrap().split_once('=').unwrap();
        assert_eq!(group, pid, "each call has a process group of its own");
    }
    let files = fake.read("files");
    assert_eq!(files.lines().filter(|line| line.starts_with("600 ")).count(), result.calls.len());
    assert_eq!(files.lines().filter(|line| line.starts_with("700 ")).count(), 4, "{files}");

    let call = result.call("build_script");
    let argv: Vec<String> = call.argv.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    assert_eq!((argv.len(), argv[1].as_str(), argv[3].as_str()), (4, "run", "build_script"));
    let script = std::path::Path::new(&argv[2]);
    assert_eq!(script.file_name().unwrap(), "script");
    let folder = script.parent().unwrap();
    assert!(folder.file_name().unwrap().to_str().unwrap().starts_with("script"));
    assert_eq!(folder.parent().unwrap(), tmpdir);
    assert_ne!(result.call("get_sources").argv[2], call.argv[2]);
    for (stage, kind) in
        [("config", CallKind::Config), ("prepare", CallKind::Prepare), ("cleanup", CallKind::Cleanup)]
    {
        assert_eq!(result.call(stage).argv.len(), 2, "{stage}");
        assert_eq!(result.call(stage).kind, kind);
    }
}

#[tokio::test]
async fn the_environment_is_the_runner_s() {
    let fake = Fake::new().with(|config| config.environment.push("FROM_CONFIG=c".to_owned()));
    let spec = JobSpec::new(3)
        .script(["true"])
        .image("img:$TAG")
        .variable("TAG", "7")
        .variable("TWICE", "one")
        .variable("TWICE", "two")
        .masked("SECRET", "s3cret")
        .file("FILE", "line1\nline2")
        .variable("POINTS", "at $FILE")
        .var(Variable { raw: true, ..Variable::new("RAW", "$TAG") })
        .secret("VAULTED", "v")
        .service(Image::new("redis:$TAG").alias("a,b").variable("X", "x-$TAG"));
    let result = fake.run(&spec).await;
    result.assert_success();

    let config = result.call("config");
    let prepare = result.call("prepare");
    let env = |name: &str| prepare.env(&format!("CUSTOM_ENV_{name}"));
    let is = |name: &str, value: &str| assert_eq!(env(name).as_deref(), Some(value), "{name}");
    let builds = fake.path("builds").to_string_lossy().into_owned();
    is("CI_BUILDS_DIR", &builds);
    is("CI_PROJECT_DIR", &format!("{builds}/grp/proj"));
    is("RUNNER_TEMP_PROJECT_DIR", &format!("{builds}/grp/proj.tmp"));
    is("CI_JOB_IMAGE", "img:7");
    is("TWICE", "two");
    is("SECRET", "s3cret");
    is("FILE", "line1\nline2");
    is("POINTS", &format!("at {builds}/grp/proj.tmp/FILE"));
    is("RAW", "$TAG");
    is("VAULTED", "v");
    is("FROM_CONFIG", "c");
    is("CI_JOB_STATUS", "running");
    is("CI_SERVER", "yes");
    is("CI_JOB_TIMEOUT", "3600");
    is("CI_SHARED_ENVIRONMENT", "true");
    is("FF_TIMESTAMPS", "true");
    is("CI_RUNNER_SHORT_TOKEN", "harness01");
    let services: serde_json::Value = serde_json::from_str(&env("CI_JOB_SERVICES").unwrap()).unwrap();
    assert_eq!(
        services,
        serde_json::json!([{"name": "redis:7", "alias": "a", "entrypoint": null, "command": null,
                            "variables": {"X": "x-7"}}])
    );

    // `config` is called before anybody knows the place, and before there is a job_env.
    assert_eq!(config.env("CUSTOM_ENV_CI_PROJECT_DIR").as_deref(), Some(""));
    assert_eq!(config.env("CUSTOM_ENV_RUNNER_TEMP_PROJECT_DIR").as_deref(), Some(".tmp"));
    assert_eq!(config.env("FAKE_NONCE"), None);
    let nonce = prepare.env("FAKE_NONCE").unwrap();
    assert!(nonce.starts_with("n-"));
    assert_eq!(result.call("cleanup").env("FAKE_NONCE"), Some(nonce.clone()));
    assert!(prepare.stdout_text().contains(&nonce));
    // The job itself sees nothing of job_env.
    assert!(!result.call("build_script").script.as_ref().unwrap().contains("FAKE_NONCE"));

    let tmpdir = result.tmpdirs[0].to_string_lossy().into_owned();
    assert_eq!(config.env("TMPDIR"), Some(tmpdir.clone()));
    assert_eq!(config.env("JOB_RESPONSE_FILE"), Some(format!("{tmpdir}/response.json")));
    assert_eq!(config.env("BUILD_EXIT_CODE_FILE"), Some(format!("{tmpdir}/build_exit_code")));
    assert_eq!(config.env("BUILD_FAILURE_EXIT_CODE").as_deref(), Some("1"));
    assert_eq!(config.env("SYSTEM_FAILURE_EXIT_CODE").as_deref(), Some("2"));
}

#[tokio::test]
async fn the_response_file_is_there_in_every_call() {
    let keep = r#"cp "$JOB_RESPONSE_FILE" "$FAKE_DIR/response-$stage""#;
    let mut fake = Fake::new();
    for stage in ["config", "prepare", "run", "cleanup"] {
        fake = fake.hook(stage, keep);
    }
    fake.run(&JobSpec::new(4).script(["true"]).image("a:$V").variable("V", "1")).await.assert_success();
    for stage in ["config", "prepare", "run", "cleanup"] {
        let text = fake.read(&format!("response-{stage}"));
        assert_eq!(text.lines().count(), 1, "{stage}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["id"], 4);
        assert_eq!(value["image"]["name"], "a:1", "names are expanded");
        assert!(value["variables"].as_array().unwrap().iter().any(|v| v["key"] == "V" && v["value"] == "1"));
    }
    let mode = std::fs::metadata(fake.path("response-run")).unwrap().mode();
    assert_eq!(mode & 0o077, 0, "a copy of a private file stays private");
}

#[tokio::test]
async fn both_outputs_are_kept_apart_and_exact() {
    let fake = Fake::new();
    let noise = r"for i in 1 2 3; do printf 'out%s\n' $i; printf 'err%s\0\xff\n' $i >&2; done; printf tail";
    let result = fake.run(&JobSpec::new(5).script([noise])).await;
    result.assert_success();
    let call = result.call("build_script");
    assert!(call.stdout.ends_with(b"\nout1\nout2\nout3\ntail"));
    assert_eq!(call.stderr, b"err1\0\xff\nerr2\0\xff\nerr3\0\xff\n");
    let total: usize = call.events.iter().filter(|event| event.stream == Stream::Stdout).map(|e| e.len).sum();
    assert_eq!(total, call.stdout.len());
    assert!(call.when("out2").is_some() && call.when("nowhere").is_none());
}

#[tokio::test]
async fn large_output_is_whole() {
    let fake = Fake::new();
    let result = fake.run(&JobSpec::new(6).script(["head -c 20000000 /dev/zero | tr '\\0' x; echo"])).await;
    result.assert_success();
    let call = result.call("build_script");
    let count = call.stdout.iter().rev().skip(1).take_while(|byte| **byte == b'x').count();
    assert_eq!(count, 20_000_000);
}

#[tokio::test]
async fn the_first_line_is_timed() {
    let fake = Fake::new().hook("prepare", "sleep 0.3");
    let result = fake.run(&JobSpec::new(7).script(["sleep 1; echo MARK", "echo second"])).await;
    let (output, line) = (result.first_output().unwrap(), result.first_line().unwrap());
    assert!(output >= Duration::from_millis(300), "{output:?}");
    assert!(line >= output + Duration::from_millis(500), "{output:?} {line:?}");
    assert_eq!(result.when("MARK"), Some(line));
    assert!(result.when("second").unwrap() >= line);
}

#[tokio::test]
async fn a_background_child_that_holds_the_pipe_holds_up_the_stage() {
    let fake = Fake::new().hook("run", r#"[ "$2" = build_script ] && (sleep 3; echo late) &"#);
    let result = fake.run(&JobSpec::new(8).script(["echo done"])).await;
    result.assert_success();
    let call = result.call("build_script");
    assert!(call.stdout_text().ends_with("late\n"), "{call:?}");
    let held = call.ended.unwrap().since(call.exited.unwrap());
    assert!(held > Duration::from_millis(500), "{held:?}");
    assert!(result.call("cleanup_file_variables").started >= call.ended.unwrap());
}

#[tokio::test]
async fn a_driver_that_is_missing_is_a_system_failure_after_three_tries() {
    let fake = Fake::new().with(|config| {
        config.driver.prepare = Some(super::super::Program::new("/nonexistent/driver", ["x"]));
    });
    let result = fake.run(&JobSpec::new(9).script(["true"])).await;
    result.assert_system_failure();
    assert_eq!(result.calls_of("prepare").len(), 3);
    assert!(matches!(result.call("prepare").exit, Some(CallExit::NotStarted(_))));
    assert!(result.log_contains("failed to start command"));
}

#[tokio::test]
async fn a_variable_that_is_too_long_stops_every_call() {
    let fake = Fake::new();
    let result = fake.run(&JobSpec::new(10).script(["true"]).variable("LONG", "x".repeat(140_000))).await;
    result.assert_system_failure();
    assert!(result.calls.iter().all(|call| matches!(call.exit, Some(CallExit::NotStarted(_)))));
}

#[tokio::test]
async fn many_jobs_run_at_once() {
    let fake = Fake::new();
    let harness = fake.harness();
    let mut jobs = Vec::new();
    for id in 0..8 {
        let spec = JobSpec::new(100 + id)
            .script([format!("echo job {id}; sleep 0.5; exit {id}")])
            .project(format!("grp/p{id}"), id);
        jobs.push(harness.start(&spec).await.unwrap());
    }
    for (id, job) in (0..).zip(jobs) {
        let result = job.finish(super::SOON).await.unwrap();
        assert!(result.log_contains(&format!("job {id}\n")));
        match id {
            0 => result.assert_success(),
            id => result.assert_script_failure(id),
        };
    }
}
