//! The job's variables with which it asks for more than its class gives it by default. Pure.
//!
//! They count as gitlab-runner counts them: of variables with one name the last one, and references
//! to other variables replaced once. <https://docs.gitlab.com/ci/variables/where_variables_can_be_used/>

use std::borrow::Cow;
use std::collections::BTreeMap;

use roadstead_crds::overrides::{LONGEST_VALUE, MOST, Target, Variable, Wish};

use crate::shim::exit::Failure;
use crate::shim::job_response;
use crate::shim::redact::Secrets;

/// Values that a sentence quotes are not longer than this, in characters.
const LONGEST_QUOTATION: usize = 80;

/// What the job asks for, by the name of the variable.
///
/// # Errors
/// When a value cannot be what its variable is for, or must not be seen.
pub fn of(
    variables: &[job_response::Variable],
    secrets: &Secrets,
) -> Result<BTreeMap<String, String>, Failure> {
    read(variables, variables, secrets, |_| true)
}

/// What one of the job's services asks for with its own variables. They may refer to the job's.
///
/// # Errors
/// When a value cannot be what its variable is for.
pub fn of_service(
    job: &[job_response::Variable],
    own: &[job_response::Variable],
    secrets: &Secrets,
) -> Result<BTreeMap<String, String>, Failure> {
    let all = [job, own].concat();
    read(own, &all, secrets, |variable| matches!(variable, Variable::Amount { target: Target::Service, .. }))
}

/// Reads those of some variables that are wanted; references are to any of `variables`.
fn read(
    some: &[job_response::Variable],
    variables: &[job_response::Variable],
    secrets: &Secrets,
    wanted: impl Fn(Variable) -> bool,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut overrides = BTreeMap::new();
    for name in some.iter().map(|variable| variable.key.as_str()) {
        let variable = Variable::named(name).filter(|variable| wanted(*variable));
        let Some(variable) = variable.filter(|_| !overrides.contains_key(name)) else { continue };
        let value = expanded(variables, name);
        if value.is_empty() && !variable.may_be_empty() {
            continue;
        }
        if let Err(malformed) = Wish::parse(variable, &value) {
            return Err(Failure::user(match variable {
                Variable::BearerToken => format!("{name} {malformed}"),
                _ => format!("{name}=\"{}\" {malformed}", quoted(&value, secrets)),
            }));
        }
        if value.chars().count() > LONGEST_VALUE {
            return Err(Failure::user(format!("{name} is longer than {LONGEST_VALUE} characters")));
        }
        overrides.insert(name.to_owned(), value);
    }
    if overrides.len() > MOST {
        return Err(Failure::user(format!(
            "the job has {} variables such as KUBERNETES_NODE_SELECTOR_1 and KUBERNETES_CPU_LIMIT, more than the {MOST} that it may have",
            overrides.len()
        )));
    }
    Ok(overrides)
}

fn quoted(value: &str, secrets: &Secrets) -> String {
    let value = secrets.blacken(value);
    let short: String = value.chars().take(LONGEST_QUOTATION).collect();
    let ellipsis = if short.len() < value.len() { "…" } else { "" };
    format!("{}{ellipsis}", short.escape_debug())
}

/// The value of a variable with its references replaced; those in the replacements stay.
pub(crate) fn expanded(variables: &[job_response::Variable], name: &str) -> String {
    match last(variables, name) {
        None => String::new(),
        Some(variable) if variable.raw => variable.value.clone(),
        Some(variable) => expand(&variable.value, |name| match name {
            "$" => "$".into(),
            _ => last(variables, name).map_or("", |variable| variable.value.as_str()).into(),
        }),
    }
}

pub(crate) fn last<'a>(
    variables: &'a [job_response::Variable],
    name: &str,
) -> Option<&'a job_response::Variable> {
    variables.iter().rfind(|variable| variable.key == name)
}

