//! What holds for every field of both kinds.
// Clippy takes only functions marked as tests for tests.
#![allow(clippy::unwrap_used)]

use kube::CustomResourceExt as _;
use roadstead_crds::{CiJob, JobClass};
use serde_json::{Map, Value, json};

/// Fields that may hold anything.
const FREE_FORM: [&str; 2] = ["JobClass.spec.pod.overlay", "JobClass.spec.pod.jsonPatch[].value"];

/// A schema somewhere in a kind's.
struct Node<'a> {
    path: String,
    schema: &'a Map<String, Value>,
    /// Whether it is that of a named field, not of a list's items or a map's values.
    is_field: bool,
}

/// Both kinds with the root of their schema.
fn roots() -> Vec<(&'static str, Value)> {
    [("CiJob", CiJob::crd()), ("JobClass", JobClass::crd())]
        .into_iter()
        .map(|(kind, crd)| {
            assert_eq!(crd.spec.versions.len(), 1, "{kind}");
            let schema = crd.spec.versions.into_iter().next().and_then(|version| version.schema);
            (kind, serde_json::to_value(schema.unwrap().open_api_v3_schema.unwrap()).unwrap())
        })
        .collect()
}

/// Adds `node` and everything below it.
fn walk<'a>(node: Node<'a>, found: &mut Vec<Node<'a>>) {
    let mut below = |name: &str, schema: &'a Value, is_field: bool| {
        let schema = schema.as_object().unwrap();
        walk(Node { path: format!("{}{name}", node.path), schema, is_field }, found);
    };
    for (name, property) in node.schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        below(&format!(".{name}"), property, true);
    }
    if let Some(items) = node.schema.get("items") {
        below("[]", items, false);
    }
    if let Some(values) = node.schema.get("additionalProperties") {
        below("{}", values, false);
    }
    found.push(node);
}

/// Asserts that `complaint` has nothing to say about any schema of either kind.
fn assert_none(complaint: impl Fn(&Node<'_>) -> Option<String>) {
    let mut complaints = Vec::new();
    for (kind, root) in roots() {
        let mut nodes = Vec::new();
        walk(Node { path: kind.to_owned(), schema: root.as_object().unwrap(), is_field: true }, &mut nodes);
        assert!(nodes.len() > 50, "the walk through {kind} found only {} schemas", nodes.len());
        let texts = nodes.iter().map(|node| complaint(node).map(|text| format!("{}: {text}", node.path)));
        complaints.extend(texts.flatten());
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn every_field_has_a_description() {
    assert_none(|Node { schema, is_field, .. }| {
        let description = schema.get("description").and_then(Value::as_str).unwrap_or_default();
        (*is_field && description.trim().is_empty()).then(|| "no description".to_owned())
    });
}

#[test]
fn everything_that_a_client_writes_has_a_limit() {
    assert_none(|Node { path, schema, .. }| {
        if !path.contains(".spec") {
            return None;
        }
        let has = |keyword: &str| schema.contains_key(keyword);
        let missing = match schema.get("type").and_then(Value::as_str)? {
            "string" => {
                !(has("maxLength") || has("enum") || schema.get("format") == Some(&json!("date-time")))
            }
            "array" => !has("maxItems"),
            "object" => has("additionalProperties") && !has("maxProperties"),
            _ => false,
        };
        missing.then(|| "no limit".to_owned())
    });
}

#[test]
fn only_what_changes_a_pod_is_free_form() {
    assert_none(|Node { path, schema, .. }| {
        let free = schema.contains_key("x-kubernetes-preserve-unknown-fields")
            || (schema.get("type") == Some(&json!("object"))
                && !schema.contains_key("properties")
                && !schema.contains_key("additionalProperties"));
        (free != FREE_FORM.contains(&path.as_str())).then(|| "free form, or no longer so".to_owned())
    });
}

/// <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>
#[test]
fn the_schemas_are_structural() {
    const KNOWN: [&str; 24] = [
        "additionalProperties",
        "default",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minimum",
        "nullable",
        "pattern",
        "properties",
        "required",
        "title",
        "type",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-validations",
    ];
    // What stands for a type where there can be none.
    const ANY: [&str; 2] = ["x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"];
    assert_none(|Node { schema, .. }| {
        let typed = schema.get("type").is_some_and(Value::is_string);
        if !typed && !ANY.iter().any(|keyword| schema.get(*keyword) == Some(&json!(true))) {
            return Some("no type".to_owned());
        }
        if schema.contains_key("properties") && schema.contains_key("additionalProperties") {
            return Some("both properties and additionalProperties".to_owned());
        }
        schema
            .keys()
            .find(|keyword| !KNOWN.contains(&keyword.as_str()))
            .map(|keyword| format!("keyword {keyword}"))
    });
}
