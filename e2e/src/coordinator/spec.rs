//! A job as a test describes it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::git::ServedRepo;
use super::parts::{
    Artifact, Cache, Credential, Dependency, Hook, Image, Project, Secret, Step, Variable, whole_seconds,
};

/// A job: what GitLab would send to a runner. Made with [`JobSpec::new`] or [`JobSpec::fresh`] and refined by
/// chaining; every field may also be read and set directly.
#[derive(Debug, Clone)]
pub struct JobSpec {
    /// Number of the job.
    pub id: i64,
    /// The job's token: for the API, for Git and for artifacts.
    pub token: String,
    /// Name of the job.
    pub name: String,
    /// Stage of the pipeline.
    pub stage: String,
    /// Number of the pipeline.
    pub pipeline: i64,
    /// The project that the job belongs to.
    pub project: Project,
    /// Branch or tag, or `refs/merge-requests/N/head`.
    pub git_ref: String,
    /// `branch` or `tag`.
    pub ref_type: String,
    /// The commit.
    pub sha: String,
    /// What is fetched; `None` means the branch and the pipeline's own reference.
    pub refspecs: Option<Vec<String>>,
    /// How many commits are fetched; 0 means all.
    pub depth: i64,
    /// Whether the ref is protected; `None` as GitLab before 18.3.
    pub protected: Option<bool>,
    /// Whether the checkout of an earlier job may be reused.
    pub allow_git_fetch: bool,
    /// The repository, if there is something to fetch.
    pub repository: Option<ServedRepo>,
    /// The job's timeout; whole seconds.
    pub timeout: Duration,
    /// Tags of the job: only `GET /api/v4/job` tells them.
    pub tags: Vec<String>,
    /// Tags of the runner: the variable `CI_RUNNER_TAGS` tells them.
    pub runner_tags: Vec<String>,
    /// The job's own variables, after GitLab's.
    pub variables: Vec<Variable>,
    /// What the runner has got from a secret store.
    pub secrets: Vec<Secret>,
    /// Steps in order.
    pub steps: Vec<Step>,
    /// The job's image.
    pub image: Option<Image>,
    /// Services.
    pub services: Vec<Image>,
    /// What is uploaded.
    pub artifacts: Vec<Artifact>,
    /// Caches.
    pub cache: Vec<Cache>,
    /// Registries.
    pub credentials: Vec<Credential>,
    /// Jobs whose artifacts are downloaded.
    pub dependencies: Vec<Dependency>,
    /// Hooks of the checkout.
    pub hooks: Vec<Hook>,
    /// Changes to the finished JSON: dotted path and value.
    pub patches: Vec<(String, Value)>,
}

impl JobSpec {
    /// A job without steps that fetches nothing (`GIT_STRATEGY=none`), on the unprotected branch `main` of project
    /// `grp/proj`, with an hour of time.
    pub fn new(id: i64) -> Self {
        Self {
            id,
            token: format!("glcbt-64_test{id}"),
            name: "test".to_owned(),
            stage: "test".to_owned(),
            pipeline: 7,
            project: Project { path: "grp/proj".to_owned(), id: 5 },
            git_ref: "main".to_owned(),
            ref_type: "branch".to_owned(),
            sha: "0123456789abcdef0123456789abcdef01234567".to_owned(),
            refspecs: None,
            depth: 20,
            protected: Some(false),
            allow_git_fetch: true,
            repository: None,
            timeout: Duration::from_hours(1),
            tags: Vec::new(),
            runner_tags: Vec::new(),
            variables: Vec::new(),
            secrets: Vec::new(),
            steps: Vec::new(),
            image: None,
            services: Vec::new(),
            artifacts: Vec::new(),
            cache: Vec::new(),
            credentials: Vec::new(),
            dependencies: Vec::new(),
            hooks: Vec::new(),
            patches: Vec::new(),
        }
    }

    /// As [`JobSpec::new`], with an id that no other call on this machine gives: seconds since 2026 in the upper
    /// digits, the process and a counter in the lower ones.
    pub fn fresh() -> Self {
        static NEXT: AtomicI64 = AtomicI64::new(0);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(0) - 1_767_225_600;
        let process = i64::from(std::process::id() % 1000);
        let counter = NEXT.fetch_add(1, Ordering::Relaxed) % 1000;
        Self::new(seconds * 1_000_000 + process * 1000 + counter)
    }

    /// Sets the commands of `script:`.
    #[must_use]
    pub fn script<S: Into<String>>(self, commands: impl IntoIterator<Item = S>) -> Self {
        self.step("script", commands)
    }

    /// Sets the commands of `after_script:`.
    #[must_use]
    pub fn after_script<S: Into<String>>(self, commands: impl IntoIterator<Item = S>) -> Self {
        self.step("after_script", commands)
    }

    /// Adds a step, such as `release`.
    #[must_use]
    pub fn step<S: Into<String>>(
        mut self,
        name: impl Into<String>,
        commands: impl IntoIterator<Item = S>,
    ) -> Self {
        let name = name.into();
        let after = name == "after_script";
        self.steps.push(Step {
            script: commands.into_iter().map(Into::into).collect(),
            timeout: whole_seconds(self.timeout),
            when: if after { "always" } else { "on_success" }.to_owned(),
            allow_failure: after,
            name,
        });
        self
    }

    /// Sets the image by name.
    #[must_use]
    pub fn image(self, name: impl Into<String>) -> Self {
        self.image_with(Image::new(name))
    }

    /// Sets the image with everything about it.
    #[must_use]
    pub fn image_with(mut self, image: Image) -> Self {
        self.image = Some(image);
        self
    }

    /// Adds a service.
    #[must_use]
    pub fn service(mut self, service: Image) -> Self {
        self.services.push(service);
        self
    }