/// Replaces `$name` and `${name}` as Go's `os.Expand` does.
pub(crate) fn expand<'a>(text: &str, value_of: impl Fn(&str) -> Cow<'a, str>) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        expanded.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        let (name, used) = name_of(after);
        match name {
            Some(name) => expanded.push_str(&value_of(name)),
            // Nothing that could be a name: the dollar stays; `${` without an end goes.
            None if used == 0 => expanded.push('$'),
            None => {}
        }
        rest = &after[used..];
    }
    expanded.push_str(rest);
    expanded
}

/// The name that a reference begins with, and how many bytes of the text it takes.
fn name_of(text: &str) -> (Option<&str>, usize) {
    const SPECIAL: &str = "*#$@!?-0123456789";
    if let Some(inner) = text.strip_prefix('{') {
        return match inner.find('}') {
            Some(0) => (None, 2),
            Some(end) => (Some(&inner[..end]), end + 2),
            None => (None, 1),
        };
    }
    if text.starts_with(|first| SPECIAL.contains(first)) {
        return (Some(&text[..1]), 1);
    }
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    match text.bytes().take_while(|byte| plain(byte)).count() {
        0 => (None, 0),
        length => (Some(&text[..length]), length),
    }
}

#[cfg(test)]
mod tests {
    use roadstead_crds::reason::Blame;
    use serde_json::{Value, json};

    use super::*;
    use crate::shim::env::RunnerEnv;
    use crate::shim::job_response::JobResponse;

    fn job(variables: &Value) -> JobResponse {
        serde_json::from_value(json!({"id": 1, "token": "glcbt-job", "variables": variables})).unwrap()
    }

    fn read(variables: &Value) -> Result<BTreeMap<String, String>, Failure> {
        let job = job(variables);
        of(&job.variables, &Secrets::of(&job, &RunnerEnv::new([])))
    }

    fn one(value: &str) -> Value {
        json!([{"key": "KUBERNETES_MEMORY_LIMIT", "value": value}])
    }

