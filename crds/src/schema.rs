//! What the derived schemas need beyond what can be said in attributes.

use schemars::Schema;
use schemars::transform::transform_subschemas;
use serde_json::{Value, json};

/// Longest string in a field whose type is Kubernetes' own. Kubernetes documents tighter limits
/// for most of them and checks those when the pod is created.
const MAX_FOREIGN_LENGTH: u32 = 4096;
/// Most items of a list or map in a field whose type is Kubernetes' own.
const MAX_FOREIGN_ITEMS: u32 = 64;

/// Gives every string, list and map of one of Kubernetes' own types a limit: they have none, and
/// without limits the API server cannot bound what a rule over the object costs.
pub(crate) fn bounded(schema: &mut Schema) {
    // Metadata of a template: who wrote which field of it is nobody's to say.
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.remove("managedFields");
    }
    let limit = match schema.get("type") {
        Some(kind) if is(kind, "string") => Some(("maxLength", MAX_FOREIGN_LENGTH)),
        Some(kind) if is(kind, "array") => Some(("maxItems", MAX_FOREIGN_ITEMS)),
        Some(kind) if is(kind, "object") && schema.get("additionalProperties").is_some() => {
            Some(("maxProperties", MAX_FOREIGN_ITEMS))
        }
        _ => None,
    };
    if let Some((keyword, limit)) = limit {
        let object = schema.ensure_object();
        if !object.contains_key("enum") && !object.contains_key("format") {
            object.entry(keyword).or_insert_with(|| json!(limit));
        }
    }
    transform_subschemas(&mut bounded, schema);
}

/// `type` is a word, or a list of words for what may also be null.
fn is(kind: &Value, word: &str) -> bool {
    kind == word || kind.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == word))
}

/// For an optional enum: the field's description instead of the type's. An optional enum is
/// written as "either the enum or null", and what describes the enum would win.
pub(crate) fn described_by_field(schema: &mut Schema) {
    if schema.get("description").is_none() {
        return;
    }
    let alternatives = schema.get_mut("anyOf").and_then(Value::as_array_mut);
    for alternative in alternatives.into_iter().flatten().filter_map(Value::as_object_mut) {
        alternative.remove("description");
    }
}

/// Map from resource names to quantities. The limits keep the cost of the rules on them bounded.
pub(crate) fn quantities(_: &mut schemars::SchemaGenerator) -> Schema {
    map_of_strings(16, 32)
}

/// Map from label keys to values.
pub(crate) fn labels(_: &mut schemars::SchemaGenerator) -> Schema {
    map_of_strings(32, 63)
}

/// Map from annotation keys to values.
pub(crate) fn annotations(_: &mut schemars::SchemaGenerator) -> Schema {
    map_of_strings(32, 4096)
}

/// Map from the names of a job's variables to their values.
pub(crate) fn overrides(_: &mut schemars::SchemaGenerator) -> Schema {
    map_of_strings(crate::overrides::MOST, crate::overrides::LONGEST_VALUE)
}

fn map_of_strings(entries: usize, length: usize) -> Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": entries,
        "additionalProperties": { "type": "string", "maxLength": length },
    })
}

/// Any object: what it may hold is checked by the operator.
pub(crate) fn any_object(_: &mut schemars::SchemaGenerator) -> Schema {
    schemars::json_schema!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
    })
}

/// Any value: what it may be is checked by the operator.
pub(crate) fn anything(_: &mut schemars::SchemaGenerator) -> Schema {
    schemars::json_schema!({ "x-kubernetes-preserve-unknown-fields": true })
}
