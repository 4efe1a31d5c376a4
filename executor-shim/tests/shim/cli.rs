//! The real binary without a cluster.

use std::path::Path;

use assert_cmd::Command;

fn shim() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_executor-shim"));
    command.env_clear();
    command
}

fn stderr_of(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(output.stdout, b"", "nothing but JSON on standard output");
    stderr
}

#[test]
fn help_names_every_command_and_option() {
    let output = shim().arg("--help").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).unwrap();
    for word in [
        "config",
        "prepare",
        "run",
        "cleanup",
        "--namespace",
        "ROADSTEAD_NAMESPACE",
        "--class",
        "ROADSTEAD_CLASS",
        "--log",
        "ROADSTEAD_LOG",
        "--log-file",
        "ROADSTEAD_LOG_FILE",
        "--log-format",
        "--kubeconfig",
        "--context",
        "--state-dir",
        "ROADSTEAD_STATE_DIR",
        "--version",
        r#"echo '{"command":"run","script":["echo hello"]}' | executor-shim"#,
    ] {
        assert!(help.contains(word), "{word} is not in\n{help}");
    }
    let run = shim().args(["run", "--help"]).output().unwrap();
    assert!(String::from_utf8(run.stdout).unwrap().contains("<SCRIPT> <STAGE>"));
    let version = shim().arg("--version").output().unwrap();
    assert_eq!(version.stdout, format!("executor-shim {}\n", env!("CARGO_PKG_VERSION")).into_bytes());
}

#[test]
fn a_wrong_command_line_is_a_system_failure() {
    for args in
        [&["start"][..], &["run"], &["run", "script"], &["config", "--nonsense"], &["config", "extra"]]
    {
        assert!(!stderr_of(shim().args(args), 2).is_empty(), "{args:?}");
        assert!(
            !stderr_of(shim().env("SYSTEM_FAILURE_EXIT_CODE", "77").args(args), 77).is_empty(),
            "{args:?}"
        );
    }
}

#[test]
fn without_gitlab_runner_the_missing_variable_is_named() {
    let sentence = |name: &str| {
        format!("{name} is not set; executor-shim is meant to be called by gitlab-runner's custom executor\n")
    };
    assert_eq!(stderr_of(shim().arg("config"), 2), sentence("TMPDIR"));
    assert_eq!(stderr_of(shim().arg("prepare"), 2), sentence("TMPDIR"));
    assert_eq!(stderr_of(shim().args(["run", "/x", "build_script"]), 2), sentence("TMPDIR"));
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(stderr_of(shim().arg("config").env("TMPDIR", dir.path()), 2), sentence("JOB_RESPONSE_FILE"));
}

#[test]
fn what_earlier_calls_should_have_left_is_missed_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let text = stderr_of(shim().arg("prepare").env("TMPDIR", dir.path()), 2);
    let file = dir.path().join("roadstead.json");
    assert_eq!(text, format!("{} does not exist: no config call has prepared this job\n", file.display()));
    std::fs::write(&file, b"{").unwrap();
    let text = stderr_of(shim().args(["run", "/x", "build_script"]).env("TMPDIR", dir.path()), 2);
    assert!(text.contains("roadstead.json is damaged") && text.lines().count() == 1, "{text}");
}

