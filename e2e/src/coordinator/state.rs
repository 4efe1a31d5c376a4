//! What the coordinator knows of its jobs and runners. No HTTP here.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use axum::http::StatusCode;
use serde_json::Value;

use super::spec::JobSpec;

/// How far a job is, from GitLab's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// Waits for a runner.
    Pending,
    /// A runner has it.
    Running,
    /// The runner said that it has succeeded.
    Success,
    /// The runner said that it has failed, with GitLab's word for the reason.
    Failed {
        /// `script_failure`, `runner_system_failure` and so on.
        reason: String,
        /// The script's exit code, if the runner gave one.
        exit_code: Option<i64>,
    },
}

impl JobState {
    /// Whether nothing more will come from the runner.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Success | Self::Failed { .. })
    }
}

/// What GitLab tells the runner about the job's status (header `Job-Status`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteStatus {
    /// Go on.
    Running,
    /// A user has canceled the job: stop the script, run `after_script`.
    Canceling,
    /// The job is over for GitLab: stop everything.
    Canceled,
}

impl RemoteStatus {
    /// The header's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Canceling => "canceling",
            Self::Canceled => "canceled",
        }
    }
}

/// An uploaded file.
#[derive(Debug, Clone)]
pub struct StoredArtifact {
    /// Name of the file, as the uploader gave it.
    pub filename: String,
    /// `archive`, `metadata` and so on.
    pub kind: String,
    /// `zip`, `gzip`, `raw`.
    pub format: String,
    /// How long it shall be kept.
    pub expire_in: String,
    /// The file.
    pub content: Bytes,
}

/// One job as it stands.
#[derive(Debug, Clone)]
pub struct JobSnapshot {
    /// What was asked for.
    pub spec: JobSpec,
    /// How far it is.
    pub state: JobState,
    /// What the runner is told.
    pub status: RemoteStatus,
    /// The job log, exactly as the runner sent it.
    pub trace: Vec<u8>,
    /// Whether the last checksum and size that the runner named were those of `trace`.
    pub checksum_ok: Option<bool>,
    /// When the runner got the job.
    pub assigned_at: Option<SystemTime>,
    /// When the runner said how the job has ended.
    pub finished_at: Option<SystemTime>,
    /// How often the runner has sent a status, its last one included.
    pub updates: u64,
    /// Uploaded files, in order.
    pub artifacts: Vec<StoredArtifact>,
}

impl JobSnapshot {
    fn new(spec: JobSpec) -> Self {
        Self {
            spec,
            state: JobState::Pending,
            status: RemoteStatus::Running,
            trace: Vec::new(),
            checksum_ok: None,
            assigned_at: None,
            finished_at: None,
            updates: 0,
            artifacts: Vec::new(),
        }
    }

    /// The job log as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.trace).into_owned()
    }
}

/// A request that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    /// `POST jobs/request`.
    JobRequest,
    /// `PUT jobs/:id`.
    Update,
    /// `PATCH jobs/:id/trace`.
    Trace,
    /// `POST jobs/:id/artifacts`.
    ArtifactUpload,
    /// `GET jobs/:id/artifacts`.
    ArtifactDownload,
    /// Anything of a repository.
    Git,
    /// `GET job`.
    CurrentJob,
}

/// One request that was answered.
#[derive(Debug, Clone)]
pub struct RequestRecord {
    /// When it was answered.
    pub at: SystemTime,
    /// `GET` and so on.
    pub method: String,
    /// Path and query; tokens travel in headers and bodies only.
    pub path: String,
    /// What it was answered with.
    pub status: u16,
}

/// A registered runner.
#[derive(Debug, Clone)]
pub(super) struct Runner {
    pub(super) id: i64,
    pub(super) token: String,
    pub(super) expires_at: Option<String>,
    pub(super) queue: VecDeque<i64>,
}

/// Everything that the coordinator remembers.
#[derive(Debug, Default)]
pub(super) struct State {
    jobs: BTreeMap<i64, JobSnapshot>,
    pub(super) runners: Vec<Runner>,
    pub(super) repositories: BTreeMap<String, std::path::PathBuf>,
    faults: BTreeMap<Endpoint, (u32, StatusCode)>,
    pub(super) requests: Vec<RequestRecord>,
    /// How long a new runner token lives.
    pub(super) token_life: Option<Duration>,
    rotations: u64,
}

impl State {
    pub(super) fn job(&self, id: i64) -> Option<&JobSnapshot> {
        self.jobs.get(&id)
    }

    pub(super) fn job_mut(&mut self, id: i64) -> Option<&mut JobSnapshot> {
        self.jobs.get_mut(&id)
    }

    /// The running job with this token.
    pub(super) fn running_job(&self, token: &str) -> Option<&JobSnapshot> {
        self.jobs.values().find(|job| job.spec.token == token && job.state == JobState::Running)
    }

