//! One try to prepare, and what follows from it: the custom executor's own part.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::build::Build;
use super::config::Program;
use super::error::{JobError, Reason};
use super::process::{Call, Ended};
use super::record::{CallExit, CallKind};
use super::scope::{Cause, Scope};
use super::script::Stage;

/// Exit code by which the driver blames the user.
const BUILD_FAILURE: i32 = 1;

/// Exit code by which the driver blames the system.
const SYSTEM_FAILURE: i32 = 2;

/// An executor: made anew for every try to prepare.
#[derive(Debug)]
pub(super) struct Attempt {
    build: Arc<Build>,
    number: u32,
    tmpdir: PathBuf,
    job_env: BTreeMap<String, String>,
    shell: String,
}

/// What `config` may print.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConfigOutput {
    driver: Option<DriverInfo>,
    hostname: Option<String>,
    builds_dir: Option<String>,
    cache_dir: Option<String>,
    builds_dir_is_shared: Option<bool>,
    job_env: Option<BTreeMap<String, String>>,
    shell: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DriverInfo {
    name: Option<String>,
    version: Option<String>,
}

/// A service as `CI_JOB_SERVICES` tells it.
#[derive(Debug, Serialize)]
struct ServiceInfo<'a> {
    name: &'a str,
    alias: &'a str,
    entrypoint: Option<&'a [String]>,
    command: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variables: Option<BTreeMap<String, String>>,
}

impl Attempt {
    /// Makes the temporary folder.
    pub(super) fn new(build: &Arc<Build>, number: u32, root: &Path) -> Result<Self, JobError> {
        let tmpdir = tempfile::Builder::new()
            .prefix("custom-executor")
            .rand_bytes(10)
            .tempdir_in(root)
            .map_err(|error| JobError::System(format!("cannot make a temporary folder: {error}")))?
            .keep();
        build.add_tmpdir(tmpdir.clone());
        let shell = build.config.shell.clone();
        Ok(Self { build: Arc::clone(build), number, tmpdir, job_env: BTreeMap::new(), shell })
    }

    /// Calls `config` and `prepare`.
    pub(super) async fn prepare(&mut self, scope: &Scope) -> Result<(), JobError> {
        self.write_response()?;
        let said = self.call_config(scope).await?;

        let driver = said.driver.unwrap_or_default();
        self.build.log.line(&match (driver.name, driver.version) {
            (None, _) => "Using Custom executor...".to_owned(),
            (Some(name), None) => format!("Using Custom executor with driver {name}..."),
            (Some(name), Some(version)) => format!("Using Custom executor with driver {name} {version}..."),
        });

        let config = &self.build.config;
        let builds = said.builds_dir.unwrap_or_else(|| config.builds_dir.clone());
        let cache = said.cache_dir.unwrap_or_else(|| config.cache_dir.clone());
        self.build.choose_place(&builds, &cache, said.builds_dir_is_shared.unwrap_or(false))?;
        match self.shell.as_str() {
            "bash" | "sh" => {}
            "pwsh" | "powershell" => {
                return Err(JobError::System(format!("the harness writes no scripts for {}", self.shell)));
            }
            other => return Err(JobError::System(format!("shell {other} not found"))),
        }

        let Some(program) = &config.driver.prepare else { return Ok(()) };
        let scope = scope.child_with_limit(config.prepare_exec_timeout, Cause::Deadline);
        let ended = self.call(CallKind::Prepare, "prepare", program, &[], None, &scope).await;
        self.judge(&ended)
    }

