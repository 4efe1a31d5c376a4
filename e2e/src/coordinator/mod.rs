//! A GitLab for tests: the API that a runner and a job talk to, Git over HTTP, and waits on what they have said.
//!
//! Enough for a real gitlab-runner (17 to 19) with the custom executor: job requests, status updates, trace
//! increments, artifacts, token rotation, `GET /api/v4/job`. Plain HTTP.

mod artifacts;
mod git;
mod parts;
mod payload;
mod routes;
mod runners;
mod spec;
mod state;
mod trace;

#[cfg(test)]
pub(crate) mod tests;

pub use git::ServedRepo;
pub use parts::{Artifact, Cache, Credential, Dependency, Hook, Image, Project, Secret, Step, Variable};
pub use spec::JobSpec;
pub use state::{Endpoint, JobSnapshot, JobState, RemoteStatus, RequestRecord, StoredArtifact};
pub use trace::{LogStream, TraceLine, decode};

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, anyhow};
use axum::http::StatusCode;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::gitrepo::{self, GitRepo};
use state::State;

/// How a coordinator is set up.
#[derive(Debug, Clone)]
pub struct CoordinatorConfig {
    listen: SocketAddr,
    advertise: Option<String>,
    runner_token: String,
    long_poll: Duration,
    update_interval: u64,
}

impl CoordinatorConfig {
    /// Listens on `listen`; port 0 takes any free one.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            advertise: None,
            runner_token: "glrt-coordinator".to_owned(),
            long_poll: Duration::from_secs(5),
            update_interval: 1,
        }
    }

    /// The base URL that runners and pods use; `{port}` in it becomes the port. Without it: the address that it
    /// listens on.
    #[must_use]
    pub fn advertise(mut self, url: impl Into<String>) -> Self {
        self.advertise = Some(url.into());
        self
    }

    /// The token of the first runner.
    #[must_use]
    pub fn runner_token(mut self, token: impl Into<String>) -> Self {
        self.runner_token = token.into();
        self
    }

    /// How long a job request is held when there is no job.
    #[must_use]
    pub fn long_poll(mut self, hold: Duration) -> Self {
        self.long_poll = hold;
        self
    }

    /// Seconds between two trace updates of a runner.
    #[must_use]
    pub fn update_interval(mut self, seconds: u64) -> Self {
        self.update_interval = seconds;
        self
    }
}

/// What handlers and handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    url: String,
    long_poll: Duration,
    update_interval: u64,
}

impl Shared {
    /// Looks at the state. No handler panics while it holds the lock, so a poisoned lock is still whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes all waits.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_modify(|version| *version += 1);
        result
    }
}

/// A running coordinator; clones are handles of the same one. It stops when the last handle is gone.
#[derive(Debug, Clone)]
pub struct Coordinator {
    shared: Arc<Shared>,
    runner_token: String,
    _server: Arc<Server>,
}

