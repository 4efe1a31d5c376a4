//! The played runner against a driver that runs scripts on this machine: a small bash program.

mod calls;
mod checkout;
mod exits;
mod helper;
mod real;
mod scenarios;
mod stages;
mod stops;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::{Driver, Harness, JobResult, RunnerConfig};
use crate::coordinator::JobSpec;

/// Long enough for anything that is going to happen at all on a busy machine.
const SOON: Duration = Duration::from_mins(1);

/// A driver as its authors describe it: exit code by file, exit 2 on SIGTERM. `FAKE_<STAGE>` holds commands that a
/// test wants run first.
const DRIVER: &str = r#"#!/usr/bin/env bash
stage=$1; shift
hook="FAKE_${stage^^}"
eval "${!hook}"
case "$stage" in
  config)
    printf '{"driver":{"name":"fake","version":"1.0"},"builds_dir":"%s","cache_dir":"%s",' \
      "$FAKE_DIR/builds" "$FAKE_DIR/cache"
    printf '"job_env":{"FAKE_NONCE":"n-%s"},"unknown":1}' "$$"
    ;;
  prepare) echo "prepared by $FAKE_NONCE" ;;
  run)
    rm -f "$BUILD_EXIT_CODE_FILE"
    child=
    trap 'wait "$child"; exit "$SYSTEM_FAILURE_EXIT_CODE"' TERM
    bash "$1" & child=$!
    wait "$child"; code=$?
    [ "$code" = 0 ] && exit 0
    echo "$code" > "$BUILD_EXIT_CODE_FILE"
    exit "$BUILD_FAILURE_EXIT_CODE"
    ;;
  cleanup) echo "cleaned"; echo "a warning" >&2 ;;
esac
"#;

/// What takes the place of the helper program in scripts: it writes down how it was called.
const HELPER: &str = r#"#!/usr/bin/env bash
[ "$1" = --version ] && exit 0
echo "$*" >> "$FAKE_DIR/helper-calls"
eval "$FAKE_HELPER"
"#;

/// A folder with the driver in it, and settings that use it.
struct Fake {
    dir: TempDir,
    config: RunnerConfig,
}

impl Fake {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let driver = program(dir.path(), "driver", DRIVER);
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        program(&dir.path().join("bin"), "gitlab-runner", HELPER);
        let path = format!("{}:{}", dir.path().join("bin").display(), std::env::var("PATH").unwrap());
        let config = RunnerConfig::new(Driver::shim(driver))
            .quick_retries()
            .env("FAKE_DIR", dir.path())
            .env("PATH", path)
            .graceful_kill(Duration::from_secs(20));
        Self { dir, config }
    }

    /// Lets the driver run these commands first in a stage.
    fn hook(mut self, stage: &str, commands: &str) -> Self {
        self.config = self.config.env(format!("FAKE_{}", stage.to_uppercase()), commands);
        self
    }

    fn with(mut self, change: impl FnOnce(&mut RunnerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn harness(&self) -> Harness {
        Harness::new(self.config.clone()).unwrap()
    }

    async fn run(&self, spec: &JobSpec) -> JobResult {
        self.harness().run(spec, SOON).await.unwrap()
    }
}

fn program(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    crate::program::write(&path, text).unwrap();
    path
}