    /// `JOB_RESPONSE_FILE`.
    fn write_response(&self) -> Result<(), JobError> {
        use std::io::Write as _;
        let path = self.response_file();
        let failed = |error: &dyn std::fmt::Display| {
            JobError::System(format!("creating job response file {:?}: {error}", path.display()))
        };
        let text = self.build.job.response().map_err(|error| failed(&error))?;
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| failed(&error))?;
        file.write_all(text.as_bytes()).map_err(|error| failed(&error))
    }

    async fn call_config(&mut self, scope: &Scope) -> Result<ConfigOutput, JobError> {
        let Some(program) = &self.build.config.driver.config else { return Ok(ConfigOutput::default()) };
        self.build.refresh_variables();
        let scope = scope.child_with_limit(self.build.config.config_exec_timeout, Cause::Deadline);
        let ended = self.call(CallKind::Config, "config", program, &[], None, &scope).await;
        self.judge(&ended)?;
        let printed = self.build.recorder.look(|calls| calls[ended.index].stdout.clone());
        if printed.is_empty() {
            return Ok(ConfigOutput::default());
        }
        let said: ConfigOutput = serde_json::from_slice(&printed)
            .map_err(|error| JobError::System(format!("error while parsing JSON output: {error}")))?;
        if let Some(hostname) = &said.hostname {
            self.build.set_hostname(hostname.clone());
        }
        if let Some(job_env) = &said.job_env {
            self.job_env.clone_from(job_env);
        }
        if let Some(shell) = &said.shell {
            self.shell.clone_from(shell);
        }
        Ok(said)
    }

    /// Calls `run` for a stage, if the stage has anything to do.
    pub(super) async fn run(&self, stage: &Stage, scope: &Scope) -> Result<(), JobError> {
        if let Some(cause) = scope.ended() {
            return Err(JobError::Stopped(cause));
        }
        let result = self.run_script(stage, scope).await;
        if matches!(scope.ended(), Some(Cause::Deadline)) {
            self.build.log.warning(&format!(
                "{} could not run to completion because the timeout was exceeded. For more control over job and \
                 script timeouts see: https://docs.gitlab.com/ci/runners/configure_runners/\
                 #set-script-and-after_script-timeouts",
                stage.name()
            ));
        }
        result
    }

    async fn run_script(&self, stage: &Stage, scope: &Scope) -> Result<(), JobError> {
        let Some(script) = self.build.script(stage, &self.shell)? else { return Ok(()) };
        let name = stage.name();
        let log = &self.build.log;
        if self.build.job.trace_sections() {
            log.section("start", &name);
        }
        log.heading(&stage.heading());
        let result = self.run_stage(name.clone(), script, scope).await;
        if self.build.job.trace_sections() {
            log.section("end", &name);
        }
        result
    }

    async fn run_stage(&self, name: String, script: String, scope: &Scope) -> Result<(), JobError> {
        let path = self.write_script(&script).map_err(|error| JobError::System(error.to_string()))?;
        let name = if name == "step_script" {
            self.build.log.warning(
                "Starting with version 17.0 the 'build_script' stage will be replaced with 'step_script': \
                 https://gitlab.com/groups/gitlab-org/-/epics/6112",
            );
            "build_script".to_owned()
        } else {
            name
        };
        let more = [path.into_os_string(), OsString::from(&name)];
        let program = &self.build.config.driver.run;
        let ended = self.call(CallKind::Run, &name, program, &more, Some(script), scope).await;
        self.judge(&ended)
    }

    /// Writes a script into a new folder of its own.
    fn write_script(&self, script: &str) -> std::io::Result<PathBuf> {
        let folder =
            tempfile::Builder::new().prefix("script").rand_bytes(10).tempdir_in(&self.tmpdir)?.keep();
        let path = folder.join("script");
        std::fs::write(&path, script)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))?;
        Ok(path)
    }

    /// Calls `cleanup` and removes the temporary folder. Nothing of it changes the job's result.
    pub(super) async fn cleanup(&self) {
        if let Some(program) = &self.build.config.driver.cleanup {
            let scope = Scope::root(Some(self.build.config.cleanup_exec_timeout));
            let ended = self.call(CallKind::Cleanup, "cleanup", program, &[], None, &scope).await;
            if let Err(error) = self.judge(&ended) {
                self.build.log.warning(&format!("Cleanup script failed: {}", error.message()));
            }
        }
        // A process that still lives may hold it; the runner does not look either.
        let _ = std::fs::remove_dir_all(&self.tmpdir);
    }

    async fn call(
        &self,
        kind: CallKind,
        stage: &str,
        program: &Program,
        more: &[OsString],
        script: Option<String>,
        scope: &Scope,
    ) -> Ended {
        let mut argv = vec![program.path.clone().into_os_string()];
        argv.extend(program.args.iter().cloned());
        argv.extend(more.iter().cloned());
        let call = Call {
            kind,
            stage: stage.to_owned(),
            attempt: self.number,
            argv,
            env: self.environment(),
            tmpdir: self.tmpdir.clone(),
            script,
        };
        self.build.runner.run(call, scope).await
    }

    /// The driver's environment; of two equal names the later one counts.
    fn environment(&self) -> BTreeMap<OsString, OsString> {
        let config = &self.build.config;
        let mut env: BTreeMap<OsString, OsString> = BTreeMap::new();
        if config.inherit_env {
            env.extend(std::env::vars_os());
        }
        env.extend(config.process_env.iter().cloned());
        let own: [(&str, OsString); 5] = [
            ("TMPDIR", self.tmpdir.clone().into()),
            ("BUILD_FAILURE_EXIT_CODE", BUILD_FAILURE.to_string().into()),
            ("SYSTEM_FAILURE_EXIT_CODE", SYSTEM_FAILURE.to_string().into()),
            ("BUILD_EXIT_CODE_FILE", self.exit_code_file().into()),
            ("JOB_RESPONSE_FILE", self.response_file().into()),
        ];
        env.extend(own.map(|(key, value)| (OsString::from(key), value)));
        env.extend(self.job_env.iter().map(|(key, value)| (OsString::from(key), OsString::from(value))));
        for variable in &self.build.variables().0 {
            env.insert(format!("CUSTOM_ENV_{}", variable.key).into(), variable.value.clone().into());
        }
        env.insert("CUSTOM_ENV_CI_JOB_SERVICES".into(), self.services().into());
        env
    }

    /// `CI_JOB_SERVICES`: only the first alias of each service.
    fn services(&self) -> String {
        let services = self.build.job.services();
        if services.is_empty() {
            return String::new();
        }
        let variables = self.build.variables();
        let list: Vec<ServiceInfo<'_>> = services
            .iter()
            .map(|service| {
                let alias = service.alias.split([' ', ',', '\t', '\n']).find(|alias| !alias.is_empty());
                let own = service.variables.as_deref().filter(|own| !own.is_empty());
                ServiceInfo {
                    name: &service.name,
                    alias: alias.unwrap_or(""),
                    entrypoint: service.entrypoint.as_deref(),
                    command: service.command.as_deref(),
                    variables: own.map(|own| {
                        let all = variables.extended(own);
                        own.iter().map(|one| (one.key.clone(), all.value(&one.key).to_owned())).collect()
                    }),
                }
            })
            .collect();
        // Texts, lists and maps of texts can always be written.
        serde_json::to_string(&list).unwrap_or_default()
    }

    fn response_file(&self) -> PathBuf {
        self.tmpdir.join("response.json")
    }

    fn exit_code_file(&self) -> PathBuf {
        self.tmpdir.join("build_exit_code")
    }

    /// What the end of a call means for the job.
    fn judge(&self, ended: &Ended) -> Result<(), JobError> {
        match &ended.exit {
            CallExit::Code(0) => Ok(()),
            CallExit::Code(BUILD_FAILURE) => Err(self.build_failure()),
            CallExit::Code(SYSTEM_FAILURE) => Err(JobError::System("exit status 2".to_owned())),
            CallExit::Code(code) => Err(unknown(*code, &format!("exit status {code}"))),
            CallExit::Signal(signal) => Err(unknown(-1, &format!("signal: {}", signal_name(*signal)))),
            CallExit::NotStarted(why) => Err(JobError::System(format!("failed to start command: {why}"))),
            CallExit::Dormant => {
                let pid = self.build.recorder.look(|calls| calls[ended.index].pid).unwrap_or_default();
                Err(JobError::System(format!("failed to kill process PID={pid}, likely process is dormant")))
            }
        }
    }

    /// The script's own exit code stands in the first line of a file, if the driver wrote one.
    fn build_failure(&self) -> JobError {
        let failure = |code| JobError::Build {
            reason: Reason::Script,
            exit_code: code,
            message: format!("exit status {code}"),
        };
        let Ok(content) = std::fs::read(self.exit_code_file()) else {
            return failure(i64::from(BUILD_FAILURE));
        };
        match exit_code(&content) {
            Some(code) => failure(code),
            None => unknown(SYSTEM_FAILURE, "exit status 1"),
        }
    }
}