    /// Puts a job into the queue of one runner.
    pub(super) fn enqueue(&mut self, runner_token: &str, spec: JobSpec) -> Result<(), String> {
        let runner = self
            .runners
            .iter_mut()
            .find(|runner| runner.token == runner_token)
            .ok_or("no runner has that token")?;
        if self.jobs.contains_key(&spec.id) {
            return Err(format!("job {} exists already", spec.id));
        }
        runner.queue.push_back(spec.id);
        self.jobs.insert(spec.id, JobSnapshot::new(spec));
        Ok(())
    }

    /// Lets a job run without a queue.
    pub(super) fn adopt(&mut self, spec: JobSpec, now: SystemTime) -> Result<(), String> {
        if self.jobs.contains_key(&spec.id) {
            return Err(format!("job {} exists already", spec.id));
        }
        let mut job = JobSnapshot::new(spec);
        job.state = JobState::Running;
        job.assigned_at = Some(now);
        self.jobs.insert(job.spec.id, job);
        Ok(())
    }

    /// The next job for a runner; `None` when its queue is empty, an error when nobody has that token.
    pub(super) fn hand_out(
        &mut self,
        token: &str,
        server: &str,
        now: SystemTime,
    ) -> Result<Option<Value>, ()> {
        let runner = self.runners.iter_mut().find(|runner| runner.token == token).ok_or(())?;
        let Some(id) = runner.queue.pop_front() else { return Ok(None) };
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(None) };
        job.state = JobState::Running;
        job.assigned_at = Some(now);
        Ok(Some(job.spec.payload(server)))
    }

    pub(super) fn add_runner(&mut self, token: &str) {
        let id = i64::try_from(self.runners.len()).unwrap_or(0) + 1;
        let runner = Runner { id, token: token.to_owned(), expires_at: None, queue: VecDeque::new() };
        self.runners.push(runner);
    }

    /// Gives a runner a new token; the old one is worth nothing from now on.
    pub(super) fn rotate_token(&mut self, old: &str, now: SystemTime) -> Option<Runner> {
        let life = self.token_life;
        self.rotations += 1;
        let number = self.rotations;
        let runner = self.runners.iter_mut().find(|runner| runner.token == old)?;
        runner.token = format!("glrt-rotated{number:09}");
        runner.expires_at = life.map(|life| timestamp(now + life));
        Some(runner.clone())
    }

    pub(super) fn fail_next(&mut self, endpoint: Endpoint, times: u32, status: StatusCode) {
        self.faults.insert(endpoint, (times, status));
    }

    /// The status that a request shall fail with, if it shall.
    pub(super) fn fault(&mut self, endpoint: Endpoint) -> Option<StatusCode> {
        let (left, status) = self.faults.get_mut(&endpoint)?;
        *left = left.checked_sub(1)?;
        Some(*status)
    }
}

/// A moment as RFC 3339.
pub(super) fn timestamp(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map(|at| at.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_handed_out_once_and_only_to_its_runner() {
        let now = SystemTime::UNIX_EPOCH;
        let mut state = State::default();
        state.add_runner("a");
        state.add_runner("b");
        state.enqueue("a", JobSpec::new(1)).unwrap();
        assert!(state.enqueue("a", JobSpec::new(1)).is_err());
        assert!(state.enqueue("c", JobSpec::new(2)).is_err());
        assert_eq!(state.hand_out("c", "http://h", now), Err(()));
        assert_eq!(state.hand_out("b", "http://h", now), Ok(None));
        assert!(state.running_job(&JobSpec::new(1).token).is_none());
        assert_eq!(state.hand_out("a", "http://h", now).unwrap().unwrap()["id"], 1);
        assert_eq!(state.hand_out("a", "http://h", now), Ok(None));
        assert!(state.running_job(&JobSpec::new(1).token).is_some());
    }

    #[test]
    fn faults_wear_off() {
        let mut state = State::default();
        state.fail_next(Endpoint::Git, 2, StatusCode::BAD_GATEWAY);
        assert_eq!(state.fault(Endpoint::Trace), None);
        assert_eq!(state.fault(Endpoint::Git), Some(StatusCode::BAD_GATEWAY));
        assert_eq!(state.fault(Endpoint::Git), Some(StatusCode::BAD_GATEWAY));
        assert_eq!(state.fault(Endpoint::Git), None);
    }

    #[test]
    fn a_rotated_token_replaces_the_old_one() {
        let mut state = State { token_life: Some(Duration::from_mins(1)), ..State::default() };
        state.add_runner("old");
        let fresh = state.rotate_token("old", SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(fresh.expires_at.as_deref(), Some("1970-01-01T00:01:00Z"));
        assert!(state.rotate_token("old", SystemTime::UNIX_EPOCH).is_none());
        assert!(state.enqueue(&fresh.token, JobSpec::new(1)).is_ok());
    }
}
