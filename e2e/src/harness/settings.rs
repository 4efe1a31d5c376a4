//! What job variables say about how the runner shall work: Git, attempts, after_script.

use super::job::RunnerJob;
use super::variables::{Variables, parse_bool};

/// `GIT_STRATEGY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GitStrategy {
    Clone,
    Fetch,
    None,
    Empty,
}

/// `GIT_SUBMODULE_STRATEGY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Submodules {
    None,
    Normal,
    Recursive,
    /// The variable has a value that is none of these; fetching fails.
    Invalid,
}

/// Settings from job variables, with gitlab-runner's defaults.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub(super) struct Settings {
    pub(super) strategy: GitStrategy,
    pub(super) clone_path: String,
    pub(super) checkout: bool,
    pub(super) submodules: Submodules,
    pub(super) submodule_paths: Vec<String>,
    pub(super) submodule_depth: i64,
    pub(super) submodule_update_flags: Vec<String>,
    pub(super) submodule_force_https: bool,
    pub(super) clean_flags: Vec<String>,
    pub(super) fetch_flags: Vec<String>,
    pub(super) lfs_skip_smudge: bool,
    pub(super) get_sources_attempts: u32,
    pub(super) artifact_download_attempts: u32,
    pub(super) restore_cache_attempts: u32,
    pub(super) after_script_ignore_errors: bool,
    pub(super) cache_request_timeout: i64,
    pub(super) debug_trace: bool,
    /// What is wrong with the variables; printed as warnings.
    pub(super) errors: Vec<String>,
}

impl Settings {
    /// Reads the variables.
    pub(super) fn read(job: &RunnerJob, variables: &Variables) -> Self {
        let mut reader = Reader { variables, errors: Vec::new() };
        let default_strategy = if job.allow_git_fetch { GitStrategy::Fetch } else { GitStrategy::Clone };
        let mut settings = Self {
            strategy: reader.strategy(default_strategy),
            clone_path: variables.value("GIT_CLONE_PATH").to_owned(),
            checkout: reader.boolean("GIT_CHECKOUT", true),
            submodules: reader.submodules(),
            submodule_paths: words(variables.value("GIT_SUBMODULE_PATHS")),
            submodule_depth: reader.number("GIT_SUBMODULE_DEPTH", job.git_info.depth),
            submodule_update_flags: reader.flags("GIT_SUBMODULE_UPDATE_FLAGS", &[]),
            submodule_force_https: reader.boolean("GIT_SUBMODULE_FORCE_HTTPS", false),
            clean_flags: reader.flags("GIT_CLEAN_FLAGS", &["-ffdx"]),
            fetch_flags: reader.flags("GIT_FETCH_EXTRA_FLAGS", &["--prune", "--quiet"]),
            lfs_skip_smudge: reader.boolean("GIT_LFS_SKIP_SMUDGE", false),
            get_sources_attempts: reader.attempts("GET_SOURCES_ATTEMPTS"),
            artifact_download_attempts: reader.attempts("ARTIFACT_DOWNLOAD_ATTEMPTS"),
            restore_cache_attempts: reader.attempts("RESTORE_CACHE_ATTEMPTS"),
            after_script_ignore_errors: reader.boolean("AFTER_SCRIPT_IGNORE_ERRORS", true),
            cache_request_timeout: reader.number("CACHE_REQUEST_TIMEOUT", 10),
            debug_trace: reader.boolean("CI_DEBUG_TRACE", false),
            errors: Vec::new(),
        };
        settings.errors = reader.errors;
        // Nothing is checked out where there is no repository.
        if matches!(settings.strategy, GitStrategy::None | GitStrategy::Empty) {
            settings.checkout = false;
            settings.submodules = Submodules::None;
        }
        settings
    }
}

struct Reader<'a> {
    variables: &'a Variables,
    errors: Vec<String>,
}

