//! The scripts of all stages, as gitlab-runner generates them for bash.

mod artifacts;
mod cache;
mod git;
mod submodules;
mod writer;

use super::config::RunnerConfig;
use super::error::JobError;
use super::job::RunnerJob;
use super::settings::{GitStrategy, Settings};
use super::variables::{Place, Variables};
use writer::Writer;

/// Name of the program that scripts call for caches and artifacts; the custom executor has no other.
const RUNNER_COMMAND: &str = "gitlab-runner";

/// The file behind `GITLAB_ENV`.
const ENV_FILE: &str = "gitlab_runner_env";

/// A stage of a job, in the runner's own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    PrepareScript,
    GetSources,
    ClearWorktree,
    RestoreCache,
    DownloadArtifacts,
    /// `step_` and the step's name; the driver gets `build_script` for `step_script`.
    Step(String),
    AfterScript,
    ArchiveCache {
        success: bool,
    },
    UploadArtifacts {
        success: bool,
    },
    CleanupFileVariables,
}

impl Stage {
    /// The stage of a step.
    pub(super) fn step(name: &str) -> Self {
        Self::Step(name.to_lowercase())
    }

    /// The runner's name of the stage: what sections of the job log are called.
    pub(super) fn name(&self) -> String {
        match self {
            Self::PrepareScript => "prepare_script".to_owned(),
            Self::GetSources => "get_sources".to_owned(),
            Self::ClearWorktree => "clear_worktree".to_owned(),
            Self::RestoreCache => "restore_cache".to_owned(),
            Self::DownloadArtifacts => "download_artifacts".to_owned(),
            Self::Step(name) => format!("step_{name}"),
            Self::AfterScript => "after_script".to_owned(),
            Self::ArchiveCache { success: true } => "archive_cache".to_owned(),
            Self::ArchiveCache { success: false } => "archive_cache_on_failure".to_owned(),
            Self::UploadArtifacts { success: true } => "upload_artifacts_on_success".to_owned(),
            Self::UploadArtifacts { success: false } => "upload_artifacts_on_failure".to_owned(),
            Self::CleanupFileVariables => "cleanup_file_variables".to_owned(),
        }
    }

    /// The heading in the job log.
    pub(super) fn heading(&self) -> String {
        match self {
            Self::PrepareScript => "Preparing environment".to_owned(),
            Self::GetSources => "Getting source from Git repository".to_owned(),
            Self::ClearWorktree => {
                "Deleting all tracked and untracked files due to source fetch failure".to_owned()
            }
            Self::RestoreCache => "Restoring cache".to_owned(),
            Self::DownloadArtifacts => "Downloading artifacts".to_owned(),
            Self::Step(_) => format!("Executing {:?} stage of the job script", self.name()),
            Self::AfterScript => "Running after_script".to_owned(),
            Self::ArchiveCache { success: true } => "Saving cache for successful job".to_owned(),
            Self::ArchiveCache { success: false } => "Saving cache for failed job".to_owned(),
            Self::UploadArtifacts { success: true } => "Uploading artifacts for successful job".to_owned(),
            Self::UploadArtifacts { success: false } => "Uploading artifacts for failed job".to_owned(),
            Self::CleanupFileVariables => "Cleaning up project directory and file based variables".to_owned(),
        }
    }
}

/// Everything that a script is made from.
#[derive(Debug)]
pub(super) struct Source<'a> {
    pub(super) config: &'a RunnerConfig,
    pub(super) job: &'a RunnerJob,
    pub(super) variables: &'a Variables,
    pub(super) settings: &'a Settings,
    pub(super) place: &'a Place,
    /// The shell's name.
    pub(super) shell: &'a str,
    /// What `config` said about the host; empty when nothing.
    pub(super) hostname: &'a str,
}

