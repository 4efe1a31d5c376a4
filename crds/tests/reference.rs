//! The table of fields in `docs/jobclass.md` is what the types say.
//!
//! `UPDATE_MANIFESTS=1 cargo test -p roadstead-crds` writes it anew.
// Clippy takes only functions marked as tests for tests.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use kube::CustomResourceExt as _;
use roadstead_crds::JobClass;
use serde_json::Value;

const UPDATE: &str = "UPDATE_MANIFESTS=1 cargo test -p roadstead-crds";
const BEGIN: &str = "<!-- Generated from the types in crds/src: from here on";
const END: &str = "<!-- to here -->";

/// Fields that hold an object of Kubernetes' own, with what Kubernetes calls it.
const FOREIGN: [(&str, &str); 13] = [
    ("placement.rules[].affinity", "Affinity"),
    ("placement.rules[].tolerations", "list of Toleration"),
    ("placement.rules[].topologySpreadConstraints", "list of TopologySpreadConstraint"),
    ("pod.imagePullSecrets", "list of LocalObjectReference"),
    ("pod.tolerations", "list of Toleration"),
    ("pod.securityContext", "PodSecurityContext"),
    ("pod.containerSecurityContext", "SecurityContext"),
    ("pod.dnsConfig", "PodDNSConfig"),
    ("pod.hostAliases", "list of HostAlias"),
    ("pod.lifecycle", "Lifecycle"),
    ("pod.volumes", "list of Volume"),
    ("pod.overlay", "partial PodTemplateSpec"),
    ("pod.jsonPatch[].value", "any"),
];

fn spec() -> Value {
    let version = JobClass::crd().spec.versions.into_iter().next().unwrap();
    let schema = serde_json::to_value(version.schema.unwrap().open_api_v3_schema.unwrap()).unwrap();
    schema["properties"]["spec"].clone()
}

/// The table and the list of rules, as Markdown.
fn reference() -> String {
    let spec = spec();
    let mut text = "| field | type | default | meaning |\n|---|---|---|---|\n".to_owned();
    rows("", &spec, &mut text);
    text.push_str("\nThe API server refuses a class, and says so, unless all of this holds:\n\n");
    let mut messages = Vec::new();
    rules(&serde_json::to_value(JobClass::crd()).unwrap(), &mut messages);
    for message in messages {
        writeln!(text, "- {message}").unwrap();
    }
    text
}

fn rows(parent: &str, schema: &Value, text: &mut String) {
    for (name, field) in schema["properties"].as_object().unwrap() {
        let path = if parent.is_empty() { name.clone() } else { format!("{parent}.{name}") };
        let description = field["description"].as_str().unwrap().replace('\n', " ").replace('|', "\\|");
        let foreign =
            FOREIGN.iter().find(|(foreign, _)| *foreign == path).map(|(_, kind)| (*kind).to_owned());
        if foreign.is_none() && field.get("properties").is_some() {
            rows(&path, field, text);
            continue;
        }
        let items = foreign.is_none().then(|| field.get("items")).flatten();
        let items = items.filter(|items| items.get("properties").is_some());
        let kind = foreign.unwrap_or_else(|| kind(field));
        let default = match field.get("default") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(word)) => format!("`{word}`"),
            Some(Value::Object(fields)) if fields.is_empty() => String::new(),
            Some(value) => format!("`{value}`"),
        };
        writeln!(text, "| `{path}` | {kind} | {default} | {description} |").unwrap();
        if let Some(items) = items {
            rows(&format!("{path}[]"), items, text);
        }
    }
}

/// The type of a field of Roadstead's own, with its limits.
fn kind(field: &Value) -> String {
    let number = |keyword: &str| field[keyword].as_f64();
    if let Some(words) = field["enum"].as_array() {
        let words: Vec<String> =
            words.iter().filter_map(Value::as_str).map(|word| format!("`{word}`")).collect();
        return words.join(" or ");
    }
    match field["type"].as_str().unwrap() {
        "string" => field["maxLength"]
            .as_i64()
            .map_or("string".to_owned(), |most| format!("string, at most {most} characters")),
        "integer" => match (number("minimum"), number("maximum")) {
            (Some(least), Some(most)) => format!("integer, {least} to {most}"),
            _ => "integer".to_owned(),
        },
        "object" => field["maxProperties"]
            .as_i64()
            .map_or("map".to_owned(), |most| format!("map of strings, at most {most}")),
        "array" if field["items"]["type"] == "string" => field["maxItems"]
            .as_i64()
            .map_or("list of strings".to_owned(), |most| format!("list of strings, at most {most}")),
        "boolean" => "true or false".to_owned(),
        "array" => {
            field["maxItems"].as_i64().map_or("list".to_owned(), |most| format!("list, at most {most}"))
        }
        other => other.to_owned(),
    }
}

fn rules(value: &Value, messages: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if name == "x-kubernetes-validations" {
                    for rule in field.as_array().unwrap() {
                        let message = rule["message"].as_str().unwrap().to_owned();
                        if !messages.contains(&message) {
                            messages.push(message);
                        }
                    }
                }
                rules(field, messages);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| rules(item, messages)),
        _ => {}
    }
}

#[test]
fn the_reference_is_what_the_types_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/jobclass.md");
    let found = fs::read_to_string(&path).unwrap();
    let (before, rest) = found.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let expected = format!("{before}{BEGIN} ({UPDATE}) -->\n{}\n{END}{after}", reference());
    if std::env::var_os("UPDATE_MANIFESTS").is_some_and(|value| !value.is_empty()) {
        fs::write(&path, &expected).unwrap();
    } else {
        assert!(
            found == expected,
            "the fields in {} are not what the types say; run\n  {UPDATE}",
            path.display()
        );
    }
}

#[test]
fn every_field_has_a_row_of_its_own() {
    let reference = reference();
    for field in [
        "description",
        "match.tags",
        "match.refs.protectedOnly",
        "mode",
        "image.default",
        "helper.agent",
        "builds.shell",
        "timeouts.jobSeconds",
        "pod.overlay",
    ] {
        assert_eq!(reference.matches(&format!("| `{field}` |")).count(), 1, "{field}");
    }
    for (field, _) in FOREIGN {
        assert!(reference.contains(&format!("| `{field}` |")), "no field {field}");
    }
}