impl Reader<'_> {
    fn strategy(&mut self, default: GitStrategy) -> GitStrategy {
        match self.variables.value("GIT_STRATEGY") {
            "clone" => GitStrategy::Clone,
            "fetch" => GitStrategy::Fetch,
            "none" => GitStrategy::None,
            "empty" => GitStrategy::Empty,
            "" => default,
            other => {
                self.errors.push(format!("GIT_STRATEGY: expected a known strategy, got {other:?}"));
                default
            }
        }
    }

    fn submodules(&mut self) -> Submodules {
        match self.variables.value("GIT_SUBMODULE_STRATEGY") {
            "" | "none" => Submodules::None,
            "normal" => Submodules::Normal,
            "recursive" => Submodules::Recursive,
            other => {
                self.errors.push(format!("GIT_SUBMODULE_STRATEGY: expected a known strategy, got {other:?}"));
                Submodules::Invalid
            }
        }
    }

    fn boolean(&mut self, name: &str, default: bool) -> bool {
        let text = self.variables.value(name);
        if text.is_empty() {
            return default;
        }
        parse_bool(text).unwrap_or_else(|| {
            self.errors.push(format!("{name}: expected bool got {text:?}, using default value: {default}"));
            default
        })
    }

    fn number(&mut self, name: &str, default: i64) -> i64 {
        let text = self.variables.value(name);
        if text.is_empty() {
            return default;
        }
        text.parse().unwrap_or_else(|_| {
            self.errors.push(format!("{name}: expected int got {text:?}, using default value: {default}"));
            default
        })
    }

    fn attempts(&mut self, name: &str) -> u32 {
        let asked = self.number(name, 1);
        let allowed = asked.clamp(1, 10);
        if allowed != asked {
            self.errors
                .push(format!("{name}: number of attempts out of the range [1, 10], clamping to: {allowed}"));
        }
        u32::try_from(allowed).unwrap_or(1)
    }

    fn flags(&mut self, name: &str, default: &[&str]) -> Vec<String> {
        match self.variables.value(name) {
            "" => default.iter().map(|flag| (*flag).to_owned()).collect(),
            "none" => Vec::new(),
            text => words(text),
        }
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::Variable;

    fn read(variables: &[(&str, &str)]) -> Settings {
        let job = RunnerJob::parse(&serde_json::json!({"allow_git_fetch": true})).unwrap();
        let list = variables.iter().map(|(key, value)| Variable::new(*key, *value)).collect();
        Settings::read(&job, &Variables(list))
    }

    #[test]
    fn defaults_are_the_runner_s() {
        let settings = read(&[]);
        assert_eq!(settings.strategy, GitStrategy::Fetch);
        assert_eq!(settings.clean_flags, ["-ffdx"]);
        assert_eq!(settings.fetch_flags, ["--prune", "--quiet"]);
        assert!(settings.after_script_ignore_errors && settings.checkout && settings.errors.is_empty());
    }

    #[test]
    fn attempts_stay_between_one_and_ten() {
        for (asked, got) in [("0", 1), ("3", 3), ("11", 10), ("x", 1)] {
            assert_eq!(read(&[("GET_SOURCES_ATTEMPTS", asked)]).get_sources_attempts, got, "{asked}");
        }
    }

    #[test]
    fn none_means_no_flags() {
        assert!(read(&[("GIT_CLEAN_FLAGS", "none")]).clean_flags.is_empty());
        assert_eq!(read(&[("GIT_CLEAN_FLAGS", "-ffdx -e cache/")]).clean_flags, ["-ffdx", "-e", "cache/"]);
    }

    #[test]
    fn without_a_repository_there_is_no_checkout() {
        let settings = read(&[("GIT_STRATEGY", "empty"), ("GIT_SUBMODULE_STRATEGY", "recursive")]);
        assert!(!settings.checkout);
        assert_eq!(settings.submodules, Submodules::None);
    }
}
