//! Building one image with Docker.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::build::local_name;
use super::{Archive, Recipe};
use crate::exec::{command, succeeds};

/// An image's own description for Docker where it has one, or else the one for all builders.
pub(super) fn containerfile(folder: &Path) -> PathBuf {
    let own = folder.join("Containerfile.docker");
    if own.exists() { own } else { folder.join("Containerfile") }
}

/// Builds the image from the context in the scratch folder and returns its archive there.
pub(super) fn build(
    recipe: &Recipe<'_>,
    containerfile: &Path,
    archive: &Archive,
    scratch: &Path,
    run: impl Fn(&mut Command) -> Result<()>,
) -> Result<PathBuf> {
    let text = fs::read_to_string(containerfile)
        .with_context(|| format!("cannot read {}", containerfile.display()))?;
    let base = recipe.base.map(|base| (base, local_name(&base.name, &base.key)));
    if let Some((archive, name)) = &base
        && !succeeds(&mut command("docker", ["image", "inspect", name]))
    {
        // Docker's store may have been cleared since the base was built.
        run(command("docker", ["load", "--input"]).arg(&archive.path))?;
        run(&mut command("docker", ["tag", &archive.reference, name]))?;
    }
    let file = scratch.join("Containerfile");
    let text = match &base {
        Some((base, name)) => from(&text, &base.reference, name),
        None => text,
    };
    fs::write(&file, text).context("cannot write the image's description")?;
    let local = local_name(recipe.name, &archive.key);
    let mut build = command("docker", ["build", "--tag", &local, "--file"]);
    run(build.arg(&file).arg(scratch.join("context")))?;
    run(&mut command("docker", ["tag", &local, &archive.reference]))?;
    let finished = scratch.join("image.tar");
    run(command("docker", ["save", "--output"]).arg(&finished).arg(&archive.reference))?;
    let mut names = vec![archive.reference.as_str()];
    if !recipe.is_base {
        names.push(&local);
    }
    run(command("docker", ["image", "rm"]).args(names))?;
    Ok(finished)
}

/// The description with this version of the base in place of whichever one has the name now.
fn from(text: &str, base: &str, local: &str) -> String {
    text.replace(&format!("FROM {base}\n"), &format!("FROM {local}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::{Builder, Images};
    use crate::progress::Progress;
    use crate::state::{State, workspace};

    #[test]
    fn every_image_that_starts_from_another_one_gets_that_version_of_it() {
        for name in ["debian-sudo", "debian-user", "helper"] {
            let file = containerfile(&workspace().join("e2e/images").join(name));
            let text = fs::read_to_string(file).unwrap();
            let text = from(&text, "roadstead.test/debian-git:e2e", "roadstead.test/debian-git:123");
            assert!(text.contains("FROM roadstead.test/debian-git:123\n"), "{name}: {text}");
        }
    }

    #[test]
    fn what_docker_builds_needs_none_of_this_machines_packages() {
        let home = tempfile::tempdir().unwrap();
        let (state, workspace) = (State::at(home.path().to_owned()), workspace());
        let images = Images::new(Progress::start(), Builder::Docker, &state, &workspace);
        for recipe in [images.busybox(), images.debian_git().unwrap()] {
            assert!(recipe.files.is_empty(), "{recipe:?}");
            let file = containerfile(&workspace.join("e2e/images").join(recipe.name));
            assert!(file.ends_with("Containerfile.docker"), "{}", file.display());
        }
    }
}
