//! Reads CiJobs and JobClasses from files. Pure.

use kube::CustomResourceExt as _;
use roadstead_crds::{CiJob, GROUP, JobClass, VERSION, names};
use serde::Deserialize as _;
use serde_json::{Map, Value, json};

use crate::explain::schema;

/// Namespace of a job that names none, and for which none is given: the chart's.
const NAMESPACE: &str = "ci-jobs";

/// Reads a job.
pub fn job(text: &str, namespace: Option<&str>) -> Result<CiJob, String> {
    let mut documents = documents(text, "the job")?;
    let mut job = match documents.len() {
        0 => return Err("the job is empty: it must be a CiJob in YAML or JSON".to_owned()),
        1 => documents.remove(0),
        more => return Err(format!("the job has {more} documents: it must be one CiJob")),
    };
    check_kind(&job, "CiJob").map_err(|what| {
        let hint = if ["command", "job_info", "script"].iter().any(|field| job.get(field).is_some()) {
            ": let `executor-shim cijob` make one of it"
        } else {
            ""
        };
        format!("the job {what}{hint}")
    })?;
    complete(&mut job, namespace);
    if let Some(object) = job.as_object_mut() {
        // Whatever it is, it is not what was asked.
        object.remove("status");
    }
    let problems = schema::problems(&CiJob::crd(), &job);
    if !problems.is_empty() {
        return Err(format!("the job is not a valid CiJob:\n- {}", problems.join("\n- ")));
    }
    serde_json::from_value(job).map_err(|error| format!("the job is not a valid CiJob: {error}"))
}

/// Reads classes.
pub fn classes(text: &str, file: &str) -> Result<Vec<JobClass>, String> {
    let mut classes = Vec::new();
    for (index, document) in documents(text, file)?.into_iter().enumerate() {
        let place = match document.pointer("/metadata/name").and_then(Value::as_str) {
            Some(name) => format!("{file}, JobClass \"{name}\""),
            None => format!("{file}, document {}", index + 1),
        };
        check_kind(&document, "JobClass").map_err(|what| format!("{place} {what}"))?;
        let problems = schema::problems(&JobClass::crd(), &document);
        if !problems.is_empty() {
            return Err(format!("{place} is not what a cluster takes:\n- {}", problems.join("\n- ")));
        }
        let class = serde_json::from_value(document).map_err(|error| format!("{place}: {error}"))?;
        classes.push(class);
    }
    if classes.is_empty() {
        return Err(format!("{file} has no JobClass in it"));
    }
    Ok(classes)
}

/// The documents of a text, lists of Kubernetes objects taken apart. Empty ones do not count.
fn documents(text: &str, what: &str) -> Result<Vec<Value>, String> {
    let mut found = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let value = Value::deserialize(document).map_err(|error| format!("{what} is not YAML: {error}"))?;
        match value {
            Value::Null => {}
            Value::Object(mut list) if list.get("kind").is_some_and(|kind| kind == "List") => {
                match list.remove("items") {
                    Some(Value::Array(items)) => found.extend(items),
                    _ => return Err(format!("{what} is a List without items")),
                }
            }
            value => found.push(value),
        }
    }
    Ok(found)
}

fn check_kind(object: &Value, kind: &str) -> Result<(), String> {
    let field = |name: &str| object.get(name).and_then(Value::as_str);
    let version = format!("{GROUP}/{VERSION}");
    match (field("apiVersion"), field("kind")) {
        (Some(found), Some(other)) if found == version && other == kind => Ok(()),
        (_, Some(other)) if other != kind => Err(format!("is a {other}, not a {kind} ({version})")),
        _ => Err(format!("is not a {kind}: it needs `apiVersion: {version}` and `kind: {kind}`")),
    }
}

/// Fills in what a cluster would, and in a job that was never asked for (`requestedAt` is what nobody writes by hand)
/// everything that it does not say.
fn complete(job: &mut Value, namespace: Option<&str>) {
    if let Some(request) = object(job, "spec")
        .and_then(|spec| spec.entry("request").or_insert_with(|| json!({})).as_object_mut())
        && !request.contains_key("requestedAt")
    {
        assume(request);
    }
    let request = |field: &str| job.pointer(&format!("/spec/request/{field}"));
    let id = request("job/id").and_then(Value::as_i64).unwrap_or_default();
    let server = request("server").and_then(Value::as_str).unwrap_or_default();
    let name = names::cijob_name(server, id, "explain");
    let Some(metadata) = object(job, "metadata") else { return };
    if let Some(namespace) = namespace {
        metadata.insert("namespace".to_owned(), json!(namespace));
    }
    or(metadata, "namespace", json!(NAMESPACE));
    or(metadata, "name", json!(name));
}

/// Makes a request whole: that of an untagged job on an unprotected branch.
fn assume(request: &mut Map<String, Value>) {
    let whole = json!({
        "server": "https://gitlab.example",
        "job": {"id": 1, "name": "job", "stage": "test"},
        "project": {"id": 1, "path": "group/project"},
        "ref": {"name": "main", "type": "branch", "sha": "", "protected": false},
        "tagSource": "Job",
        "pipelineSource": "push",
        "timeoutSeconds": 3600,
        "requestedAt": "1970-01-01T00:00:00.000000Z",
    });
    for (name, value) in whole.as_object().into_iter().flatten() {
        match (request.get_mut(name).and_then(Value::as_object_mut), value.as_object()) {
            (Some(part), Some(whole)) => {
                whole.iter().for_each(|(name, value)| or(part, name, value.clone()));
            }
            _ => or(request, name, value.clone()),
        }
    }
}

/// The object in that field, made where there is none. Of what is no object nothing is read, and the schema says so.
fn object<'a>(value: &'a mut Value, field: &str) -> Option<&'a mut Map<String, Value>> {
    value.as_object_mut()?.entry(field).or_insert_with(|| json!({})).as_object_mut()
}

/// Gives a field that is not there a value.
fn or(fields: &mut Map<String, Value>, name: &str, value: Value) {
    fields.entry(name).or_insert(value);
}
