//! Submodules, at the end of the checkout.

use super::super::error::{JobError, Reason};
use super::super::settings::Submodules;
use super::Source;
use super::git::EXTERNAL_CONFIG_VARIABLE;
use super::writer::Writer;

impl Source<'_> {
    pub(super) fn with_submodules(&self) -> bool {
        matches!(self.settings.submodules, Submodules::Normal | Submodules::Recursive)
    }

    pub(super) fn update_submodules(&self, writer: &mut Writer) -> Result<(), JobError> {
        let recursive = match self.settings.submodules {
            Submodules::None => {
                writer.notice("Skipping Git submodules setup");
                return Ok(());
            }
            Submodules::Invalid => {
                return Err(JobError::System("unknown GIT_SUBMODULE_STRATEGY".to_owned()));
            }
            Submodules::Normal => false,
            Submodules::Recursive => true,
        };
        let paths = &self.settings.submodule_paths;
        if paths.iter().any(|path| path == ":(exclude)") {
            let message = format!("GIT_SUBMODULE_PATHS: invalid submodule pathspec {paths:?}");
            return Err(JobError::build(Reason::Configuration, message));
        }
        self.announce(writer, recursive);

        let recurse: &[&str] = if recursive { &["--recursive"] } else { &[] };
        let mut only: Vec<&str> = Vec::new();
        if !paths.is_empty() {
            only.push("--");
            only.extend(paths.iter().map(String::as_str));
        }
        let depth = self.settings.submodule_depth.to_string();
        let flags: Vec<&str> = self.settings.submodule_update_flags.iter().map(String::as_str).collect();

        let sync = [&["git", "submodule", "sync"], recurse, &only].concat();
        let foreach = [&["git", "submodule", "foreach"], recurse].concat();
        let mut clean = vec!["git", "clean"];
        if self.settings.clean_flags.is_empty() {
            clean.push("-ffdx");
        } else {
            clean.extend(self.settings.clean_flags.iter().map(String::as_str));
        }
        let clean = [foreach.as_slice(), &clean].concat();
        let reset = [foreach.as_slice(), &["git", "reset", "--hard"]].concat();
        let include = format!("include.path=${EXTERNAL_CONFIG_VARIABLE}");
        let limit: &[&str] = if self.settings.submodule_depth > 0 { &["--depth", &depth] } else { &[] };
        let update = [
            &["git", "-c", &include, "submodule", "update", "--init"],
            recurse,
            limit,
            flags.as_slice(),
            &only,
        ]
        .concat();

        writer.command(&["git", "submodule", "init"]);
        writer.command(&sync);
        writer.command(&clean);
        writer.command(&reset);
        writer.if_loud_expanding(&update);
        writer.notice("Updated submodules");
        writer.command(&sync);
        writer.or_else();
        writer.warning("Updating submodules failed. Retrying...");
        if flags.iter().any(|flag| flag.eq_ignore_ascii_case("--remote")) {
            let heads = ["git", "fetch", "origin", "+refs/heads/*:refs/remotes/origin/*"];
            let words = [&["git", "-c", include.as_str()], &foreach[1..], &heads].concat();
            writer.command_expanding(&words);
        }
        writer.command(&sync);
        writer.command_expanding(&update);
        writer.command(&reset);
        writer.end_if();
        writer.command(&clean);

        writer.notice("Configuring submodules to use parent git credentials...");
        let path = format!("${EXTERNAL_CONFIG_VARIABLE}");
        let all = ["git", "submodule", "foreach", "--recursive"];
        let set = ["git", "config", "--replace-all", "include.path", &path];
        writer.command_expanding(&[&all[..], &set].concat());
        if !self.settings.lfs_skip_smudge {
            writer.if_quiet(&["git", "lfs", "version"]);
            writer.notice("Pulling LFS files...");
            let words = [&["git", "-c", include.as_str()], &foreach[1..], &["git", "lfs", "pull"]].concat();
            writer.command_expanding(&words);
            writer.end_if();
        }
        Ok(())
    }

    fn announce(&self, writer: &mut Writer, recursive: bool) {
        let how = if recursive { " recursively" } else { "" };
        match self.settings.submodule_depth {
            depth @ 1.. => writer
                .notice(&format!("Updating/initializing submodules{how} with git depth set to {depth}...")),
            _ => writer.notice(&format!("Updating/initializing submodules{how}...")),
        }
    }
}
