//! The two agents of a pod, on this machine.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::apiserver::ApiServer;
use crate::calls::{Attempt, admitted};

pub const UID: &str = "0d9ac1a2-6a7c-4a0c-9b4e-7d5f3c1f2a10";

/// The agents of `build` and `helper`. They end with the test.
pub struct Pod {
    pub dir: TempDir,
    pub build: Child,
    helper: Child,
}

impl Drop for Pod {
    fn drop(&mut self) {
        for agent in [&mut self.build, &mut self.helper] {
            // Its scripts end with it, as those of PID 1 would.
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

impl Pod {
    /// Starts the agents and lets exec reach them.
    pub fn start(server: &ApiServer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let serve = |container: &str| {
            let at = |name: &str| {
                let path = dir.path().join(container).join(name);
                std::fs::create_dir_all(&path).unwrap();
                path
            };
            let mut command = Command::new(env!("CARGO_BIN_EXE_stage-agent"));
            command
                .args(["serve", "--container", container, "--orphan-seconds", "1000", "--any-peer"])
                .arg("--run-dir")
                .arg(at("run"))
                .arg("--spool-dir")
                .arg(at("spool"))
                .arg("--build-spool-dir")
                .arg(dir.path().join("build/spool"))
                .env("ROADSTEAD_POD_UID", UID)
                .current_dir(dir.path())
                .stdin(Stdio::null())
                .stderr(Stdio::null());
            server.world().agents.insert(container.to_owned(), at("run"));
            command.spawn().unwrap()
        };
        let (build, helper) = (serve("build"), serve("helper"));
        Self { dir, build, helper }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// The status of a job whose pod runs.
pub fn running(job: &Value) -> Value {
    let mut status = admitted(job);
    status["phase"] = json!("Running");
    status["reason"] = json!("Running");
    status["message"] = json!("the job runs");
    status["pod"]["uid"] = json!(UID);
    status["pod"]["node"] = json!("node-1");
    status
}

/// A job that is ready for its stages.
pub async fn ready() -> (ApiServer, Pod, Attempt) {
    let server = ApiServer::start().await;
    server.operator(|job| Some(running(job)));
    let pod = Pod::start(&server);
    let attempt = Attempt::new(&server);
    attempt.call(&["config"]).await.assert(0);
    attempt.call(&["prepare"]).await.assert(0);
    (server, pod, attempt)
}
