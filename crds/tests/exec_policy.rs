//! The chart's admission policy lets the shim exec what the operator and the shim agree on, and
//! nothing else.
// Clippy takes only functions marked as tests for tests.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use kube::core::cel::{AdmissionRequest, VapEvaluator, VapExpression};
use roadstead_crds::{labels, names};
use serde_json::{Value, json};

/// The policy's rules, in their order; each of them refuses something below.
fn rules() -> [VapExpression; 3] {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/roadstead/files/exec-policy.yaml");
    let rules: Vec<VapExpression> = serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    rules.try_into().unwrap()
}

fn pod() -> String {
    let cijob = names::cijob_name("https://gitlab.example", 4711, "/builds/a");
    names::pod_name(&cijob, "3f2a91bc-0000-4000-8000-000000000000", 1)
}

/// What the API server admits: PodExecOptions.
fn exec(container: &str, command: &Value) -> Value {
    json!({ "stdin": true, "stdout": true, "stderr": true, "container": container, "command": command })
}

/// Which of the rules hold for an exec into `pod`.
fn verdicts(pod: &str, exec: Value) -> [bool; 3] {
    let request = AdmissionRequest { operation: "CONNECT".into(), name: pod.into(), ..Default::default() };
    let results = VapEvaluator::builder().object(exec).request(request).build().evaluate(&rules());
    results.iter().map(|result| result.passed).collect::<Vec<_>>().try_into().unwrap()
}

#[test]
fn the_agent_in_a_job_pod_can_be_execd() {
    for container in [labels::BUILD_CONTAINER, labels::HELPER_CONTAINER] {
        let exec = exec(container, &json!([labels::AGENT_PATH, "attach"]));
        assert_eq!(verdicts(&pod(), exec), [true; 3]);
    }
}

#[test]
fn nothing_else_can() {
    let attach = json!([labels::AGENT_PATH, "attach"]);
    for command in [
        json!(["/bin/sh"]),
        json!([labels::AGENT_PATH]),
        json!([labels::AGENT_PATH, "serve"]),
        json!([labels::AGENT_PATH, "attach", "--"]),
        json!(["attach", labels::AGENT_PATH]),
        json!([format!("/elsewhere{}", labels::AGENT_PATH), "attach"]),
        json!([]),
    ] {
        assert_eq!(
            verdicts(&pod(), exec(labels::BUILD_CONTAINER, &command)),
            [false, true, true],
            "{command}"
        );
    }
    for container in [labels::AGENT_CONTAINER, "svc-0", "builds", ""] {
        assert_eq!(verdicts(&pod(), exec(container, &attach)), [true, false, true], "{container}");
    }
    // The API server leaves out what is empty.
    assert_eq!(verdicts(&pod(), json!({ "stdout": true })), [false, false, true]);

    for pod in [
        "gitlab-0",
        &format!("x-{}", pod()),
        &format!("{}-x", pod()),
        "cij-4711-0123456789",
        "",
        "cij-1-2-3-4",
    ] {
        assert_eq!(verdicts(pod, exec(labels::BUILD_CONTAINER, &attach)), [true, true, false], "{pod}");
    }
}

#[test]
fn every_rule_says_what_it_wants() {
    assert!(rules().iter().all(|rule| rule.message.as_ref().is_some_and(|message| !message.is_empty())));
}
