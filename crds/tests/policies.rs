//! The chart's admission policies: the shim execs what the operator and the shim agree on, and nothing else; who is
//! not allowed to asks for no job.
// Clippy takes only functions marked as tests for tests.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use kube::core::cel::{AdmissionRequest, VapEvaluator, VapExpression};
use roadstead_crds::{labels, names};
use serde_json::{Value, json};

/// The rules of a policy, in their order; each of them refuses something below.
fn rules_of<const N: usize>(policy: &str) -> [VapExpression; N] {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/roadstead/files").join(policy);
    let rules: Vec<VapExpression> = serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    rules.try_into().unwrap()
}

fn rules() -> [VapExpression; 3] {
    rules_of("exec-policy.yaml")
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
fn who_is_not_allowed_to_neither_creates_a_cijob_nor_changes_its_spec() {
    let rules: [VapExpression; 2] = rules_of("cijob-policy.yaml");
    let verdicts = |operation: &str, object: Value, old: Option<Value>| -> Vec<bool> {
        let request = AdmissionRequest { operation: operation.into(), ..Default::default() };
        let mut evaluator = VapEvaluator::builder().object(object).request(request);
        if let Some(old) = old {
            evaluator = evaluator.old_object(old);
        }
        evaluator.build().evaluate(&rules).iter().map(|result| result.passed).collect()
    };
    let job = |hold: bool| json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "hold": hold } });
    assert_eq!(verdicts("CREATE", job(false), None), [false, true]);
    assert_eq!(verdicts("UPDATE", job(false), Some(job(true))), [true, false]);
    let mut labelled = job(true);
    labelled["metadata"]["labels"] = json!({});
    assert_eq!(verdicts("UPDATE", labelled, Some(job(true))), [true, true]);
    assert!(rules.iter().all(|rule| rule.message.as_ref().is_some_and(|message| !message.is_empty())));
}

#[test]
fn every_rule_says_what_it_wants() {
    assert!(rules().iter().all(|rule| rule.message.as_ref().is_some_and(|message| !message.is_empty())));
}
