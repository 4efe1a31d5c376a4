//! The pieces that a job's JSON is made of, as GitLab sends them.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// One CI/CD variable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Variable {
    /// Its name.
    pub key: String,
    /// Its value; for a file variable the content of the file.
    pub value: String,
    /// Whether GitLab may show it.
    pub public: bool,
    /// Whether a job sees it as the path of a file with the value in it.
    pub file: bool,
    /// Whether the runner hides the value in the job log.
    pub masked: bool,
    /// Whether references to other variables in the value stay as they are.
    pub raw: bool,
}

impl Variable {
    /// A public variable whose value is expanded.
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.into(), public: true, ..Self::default() }
    }

    /// A variable that GitLab neither shows nor lets the runner print.
    pub fn masked(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.into(), masked: true, ..Self::default() }
    }

    /// A file variable with this content.
    pub fn file(key: impl Into<String>, content: impl Into<String>) -> Self {
        Self { key: key.into(), value: content.into(), file: true, raw: true, ..Self::default() }
    }
}

/// One step: `script`, `after_script`, `release` and so on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// Its commands, one after the other.
    pub script: Vec<String>,
    /// In seconds. gitlab-runner ignores it.
    pub timeout: i64,
    /// gitlab-runner ignores it.
    pub when: String,
    /// gitlab-runner ignores it.
    pub allow_failure: bool,
}

/// An image: of the job or of a service.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Image {
    /// Name with tag or digest.
    pub name: String,
    /// For services: names separated by spaces or commas.
    pub alias: Option<String>,
    /// Overrides the image's command.
    pub command: Option<Vec<String>>,
    /// Overrides the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Ports as GitLab writes them.
    pub ports: Vec<Value>,
    /// Variables of a service.
    pub variables: Vec<Variable>,
    /// `always`, `if-not-present`, `never`, in the order in which they are tried.
    pub pull_policy: Vec<String>,
    /// `{"kubernetes":{"user":"1000:1000"}}` and the like.
    pub executor_opts: Value,
}

impl Image {
    /// An image with nothing overridden.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), executor_opts: json!({}), ..Self::default() }
    }

    /// Sets the service's aliases, separated by spaces or commas.
    #[must_use]
    pub fn alias(mut self, alias: impl Into<String>) -> Self {
        self.alias = Some(alias.into());
        self
    }

    /// Overrides the entrypoint.
    #[must_use]
    pub fn entrypoint<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.entrypoint = Some(words.into_iter().map(Into::into).collect());
        self
    }

    /// Overrides the command.
    #[must_use]
    pub fn command<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.command = Some(words.into_iter().map(Into::into).collect());
        self
    }

    /// Adds a variable of the service.
    #[must_use]
    pub fn variable(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.variables.push(Variable::new(key, value));
        self
    }

    /// Sets the pull policies.
    #[must_use]
    pub fn pull_policy<S: Into<String>>(mut self, policies: impl IntoIterator<Item = S>) -> Self {
        self.pull_policy = policies.into_iter().map(Into::into).collect();
        self
    }

    /// Sets `image:kubernetes:user`.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.executor_opts = json!({"kubernetes": {"user": user.into()}});
        self
    }
}

/// One entry of `artifacts:`.
#[derive(Debug, Clone, Serialize)]
pub struct Artifact {
    /// Name of the archive, without its suffix.
    pub name: String,
    /// Whether untracked files are taken too.
    pub untracked: bool,
    /// What is taken.
    pub paths: Vec<String>,
    /// What is left out.
    pub exclude: Vec<String>,
    /// `on_success`, `on_failure` or `always`.
    pub when: String,
    /// How long GitLab keeps it.
    pub expire_in: String,
    /// `archive` or a report's type.
    pub artifact_type: String,
    /// `zip`, `gzip` or `raw`.
    pub artifact_format: String,
}

impl Artifact {
    /// A zip archive of these paths, uploaded when the job has succeeded.
    pub fn paths<S: Into<String>>(paths: impl IntoIterator<Item = S>) -> Self {
        Self {
            name: "artifacts".to_owned(),
            untracked: false,
            paths: paths.into_iter().map(Into::into).collect(),
            exclude: Vec::new(),
            when: "on_success".to_owned(),
            expire_in: "1 day".to_owned(),
            artifact_type: "archive".to_owned(),
            artifact_format: "zip".to_owned(),
        }
    }

    /// Names the archive.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// `on_success`, `on_failure` or `always`.
    #[must_use]
    pub fn when(mut self, when: impl Into<String>) -> Self {
        self.when = when.into();
        self
    }
}

/// One entry of `cache:`.
#[derive(Debug, Clone, Serialize)]
pub struct Cache {
    /// Its key.
    pub key: String,
    /// Whether untracked files are taken too.
    pub untracked: bool,
    /// What is taken.
    pub paths: Vec<String>,
    /// `pull-push`, `pull` or `push`.
    pub policy: String,
    /// `on_success`, `on_failure` or `always`.
    pub when: String,
    /// Keys that are tried when the first one has no cache.
    pub fallback_keys: Vec<String>,
}

impl Cache {
    /// A cache that is pulled before and pushed after a successful job.
    pub fn new<S: Into<String>>(key: impl Into<String>, paths: impl IntoIterator<Item = S>) -> Self {
        Self {
            key: key.into(),
            untracked: false,
            paths: paths.into_iter().map(Into::into).collect(),
            policy: "pull-push".to_owned(),
            when: "on_success".to_owned(),
            fallback_keys: Vec::new(),
        }
    }

    /// `pull-push`, `pull` or `push`.
    #[must_use]
    pub fn policy(mut self, policy: impl Into<String>) -> Self {
        self.policy = policy.into();
        self
    }

    /// `on_success`, `on_failure` or `always`.
    #[must_use]
    pub fn when(mut self, when: impl Into<String>) -> Self {
        self.when = when.into();
        self
    }
}

/// Credentials of a registry.
#[derive(Debug, Clone, Serialize)]
pub struct Credential {
    /// Always `registry`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Host of the registry.
    pub url: String,
    /// User.
    pub username: String,
    /// Password or token.
    pub password: String,
}

/// A job whose artifacts are downloaded first.
#[derive(Debug, Clone, Serialize)]
pub struct Dependency {
    /// The other job's id.
    pub id: i64,
    /// The other job's name.
    pub name: String,
    /// The token to download with.
    pub token: String,
    /// Name and size of the archive.
    pub artifacts_file: Value,
}

/// A script that the checkout runs before or after fetching.
#[derive(Debug, Clone, Serialize)]
pub struct Hook {
    /// `pre_get_sources_script` or `post_get_sources_script`.
    pub name: String,
    /// Its commands.
    pub script: Vec<String>,
}

/// A secret from `secrets:` as the runner has resolved it: only the harness can play that.
#[derive(Debug, Clone)]
pub struct Secret {
    /// Name of the variable.
    pub key: String,
    /// What the secret store gave.
    pub value: String,
    /// Whether the job sees a file.
    pub file: bool,
}

/// What identifies a job's project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Group and name, such as `grp/proj`.
    pub path: String,
    /// Number.
    pub id: i64,
}

impl Project {
    /// The last part of the path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

/// Whole seconds of a duration, at least one.
pub(crate) fn whole_seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX).max(1)
}
