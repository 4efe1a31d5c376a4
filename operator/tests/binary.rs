//! The binary itself: what it says and how it exits where there is no cluster.

use std::io;
use std::process::{Command, Output, Stdio};

fn operator(args: &[&str]) -> io::Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roadstead-operator"));
    command.env_clear().env("KUBECONFIG", "/nonexistent/kubeconfig").args(args);
    command.output()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const COMPLETE: [&str; 4] =
    ["--job-namespaces=ci-jobs", "--helper-image=helper", "--agent-image=agent", "--listen=127.0.0.1:0"];

#[test]
fn it_tells_its_version() {
    let output = operator(&["--version"]).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("roadstead-operator "));
}

#[test]
fn a_missing_setting_is_named() {
    let output = operator(&["--helper-image=helper"]).unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("--job-namespaces") && text.contains("--agent-image"), "{text}");
}

#[test]
fn a_log_filter_that_is_none_is_refused() {
    let output = operator(&[COMPLETE.as_slice(), &["--log=much=very=loud"]].concat()).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--log"), "{}", stderr(&output));
}

#[test]
fn without_a_cluster_it_ends_and_says_why() {
    let output = operator(&[COMPLETE.as_slice(), &["--log-format=json"]].concat()).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let text = stderr(&output);
    let line: serde_json::Value =
        serde_json::from_str(text.lines().last().unwrap_or_default()).expect("a line of JSON");
    assert_eq!(line["level"], "ERROR");
    assert!(
        line["error"].as_str().is_some_and(|error| error.contains("no configuration for the API server")),
        "{text}"
    );
}

#[test]
fn it_explains_in_its_own_pod_too() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roadstead-operator"));
    // What the chart sets.
    command.env_clear().env("ROADSTEAD_IDENTITY", "pod-1").env("ROADSTEAD_HELPER_IMAGE", "helper");
    let output =
        command.args(["explain", "--class=/nonexistent/class.yaml"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("the job"), "{}", stderr(&output));
}