#[derive(Debug)]
struct Server(JoinHandle<()>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Coordinator {
    /// Binds the address and serves.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start(config: CoordinatorConfig) -> Result<Self> {
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}", config.listen))?;
        let local = listener.local_addr().context("a bound socket has no address")?;
        let url = match &config.advertise {
            Some(url) => url.replace("{port}", &local.port().to_string()),
            None => format!("http://{local}"),
        };
        let mut state = State::default();
        state.add_runner(&config.runner_token);
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: watch::Sender::new(0),
            url: url.trim_end_matches('/').to_owned(),
            long_poll: config.long_poll,
            update_interval: config.update_interval,
        });
        let router = routes::router(Arc::clone(&shared));
        let server = tokio::spawn(async move {
            // `serve` ends only with an error of the listener; waits then run into their deadlines.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { shared, runner_token: config.runner_token, _server: Arc::new(Server(server)) })
    }

    /// The base URL that runners and pods use, without a slash at its end.
    pub fn url(&self) -> &str {
        &self.shared.url
    }

    /// The token of the first runner.
    pub fn runner_token(&self) -> &str {
        &self.runner_token
    }

    /// Registers another runner.
    pub fn add_runner(&self, token: &str) {
        self.shared.change(|state| state.add_runner(token));
    }

    /// How long a token lives that a runner gets by rotation.
    pub fn set_token_life(&self, life: Duration) {
        self.shared.change(|state| state.token_life = Some(life));
    }

    /// Tokens of all runners as they are now.
    pub fn runner_tokens(&self) -> Vec<String> {
        self.shared.lock().runners.iter().map(|runner| runner.token.clone()).collect()
    }

    /// Serves a repository as `<url>/<project>.git`, read-only, to everybody who has the token of a running job.
    pub fn serve(&self, project: &str, repository: &GitRepo) -> ServedRepo {
        let dir = repository.dir().to_owned();
        self.shared.change(|state| state.repositories.insert(project.to_owned(), dir));
        ServedRepo { project: project.to_owned(), head: repository.head().to_owned() }
    }

    /// Puts a job into the queue of the runner with this token.
    ///
    /// # Errors
    /// When there is no such runner, or a job with this id.
    pub async fn enqueue(&self, runner_token: &str, spec: &JobSpec) -> Result<()> {
        self.publish_pipeline(spec).await?;
        self.shared
            .change(|state| state.enqueue(runner_token, spec.clone()))
            .map_err(|why| anyhow!("cannot queue job {}: {why}", spec.id))
    }

    /// Lets a job run now, for somebody who plays the runner: its token works until [`Coordinator::finish`].
    ///
    /// # Errors
    /// When there is a job with this id.
    pub async fn adopt(&self, spec: &JobSpec) -> Result<()> {
        self.publish_pipeline(spec).await?;
        self.shared
            .change(|state| state.adopt(spec.clone(), SystemTime::now()))
            .map_err(|why| anyhow!("cannot adopt job {}: {why}", spec.id))
    }

    /// Ends a job that was adopted.
    ///
    /// # Errors
    /// When there is no such job.
    pub fn finish(&self, id: i64, state: JobState) -> Result<()> {
        self.with_job(id, |job| {
            job.state = state;
            job.finished_at = Some(SystemTime::now());
        })
    }

    /// Sets what the runner is told about the job from now on.
    ///
    /// # Errors
    /// When there is no such job.
    pub fn set_status(&self, id: i64, status: RemoteStatus) -> Result<()> {
        self.with_job(id, |job| job.status = status)
    }

    /// Lets the next `times` requests of a kind fail with this status.
    pub fn fail_next(&self, endpoint: Endpoint, times: u32, status: StatusCode) {
        self.shared.change(|state| state.fail_next(endpoint, times, status));
    }

    /// Every request so far, in the order in which they were answered.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.shared.lock().requests.clone()
    }

    /// A job as it stands.
    pub fn job(&self, id: i64) -> Option<JobSnapshot> {
        self.shared.lock().job(id).cloned()
    }

    /// Waits until a job fulfils a condition.
    ///
    /// # Errors
    /// When there is no such job, or when the deadline passes first; the end of the trace is in the text.
    pub async fn wait(
        &self,
        id: i64,
        deadline: Duration,
        mut condition: impl FnMut(&JobSnapshot) -> bool,
    ) -> Result<JobSnapshot> {
        let until = Instant::now() + deadline;
        let mut changes = self.shared.changed.subscribe();
        loop {
            changes.mark_unchanged();
            let job = self.job(id).ok_or_else(|| anyhow!("there is no job {id}"))?;
            if condition(&job) {
                return Ok(job);
            }
            if tokio::time::timeout_at(until, changes.changed()).await.is_err() {
                let text = job.text();
                let tail: String = text.chars().skip(text.chars().count().saturating_sub(2000)).collect();
                return Err(anyhow!(
                    "job {id} did not get there within {deadline:?}; it is {:?} and its trace ends with:\n{tail}",
                    job.state
                ));
            }
        }
    }

    /// Waits until the runner has said how the job ended.
    ///
    /// # Errors
    /// As [`Coordinator::wait`].
    pub async fn wait_final(&self, id: i64, deadline: Duration) -> Result<JobSnapshot> {
        self.wait(id, deadline, |job| job.state.is_final()).await
    }

    /// Waits until the trace contains a text.
    ///
    /// # Errors
    /// As [`Coordinator::wait`].
    pub async fn wait_trace(&self, id: i64, text: &str, deadline: Duration) -> Result<JobSnapshot> {
        self.wait(id, deadline, |job| contains(&job.trace, text.as_bytes())).await
    }

    fn with_job(&self, id: i64, change: impl FnOnce(&mut JobSnapshot)) -> Result<()> {
        self.shared.change(|state| {
            let job = state.job_mut(id).ok_or_else(|| anyhow!("there is no job {id}"))?;
            change(job);
            Ok(())
        })
    }

    /// GitLab keeps a reference for every pipeline; jobs fetch that.
    async fn publish_pipeline(&self, spec: &JobSpec) -> Result<()> {
        let Some(repository) = &spec.repository else { return Ok(()) };
        let dir = self.shared.lock().repositories.get(&repository.project).cloned();
        let dir = dir.ok_or_else(|| anyhow!("the coordinator does not serve {}", repository.project))?;
        let (name, sha) = (format!("refs/pipelines/{}", spec.pipeline), spec.sha.clone());
        tokio::task::spawn_blocking(move || gitrepo::set_ref(&dir, &name, &sha))
            .await
            .context("cannot write the pipeline's reference")?
    }
}

/// Whether `needle` occurs in `haystack`.
pub(crate) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|window| window == needle)
}
