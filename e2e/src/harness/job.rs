//! A job as gitlab-runner parses it, and as it writes it down for the driver (`JOB_RESPONSE_FILE`).

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::coordinator::{Step, Variable};

/// Seconds that a job without a timeout has.
const DEFAULT_TIMEOUT: u64 = 7200;

/// The runner's own structure: unknown keys are gone, what is absent has its zero value, lists that are absent are
/// `null`. Fields are in the order in which the runner writes them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct RunnerJob {
    pub(super) id: i64,
    pub(super) token: String,
    pub(super) allow_git_fetch: bool,
    #[serde(deserialize_with = "or_default")]
    pub(super) job_info: JobInfo,
    #[serde(deserialize_with = "or_default")]
    pub(super) git_info: GitInfo,
    #[serde(deserialize_with = "or_default")]
    pub(super) runner_info: RunnerInfo,
    /// Always written as an empty object: the runner's fields of it are private.
    #[serde(deserialize_with = "nothing")]
    inputs: Map<String, Value>,
    variables: Option<Vec<Variable>>,
    steps: Option<Vec<Step>>,
    #[serde(deserialize_with = "or_default")]
    pub(super) image: Image,
    pub(super) services: Option<Vec<Image>>,
    artifacts: Option<Vec<Artifact>>,
    cache: Option<Vec<Cache>>,
    credentials: Option<Vec<Credential>>,
    dependencies: Option<Vec<Dependency>>,
    #[serde(deserialize_with = "or_default")]
    features: Features,
    #[serde(skip_serializing_if = "Option::is_none")]
    secrets: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "is_empty")]
    hooks: Option<Vec<Hook>>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "run_steps")]
    run: Option<Value>,
    #[serde(deserialize_with = "or_default")]
    policy_options: PolicyOptions,
    #[serde(deserialize_with = "or_default")]
    suspend_options: SuspendOptions,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct JobInfo {
    pub(super) name: String,
    stage: String,
    pipeline_id: i64,
    pub(super) project_id: i64,
    project_name: String,
    project_full_path: String,
    namespace_id: i64,
    root_namespace_id: i64,
    organization_id: i64,
    instance_id: String,
    instance_uuid: String,
    user_id: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    scoped_user_id: Option<i64>,
    time_in_queue_seconds: f64,
    project_jobs_running_on_instance_runners_count: String,
    queue_size: i64,
    queue_depth: i64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct GitInfo {
    pub(super) repo_url: String,
    repo_object_format: String,
    #[serde(rename = "ref")]
    pub(super) git_ref: String,
    pub(super) sha: String,
    before_sha: String,
    ref_type: String,
    refspecs: Option<Vec<String>>,
    pub(super) depth: i64,
    protected: Option<bool>,
}

impl GitInfo {
    pub(super) fn refspecs(&self) -> &[String] {
        self.refspecs.as_deref().unwrap_or_default()
    }

    /// `sha1` unless GitLab says otherwise.
    pub(super) fn object_format(&self) -> &str {
        if self.repo_object_format.is_empty() { "sha1" } else { &self.repo_object_format }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct RunnerInfo {
    uuid: String,
    timeout: i64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Image {
    pub(super) name: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub(super) alias: String,
    #[serde(skip_serializing_if = "is_empty")]
    pub(super) command: Option<Vec<String>>,
    #[serde(skip_serializing_if = "is_empty")]
    pub(super) entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "is_empty")]
    ports: Option<Vec<Value>>,
    #[serde(skip_serializing_if = "is_empty")]
    pub(super) variables: Option<Vec<Variable>>,
    #[serde(skip_serializing_if = "is_empty")]
    pull_policy: Option<Vec<String>>,
    #[serde(deserialize_with = "or_default")]
    executor_opts: ExecutorOptions,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct ExecutorOptions {
    #[serde(deserialize_with = "or_default")]
    docker: DockerOptions,
    #[serde(deserialize_with = "or_default")]
    kubernetes: KubernetesOptions,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct DockerOptions {
    platform: String,
    #[serde(deserialize_with = "text_or_number")]
    user: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct KubernetesOptions {
    #[serde(deserialize_with = "text_or_number")]
    user: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Artifact {
    pub(super) name: String,
    pub(super) untracked: bool,
    paths: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
    when: String,
    #[serde(rename = "artifact_type")]
    pub(super) kind: String,
    #[serde(rename = "artifact_format")]
    pub(super) format: String,
    pub(super) expire_in: String,
}

impl Artifact {
    pub(super) fn paths(&self) -> &[String] {
        self.paths.as_deref().unwrap_or_default()
    }

    pub(super) fn exclude(&self) -> &[String] {
        self.exclude.as_deref().unwrap_or_default()
    }

    pub(super) fn wanted(&self, success: bool) -> bool {
        wanted(&self.when, success)
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Cache {
    pub(super) key: String,
    pub(super) untracked: bool,
    pub(super) policy: String,
    paths: Option<Vec<String>>,
    when: String,
    fallback_keys: Option<Vec<String>>,
}

impl Cache {
    pub(super) fn paths(&self) -> &[String] {
        self.paths.as_deref().unwrap_or_default()
    }

    pub(super) fn fallback_keys(&self) -> &[String] {
        self.fallback_keys.as_deref().unwrap_or_default()
    }

    pub(super) fn wanted(&self, success: bool) -> bool {
        wanted(&self.when, success)
    }
}

/// Whether something with this `when:` is done after a success, or after a failure.
fn wanted(when: &str, success: bool) -> bool {
    if success {
        matches!(when, "" | "on_success" | "always")
    } else {
        matches!(when, "on_failure" | "always")
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Credential {
    #[serde(rename = "type")]
    kind: String,
    url: String,
    username: String,
    password: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Dependency {
    pub(super) id: i64,
    pub(super) token: String,
    pub(super) name: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) artifacts_file: ArtifactsFile,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ArtifactsFile {
    pub(super) filename: String,
    size: i64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Features {
    trace_sections: bool,
    token_mask_prefixes: Option<Vec<String>>,
    failure_reasons: Option<Vec<String>>,
    tracing: Option<Value>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Hook {
    name: String,
    script: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct PolicyOptions {
    execution_policy_job: bool,
    #[serde(deserialize_with = "or_default")]
    policy_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_variables_override_allowed: Option<bool>,
    #[serde(skip_serializing_if = "is_empty")]
    policy_variables_override_exceptions: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct SuspendOptions {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    suspend_on_success: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    suspend_on_failure: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    runtime_environment_key: String,
}

impl RunnerJob {
    /// Reads GitLab's JSON.
    pub(super) fn parse(payload: &Value) -> Result<Self> {
        serde_json::from_value(payload.clone()).context("a runner could not read the job's JSON")
    }

    /// What the runner writes into `JOB_RESPONSE_FILE`: one line, with `<`, `>` and `&` as Go escapes them.
    pub(super) fn response(&self) -> Result<String> {
        let mut text = serde_json::to_string(self).context("cannot write the job as JSON")?;
        // These characters can only stand inside strings.
        for (plain, escaped) in [
            ("<", "\\u003c"),
            (">", "\\u003e"),
            ("&", "\\u0026"),
            ("\u{2028}", "\\u2028"),
            ("\u{2029}", "\\u2029"),
        ] {
            text = text.replace(plain, escaped);
        }
        text.push('\n');
        Ok(text)
    }

    /// How long the job may take.
    pub(super) fn timeout(&self) -> Duration {
        let seconds = u64::try_from(self.runner_info.timeout).unwrap_or(0);
        Duration::from_secs(if seconds == 0 { DEFAULT_TIMEOUT } else { seconds })
    }

    pub(super) fn image_name(&self) -> &str {
        &self.image.name
    }

    pub(super) fn variables(&self) -> &[Variable] {
        self.variables.as_deref().unwrap_or_default()
    }

    pub(super) fn steps(&self) -> &[Step] {
        self.steps.as_deref().unwrap_or_default()
    }

    pub(super) fn services(&self) -> &[Image] {
        self.services.as_deref().unwrap_or_default()
    }

    pub(super) fn artifacts(&self) -> &[Artifact] {
        self.artifacts.as_deref().unwrap_or_default()
    }

    pub(super) fn caches(&self) -> &[Cache] {
        self.cache.as_deref().unwrap_or_default()
    }

    pub(super) fn dependencies(&self) -> &[Dependency] {
        self.dependencies.as_deref().unwrap_or_default()
    }

    pub(super) fn trace_sections(&self) -> bool {
        self.features.trace_sections
    }

    /// The commands of a hook.
    pub(super) fn hook(&self, name: &str) -> &[String] {
        let hook = self.hooks.iter().flatten().find(|hook| hook.name == name);
        hook.and_then(|hook| hook.script.as_deref()).unwrap_or_default()
    }
}

#[expect(clippy::ref_option, reason = "serde calls it so")]
fn is_empty<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

/// `null` is the zero value, as in Go.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn nothing<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Map<String, Value>, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer)?;
    Ok(Map::new())
}

fn text_or_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(text),
        Value::Number(number) if number.is_i64() => Ok(number.to_string()),
        Value::Null => Ok(String::new()),
        other => Err(serde::de::Error::custom(format!("{other} is neither a text nor a whole number"))),
    }
}

/// GitLab sends `run` as a text with JSON in it; the runner writes it as a list.
fn run_steps<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::coordinator::JobSpec;

    fn written(spec: &JobSpec) -> (String, Value) {
        let text = RunnerJob::parse(&spec.payload("http://h")).unwrap().response().unwrap();
        let value = serde_json::from_str(&text).unwrap();
        (text, value)
    }

    #[test]
    fn the_file_is_one_line_in_the_runner_s_order() {
        let (text, value) = written(&JobSpec::new(42).script(["a && b <c >d"]));
        assert_eq!(text.matches('\n').count(), 1);
        assert!(text.ends_with("}\n"));
        assert!(text.contains(r#""a \u0026\u0026 b \u003cc \u003ed""#), "{text}");
        assert_eq!(value["steps"][0]["script"][0], "a && b <c >d");
        let place = |key: &str| text.find(&format!("\"{key}\":")).unwrap_or_else(|| panic!("{key}: {text}"));
        let order = ["id", "token", "job_info", "git_info", "runner_info", "inputs", "variables", "steps"];
        assert!(order.windows(2).all(|pair| place(pair[0]) < place(pair[1])));
    }

    #[test]
    fn absent_lists_are_null_and_unknown_keys_are_gone() {
        let payload =
            json!({"id": 7, "surprise": 1, "image": null, "services": null, "inputs": [{"key": "a"}]});
        let text = RunnerJob::parse(&payload).unwrap().response().unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        for key in ["variables", "steps", "services", "artifacts", "cache", "credentials", "dependencies"] {
            assert_eq!(value.get(key), Some(&Value::Null), "{key}");
        }
        for key in ["surprise", "secrets", "hooks", "run"] {
            assert_eq!(value.get(key), None, "{key}");
        }
        assert_eq!(value["inputs"], json!({}));
        assert_eq!(value["image"]["executor_opts"]["kubernetes"]["user"], "");
        assert_eq!(value["git_info"]["protected"], Value::Null);
        assert_eq!(value["suspend_options"], json!({}));
    }

    #[test]
    fn a_job_without_a_timeout_has_two_hours() {
        let job = RunnerJob::parse(&json!({"runner_info": {"timeout": 0}})).unwrap();
        assert_eq!(job.timeout(), Duration::from_hours(2));
    }

    #[test]
    fn run_steps_become_a_list() {
        let (_, value) = written(&JobSpec::new(1).set("run", json!("[{\"name\":\"x\"}]")));
        assert_eq!(value["run"], json!([{"name": "x"}]));
    }
}