/// The number in the first line: digits with an optional sign, and nothing else.
fn exit_code(content: &[u8]) -> Option<i64> {
    let line = content.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    line.strip_suffix('\r').unwrap_or(line).parse().ok()
}

fn unknown(code: i32, end: &str) -> JobError {
    JobError::System(format!(
        "unknown Custom executor executable exit code {code}; executable execution terminated with: {end}"
    ))
}

fn signal_name(signal: i32) -> String {
    match signal {
        1 => "hangup".to_owned(),
        2 => "interrupt".to_owned(),
        6 => "aborted".to_owned(),
        9 => "killed".to_owned(),
        11 => "segmentation fault".to_owned(),
        13 => "broken pipe".to_owned(),
        15 => "terminated".to_owned(),
        other => format!("signal {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_read_as_go_reads_them() {
        let table: [(&[u8], Option<i64>); 9] = [
            (b"42\n", Some(42)),
            (b"42", Some(42)),
            (b"42\r\nrest", Some(42)),
            (b"0\n", Some(0)),
            (b"+7\n", Some(7)),
            (b"42 \n", None),
            (b"", None),
            (b"\n42\n", None),
            (b"text\n", None),
        ];
        for (content, code) in table {
            assert_eq!(exit_code(content), code, "{:?}", String::from_utf8_lossy(content));
        }
    }
}
