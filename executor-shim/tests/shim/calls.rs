//! Calls of the shim's real binary, as gitlab-runner makes them.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::apiserver::ApiServer;

/// The longest that anything may take. Only a failing test takes that long.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// One Prepare attempt: its directory and what gitlab-runner puts there.
pub struct Attempt {
    pub dir: TempDir,
    kubeconfig: PathBuf,
    pub env: Vec<(String, String)>,
}

/// How a call ended.
#[derive(Debug)]
pub struct Called {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Called {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn assert(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }
}

/// The job of most tests.
pub fn response() -> Value {
    json!({
        "id": 42, "token": "glcbt-job-token",
        "job_info": {"name": "test", "stage": "test", "project_id": 5, "project_full_path": "grp/proj", "pipeline_id": 7},
        "git_info": {"repo_url": "http://gitlab-ci-token:glcbt-job-token@gitlab.test/grp/proj.git", "ref": "main",
            "sha": "0123456789abcdef0123456789abcdef01234567", "ref_type": "branch"},
        "runner_info": {"timeout": 3600},
        "variables": [{"key": "PASSWORD", "value": "hunter2hunter2", "masked": true}],
        "image": {"name": "alpine:3.20"}, "services": null, "credentials": null
    })
}

impl Attempt {
    pub fn new(server: &ApiServer) -> Self {
        Self::with(server, &response())
    }

    pub fn with(server: &ApiServer, response: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig()).unwrap();
        std::fs::write(dir.path().join("response.json"), response.to_string()).unwrap();
        Self { dir, kubeconfig, env: Vec::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn exit_code(&self) -> Option<String> {
        std::fs::read_to_string(self.path("build_exit_code")).ok()
    }

    pub fn state(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.path("roadstead.json")).unwrap()).unwrap()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = shim();
        command
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("TMPDIR", self.dir.path())
            .env("JOB_RESPONSE_FILE", self.path("response.json"))
            .env("BUILD_EXIT_CODE_FILE", self.path("build_exit_code"))
            .env("BUILD_FAILURE_EXIT_CODE", "1")
            .env("SYSTEM_FAILURE_EXIT_CODE", "2")
            .env("CUSTOM_ENV_CI_JOB_ID", "666")
            // Only tests that bring a GitLab ask it.
            .env("ROADSTEAD_TAG_SOURCE", "none")
            .envs(self.env.iter().cloned())
            .current_dir(self.dir.path());
        command
    }

    pub async fn call(&self, args: &[&str]) -> Called {
        finish(self.command(args).spawn().unwrap()).await
    }

    fn script(&self, script: &str) -> PathBuf {
        let path = self.path("script");
        std::fs::write(&path, script).unwrap();
        path
    }

    pub fn start(&self, stage: &str, script: &str) -> Child {
        let path = self.script(script);
        self.command(&["run", path.to_str().unwrap(), stage]).spawn().unwrap()
    }

    pub async fn run(&self, stage: &str, script: &str) -> Called {
        finish(self.start(stage, script)).await
    }
}

/// The shim with nothing of this process's environment.
pub fn shim() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_executor-shim"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

pub async fn finish(child: Child) -> Called {
    let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await;
    Called::of(output.expect("the call does not end").unwrap())
}

/// Waits until something holds.
pub async fn until<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(value) = holds() {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("{what} does not happen"))
}

/// A status as the operator writes it for a job that may run.
pub fn admitted(job: &Value) -> Value {
    let (name, uid) = (job["metadata"]["name"].as_str().unwrap(), job["metadata"]["uid"].as_str().unwrap());
    json!({
        "phase": "Admitted", "reason": "Scheduling", "message": "the pod waits for a node", "class": "default",
        "image": "alpine:3.20",
        "conditions": [{"type": "Admitted", "status": "True", "reason": "Scheduling", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        "config": {"shell": "sh", "buildsDir": "/builds", "cacheDir": "/cache"},
        "pod": {"name": roadstead_crds::names::pod_name(name, uid, 1), "attempt": 1},
        "timeouts": {"jobSeconds": 3600, "startSeconds": 600, "terminationGraceSeconds": 2, "orphanSeconds": 120,
            "ttlSecondsAfterFinished": 3600},
        "start": {"admittedMs": 5}
    })
}

/// A status with which a job has ended.
pub fn ended(phase: &str, reason: &str, message: &str) -> Value {
    json!({"phase": phase, "reason": reason, "message": message, "start": {}})
}
