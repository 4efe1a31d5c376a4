//! What one call knows and a later one needs: a private file in the attempt's directory.
//!
//! gitlab-runner calls the driver as a new process each time. The file is written in one step, so
//! that a call that is killed leaves the one before, and read tolerantly, so that a field can be
//! added. It holds names, times and exit records, and no secret.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use roadstead_crds::report::{ReportedStart, StageReport};
use roadstead_crds::status::{EffectiveResources, EffectiveTimeouts, ServiceStatus};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::shim::stage::Container;

/// Name of the file in the attempt's directory.
pub const FILE: &str = "roadstead.json";

/// Name of the file beside it that is locked while a script runs.
const LOCK: &str = "roadstead.lock";

/// Stages that are kept; as many as a report takes.
const STAGES: usize = 64;

/// What later calls need to know.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Namespace of the CiJob and its pod.
    pub namespace: String,
    /// Name of the CiJob.
    pub cijob: String,
    /// UID of the CiJob; absent while the answer to its creation is not known.
    #[serde(default)]
    pub cijob_uid: Option<String>,
    /// Whether somebody runs the job by hand, without gitlab-runner.
    #[serde(default)]
    pub by_hand: bool,
    /// Whether the API server has refused to create the CiJob, so that there is none to let go of.
    #[serde(default)]
    pub refused: bool,
    /// When the job was asked for: zero point of all start times.
    pub requested_at: Timestamp,
    /// The pod, once both of its agents have answered.
    #[serde(default)]
    pub pod: Option<PodState>,
    /// Dialect of the scripts.
    #[serde(default)]
    pub shell: Option<String>,
    /// Name of the job's class.
    #[serde(default)]
    pub class: Option<String>,
    /// Timeouts that the operator applied.
    #[serde(default)]
    pub timeouts: Option<EffectiveTimeouts>,
    /// Requests and limits of the containers by their names.
    #[serde(default)]
    pub resources: BTreeMap<String, EffectiveResources>,
    /// The job's services, as they were last seen.
    #[serde(default)]
    pub services: Vec<ServiceStatus>,
    /// Times of the start.
    #[serde(default)]
    pub start: ReportedStart,
    /// Connections that were lost and taken up again.
    #[serde(default)]
    pub reconnects: i32,
    /// Stage that is running. Found by a later call, it means that this call was killed.
    #[serde(default)]
    pub running: Option<String>,
    /// The stages that have ended, in order.
    #[serde(default)]
    pub stages: Vec<StageRecord>,
    /// Why `config` or `prepare` failed.
    #[serde(default)]
    pub failure: Option<StartFailure>,
}

/// The job's pod.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodState {
    /// Name of the pod.
    pub name: String,
    /// UID of the pod. Nothing is run in a pod of that name with another one.
    pub uid: String,
    /// Boot id of the agent in `helper`.
    pub helper_boot: String,
    /// Boot id of the agent in `build`.
    pub build_boot: String,
}

impl PodState {
    /// Boot id of the agent in that container.
    pub fn boot(&self, container: Container) -> &str {
        match container {
            Container::Helper => &self.helper_boot,
            Container::Build => &self.build_boot,
        }
    }
}

/// A stage that has ended.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StageRecord {
    /// What the CiJob's report says of it.
    pub report: StageReport,
    /// How the call ended.
    pub end: StageEnd,
    /// One sentence on it, where there is something to say.
    #[serde(default)]
    pub message: Option<String>,
}

/// How a stage ended.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum StageEnd {
    /// Its script exited with 0.
    Succeeded,
    /// Its script failed, or the job is to blame for what went wrong.
    Failed,
    /// Its script ran longer than its class lets it.
    TimedOut,
    /// gitlab-runner ended it.
    Stopped,
    /// Roadstead or the cluster is to blame.
    Errored,
}

/// Why `config` or `prepare` failed.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StartFailure {
    /// Whose doing it is, or that gitlab-runner ended the call.
    pub end: StageEnd,
    /// One sentence.
    pub message: Option<String>,
}