    /// Adds a public variable.
    #[must_use]
    pub fn variable(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.var(Variable::new(key, value))
    }

    /// Adds a masked variable.
    #[must_use]
    pub fn masked(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.var(Variable::masked(key, value))
    }

    /// Adds a file variable.
    #[must_use]
    pub fn file(self, key: impl Into<String>, content: impl Into<String>) -> Self {
        self.var(Variable::file(key, content))
    }

    /// Adds a variable whose value is not expanded.
    #[must_use]
    pub fn raw(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.var(Variable { raw: true, ..Variable::new(key, value) })
    }

    /// Adds a variable.
    #[must_use]
    pub fn var(mut self, variable: Variable) -> Self {
        self.variables.push(variable);
        self
    }

    /// Adds a secret that the runner has resolved to `value`; the job sees it as a variable.
    #[must_use]
    pub fn secret(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.secrets.push(Secret { key: key.into(), value: value.into(), file: false });
        self
    }

    /// Adds a secret that the runner has resolved to `value`; the job sees it as a file (GitLab's default).
    #[must_use]
    pub fn secret_file(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.secrets.push(Secret { key: key.into(), value: value.into(), file: true });
        self
    }

    /// Fetches a repository that the coordinator serves: its newest commit, on `main`.
    #[must_use]
    pub fn checkout(mut self, repository: &ServedRepo) -> Self {
        self.sha.clone_from(&repository.head);
        self.project.path.clone_from(&repository.project);
        self.repository = Some(repository.clone());
        self
    }

    /// Checks out another commit.
    #[must_use]
    pub fn sha(mut self, sha: impl Into<String>) -> Self {
        self.sha = sha.into();
        self
    }

    /// Sets what is fetched.
    #[must_use]
    pub fn refspecs<S: Into<String>>(mut self, refspecs: impl IntoIterator<Item = S>) -> Self {
        self.refspecs = Some(refspecs.into_iter().map(Into::into).collect());
        self
    }

    /// How many commits are fetched; 0 means all.
    #[must_use]
    pub fn git_depth(mut self, depth: i64) -> Self {
        self.depth = depth;
        self
    }

    /// Whether the default strategy is fetch (true) or clone.
    #[must_use]
    pub fn allow_git_fetch(mut self, allowed: bool) -> Self {
        self.allow_git_fetch = allowed;
        self
    }

    /// Sets branch or tag.
    #[must_use]
    pub fn git_ref(mut self, name: impl Into<String>) -> Self {
        self.git_ref = name.into();
        self
    }

    /// `branch` or `tag`.
    #[must_use]
    pub fn ref_type(mut self, kind: impl Into<String>) -> Self {
        self.ref_type = kind.into();
        self
    }

    /// Whether the ref is protected; `None` is GitLab before 18.3.
    #[must_use]
    pub fn protected(mut self, protected: Option<bool>) -> Self {
        self.protected = protected;
        self
    }

    /// Sets the project.
    #[must_use]
    pub fn project(mut self, path: impl Into<String>, id: i64) -> Self {
        self.project = Project { path: path.into(), id };
        self
    }

    /// Names the job.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets the pipeline's stage.
    #[must_use]
    pub fn stage(mut self, stage: impl Into<String>) -> Self {
        self.stage = stage.into();
        self
    }

    /// Sets the pipeline's number.
    #[must_use]
    pub fn pipeline(mut self, id: i64) -> Self {
        self.pipeline = id;
        self
    }

    /// Sets the job's timeout; whole seconds count.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the job's tags.
    #[must_use]
    pub fn tags<S: Into<String>>(mut self, tags: impl IntoIterator<Item = S>) -> Self {
        self.tags = tags.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the runner's tags.
    #[must_use]
    pub fn runner_tags<S: Into<String>>(mut self, tags: impl IntoIterator<Item = S>) -> Self {
        self.runner_tags = tags.into_iter().map(Into::into).collect();
        self
    }

    /// Adds artifacts to upload.
    #[must_use]
    pub fn artifact(mut self, artifact: Artifact) -> Self {
        self.artifacts.push(artifact);
        self
    }

    /// Adds a cache.
    #[must_use]
    pub fn cache(mut self, cache: Cache) -> Self {
        self.cache.push(cache);
        self
    }

    /// Downloads the artifacts of another job first, with this job's token as GitLab does.
    #[must_use]
    pub fn dependency(mut self, job: &JobSpec, filename: impl Into<String>) -> Self {
        self.dependencies.push(Dependency {
            id: job.id,
            name: job.name.clone(),
            token: self.token.clone(),
            artifacts_file: json!({"filename": filename.into(), "size": 1}),
        });
        self
    }

    /// Adds credentials of a registry.
    #[must_use]
    pub fn credential(
        mut self,
        registry: impl Into<String>,
        username: impl Into<String>,
        password: impl Into<String>,
    ) -> Self {
        self.credentials.push(Credential {
            kind: "registry".to_owned(),
            url: registry.into(),
            username: username.into(),
            password: password.into(),
        });
        self
    }

    /// Adds a hook: `pre_get_sources_script` or `post_get_sources_script`.
    #[must_use]
    pub fn hook<S: Into<String>>(
        mut self,
        name: impl Into<String>,
        script: impl IntoIterator<Item = S>,
    ) -> Self {
        self.hooks.push(Hook { name: name.into(), script: script.into_iter().map(Into::into).collect() });
        self
    }

    /// Sets something in the finished JSON, by a dotted path such as `job_info.queue_size`; the last word.
    #[must_use]
    pub fn set(mut self, path: impl Into<String>, value: Value) -> Self {
        self.patches.push((path.into(), value));
        self
    }
}