#[test]
fn a_job_response_that_is_of_no_use_is_told_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("response.json");
    let say = |content: Option<&str>, code: i32| {
        match content {
            Some(content) => std::fs::write(&file, content).unwrap(),
            None => drop(std::fs::remove_file(&file)),
        }
        let mut command = shim();
        command.arg("config").env("TMPDIR", dir.path()).env("JOB_RESPONSE_FILE", &file);
        let text = stderr_of(&mut command, code);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains("s3cret"), "{text}");
        text
    };
    assert!(say(None, 2).contains("does not exist"));
    assert!(say(Some(r#"{"id":42,"token":"s3cret"#), 2).contains("is cut off after 24 bytes"));
    assert!(say(Some(r#"{"token":"s3cret"}"#), 2).contains("has no id"));
    assert!(say(Some(r#"{"id":"s3cret"}"#), 2).contains("is not a job in JSON"));
    assert_eq!(
        say(Some(r#"{"id":42,"services":[{"name":"redis","alias":"my_db"}]}"#), 1),
        "the service \"redis\" of the job has the alias \"my_db\", which is no name of a host: those have lower-case letters, digits, '-' and '.', such as my-db\n"
    );
    let masked = r#"{"id":42,"token":"s3cret-token","image":{"name":"x/s3cret-token"}}"#;
    assert!(
        say(Some(masked), 1).starts_with("the name of the image contains the value of a masked variable")
    );
}

#[test]
fn without_a_cluster_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("response.json");
    std::fs::write(&file, r#"{"id":42}"#).unwrap();
    let mut command = shim();
    command.arg("config").env("TMPDIR", dir.path()).env("JOB_RESPONSE_FILE", &file).env("HOME", dir.path());
    let text = stderr_of(&mut command, 2);
    assert!(text.starts_with("cannot find the cluster: "), "{text}");
}

#[test]
fn cleanup_with_nothing_there_is_quick_and_fine() {
    let dir = tempfile::tempdir().unwrap();
    let start = std::time::Instant::now();
    assert_eq!(stderr_of(shim().arg("cleanup"), 0), "");
    assert_eq!(stderr_of(shim().arg("cleanup").env("TMPDIR", dir.path()), 0), "");
    assert_eq!(stderr_of(shim().arg("cleanup").env("TMPDIR", "/nonexistent"), 0), "");
    assert!(start.elapsed() < std::time::Duration::from_secs(5));
}

#[test]
fn an_exit_code_of_an_earlier_stage_is_removed_first_of_all() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("build_exit_code");
    std::fs::write(&file, "42\n").unwrap();
    let mut command = shim();
    command.args(["run", "/x", "build_script"]).env("TMPDIR", dir.path()).env("BUILD_EXIT_CODE_FILE", &file);
    stderr_of(&mut command, 2);
    assert!(!file.exists());
}

#[test]
fn variables_that_are_not_text_are_no_panic() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let odd = || OsString::from_vec(b"/\xff\xfe".to_vec());
    let mut command = shim();
    command
        .arg("prepare")
        .env("TMPDIR", odd())
        .env("CUSTOM_ENV_X", odd())
        .env("SYSTEM_FAILURE_EXIT_CODE", odd());
    let text = String::from_utf8_lossy(&command.output().unwrap().stderr).into_owned();
    assert!(text.contains("no config call has prepared this job"), "{text}");
}

#[test]
fn diagnostics_go_to_their_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log");
    let mut command = shim();
    command.arg("prepare").env("TMPDIR", dir.path()).env("ROADSTEAD_LOG_FILE", &file);
    command.args(["--log", "debug", "--log-format", "json"]);
    assert_eq!(stderr_of(&mut command, 2).lines().count(), 1);
    let log = std::fs::read_to_string(&file).unwrap();
    let event: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(event["command"], "prepare", "{log}");

    // To standard error where it is asked for, and never to standard output.
    let mut command = shim();
    command.arg("prepare").env("TMPDIR", dir.path()).args(["--log", "debug", "--log-format", "json"]);
    let text = stderr_of(&mut command, 2);
    assert!(text.lines().any(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{text}");

    let mut command = shim();
    command.arg("prepare").env("TMPDIR", dir.path()).args(["--log", "x=loud"]);
    let text = stderr_of(&mut command, 2);
    assert!(text.starts_with("the filter of diagnostics \"x=loud\" is not valid"), "{text}");
    assert!(Path::new(&file).exists());
}

/// What `cijob` prints for this input.
fn cijob(args: &[&str], input: &str) -> Result<(serde_json::Value, String), String> {
    let output = shim().arg("cijob").args(args).write_stdin(input).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    match output.status.code() {
        Some(0) => Ok((serde_json::from_slice(&output.stdout).unwrap(), stderr)),
        Some(2) => {
            assert_eq!(output.stdout, b"");
            Err(stderr)
        }
        other => panic!("exit code {other:?}: {stderr}"),
    }
}

#[test]
fn the_cijob_of_a_job_is_shown_without_a_cluster() {
    let response = r#"{"id":4711,"token":"glcbt-secret","job_info":{"name":"test","project_id":5,"project_full_path":"g/p"},
        "git_info":{"repo_url":"https://gitlab.test/g/p.git","ref":"main","protected":true},"image":{"name":"alpine"}}"#;
    let (job, note) = cijob(&["--tags", "gpu,linux", "--class=large", "--namespace=jobs"], response).unwrap();
    assert_eq!(
        (&job["kind"], &job["metadata"]["namespace"], note.as_str()),
        (&"CiJob".into(), &"jobs".into(), "")
    );
    let request = &job["spec"]["request"];
    assert_eq!(request["tags"], serde_json::json!(["gpu", "linux"]));
    assert_eq!(
        (&request["tagSource"], &request["className"], &request["ref"]["protected"]),
        (&"Job".into(), &"large".into(), &true.into())
    );
    assert!(!job.to_string().contains("glcbt-secret"));

    let (untagged, note) = cijob(&["--tags", ""], response).unwrap();
    assert_eq!((&untagged["spec"]["request"]["tagSource"], note.as_str()), (&"Job".into(), ""));
    assert!(untagged["spec"]["request"].get("tags").is_none());
    let (unknown, note) = cijob(&[], response).unwrap();
    assert!(unknown["spec"]["request"].get("tagSource").is_none());
    assert!(note.contains("--tags"), "{note}");

    let (by_hand, _) =
        cijob(&[], r#"{"command":"run","script":["x"],"tags":["gpu"],"image":"alpine"}"#).unwrap();
    assert_eq!(by_hand["spec"]["request"]["server"], "by-hand");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("response.json");
    std::fs::write(&file, response).unwrap();
    let (read, _) = cijob(&[file.to_str().unwrap()], "").unwrap();
    assert_eq!(read["spec"]["request"]["job"]["id"], 4711);
}

#[test]
fn what_is_no_job_gives_no_cijob() {
    for (args, input, words) in [
        (&[][..], "", "the job response file (standard input) is cut off after 0 bytes"),
        (&[], "{}", "has no id"),
        (&["/nonexistent/file"], "", "cannot read the request in /nonexistent/file: "),
        (&[], r#"{"command":"cleanup","job":"cij-0-0123456789"}"#, "it asks for none"),
        (&[], r#"{"command":"run"}"#, "the field \"script\" is missing"),
        (&["--tags=a"], r#"{"command":"run","script":["x"]}"#, "--tags is for a job response"),
        (
            &[],
            r#"{"id":1,"token":"glcbt-x","image":{"name":"a/glcbt-x"}}"#,
            "the name of the image contains the value of a masked variable",
        ),
    ] {
        let said = cijob(args, input).unwrap_err();
        assert!(said.contains(words), "no {words:?} in {said:?}");
    }
}