/// Why the file is of no use.
#[derive(Debug, Error)]
pub enum StateError {
    /// There is none.
    #[error("{} does not exist: no config call has prepared this job", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is damaged: {source}", path.display())]
    Damaged {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// It cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Where it would be.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The file itself.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// The file in that directory.
    pub fn in_dir(dir: &Path) -> Self {
        Self { path: dir.join(FILE) }
    }

    /// Reads the state.
    pub fn read(&self) -> Result<State, StateError> {
        let path = || self.path.clone();
        let bytes = fs::read(&self.path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StateError::Missing { path: path() },
            _ => StateError::Read { path: path(), source },
        })?;
        serde_json::from_slice(&bytes).map_err(|source| StateError::Damaged { path: path(), source })
    }

    /// Writes the state in one step. Only the owner can read the file.
    pub fn write(&self, state: &State) -> Result<(), StateError> {
        self.replace(state).map_err(|source| StateError::Write { path: self.path.clone(), source })
    }

    fn replace(&self, state: &State) -> io::Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        // A temporary file is private from the start.
        let mut new = tempfile::NamedTempFile::new_in(dir)?;
        new.write_all(&serde_json::to_vec(state)?)?;
        new.persist(&self.path).map_err(|error| error.error)?;
        Ok(())
    }

    /// Keeps other calls from running a script of the job at the same time, until the answer is
    /// dropped or the process ends; `None` where one does so.
    pub fn lock(&self) -> io::Result<Option<File>> {
        let path = self.path.with_file_name(LOCK);
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Removes the file, if it is there.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl State {
    /// State of a job that is about to be asked for.
    pub fn new(namespace: String, cijob: String, requested_at: Timestamp) -> Self {
        Self {
            namespace,
            cijob,
            cijob_uid: None,
            by_hand: false,
            refused: false,
            requested_at,
            pod: None,
            shell: None,
            class: None,
            timeouts: None,
            resources: BTreeMap::new(),
            services: Vec::new(),
            start: ReportedStart::default(),
            reconnects: 0,
            running: None,
            stages: Vec::new(),
            failure: None,
        }
    }

    /// Milliseconds from the request of the job to that time.
    pub fn milliseconds(&self, time: Timestamp) -> i64 {
        time.as_millisecond().saturating_sub(self.requested_at.as_millisecond())
    }

    /// Notes that a stage has ended. Of very many, the last ones are kept.
    pub fn record(&mut self, stage: StageRecord) {
        self.running = None;
        if self.stages.len() >= STAGES {
            self.stages.remove(0);
        }
        self.stages.push(stage);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State::new("jobs".into(), "cij-1-0123456789".into(), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::in_dir(dir.path());
        assert!(matches!(file.read(), Err(StateError::Missing { .. })));
        file.write(&state()).unwrap();
        let mut changed = state();
        changed.reconnects = 3;
        file.write(&changed).unwrap();
        assert_eq!(file.read().unwrap(), changed);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        file.remove().unwrap();
        file.remove().unwrap();
        assert!(matches!(file.read(), Err(StateError::Missing { .. })));
    }

    #[test]
    fn one_script_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::in_dir(dir.path());
        let lock = file.lock().unwrap();
        assert!(lock.is_some());
        assert!(file.lock().unwrap().is_none());
        drop(lock);
        assert!(file.lock().unwrap().is_some());
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_can_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        StateFile::in_dir(dir.path()).write(&state()).unwrap();
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn fields_may_come_and_go() {
        let json = r#"{"namespace":"jobs","cijob":"cij-1-0123456789","requestedAt":"1970-01-01T00:00:00Z","later":{"x":1}}"#;
        assert_eq!(serde_json::from_str::<State>(json).unwrap(), state());
    }

    #[test]
    fn damage_is_an_error_that_says_where() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), b"{\"names").unwrap();
        let error = StateFile::in_dir(dir.path()).read().unwrap_err().to_string();
        assert!(error.contains("roadstead.json is damaged: EOF"), "{error}");
    }
}
