//! What gitlab-runner says through the environment.
//!
//! Only variables that gitlab-runner itself sets are believed. The job's variables arrive with the
//! prefix `CUSTOM_ENV_` and are whatever the job's author wants them to be; they are only looked at to
//! know which values must not be seen.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use thiserror::Error;

/// Environment variable of `job_env` with the name of the CiJob.
pub const JOB: &str = "ROADSTEAD_JOB";
/// Environment variable of `job_env` with the namespace of the CiJob.
pub const NAMESPACE_OF_JOB: &str = "ROADSTEAD_NAMESPACE_OF_JOB";

/// Exit code that gitlab-runner reads as a failure of the job where it names no other.
const BUILD_FAILURE: u8 = 1;
/// Exit code that gitlab-runner reads as a failure of the system where it names no other.
const SYSTEM_FAILURE: u8 = 2;

/// What gitlab-runner says through the environment.
#[derive(Clone, Debug)]
pub struct RunnerEnv {
    vars: HashMap<OsString, OsString>,
}

/// A variable that gitlab-runner sets is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0} is not set; executor-shim is meant to be called by gitlab-runner's custom executor")]
pub struct Missing(&'static str);

/// Exit codes by which gitlab-runner tells failures apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCodes {
    /// The job's own doing.
    pub build_failure: u8,
    /// Anything else.
    pub system_failure: u8,
}

impl RunnerEnv {
    /// The environment of this process.
    pub fn of_this_process() -> Self {
        // `vars` would panic on values that are not UTF-8.
        Self::new(std::env::vars_os())
    }

    /// An environment of the given variables.
    pub fn new(vars: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        Self { vars: vars.into_iter().collect() }
    }

    fn get(&self, name: &str) -> Option<&OsStr> {
        self.vars.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.to_str()
    }

    /// Directory of this Prepare attempt, which gitlab-runner deletes after `cleanup`.
    pub fn tmpdir(&self) -> Result<PathBuf, Missing> {
        self.get("TMPDIR").map(PathBuf::from).ok_or(Missing("TMPDIR"))
    }

    /// File with the job as GitLab sent it.
    pub fn job_response_file(&self) -> Result<PathBuf, Missing> {
        self.get("JOB_RESPONSE_FILE").map(PathBuf::from).ok_or(Missing("JOB_RESPONSE_FILE"))
    }

    /// File that takes the exit code of a failed script; absent before gitlab-runner 17.9.
    pub fn exit_code_file(&self) -> Option<PathBuf> {
        self.get("BUILD_EXIT_CODE_FILE").map(PathBuf::from)
    }

    /// Exit codes that gitlab-runner expects; its own defaults where it says nothing usable.
    pub fn exit_codes(&self) -> ExitCodes {
        let code = |name, default| {
            self.text(name).and_then(|text| text.parse().ok()).filter(|code| *code != 0).unwrap_or(default)
        };
        ExitCodes {
            build_failure: code("BUILD_FAILURE_EXIT_CODE", BUILD_FAILURE),
            system_failure: code("SYSTEM_FAILURE_EXIT_CODE", SYSTEM_FAILURE),
        }
    }

    /// Name and namespace of the CiJob as `config` handed them on.
    pub fn job(&self) -> Option<(String, String)> {
        Some((self.text(JOB)?.to_owned(), self.text(NAMESPACE_OF_JOB)?.to_owned()))
    }

    /// Value of a job variable after gitlab-runner expanded it.
    pub fn job_variable(&self, name: &str) -> Option<&str> {
        self.text(&format!("CUSTOM_ENV_{name}"))
    }

    /// All job variables after gitlab-runner expanded them, as far as they are text.
    pub fn job_variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.vars
            .iter()
            .filter_map(|(name, value)| Some((name.to_str()?.strip_prefix("CUSTOM_ENV_")?, value.to_str()?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn env(vars: &[(&str, &str)]) -> RunnerEnv {
        RunnerEnv::new(vars.iter().map(|(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn a_missing_variable_is_named() {
        assert_eq!(
            env(&[]).tmpdir().unwrap_err().to_string(),
            "TMPDIR is not set; executor-shim is meant to be called by gitlab-runner's custom executor"
        );
        assert_eq!(env(&[("JOB_RESPONSE_FILE", "")]).job_response_file(), Err(Missing("JOB_RESPONSE_FILE")));
        assert_eq!(env(&[("TMPDIR", "/a b")]).tmpdir(), Ok("/a b".into()));
    }

    #[test]
    fn exit_codes_fall_back_to_those_of_gitlab_runner() {
        let default = ExitCodes { build_failure: 1, system_failure: 2 };
        assert_eq!(env(&[]).exit_codes(), default);
        for odd in ["", "x", "0", "-1", "256", "1 "] {
            let vars = [("BUILD_FAILURE_EXIT_CODE", odd), ("SYSTEM_FAILURE_EXIT_CODE", odd)];
            assert_eq!(env(&vars).exit_codes(), default, "{odd:?}");
        }
        let vars = [("BUILD_FAILURE_EXIT_CODE", "11"), ("SYSTEM_FAILURE_EXIT_CODE", "12")];
        assert_eq!(env(&vars).exit_codes(), ExitCodes { build_failure: 11, system_failure: 12 });
    }

    #[cfg(unix)]
    #[test]
    fn values_that_are_not_text_are_no_panic() {
        use std::os::unix::ffi::OsStringExt;
        let odd = || OsString::from_vec(vec![b'/', 0xff]);
        let env = RunnerEnv::new([
            ("TMPDIR".into(), odd()),
            ("BUILD_FAILURE_EXIT_CODE".into(), odd()),
            (odd(), odd()),
            ("CUSTOM_ENV_X".into(), odd()),
        ]);
        assert_eq!(env.tmpdir(), Ok(PathBuf::from(odd())));
        assert_eq!(env.exit_codes().build_failure, 1);
        assert_eq!(env.job_variable("X"), None);
    }

    #[cfg(unix)]
    proptest! {
        /// Names and values are any bytes but zero, as the kernel has it.
        #[test]
        fn a_job_variable_is_its_text_or_nothing(
            odd in prop::collection::vec((prop::collection::vec(1u8.., 0..12), prop::collection::vec(1u8.., 0..12)), 0..9),
            name in "[A-Z_]{1,9}",
            value in prop_oneof!["\\PC{0,9}".prop_map(String::into_bytes), prop::collection::vec(1u8.., 0..12)],
        ) {
            use std::os::unix::ffi::OsStringExt;
            let prefixed = odd.iter().map(|(name, value)| ([b"CUSTOM_ENV_", &name[..]].concat(), value.clone()));
            let own = (format!("CUSTOM_ENV_{name}").into_bytes(), value.clone());
            let all = odd.iter().cloned().chain(prefixed).chain([own]);
            let env = RunnerEnv::new(
                all.map(|(name, value)| (OsString::from_vec(name), OsString::from_vec(value))),
            );
            let text = std::str::from_utf8(&value).ok().filter(|text| !text.is_empty());
            prop_assert_eq!(env.job_variable(&name), text);
            let _ = (env.tmpdir(), env.job_response_file(), env.exit_code_file(), env.exit_codes(), env.job());
        }
    }
}
