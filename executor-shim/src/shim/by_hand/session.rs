//! What one call by hand knows and a later one needs: a private directory for each job.
//!
//! It holds the same state as gitlab-runner's directory of a job, and the job's variables, which
//! are secret. So nobody else may look into it, and it goes with the job.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::answer::Trouble;
use super::request::{JobName, Variables};
use crate::shim::cli::Options;
use crate::shim::state::{State, StateFile};

/// Folder of this program in one that is for all of the user's programs.
const FOLDER: &str = "roadstead";
/// What a script of the job is made of.
const SETTING: &str = "setting.json";

/// How much longer than its timeout a job may be there at most: it may have waited for room. What is
/// older than that is of no use.
const MARGIN: SignedDuration = SignedDuration::from_hours(2);

/// What every script of a job finds.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// Its variables. Secret.
    pub variables: Variables,
    /// Where it runs.
    pub directory: String,
}

/// Where the jobs are.
#[derive(Clone, Debug)]
pub struct Sessions {
    root: PathBuf,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Session {
    dir: PathBuf,
}

impl Sessions {
    /// The place that the options name, or that is usual for what shall not outlive the login or
    /// nobody else shall read.
    pub fn find(options: &Options) -> Result<Self, Trouble> {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = options.state_dir.clone().or_else(|| {
            let state = || var("XDG_STATE_HOME").or_else(|| Some(std::env::home_dir()?.join(".local/state")));
            Some(var("XDG_RUNTIME_DIR").or_else(state)?.join(FOLDER))
        });
        root.map(|root| Self { root }).ok_or_else(|| {
            Trouble::system(
                "there is no place to remember a job in: name one with --state-dir or ROADSTEAD_STATE_DIR",
            )
        })
    }

    /// Makes a place for a new job.
    pub fn create(&self, job: &str) -> Result<Session, Trouble> {
        let dir = self.root.join(job);
        private_directory(&self.root, true).and_then(|()| private_directory(&dir, false)).map_err(
            |error| {
                Trouble::system(format!(
                    "cannot create {}: {error}; --state-dir or ROADSTEAD_STATE_DIR names another place",
                    dir.display()
                ))
            },
        )?;
        Ok(Session { dir })
    }

    /// The place of a job that an earlier call has started, if there is one.
    pub fn get(&self, job: &JobName) -> Option<Session> {
        let dir = self.root.join(job.as_str());
        dir.is_dir().then_some(Session { dir })
    }

    /// Removes what is left of jobs that were not cleaned up and have long been ended by the cluster.
    pub fn sweep(&self, now: Timestamp) {
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let session = Session { dir: entry.path() };
            let is_job = entry.file_name().to_str().is_some_and(|name| JobName::new(name).is_some());
            if is_job && session.state().read().is_ok_and(|state| is_over(&state, now)) {
                session.remove();
            }
        }
    }
}

fn is_over(state: &State, now: Timestamp) -> bool {
    let seconds = state.timeouts.as_ref().map_or(0, |timeouts| timeouts.job_seconds);
    let lifetime = SignedDuration::from_secs(seconds).checked_add(MARGIN);
    lifetime.is_some_and(|lifetime| now.duration_since(state.requested_at) > lifetime)
}

impl Session {
    /// The directory of a job that no later call needs.
    pub fn passing(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// What calls know of the job.
    pub fn state(&self) -> StateFile {
        StateFile::in_dir(&self.dir)
    }

    /// Notes what scripts of the job find. Only the owner can read the file.
    pub fn remember(&self, setting: &Setting) -> Result<(), Trouble> {
        let path = self.dir.join(SETTING);
        let write = || {
            let mut new = tempfile::NamedTempFile::new_in(&self.dir)?;
            new.write_all(&serde_json::to_vec(setting)?)?;
            new.persist(&path).map_err(|error| error.error)
        };
        write()
            .map(drop)
            .map_err(|error| Trouble::system(format!("cannot write {}: {error}", path.display())))
    }

    /// What scripts of the job find.
    pub fn recall(&self) -> Result<Setting, Trouble> {
        let path = self.dir.join(SETTING);
        let read =
            || fs::read(&path).and_then(|bytes| serde_json::from_slice(&bytes).map_err(|e| no_values(&e)));
        read().map_err(|error| Trouble::system(format!("cannot read {}: {error}", path.display())))
    }

    /// Keeps other calls from running a script at the same time; `None` where one does so.
    pub fn lock(&self) -> Result<Option<File>, Trouble> {
        let cannot = |error| Trouble::system(format!("cannot lock {}: {error}", self.dir.display()));
        self.state().lock().map_err(cannot)
    }

    /// Forgets the job.
    pub fn remove(&self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(%error, "cannot remove the records of the job");
        }
    }
}

