//! The YAML in `manifests/` is what the types say.
//!
//! `UPDATE_MANIFESTS=1 cargo test -p roadstead-crds` writes it anew.
// Clippy takes only functions marked as tests for tests.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use kube::CustomResourceExt as _;
use roadstead_crds::{CiJob, JobClass};
use serde_json::Value;

const UPDATE: &str = "UPDATE_MANIFESTS=1 cargo test -p roadstead-crds";

/// Where each file is and what has to be in it.
fn manifests() -> Vec<(PathBuf, String)> {
    [CiJob::crd(), JobClass::crd()]
        .into_iter()
        .map(|crd| {
            // Kubernetes' customary name of the file of a definition: `<group>_<plural>.yaml`.
            let path = folder().join(format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural));
            let mut document = serde_json::to_value(crd).unwrap();
            tidy(&mut document);
            let yaml = serde_yaml::to_string(&document).unwrap();
            (path, format!("# Generated from the types in crds/src. To change it, change them and run\n#   {UPDATE}\n{yaml}"))
        })
        .collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests")
}

/// Writes bounds that are whole numbers as such (`600`, not `600.0`), and descriptions without the
/// line breaks of the source, which `kubectl explain` would print as they are.
fn tidy(value: &mut Value) {
    match value {
        Value::Number(number) => {
            // Every bound in the types is far below 2^53, where f64 is exact.
            #[allow(clippy::cast_possible_truncation)]
            if let Some(float) = number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0) {
                *value = Value::from(float as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(text) if name == "description" => *text = unwrapped(text),
                    other => tidy(other),
                }
            }
        }
        _ => {}
    }
}

/// Joins the lines of each paragraph; indented lines stay on their own.
fn unwrapped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        if !out.is_empty() {
            let joins = !line.is_empty() && !line.starts_with(' ') && !out.ends_with('\n');
            out.push(if joins { ' ' } else { '\n' });
        }
        out.push_str(line);
    }
    out
}

#[test]
fn the_manifests_are_what_the_types_say() {
    if std::env::var_os("UPDATE_MANIFESTS").is_some_and(|value| !value.is_empty()) {
        for (path, expected) in manifests() {
            fs::write(path, expected).unwrap();
        }
    }
    for (path, expected) in manifests() {
        let found = fs::read_to_string(&path).unwrap_or_default();
        let same =
            found.lines().zip(expected.lines()).take_while(|(found, expected)| found == expected).count();
        assert!(
            found == expected,
            "{} is not what the types in crds/src say, from line {} on; run\n  {UPDATE}",
            path.display(),
            same + 1,
        );
    }

    // The chart installs whatever lies in the folder.
    let mut found: Vec<PathBuf> =
        fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    let mut expected: Vec<PathBuf> = manifests().into_iter().map(|(path, _)| path).collect();
    expected.sort();
    assert_eq!(found, expected, "a file that no type stands for");
}

#[test]
fn descriptions_lose_line_breaks_but_not_paragraphs() {
    assert_eq!(unwrapped("one\ntwo\n\nthree\n  four\nfive"), "one two\n\nthree\n  four five");
    let mut bounds = serde_json::json!({ "minimum": 600.0, "maximum": 0.5 });
    tidy(&mut bounds);
    assert_eq!(bounds.to_string(), r#"{"maximum":0.5,"minimum":600}"#);
}
