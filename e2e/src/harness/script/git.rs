//! `get_sources` and `clear_worktree`: the checkout.

use super::super::error::{JobError, Reason};
use super::super::remote::{Remote, regex_quoted, replacements};
use super::super::settings::GitStrategy;
use super::Source;
use super::writer::Writer;
use crate::coordinator::Variable;

/// Git settings of this job, with the token; outside of the checkout.
pub(super) const EXTERNAL_CONFIG: &str = ".gitlab-runner.ext.conf";

/// Where new repositories get their settings from.
const TEMPLATE: &str = "git-template";

/// Holds the path of [`EXTERNAL_CONFIG`] while a script runs.
pub(super) const EXTERNAL_CONFIG_VARIABLE: &str = "GLR_EXT_GIT_CONFIG_PATH";

impl Source<'_> {
    pub(super) fn get_sources(&self, writer: &mut Writer) -> Result<bool, JobError> {
        self.exports(writer, true);
        writer.export(&Variable::new("GIT_TERMINAL_PROMPT", "0"));
        writer.export(&Variable::new("GCM_INTERACTIVE", "Never"));
        self.git_hooks(
            writer,
            "pre_clone_script",
            &self.config.pre_get_sources_script,
            self.job.hook("pre_get_sources_script"),
            true,
        );
        self.fetch_and_check_out(writer)?;
        self.update_submodules(writer)?;
        self.git_hooks(
            writer,
            "post_clone_script",
            &self.config.post_get_sources_script,
            self.job.hook("post_get_sources_script"),
            false,
        );
        self.change_owner(writer, &[&self.place.root]);
        self.forget_credentials(writer);
        Ok(true)
    }

    /// After a failed attempt: Git cannot always clean what a failed fetch has left.
    pub(super) fn clear_worktree(&self, writer: &mut Writer) -> bool {
        writer.notice("Deleting tracked and untracked files...");
        writer.if_directory(&self.place.project);
        self.enter_project(writer);
        writer.command(&["git", "rm", "-rf", "--ignore-unmatch", "--quiet", "."]);
        writer.command(&["git", "clean", "-ffdx", "-q"]);
        writer.end_if();
        true
    }

    /// Commands around the checkout; the runner's own are the outer ones. Without a repository there are none.
    fn git_hooks(&self, writer: &mut Writer, section: &str, own: &str, hook: &[String], own_first: bool) {
        if matches!(self.settings.strategy, GitStrategy::None | GitStrategy::Empty) {
            return;
        }
        let own: Vec<String> = if own.is_empty() { Vec::new() } else { vec![own.to_owned()] };
        let commands =
            if own_first { [own.as_slice(), hook].concat() } else { [hook, own.as_slice()].concat() };
        writer.user_commands(section, &commands, self.fold());
    }

    fn fetch_and_check_out(&self, writer: &mut Writer) -> Result<(), JobError> {
        if !self.settings.lfs_skip_smudge {
            // Large files are fetched in one go after the checkout.
            writer.export(&Variable::new("GIT_LFS_SKIP_SMUDGE", "1"));
        }
        let project = &self.place.project;
        match self.settings.strategy {
            GitStrategy::None => {
                writer.notice("Skipping Git repository setup");
                writer.make_directory(project);
            }
            GitStrategy::Empty => {
                writer.notice("Skipping Git repository setup and creating an empty build directory");
                writer.remove_directory(project);
                writer.make_directory(project);
            }
            GitStrategy::Clone | GitStrategy::Fetch => {
                self.clean_git_folder(writer);
                let remote = self.remote()?;
                self.write_template(writer, &remote);
                if self.settings.strategy == GitStrategy::Clone {
                    writer.remove_directory(project);
                }
                self.fetch(writer, &remote);
            }
        }
        if !self.settings.checkout {
            writer.notice("Skipping Git checkout");
            return Ok(());
        }
        let git = &self.job.git_info;
        let Some(short) = git.sha.get(..8) else {
            return Err(JobError::System(format!("the commit {:?} is too short", git.sha)));
        };
        writer.notice(&format!("Checking out {short} as detached HEAD (ref is {})...", git.git_ref));
        writer.command(&["git", "-c", "submodule.recurse=false", "checkout", "-f", "-q", &git.sha]);
        self.git_clean(writer);
        if !self.settings.lfs_skip_smudge {
            writer.if_quiet(&["git", "lfs", "version"]);
            writer.command(&["git", "lfs", "pull"]);
            writer.line("echo");
            writer.end_if();
        }
        Ok(())
    }

    pub(super) fn git_clean(&self, writer: &mut Writer) {
        if !self.settings.clean_flags.is_empty() {
            let mut clean = vec!["git", "clean"];
            clean.extend(self.settings.clean_flags.iter().map(String::as_str));
            writer.command(&clean);
        }
    }

    fn remote(&self) -> Result<Remote<'_>, JobError> {
        Remote::parse(&self.job.git_info.repo_url).ok_or_else(|| {
            JobError::build(Reason::Configuration, "the repository's address is not a URL".to_owned())
        })
    }

    /// Settings for the new repository, and the file with the token that they include.
    fn write_template(&self, writer: &mut Writer, remote: &Remote<'_>) {
        let template = format!("{}/{TEMPLATE}", self.place.temporary());
        let template_config = format!("{template}/config");
        let external = writer.temporary(EXTERNAL_CONFIG);
        writer.make_directory(&template);
        for (key, value) in [
            ("init.defaultBranch", "none"),
            ("fetch.recurseSubmodules", "false"),
            ("credential.interactive", "never"),
            ("gc.autoDetach", "false"),
        ] {
            writer.command(&["git", "config", "-f", &template_config, key, value]);
        }

        writer.remove_file(&external);
        let external_git = ["git", "config", "-f", &external];
        if self.variables.is_on("FF_USE_GITALY_CORRELATION_ID") {
            let id = format!("harness-{}", self.job.id);
            let header = format!("X-Gitaly-Correlation-ID: {id}");
            writer.command_expanding(&[&external_git[..], &["http.extraHeader", &header]].concat());
            writer.notice(&format!("Gitaly correlation ID: {id}"));
        }
        if self.variables.is_on("FF_USE_GIT_BUNDLE_URIS") {
            writer.command_expanding(&[&external_git[..], &["transfer.bundleURI", "true"]].concat());
        }
        if self.config.tls_ca.is_some() {
            let key = format!("http.{}.sslCAInfo", remote.base());
            writer.command_expanding(&[&external_git[..], &[&key, "$CI_SERVER_TLS_CA_FILE"]].concat());
        }
        let ssh_host = self.settings.submodule_force_https.then(|| {
            let shell = self.variables.value("CI_SERVER_SHELL_SSH_HOST");
            if shell.is_empty() { self.variables.value("CI_SERVER_HOST") } else { shell }
        });
        for (with, without) in replacements(remote, &self.config.url, &self.job.token, ssh_host) {
            let key = format!("url.{with}.insteadOf");
            let pattern = format!("^{}$", regex_quoted(&without));
            writer.command_expanding(
                &[&external_git[..], &["--replace-all", &key, &without, &pattern]].concat(),
            );
        }
        include(writer, &template_config, &external);
        writer.export_expanding(EXTERNAL_CONFIG_VARIABLE, &external);
    }

    fn fetch(&self, writer: &mut Writer, remote: &Remote<'_>) {
        let git = &self.job.git_info;
        if git.depth > 0 {
            writer.notice(&format!("Fetching changes with git depth set to {}...", git.depth));
        } else {
            writer.notice("Fetching changes...");
        }
        let project = self.place.project.as_str();
        let template = format!("{}/{TEMPLATE}", self.place.temporary());
        let mut init = vec!["git", "init", project, "--template", &template];
        if git.object_format() != "sha1" {
            init.extend(["--object-format", git.object_format()]);
        }
        writer.command(&init);
        writer.change_directory(project);

        let url = remote.without_user();
        writer.if_quiet(&["git", "remote", "add", "origin", &url]);
        writer.notice("Created fresh repository.");
        writer.or_else();
        writer.command(&["git", "remote", "set-url", "origin", &url]);
        // A template counts only for new repositories.
        include(writer, ".git/config", &format!("${EXTERNAL_CONFIG_VARIABLE}"));
        writer.end_if();

        let agent = format!("http.userAgent=gitlab-runner {} linux/amd64", self.config.version);
        let depth = git.depth.to_string();
        let mut fetch = vec!["git", "-c", &agent, "fetch", "origin", "--no-recurse-submodules"];
        fetch.extend(git.refspecs().iter().map(String::as_str));
        if git.depth > 0 {
            fetch.extend(["--depth", &depth]);
        }
        fetch.extend(self.settings.fetch_flags.iter().map(String::as_str));
        if git.depth > 0 {
            writer.command(&fetch);
        } else {
            writer.if_exists(".git/shallow");
            writer.command(&[&fetch[..], &["--unshallow"]].concat());
            writer.or_else();
            writer.command(&fetch);
            writer.end_if();
        }
    }

    /// Removes what an earlier job may have left to trip over or to run: locks, settings, hooks.
    pub(super) fn clean_git_folder(&self, writer: &mut Writer) {
        let folder = format!("{}/.git", self.place.project);
        let modules = format!("{folder}/modules");
        let with_modules = self.with_submodules();
        for name in ["index.lock", "shallow.lock", "HEAD.lock", "hooks/post-checkout", "config.lock"] {
            writer.remove_file(&format!("{folder}/{name}"));
            if with_modules {
                writer.remove_below(&modules, name.rsplit('/').next().unwrap_or(name), 'f');
            }
        }
        writer.remove_below(&format!("{folder}/refs"), "*.lock", 'f');
        if self.settings.strategy == GitStrategy::None {
            return;
        }
        for folder in [writer.temporary(TEMPLATE), folder] {
            writer.remove_file(&format!("{folder}/config"));
            writer.remove_directory(&format!("{folder}/hooks"));
        }
        if with_modules {
            writer.remove_below(&modules, "config", 'f');
            writer.remove_below(&modules, "hooks", 'd');
        }
    }

    /// Tells Git's credential helpers to forget the job's token; whatever they say.
    pub(super) fn forget_credentials(&self, writer: &mut Writer) {
        let Some(remote) = Remote::parse(&self.job.git_info.repo_url) else { return };
        let question = writer.quoted(&format!("url={}\nusername=gitlab-ci-token", remote.base()));
        writer.line(&format!("echo {question} | git credential reject || true"));
    }
}

/// Includes a file into a Git configuration, in place of another one of the same name.
fn include(writer: &mut Writer, target: &str, file: &str) {
    let pattern = format!("{}$", regex_quoted(EXTERNAL_CONFIG));
    writer.command_expanding(&[
        "git",
        "config",
        "--file",
        target,
        "--replace-all",
        "include.path",
        file,
        &pattern,
    ]);
}
