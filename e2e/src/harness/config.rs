//! How the played gitlab-runner is set up: what would be in `config.toml`, and its environment.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::coordinator::Coordinator;

/// One program of the driver and its fixed arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Absolute path.
    pub path: PathBuf,
    /// What comes before the arguments that the runner adds.
    pub args: Vec<OsString>,
}

impl Program {
    /// A program with arguments.
    pub fn new<S: Into<OsString>>(path: impl Into<PathBuf>, args: impl IntoIterator<Item = S>) -> Self {
        Self { path: path.into(), args: args.into_iter().map(Into::into).collect() }
    }
}

/// The programs behind `[runners.custom]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// `config_exec`; skipped when absent.
    pub config: Option<Program>,
    /// `prepare_exec`; skipped when absent.
    pub prepare: Option<Program>,
    /// `run_exec`.
    pub run: Program,
    /// `cleanup_exec`; skipped when absent.
    pub cleanup: Option<Program>,
}

impl Driver {
    /// One program that learns its stage from its first argument: `config`, `prepare`, `run`, `cleanup`.
    pub fn shim(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let stage = |name: &str| Program::new(&path, [name]);
        Self {
            config: Some(stage("config")),
            prepare: Some(stage("prepare")),
            run: stage("run"),
            cleanup: Some(stage("cleanup")),
        }
    }

    /// Adds arguments after the stage's name, to all four.
    #[must_use]
    pub fn args<S: Into<OsString> + Clone>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
        let all = [self.config.as_mut(), self.prepare.as_mut(), Some(&mut self.run), self.cleanup.as_mut()];
        for program in all.into_iter().flatten() {
            program.args.extend(args.iter().cloned());
        }
        self
    }
}

/// Settings of the played runner. Fields that are not set by a method below may be set directly; defaults are
/// gitlab-runner's.
#[derive(Debug, Clone)]
pub struct RunnerConfig {
    /// `[runners.custom]`'s programs.
    pub driver: Driver,
    /// Base URL of GitLab, without a slash at its end.
    pub url: String,
    /// The coordinator that takes part: jobs run there while they run here.
    pub coordinator: Option<Coordinator>,
    /// The runner's token; jobs see its first characters.
    pub token: String,
    /// How long the token lives from its first use on; a real runner gets itself a new one after three quarters of
    /// that, the played one does not.
    pub token_life: Option<Duration>,
    /// Name in the job log.
    pub name: String,
    /// `CI_RUNNER_VERSION`. Scripts call the helper as this version does, so it should be the helper's.
    pub version: String,
    /// `CI_RUNNER_REVISION`.
    pub revision: String,
    /// `builds_dir`.
    pub builds_dir: String,
    /// `cache_dir`.
    pub cache_dir: String,
    /// `shell`; `config` may change it. `bash` and `sh` can be played.
    pub shell: String,
    /// `environment`: lines of `KEY=value` that become job variables.
    pub environment: Vec<String>,
    /// `[runners.feature_flags]`; they win over job variables.
    pub feature_flags: Vec<(String, bool)>,
    /// `[runners.custom_build_dir] enabled`.
    pub custom_build_dir: bool,
    /// Commands before fetching, from `config.toml`.
    pub pre_get_sources_script: String,
    /// Commands after fetching, from `config.toml`.
    pub post_get_sources_script: String,
    /// Commands before each step, from `config.toml`.
    pub pre_build_script: String,
    /// Commands after each step, from `config.toml`.
    pub post_build_script: String,
    /// The certificates of GitLab's server, as `CI_SERVER_TLS_CA_FILE`.
    pub tls_ca: Option<String>,
    /// `CI_CONCURRENT_ID`.
    pub concurrent_id: u32,
    /// `CI_CONCURRENT_PROJECT_ID`.
    pub concurrent_project_id: u32,
    /// Environment of the runner's process, on top of what it inherits.
    pub process_env: Vec<(OsString, OsString)>,
    /// Whether the runner's process inherits the environment of this one.
    pub inherit_env: bool,
    /// Where the runner makes its temporary folders; a folder of the harness when absent.
    pub temporary: Option<PathBuf>,
    /// `config_exec_timeout`.
    pub config_exec_timeout: Duration,
    /// `prepare_exec_timeout`.
    pub prepare_exec_timeout: Duration,
    /// `cleanup_exec_timeout`.
    pub cleanup_exec_timeout: Duration,
    /// `graceful_kill_timeout`: from SIGTERM to SIGKILL.
    pub graceful_kill_timeout: Duration,
    /// `force_kill_timeout`: from SIGKILL to giving up.
    pub force_kill_timeout: Duration,
    /// `prepare_timeout`.
    pub prepare_timeout: Option<Duration>,
    /// `get_sources_timeout`.
    pub get_sources_timeout: Option<Duration>,
    /// `output_limit`, in KiB: how much of a job's log a real runner keeps. The played one keeps all.
    pub output_limit: Option<u32>,
    /// Between two tries to prepare.
    pub prepare_retry_interval: Duration,
    /// Before the second attempt of a stage; doubles up to five minutes.
    pub stage_retry_interval: Duration,
    /// How long the runner waits for a stage that it has stopped.
    pub build_finish_timeout: Duration,
}

