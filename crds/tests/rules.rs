//! Each rule (`x-kubernetes-validations`) accepts what it should and refuses what it should, with
//! its own message. The API server evaluates the same expressions.
// Clippy takes only functions marked as tests for tests.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use kube::core::cel::Validator;
use roadstead_crds::{CiJob, JobClass, names};
use serde_json::{Value, json};

const NAME: &str = "a CiJob is named cij-<job id>-<10 hexadecimal digits>";
const REQUEST: &str = "the request of a CiJob never changes";
const HOLD: &str = "hold can be released, not taken again";
const REPLACE: &str = "replace is set once";
const CLASS_NAME: &str = "a JobClass is named by at most 63 lower-case letters, digits and hyphens: jobs and labels carry the name";
const DIRECTORIES: &str = "buildsDir and cacheDir must not be the same or inside each other";
const QUANTITIES: &str =
    "requests, limits, max and min must be Kubernetes quantities such as 500m or 2Gi, and not negative";
const SOME_JOB: &str = "a class without tags must run untagged jobs: with `tags: []` and `runUntagged: false` it would take no job at all";
const REQUEST_WITHIN_LIMIT: &str = "a request must not exceed its limit";

fn schema(crd: CustomResourceDefinition) -> Value {
    let version = crd.spec.versions.into_iter().next().unwrap();
    serde_json::to_value(version.schema.unwrap().open_api_v3_schema.unwrap()).unwrap()
}

/// Asserts that the rules say `messages`, no more and no less, about `new` in place of `old`.
fn assert_messages(crd: CustomResourceDefinition, new: &Value, old: Option<&Value>, messages: &[&str]) {
    let found: Vec<String> = match Validator::new().validate(&schema(crd), new, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.iter().map(|error| error.message.clone()).collect(),
    };
    assert_eq!(found, messages, "for {new} in place of {old:?}");
}

fn cijob() -> Value {
    json!({
        "apiVersion": "roadstead.dev/v1alpha1",
        "kind": "CiJob",
        "metadata": { "name": names::cijob_name("https://gitlab.example", 42, "a"), "namespace": "jobs" },
        "spec": {
            "request": {
                "server": "https://gitlab.example",
                "job": { "id": 42, "name": "test", "stage": "test" },
                "project": { "id": 5, "path": "group/project" },
                "ref": { "name": "main", "type": "branch", "sha": "0123456789abcdef0123456789abcdef01234567" },
                "timeoutSeconds": 3600,
                "requestedAt": "2026-01-02T03:04:05.000006Z",
            },
        },
    })
}

fn class(name: &str, spec: Value) -> Value {
    let mut class = json!({
        "apiVersion": "roadstead.dev/v1alpha1",
        "kind": "JobClass",
        "metadata": { "name": name },
    });
    class["spec"] = spec;
    class
}

/// `object` with the value at `pointer` replaced or added.
fn with(object: &Value, pointer: &str, value: Value) -> Value {
    let mut object = object.clone();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap()[key] = value;
    object
}