/// An error that says where, and quotes nothing.
fn no_values(error: &serde_json::Error) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("damaged at line {} column {}", error.line(), error.column()),
    )
}

fn private_directory(path: &Path, may_exist: bool) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(may_exist);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

#[cfg(test)]
mod tests {
    use roadstead_crds::status::EffectiveTimeouts;

    use super::*;

    const JOB: &str = "cij-0-0123456789";

    fn sessions(root: &Path) -> Sessions {
        let options = Options { state_dir: Some(root.join("jobs")), ..Options::default() };
        Sessions::find(&options).unwrap()
    }

    fn name() -> JobName {
        JobName::new(JOB).unwrap()
    }

    #[test]
    fn a_session_is_there_until_it_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let sessions = sessions(root.path());
        assert!(sessions.get(&name()).is_none());
        sessions.sweep(Timestamp::now());
        let session = sessions.create(JOB).unwrap();
        assert!(sessions.create(JOB).is_err(), "it is another job's");
        let setting =
            Setting { variables: Variables([("A".into(), "x\n".into())].into()), directory: "/b".into() };
        session.remember(&setting).unwrap();
        assert_eq!(sessions.get(&name()).unwrap().recall().unwrap(), setting);
        session.remove();
        assert!(sessions.get(&name()).is_none());
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_can_look_into_it() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let session = sessions(root.path()).create(JOB).unwrap();
        session.remember(&Setting::default()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&root.path().join("jobs")), 0o700);
        assert_eq!(mode(&session.dir), 0o700);
        assert_eq!(mode(&session.dir.join(SETTING)), 0o600);
    }

    #[test]
    fn damage_is_told_without_values() {
        let root = tempfile::tempdir().unwrap();
        let session = sessions(root.path()).create(JOB).unwrap();
        fs::write(session.dir.join(SETTING), r#"{"variables":"s3cret","directory":"/b"}"#).unwrap();
        let sentence = session.recall().unwrap_err().sentence;
        assert!(sentence.contains("damaged at line 1") && !sentence.contains("s3cret"), "{sentence}");
    }

    #[test]
    fn only_what_the_cluster_has_ended_long_ago_is_swept() {
        let root = tempfile::tempdir().unwrap();
        let sessions = sessions(root.path());
        let session = sessions.create(JOB).unwrap();
        let mut state = State::new("jobs".into(), JOB.into(), Timestamp::UNIX_EPOCH);
        state.timeouts = Some(EffectiveTimeouts {
            job_seconds: 3600,
            queue_seconds: 2700,
            start_seconds: 600,
            ready_seconds: 30,
            script_seconds: None,
            after_script_seconds: None,
            termination_grace_seconds: 10,
            orphan_seconds: 600,
            ttl_seconds_after_finished: 3600,
        });
        session.state().write(&state).unwrap();
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        sessions.sweep(at(3600 + 7200));
        assert!(sessions.get(&name()).is_some());
        sessions.sweep(at(3600 + 7201));
        assert!(sessions.get(&name()).is_none());
        // What is not a job's stays as it is.
        let other = root.path().join("jobs/notes");
        fs::create_dir(&other).unwrap();
        sessions.sweep(at(1_000_000));
        assert!(other.is_dir());
    }
}