    #[test]
    fn the_last_occurrence_counts_and_references_are_replaced_once() {
        let overrides = read(&json!([
            {"key": "KUBERNETES_CPU_LIMIT", "value": "1"},
            {"key": "SIZE", "value": "1"},
            {"key": "KUBERNETES_CPU_LIMIT", "value": "${SIZE}000m"},
            {"key": "SIZE", "value": "2"},
            {"key": "KUBERNETES_MEMORY_LIMIT", "value": "$SIZE$UNIT"},
            {"key": "UNIT", "value": "Gi"},
            {"key": "KUBERNETES_POD_ANNOTATIONS_1", "value": "a=$SIZE", "raw": true},
            {"key": "KUBERNETES_POD_ANNOTATIONS_2", "value": "a=$NESTED $$ $unknown. $"},
            {"key": "NESTED", "value": "$SIZE"},
            {"key": "KUBERNETES_MEMORY_REQUEST", "value": "$nothing"},
            {"key": "KUBERNETES_NODE_TOLERATIONS_1", "value": ""},
            {"key": "KUBERNETES_SERVICE_HOST", "value": "10.0.0.1"},
            {"key": "OTHER", "value": "x"}
        ]))
        .unwrap();
        let expected = [
            ("KUBERNETES_CPU_LIMIT", "2000m"),
            ("KUBERNETES_MEMORY_LIMIT", "2Gi"),
            ("KUBERNETES_NODE_TOLERATIONS_1", ""),
            ("KUBERNETES_POD_ANNOTATIONS_1", "a=$SIZE"),
            ("KUBERNETES_POD_ANNOTATIONS_2", "a=$SIZE $ . $"),
        ];
        assert_eq!(overrides, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn references_are_read_as_go_reads_them() {
        let value_of = |name: &str| match name {
            "A" => "1",
            "A_b9" => "2",
            "a b" => "3",
            "$" => "$",
            _ => "",
        };
        for (text, expected) in [
            ("", ""),
            ("$A", "1"),
            ("${A}x", "1x"),
            ("$A_b9-", "2-"),
            ("${a b}", "3"),
            ("$$A", "$A"),
            ("$1A", "A"),
            ("100%$", "100%$"),
            ("$ A", "$ A"),
            ("${}x", "x"),
            ("${A", "A"),
            ("ä$Aö", "ä1ö"),
            ("$ä", "$ä"),
        ] {
            assert_eq!(expand(text, |name| value_of(name).into()), expected, "{text}");
        }
    }

    #[test]
    fn a_malformed_value_is_named_and_is_the_jobs_mistake() {
        for (variables, sentence) in [
            (
                one("lots"),
                "KUBERNETES_MEMORY_LIMIT=\"lots\" must be a Kubernetes quantity such as 500m, 2 or 4Gi",
            ),
            (one("-1Gi"), "KUBERNETES_MEMORY_LIMIT=\"-1Gi\" must not be negative"),
            (
                one("1 Gi\n"),
                "KUBERNETES_MEMORY_LIMIT=\"1 Gi\\n\" must be a Kubernetes quantity such as 500m, 2 or 4Gi",
            ),
            (
                json!([{"key": "KUBERNETES_BEARER_TOKEN", "value": "hush-hush"}]),
                "KUBERNETES_BEARER_TOKEN cannot be overridden: jobs run with the runner's own access to the cluster, so use a runner with other access",
            ),
            (
                json!([{"key": "KUBERNETES_MEMORY_LIMIT", "value": "x$P"}, {"key": "P", "value": "hunter2hunter2", "masked": true}]),
                "KUBERNETES_MEMORY_LIMIT=\"x[MASKED]\" must be a Kubernetes quantity such as 500m, 2 or 4Gi",
            ),
        ] {
            let failure = read(&variables).unwrap_err();
            assert_eq!((failure.sentence.as_str(), failure.blame), (sentence, Blame::User));
        }
        let long = read(&one(&"x".repeat(200))).unwrap_err().sentence;
        assert!(long.contains(&format!("\"{}…\"", "x".repeat(80))), "{long}");
    }

    #[test]
    fn a_service_asks_with_its_own_variables_and_may_refer_to_the_jobs() {
        let job = job(&json!([
            {"key": "KUBERNETES_SERVICE_CPU_LIMIT", "value": "1"}, {"key": "SIZE", "value": "2"},
        ]));
        let own = json!([
            {"key": "KUBERNETES_SERVICE_MEMORY_LIMIT", "value": "${SIZE}Gi"},
            {"key": "KUBERNETES_MEMORY_LIMIT", "value": "1Gi"}, {"key": "POSTGRES_DB", "value": "x"},
        ]);
        let own: Vec<job_response::Variable> = serde_json::from_value(own).unwrap();
        let overrides = of_service(&job.variables, &own, &Secrets::default()).unwrap();
        assert_eq!(overrides, [("KUBERNETES_SERVICE_MEMORY_LIMIT".to_owned(), "2Gi".to_owned())].into());
    }

    #[test]
    fn a_job_has_only_so_many() {
        let variables = |count: usize| {
            let one = |number| json!({"key": format!("KUBERNETES_POD_LABELS_{number}"), "value": "a=b"});
            Value::Array((0..count).map(one).collect())
        };
        assert_eq!(read(&variables(MOST)).unwrap().len(), MOST);
        let sentence = read(&variables(MOST + 1)).unwrap_err().sentence;
        assert!(sentence.contains("more than the 64"), "{sentence}");
        let long =
            json!([{"key": "KUBERNETES_POD_ANNOTATIONS_1", "value": format!("a={}", "x".repeat(1100))}]);
        assert_eq!(
            read(&long).unwrap_err().sentence,
            "KUBERNETES_POD_ANNOTATIONS_1 is longer than 1024 characters"
        );
    }
}