#[test]
fn every_rule_is_tested_here() {
    fn collect(schema: &Value, messages: &mut BTreeSet<String>) {
        match schema {
            Value::Object(fields) => {
                for (name, field) in fields {
                    if name == "x-kubernetes-validations" {
                        let rules = field.as_array().unwrap().iter();
                        messages.extend(rules.map(|rule| rule["message"].as_str().unwrap().to_owned()));
                    }
                    collect(field, messages);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| collect(item, messages)),
            _ => {}
        }
    }
    let mut messages = BTreeSet::new();
    collect(&schema(CiJob::crd()), &mut messages);
    collect(&schema(JobClass::crd()), &mut messages);
    let tested =
        [NAME, REQUEST, HOLD, REPLACE, CLASS_NAME, DIRECTORIES, QUANTITIES, SOME_JOB, REQUEST_WITHIN_LIMIT];
    assert_eq!(messages, tested.into_iter().map(str::to_owned).collect());
}

#[test]
fn a_cijob_has_the_name_that_the_shim_gives_it() {
    assert_messages(CiJob::crd(), &cijob(), None, &[]);
    for name in [
        "cij-42-0123456789a",
        "cij-42-012345678",
        "cij-x-0123456789",
        "cij-42-012345678G",
        "x-cij-42-0123456789",
    ] {
        assert_messages(CiJob::crd(), &with(&cijob(), "/metadata/name", json!(name)), None, &[NAME]);
    }
}

#[test]
fn a_request_never_changes() {
    let old = cijob();
    assert_messages(CiJob::crd(), &old, Some(&old), &[]);
    // The report is the part that does change.
    let reported = with(&old, "/spec/report", json!({ "outcome": "Succeeded" }));
    assert_messages(CiJob::crd(), &reported, Some(&old), &[]);

    for (pointer, value) in [
        ("/spec/request/timeoutSeconds", json!(7200)),
        ("/spec/request/project/path", json!("other/project")),
        ("/spec/request/ref/protected", json!(true)),
        ("/spec/request/className", json!("privileged")),
        ("/spec/request/image", json!({ "name": "other" })),
    ] {
        assert_messages(CiJob::crd(), &with(&old, pointer, value), Some(&old), &[REQUEST]);
    }
    // Nor can what was there be taken away.
    let classed = with(&old, "/spec/request/className", json!("hardened"));
    assert_messages(CiJob::crd(), &old, Some(&classed), &[REQUEST]);
}

#[test]
fn a_hold_is_released_once() {
    let (free, held) = (cijob(), with(&cijob(), "/spec/hold", json!(true)));
    assert_messages(CiJob::crd(), &held, None, &[]);
    assert_messages(CiJob::crd(), &held, Some(&held), &[]);
    assert_messages(CiJob::crd(), &free, Some(&held), &[]);
    assert_messages(CiJob::crd(), &with(&free, "/spec/hold", json!(false)), Some(&held), &[]);
    assert_messages(CiJob::crd(), &held, Some(&free), &[HOLD]);
}

#[test]
fn a_pod_is_replaced_once() {
    let plain = cijob();
    let first = with(&plain, "/spec/replace", json!("cij-42-0123456789-3f2a91bc-1"));
    let second = with(&plain, "/spec/replace", json!("cij-42-0123456789-3f2a91bc-2"));
    assert_messages(CiJob::crd(), &first, Some(&plain), &[]);
    assert_messages(CiJob::crd(), &first, Some(&first), &[]);
    assert_messages(CiJob::crd(), &second, Some(&first), &[REPLACE]);
}

#[test]
fn a_class_has_a_name_that_jobs_can_give() {
    for name in ["default", "a", "4", "gpu-large-2", &"a".repeat(63)] {
        assert_messages(JobClass::crd(), &class(name, json!({})), None, &[]);
    }
    for name in ["gpu.large", "-a", "a-", "A", &"a".repeat(64)] {
        assert_messages(JobClass::crd(), &class(name, json!({})), None, &[CLASS_NAME]);
    }
}

#[test]
fn builds_and_cache_are_apart() {
    for (builds, cache) in
        [("/builds", "/cache"), ("/ci/builds", "/ci/cache"), ("/ci", "/ci-cache"), ("/b", "/bc/b")]
    {
        let spec = json!({ "builds": { "buildsDir": builds, "cacheDir": cache } });
        assert_messages(JobClass::crd(), &class("a", spec), None, &[]);
    }
    for (builds, cache) in [("/ci", "/ci"), ("/ci", "/ci/cache"), ("/ci/builds", "/ci")] {
        let spec = json!({ "builds": { "buildsDir": builds, "cacheDir": cache } });
        assert_messages(JobClass::crd(), &class("a", spec), None, &[DIRECTORIES]);
    }
    // Against the default of the other one, too.
    let spec = json!({ "builds": { "buildsDir": "/cache/builds" } });
    assert_messages(JobClass::crd(), &class("a", spec), None, &[DIRECTORIES]);
}

#[test]
fn resources_are_quantities() {
    for quantity in ["1", "0", "500m", "0.5", "2Gi", "1e3", "12E"] {
        let spec = json!({ "resources": { "build": { "requests": { "memory": quantity } } } });
        assert_messages(JobClass::crd(), &class("a", spec), None, &[]);
    }
    for quantity in ["", "lots", "1 Gi", "2GB", "-1", "1,5"] {
        for (container, kind) in [
            ("build", "requests"),
            ("build", "limits"),
            ("build", "max"),
            ("helper", "requests"),
            ("helper", "min"),
        ] {
            let spec = json!({ "resources": { container: { kind: { "cpu": "1", "memory": quantity } } } });
            assert_messages(JobClass::crd(), &class("a", spec), None, &[QUANTITIES]);
        }
    }
}

#[test]
fn a_request_stays_within_its_limit() {
    let spec = |request: &str, limit: &str| json!({ "resources": { "helper": { "requests": { "memory": request, "cpu": "8" }, "limits": { "memory": limit } } } });
    for (request, limit) in [("1Gi", "1Gi"), ("1Gi", "1024Mi"), ("1G", "1Gi"), ("500m", "1")] {
        assert_messages(JobClass::crd(), &class("a", spec(request, limit)), None, &[]);
    }
    for (request, limit) in [("1Gi", "1G"), ("1025Mi", "1Gi"), ("1", "999m")] {
        assert_messages(JobClass::crd(), &class("a", spec(request, limit)), None, &[REQUEST_WITHIN_LIMIT]);
    }
}

#[test]
fn a_class_takes_some_job() {
    for (matching, messages) in [
        (json!({}), &[][..]),
        (json!({ "tags": [] }), &[]),
        (json!({ "tags": [], "runUntagged": true }), &[]),
        (json!({ "tags": ["a"], "runUntagged": false }), &[]),
        (json!({ "runUntagged": false }), &[]),
        (json!({ "tags": [], "runUntagged": false }), &[SOME_JOB]),
    ] {
        assert_messages(JobClass::crd(), &class("default", json!({ "match": matching })), None, messages);
    }
}
