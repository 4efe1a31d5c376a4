//! What goes into each image.

use std::env;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::programs::Programs;
use super::{Archive, Builder, Images, Input, Naming, RUNNER_HELPER_ENV, Recipe, debian};
use crate::exec::{capture, command};
use crate::hash::Key;

/// Where the package `busybox-static` puts its program.
const BUSYBOX: &str = "/bin/busybox";

impl Images<'_> {
    pub(super) fn pause(&self) -> Result<Recipe<'static>> {
        let source = self.workspace.join("e2e/images/pause/pause.c");
        let key = Key::new().file("source", &source)?.finish();
        let program = self.state.cache("programs")?.join(format!("pause-{key}"));
        if !program.exists() {
            let temporary = program.with_extension(std::process::id().to_string());
            let mut cc = command("cc", ["-static", "-Os", "-s", "-Wall", "-Werror", "-o"]);
            capture(cc.arg(&temporary).arg(&source)).context("cannot compile pause.c")?;
            fs::rename(&temporary, &program).context("cannot keep the compiled pause.c")?;
        }
        Ok(recipe("pause", vec![Input::named_by_content("pause", program)]))
    }

    pub(super) fn busybox(&self) -> Recipe<'static> {
        let files = match self.builder {
            Builder::Buildah => vec![Input::new("busybox", BUSYBOX)],
            Builder::Docker => Vec::new(),
        };
        recipe("busybox", files)
    }

    /// Images in which no job can run.
    pub(super) fn unusable(&self) -> [Recipe<'static>; 2] {
        [("foreign", "sh"), ("no-shell", "nothing")].map(|(name, file)| {
            let source = self.workspace.join("e2e/images").join(name).join(file);
            recipe(name, vec![Input::new(file, source)])
        })
    }

    pub(super) fn debian_git(&self) -> Result<Recipe<'static>> {
        let files = match self.builder {
            Builder::Buildah => {
                vec![Input::named_by_content("rootfs.tar", debian::rootfs(self.progress, self.state)?)]
            }
            Builder::Docker => Vec::new(),
        };
        Ok(Recipe { is_base: true, ..recipe("debian-git", files) })
    }

    pub(super) fn debian_user(debian: &Archive) -> Recipe<'_> {
        Recipe { base: Some(debian), ..recipe("debian-user", Vec::new()) }
    }

    pub(super) fn debian_sudo<'d>(&self, debian: &'d Archive) -> Result<Recipe<'d>> {
        let files = match self.builder {
            Builder::Buildah => {
                let package = debian::package(self.progress, self.state, "sudo")?;
                vec![Input::new("debs/sudo.deb", package)]
            }
            Builder::Docker => Vec::new(),
        };
        Ok(Recipe { base: Some(debian), ..recipe("debian-sudo", files) })
    }

    /// The stand-in for GitLab's helper image, where there is a program for it.
    pub(super) fn gitlab_helper<'d>(&self, debian: &'d Archive) -> Option<Recipe<'d>> {
        let shell = self.workspace.join("e2e/images/gitlab-helper/gitlab-runner-build");
        let files = vec![runner_helper()?, Input::new("bin/gitlab-runner-build", shell)];
        Some(Recipe { base: Some(debian), ..recipe("gitlab-helper", files) })
    }

    #[expect(clippy::unused_self, reason = "stands beside the other recipes")]
    pub(super) fn product_recipes<'d>(&self, programs: &Programs, debian: &'d Archive) -> [Recipe<'d>; 4] {
        let product = |name, files| Recipe { naming: Naming::Product, ..recipe(name, files) };
        let one = |name: &str, path: &Path| vec![Input::new(name, path)];
        let mut helper = one("bin/stage-agent", &programs.agent);
        helper.extend(runner_helper());
        [
            product("operator", one("roadstead-operator", &programs.operator)),
            product("executor-shim", one("executor-shim", &programs.shim)),
            product("agent", one("stage-agent", &programs.agent)),
            Recipe { base: Some(debian), ..product("helper", helper) },
        ]
    }
}

/// gitlab-runner's helper, if the environment names one.
fn runner_helper() -> Option<Input> {
    let path = env::var_os(RUNNER_HELPER_ENV).filter(|path| !path.is_empty())?;
    Some(Input::new("bin/gitlab-runner-helper", path))
}

fn recipe(name: &'static str, files: Vec<Input>) -> Recipe<'static> {
    Recipe { name, naming: Naming::Test, base: None, files, is_base: false }
}
