//! What an API server would say against an object of ours, told without one: the definition's schema and its rules.
//! Pure.
//!
//! Of a schema's keywords those are read that our definitions use; a test of the definitions knows which these are.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::cel::Validator;
use serde_json::{Map, Value};

use crate::policy::words::listed;

/// Everything that the definition's only version says against the object, a sentence each.
pub fn problems(crd: &CustomResourceDefinition, object: &Value) -> Vec<String> {
    let schema = crd.spec.versions.first().and_then(|version| version.schema.as_ref());
    let schema = schema.and_then(|schema| serde_json::to_value(schema.open_api_v3_schema.as_ref()?).ok());
    let Some(Value::Object(schema)) = schema else { return Vec::new() };
    let mut problems = Vec::new();
    let known = ["apiVersion", "kind", "metadata"];
    for name in
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    {
        if object.get(name).is_none() {
            problems.push(format!("{name} is missing"));
        }
    }
    for (name, value) in object.as_object().into_iter().flatten() {
        match schema.get("properties").and_then(|fields| fields.get(name)).and_then(Value::as_object) {
            Some(schema) => check(schema, value, name, &mut problems),
            None if known.contains(&name.as_str()) => {}
            None => problems.push(unknown(name, &schema)),
        }
    }
    if !problems.is_empty() {
        // The rules are only asked about what the schema takes.
        return problems;
    }
    match Validator::new().validate(&Value::Object(schema), object, None) {
        Ok(()) => problems,
        Err(errors) => errors.iter().map(|error| error.message.clone()).collect(),
    }
}

fn check(schema: &Map<String, Value>, value: &Value, path: &str, problems: &mut Vec<String>) {
    if value.is_null() && schema.get("nullable") == Some(&Value::Bool(true)) {
        return;
    }
    if schema.get("enum").and_then(Value::as_array).is_some_and(|values| !values.contains(value)) {
        let values: Vec<String> = schema["enum"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|value| value.to_string().replace('"', ""))
            .collect();
        problems.push(format!("{path} must be one of {}", values.join(", ")));
        return;
    }
    let number = |keyword: &str| schema.get(keyword).and_then(Value::as_f64);
    let most = |keyword: &str| schema.get(keyword).and_then(Value::as_u64);
    let long = |length: usize, limit: Option<u64>| limit.is_some_and(|limit| length as u64 > limit);
    let short = |length: usize, limit: Option<u64>| limit.is_some_and(|limit| (length as u64) < limit);
    match (schema.get("type").and_then(Value::as_str).unwrap_or_default(), value) {
        ("object", Value::Object(fields)) => {
            if long(fields.len(), most("maxProperties")) {
                problems.push(format!("{path} has more than {} entries", schema["maxProperties"]));
            }
            for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
                if name.as_str().is_some_and(|name| !fields.contains_key(name)) {
                    problems.push(format!("{path}.{} is missing", name.as_str().unwrap_or_default()));
                }
            }
            let free = schema.contains_key("x-kubernetes-preserve-unknown-fields");
            let properties = schema.get("properties").and_then(Value::as_object);
            let values = schema.get("additionalProperties").and_then(Value::as_object);
            for (name, value) in fields {
                let below = format!("{path}.{name}");
                match properties.and_then(|fields| fields.get(name)).and_then(Value::as_object).or(values) {
                    Some(schema) => check(schema, value, &below, problems),
                    None if free => {}
                    None => problems.push(unknown(&below, schema)),
                }
            }
        }
        ("array", Value::Array(items)) => {
            if long(items.len(), most("maxItems")) {
                problems.push(format!("{path} has more than {} items", schema["maxItems"]));
            }
            if short(items.len(), most("minItems")) {
                problems.push(format!("{path} has fewer than {} items", schema["minItems"]));
            }
            if let Some(schema) = schema.get("items").and_then(Value::as_object) {
                for (index, item) in items.iter().enumerate() {
                    check(schema, item, &format!("{path}[{index}]"), problems);
                }
            }
        }
        ("string", Value::String(text)) => {
            let length = text.chars().count();
            if long(length, most("maxLength")) {
                problems.push(format!("{path} is longer than {} characters", schema["maxLength"]));
            }
            if short(length, most("minLength")) {
                problems.push(format!("{path} is shorter than {} characters", schema["minLength"]));
            }
            let pattern = schema.get("pattern").and_then(Value::as_str);
            let pattern = pattern.and_then(|pattern| Some((pattern, regex::Regex::new(pattern).ok()?)));
            if let Some((words, _)) = pattern.filter(|(_, pattern)| !pattern.is_match(text)) {
                problems.push(format!("{path} does not match {words}"));
            }
        }
        ("integer", Value::Number(found)) if found.is_i64() || found.is_u64() => {
            range(found.as_f64(), (number("minimum"), number("maximum")), path, problems);
        }
        ("number", Value::Number(found)) => {
            range(found.as_f64(), (number("minimum"), number("maximum")), path, problems);
        }
        // Of an empty type nothing is said.
        ("boolean", Value::Bool(_)) | ("", _) => {}
        (kind, found) => problems.push(format!("{path} must be {}, not {}", article(kind), kind_of(found))),
    }
}

fn range(
    found: Option<f64>,
    (least, most): (Option<f64>, Option<f64>),
    path: &str,
    problems: &mut Vec<String>,
) {
    let Some(found) = found else { return };
    if let Some(least) = least.filter(|least| found < *least) {
        problems.push(format!("{path} is less than {least}"));
    }
    if let Some(most) = most.filter(|most| found > *most) {
        problems.push(format!("{path} is more than {most}"));
    }
}

fn unknown(path: &str, schema: &Map<String, Value>) -> String {
    let fields = schema.get("properties").and_then(Value::as_object);
    let mut known: Vec<&str> = fields.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    known.sort_unstable();
    format!("{path} is not known; there is {}", listed(&known))
}

fn article(kind: &str) -> String {
    match kind {
        "object" | "array" | "integer" => format!("an {kind}"),
        _ => format!("a {kind}"),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