impl Source<'_> {
    /// The script of a stage; `None` when the stage has nothing to do and the driver is not called.
    pub(super) fn script(&self, stage: &Stage) -> Result<Option<String>, JobError> {
        let trace = self.settings.debug_trace;
        let mut writer = Writer::new(self.shell, self.place.temporary(), trace, self.variables);
        let needed = match stage {
            Stage::PrepareScript => self.prepare(&mut writer),
            Stage::GetSources => self.get_sources(&mut writer)?,
            Stage::ClearWorktree => self.clear_worktree(&mut writer),
            Stage::RestoreCache => self.restore_cache(&mut writer)?,
            Stage::DownloadArtifacts => self.download_artifacts(&mut writer),
            Stage::Step(name) => self.step(&mut writer, name),
            Stage::AfterScript => self.after_script(&mut writer),
            Stage::ArchiveCache { success } => self.archive_cache(&mut writer, *success)?,
            Stage::UploadArtifacts { success } => self.upload_artifacts(&mut writer, *success),
            Stage::CleanupFileVariables => self.cleanup(&mut writer),
        };
        Ok(needed.then(|| writer.finish()))
    }

    /// Sets all variables and reads what earlier stages have left in `GITLAB_ENV`.
    fn exports(&self, writer: &mut Writer, write_files: bool) {
        for variable in &self.variables.0 {
            if variable.file && !write_files {
                let path = writer.temporary(&variable.key);
                writer.export_expanding(&variable.key, &path);
            } else {
                writer.export(variable);
            }
        }
        let file = writer.temporary(ENV_FILE);
        writer.export_expanding("GITLAB_ENV", &file);
        writer.source_env(&file);
    }

    fn enter_project(&self, writer: &mut Writer) {
        writer.change_directory(&self.place.project);
    }

    fn prepare(&self, writer: &mut Writer) -> bool {
        if self.hostname.is_empty() {
            writer.line("echo \"Running on $(hostname)...\"");
        } else {
            writer.line(&format!("echo \"Running on $(hostname) via {}...\"", self.hostname));
        }
        for name in [ENV_FILE, "masking.db"] {
            let file = writer.temporary(name);
            writer.remove_file(&file);
        }
        true
    }

    fn step(&self, writer: &mut Writer, name: &str) -> bool {
        let Some(step) = self.job.steps().iter().find(|step| step.name.to_lowercase() == name) else {
            return false;
        };
        self.exports(writer, true);
        self.enter_project(writer);
        let fold = self.fold();
        let own = |text: &str| if text.is_empty() { Vec::new() } else { vec![text.to_owned()] };
        writer.user_commands("pre_build_script", &own(&self.config.pre_build_script), fold);
        let commands: Vec<String> = match step.name.as_str() {
            // GitLab makes this step from `release:`, so its lines refer to variables of the runner.
            "release" => step.script.iter().map(|line| self.variables.expand_text(line)).collect(),
            _ => step.script.clone(),
        };
        writer.user_commands("script_step", &commands, fold);
        writer.user_commands("post_build_script", &own(&self.config.post_build_script), fold);
        true
    }

    fn after_script(&self, writer: &mut Writer) -> bool {
        let step = self.job.steps().iter().find(|step| step.name == "after_script");
        let Some(step) = step.filter(|step| !step.script.is_empty()) else { return false };
        self.exports(writer, true);
        self.enter_project(writer);
        writer.notice("Running after script...");
        writer.user_commands("after_script_step", &step.script, self.fold());
        true
    }

    fn cleanup(&self, writer: &mut Writer) -> bool {
        self.exports(writer, false);
        self.forget_credentials(writer);
        for name in [ENV_FILE, "masking.db", git::EXTERNAL_CONFIG] {
            let file = writer.temporary(name);
            writer.remove_file(&file);
        }
        for variable in self.variables.0.iter().filter(|variable| variable.file) {
            let file = writer.temporary(&variable.key);
            writer.remove_file(&file);
        }
        if self.variables.is_on("FF_ENABLE_JOB_CLEANUP") {
            self.clean_project(writer);
        }
        self.clean_git_folder(writer);
        writer.remove_file(&self.owner_file());
        true
    }

    /// Empties the project's folder after the job (`FF_ENABLE_JOB_CLEANUP`).
    fn clean_project(&self, writer: &mut Writer) {
        match self.settings.strategy {
            GitStrategy::Clone | GitStrategy::Empty => writer.remove_directory(&self.place.project),
            GitStrategy::Fetch => {
                self.enter_project(writer);
                self.git_clean(writer);
                writer.command(&["git", "reset", "--hard"]);
            }
            GitStrategy::None => writer.notice("Skipping build directory cleanup step"),
        }
    }

    /// A file whose owner the runner's files shall get, if it exists.
    fn owner_file(&self) -> String {
        format!("{}/.gitlab-build-uid-gid", self.place.root)
    }

    fn change_owner(&self, writer: &mut Writer, folders: &[&str]) {
        let owner = self.owner_file();
        writer.if_exists(&owner);
        for folder in folders.iter().filter(|folder| !folder.trim().is_empty()) {
            writer.if_directory(folder);
            writer.line(&format!("chown -R \"$(stat -c '%u:%g' '{owner}')\" '{folder}'"));
            writer.end_if();
        }
        // The shell wants something between `then` and `fi`.
        if folders.iter().all(|folder| folder.trim().is_empty()) {
            writer.line(":");
        }
        writer.end_if();
    }

    fn fold(&self) -> bool {
        self.variables.is_on("FF_SCRIPT_SECTIONS") && self.job.trace_sections()
    }
}

/// Runs commands only where the helper program is; otherwise says that something does not work.
fn with_runner(writer: &mut Writer, action: &str, commands: impl FnOnce(&mut Writer)) {
    writer.if_quiet(&[RUNNER_COMMAND, "--version"]);
    commands(writer);
    writer.or_else();
    writer.warning(&format!("Missing {RUNNER_COMMAND}. {action} is disabled."));
    writer.end_if();
}