impl RunnerConfig {
    /// gitlab-runner's defaults, with `/builds` and `/cache` as folders.
    pub fn new(driver: Driver) -> Self {
        let hour = Duration::from_hours(1);
        Self {
            driver,
            url: "http://gitlab.invalid".to_owned(),
            coordinator: None,
            token: "glrt-harness01234".to_owned(),
            token_life: None,
            name: "harness".to_owned(),
            version: "19.4.0".to_owned(),
            revision: "harness".to_owned(),
            builds_dir: "/builds".to_owned(),
            cache_dir: "/cache".to_owned(),
            shell: "bash".to_owned(),
            environment: Vec::new(),
            feature_flags: Vec::new(),
            custom_build_dir: false,
            pre_get_sources_script: String::new(),
            post_get_sources_script: String::new(),
            pre_build_script: String::new(),
            post_build_script: String::new(),
            tls_ca: None,
            concurrent_id: 0,
            concurrent_project_id: 0,
            process_env: Vec::new(),
            inherit_env: true,
            temporary: None,
            config_exec_timeout: hour,
            prepare_exec_timeout: hour,
            cleanup_exec_timeout: hour,
            graceful_kill_timeout: Duration::from_mins(10),
            force_kill_timeout: Duration::from_secs(10),
            prepare_timeout: None,
            get_sources_timeout: None,
            output_limit: None,
            prepare_retry_interval: Duration::from_secs(3),
            stage_retry_interval: Duration::from_secs(5),
            build_finish_timeout: Duration::from_mins(5),
        }
    }

    /// Lets a coordinator take part: jobs name its URL, their tokens work there while they run.
    #[must_use]
    pub fn coordinator(mut self, coordinator: &Coordinator) -> Self {
        coordinator.url().clone_into(&mut self.url);
        self.coordinator = Some(coordinator.clone());
        self
    }

    /// Sets `builds_dir` and `cache_dir`.
    #[must_use]
    pub fn dirs(mut self, builds: impl Into<String>, cache: impl Into<String>) -> Self {
        self.builds_dir = builds.into();
        self.cache_dir = cache.into();
        self
    }

    /// Sets a variable of the runner's own environment, which every driver call inherits.
    #[must_use]
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.process_env.push((key.into(), value.into()));
        self
    }

    /// Lets the runner's process inherit nothing of this one's environment.
    #[must_use]
    pub fn clean_env(mut self) -> Self {
        self.inherit_env = false;
        self
    }

    /// Sets `graceful_kill_timeout`.
    #[must_use]
    pub fn graceful_kill(mut self, timeout: Duration) -> Self {
        self.graceful_kill_timeout = timeout;
        self
    }

    /// Sets a feature flag.
    #[must_use]
    pub fn feature_flag(mut self, name: impl Into<String>, on: bool) -> Self {
        self.feature_flags.push((name.into(), on));
        self
    }

    /// Shortens the pauses between tries, for tests that are not about them.
    #[must_use]
    pub fn quick_retries(mut self) -> Self {
        self.prepare_retry_interval = Duration::from_millis(10);
        self.stage_retry_interval = Duration::from_millis(10);
        self
    }

    /// Plays this version, such as `17.9.3`.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// Whether the played version is this one or a later one.
    pub(super) fn is_at_least(&self, major: u32, minor: u32) -> bool {
        let mut numbers = self.version.split('.').map_while(|number| number.parse().ok());
        (numbers.next().unwrap_or(u32::MAX), numbers.next().unwrap_or(0)) >= (major, minor)
    }

    /// `CI_RUNNER_SHORT_TOKEN`: nine characters of the token, without its prefix.
    pub fn short_token(&self) -> &str {
        let token = self.token.strip_prefix("glrt-").unwrap_or(&self.token);
        let token = match token.as_bytes() {
            [b't', b'1'..=b'3', b'_', ..] => &token[3..],
            _ => token,
        };
        token.get(..9).unwrap_or(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_learns_its_stage_from_its_arguments() {
        let driver = Driver::shim("/bin/shim").args(["--verbose"]);
        assert_eq!(driver.run, Program::new("/bin/shim", ["run", "--verbose"]));
        assert_eq!(driver.config, Some(Program::new("/bin/shim", ["config", "--verbose"])));
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let config = |version: &str| RunnerConfig::new(Driver::shim("/x")).version(version);
        for (version, new) in [("17.9.3", false), ("18.9.0", false), ("18.10.0", true), ("19.4.0", true)] {
            assert_eq!(config(version).is_at_least(18, 10), new, "{version}");
        }
    }

    #[test]
    fn short_tokens_have_no_prefix() {
        let mut config = RunnerConfig::new(Driver::shim("/x"));
        for (token, short) in
            [("glrt-abcdefghijkl", "abcdefghi"), ("glrt-t1_abcdefghijkl", "abcdefghi"), ("abc", "abc")]
        {
            token.clone_into(&mut config.token);
            assert_eq!(config.short_token(), short);
        }
    }
}
