//! The definitions of CiJob and JobClass: a cluster has one of each, whatever number of releases it has.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client};
use roadstead_crds::{CiJob, JobClass};
use serde_json::Value;

use crate::release::Release;

/// The definitions' names.
pub(super) const NAMES: [&str; 2] = ["cijobs.roadstead.dev", "jobclasses.roadstead.dev"];

/// What the cluster has of them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Found {
    /// None: this release brings them.
    Nothing,
    /// They are this release's, from an earlier time.
    Own,
    /// They are another release's, and say the same as this clone's.
    Fitting,
    /// They are another release's (its namespace and name), and say something else.
    Different(String),
}

/// Looks for the definitions.
///
/// # Errors
/// When they cannot be read.
pub(super) async fn look(client: &Client, workspace: &Path, release: &Release) -> Result<Found> {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut found = Vec::new();
    for name in NAMES {
        if let Some(crd) =
            crds.get_opt(name).await.with_context(|| format!("cannot read the definition {name}"))?
        {
            let file = workspace.join(format!("crds/manifests/roadstead.dev_{}.yaml", plural(name)));
            let text =
                fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let wanted: CustomResourceDefinition = serde_yaml::from_str(&text)
                .with_context(|| format!("cannot understand {}", file.display()))?;
            // Through the same types: they write numbers in one way.
            let json = |crd| serde_json::to_value(crd).context("a definition is not JSON");
            let (wanted, there) = (json(&wanted)?, json(&crd)?);
            found.push((owner(&crd), essence(&wanted) == essence(&there)));
        }
    }
    Ok(judge(&found, &format!("{}/{}", release.namespace, release.name)))
}

fn judge(found: &[(String, bool)], own: &str) -> Found {
    match found {
        [] => Found::Nothing,
        found if found.iter().all(|(owner, _)| owner == own) => Found::Own,
        found => match found.iter().find(|(_, fits)| !fits) {
            Some((owner, _)) => Found::Different(owner.clone()),
            // Half of a pair: the chart would have to write the other half beside somebody else's.
            None if found.len() < NAMES.len() => Found::Different(found[0].0.clone()),
            None => Found::Fitting,
        },
    }
}

fn plural(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

/// `NAMESPACE/NAME` of the release that has a definition, as helm marks it.
fn owner(crd: &CustomResourceDefinition) -> String {
    let annotations = crd.metadata.annotations.clone().unwrap_or_default();
    let mark = |name: &str| annotations.get(&format!("meta.helm.sh/release-{name}")).cloned();
    match (mark("namespace"), mark("name")) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ => "nobody's".to_owned(),
    }
}

/// What of a definition decides which objects it takes: the versions' schemas without their descriptions.
fn essence(crd: &Value) -> Value {
    let versions = crd.pointer("/spec/versions").and_then(Value::as_array).cloned().unwrap_or_default();
    let schema = |version: &Value| {
        let schema = version.pointer("/schema/openAPIV3Schema").cloned().unwrap_or_default();
        (version["name"].as_str().unwrap_or_default().to_owned(), without_descriptions(schema))
    };
    Value::Object(versions.iter().map(schema).collect())
}

fn without_descriptions(value: Value) -> Value {
    match value {
        // A property may be called "description"; then it is a schema, not a text.
        Value::Object(map) => map
            .into_iter()
            .filter(|(key, value)| !(key == "description" && value.is_string()))
            .map(|(key, value)| (key, without_descriptions(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_descriptions).collect(),
        other => other,
    }
}

/// Removes the definitions if they are this release's and nobody else's objects would go with them. Says what it did.
///
/// # Errors
/// When they cannot be read or removed.
pub(super) async fn remove(client: &Client, release: &Release) -> Result<Option<String>> {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let own = format!("{}/{}", release.namespace, release.name);
    let mut owned = Vec::new();
    for name in NAMES {
        if let Some(crd) =
            crds.get_opt(name).await.with_context(|| format!("cannot read the definition {name}"))?
            && owner(&crd) == own
        {
            owned.push(name);
        }
    }
    if owned.is_empty() {
        return Ok(None);
    }
    // Its own jobs and classes are gone by now.
    let all = ListParams::default();
    let jobs = Api::<CiJob>::all(client.clone()).list(&all).await.context("cannot list CiJobs")?.items.len();
    let classes =
        Api::<JobClass>::all(client.clone()).list(&all).await.context("cannot list JobClasses")?.items.len();
    if jobs + classes > 0 {
        return Ok(Some(format!(
            "the definitions {} stay: {jobs} CiJobs and {classes} JobClasses of others would go with them",
            owned.join(", ")
        )));
    }
    for name in &owned {
        let deleted = crds.delete(name, &DeleteParams::default()).await;
        deleted.with_context(|| format!("cannot remove the definition {name}"))?;
    }
    Ok(Some(format!("removed the definitions {}", owned.join(", "))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn crd(schema: &Value) -> Value {
        json!({"spec": {"versions": [{"name": "v1alpha1", "schema": {"openAPIV3Schema": schema}}]}})
    }

    #[test]
    fn texts_do_not_tell_definitions_apart_and_fields_do() {
        let one =
            crd(&json!({"description": "a", "properties": {"x": {"type": "string", "description": "b"}}}));
        let two = crd(&json!({"description": "c", "properties": {"x": {"type": "string"}}}));
        let three = crd(&json!({"properties": {"x": {"type": "string"}, "description": {"type": "string"}}}));
        assert_eq!(essence(&one), essence(&two));
        assert_ne!(essence(&two), essence(&three));
    }

    #[test]
    fn whose_they_are_decides() {
        let pair = |owner: &str, fits| vec![(owner.to_owned(), fits), (owner.to_owned(), true)];
        assert_eq!(judge(&[], "a/a"), Found::Nothing);
        assert_eq!(judge(&pair("a/a", false), "a/a"), Found::Own);
        assert_eq!(judge(&pair("b/b", true), "a/a"), Found::Fitting);
        assert_eq!(judge(&pair("b/b", false), "a/a"), Found::Different("b/b".into()));
        assert_eq!(judge(&pair("b/b", true)[..1], "a/a"), Found::Different("b/b".into()));
    }
}
