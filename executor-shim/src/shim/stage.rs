//! gitlab-runner's stages: where each runs and what it means for the job. Pure.

use roadstead_crds::labels;

/// A container of the job's pod that stages run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Container {
    /// Checkout, caches and artifacts.
    Helper,
    /// The job's own scripts, in the job's image.
    Build,
}

impl Container {
    /// Name of the container in the pod.
    pub fn name(self) -> &'static str {
        match self {
            Self::Helper => labels::HELPER_CONTAINER,
            Self::Build => labels::BUILD_CONTAINER,
        }
    }
}

impl std::fmt::Display for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a script that is run by hand is called: it is a script of the job as any step is.
const BY_HAND: &str = "step_run";

/// One stage of a job, by the name that gitlab-runner gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    name: String,
    /// Where it runs, if that does not follow from its name.
    container: Option<Container>,
}

impl Stage {
    /// The stage of that name. Every name is a stage: gitlab-runner may add some.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), container: None }
    }

    /// A script that is run by hand in that container.
    pub fn by_hand(container: Container) -> Self {
        Self { name: BY_HAND.to_owned(), container: Some(container) }
    }

    /// gitlab-runner's name of the stage.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the stage runs: the job's own scripts in `build`, all others in `helper`.
    pub fn container(&self) -> Container {
        self.container.unwrap_or(if self.is_job_script() || self.is_after_script() {
            Container::Build
        } else {
            Container::Helper
        })
    }

    /// Whether it is one of the job's scripts. `build_script` is what the custom executor calls
    /// the step `script`, which is `step_script` everywhere else.
    pub fn is_job_script(&self) -> bool {
        self.name == "build_script" || self.name.starts_with("step_")
    }

    /// Whether it is the job's `after_script`.
    pub fn is_after_script(&self) -> bool {
        self.name == "after_script"
    }

    /// Whether it is one of those that prepare the checkout: what the executor itself may try again.
    pub fn is_section(&self) -> bool {
        self.is_first() || self.name == "get_sources"
    }

    /// Whether it is the stage with which every job begins.
    pub fn is_first(&self) -> bool {
        self.name == "prepare_script"
    }

    /// Whether no background process may outlive the stage: nothing of the job follows it.
    pub fn reaps(&self) -> bool {
        self.is_after_script()
    }

    /// Whether a failure of the stage leaves the job as it is. gitlab-runner only warns about it.
    pub fn may_fail(&self) -> bool {
        self.is_after_script() || self.name == "cleanup_file_variables"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_and_their_containers() {
        let build = ["build_script", "step_script", "step_release", "step_", "after_script"];
        let helper = [
            "prepare_script",
            "get_sources",
            "clear_worktree",
            "boot_verify_probes",
            "restore_cache",
            "download_artifacts",
            "archive_cache",
            "archive_cache_on_failure",
            "upload_artifacts_on_success",
            "upload_artifacts_on_failure",
            "cleanup_file_variables",
            "something_new",
            "",
        ];
        for name in build {
            assert_eq!(Stage::new(name).container(), Container::Build, "{name}");
        }
        for name in helper {
            assert_eq!(Stage::new(name).container(), Container::Helper, "{name}");
        }
    }

    #[test]
    fn a_script_by_hand_runs_where_it_is_wanted() {
        for container in [Container::Build, Container::Helper] {
            let stage = Stage::by_hand(container);
            assert_eq!((stage.container(), stage.is_job_script()), (container, true));
        }
    }

    #[test]
    fn only_after_script_ends_what_still_runs() {
        for (name, reaps) in [("after_script", true), ("build_script", false), ("get_sources", false)] {
            assert_eq!(Stage::new(name).reaps(), reaps, "{name}");
        }
    }

    #[test]
    fn stages_whose_failure_is_no_failure_of_the_job() {
        for (name, may_fail) in [
            ("after_script", true),
            ("cleanup_file_variables", true),
            ("build_script", false),
            ("archive_cache", false),
            ("upload_artifacts_on_success", false),
        ] {
            assert_eq!(Stage::new(name).may_fail(), may_fail, "{name}");
        }
    }
}
