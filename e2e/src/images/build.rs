//! Building one image, if the cache does not have it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Archive, Builder, Input, Recipe, docker};
use crate::exec::{self, command};
use crate::hash::Key;
use crate::lock::Lock;
use crate::progress::Progress;
use crate::state::State;

/// Changes when the way of building changes.
const BUILD_VERSION: &str = "2";
/// Archives kept of each image: several clones may be at different versions.
const KEPT_VERSIONS: usize = 4;

/// Builds images into the cache.
pub(super) struct Workshop<'a> {
    progress: Progress,
    builder: Builder,
    state: &'a State,
    workspace: &'a Path,
}

impl<'a> Workshop<'a> {
    pub(super) fn new(progress: Progress, builder: Builder, state: &'a State, workspace: &'a Path) -> Self {
        Self { progress, builder, state, workspace }
    }

    /// The image's archive, from the cache or new.
    pub(super) fn build(&self, recipe: &Recipe<'_>) -> Result<Archive> {
        let folder = self.workspace.join("e2e/images").join(recipe.name);
        let containerfile = match self.builder {
            Builder::Buildah => folder.join("Containerfile"),
            Builder::Docker => docker::containerfile(&folder),
        };
        let key = key(recipe, self.builder, &containerfile)?;
        let cache = self.state.cache("images")?;
        let archive = Archive {
            name: recipe.name.to_owned(),
            reference: recipe.naming.reference(recipe.name, &key),
            path: cache.join(format!("{}-{key}.tar", recipe.name)),
            key,
        };
        if archive.path.exists() {
            return Ok(archive);
        }
        let _lock = Lock::wait(&self.progress, "images", &self.state.cache_lock("images"))?;
        if !archive.path.exists() {
            self.progress.say(format_args!("images: building {}", recipe.name));
            self.run(recipe, &containerfile, &archive)
                .with_context(|| format!("cannot build the image {}", recipe.name))?;
            remove_old(&cache, recipe.name)?;
        }
        Ok(archive)
    }

    fn run(&self, recipe: &Recipe<'_>, containerfile: &Path, archive: &Archive) -> Result<()> {
        let log = self.state.cache("logs")?.join(format!("image-{}.log", recipe.name));
        let scratch = tempfile::Builder::new()
            .prefix("image-")
            .tempdir_in(self.state.cache("tmp")?)
            .context("cannot make a folder for the build")?;
        let context = scratch.path().join("context");
        fs::create_dir_all(&context).context("cannot make the build's context")?;
        for Input { name, file, .. } in &recipe.files {
            let target = context.join(name);
            if let Some(dir) = target.parent() {
                fs::create_dir_all(dir).context("cannot make the build's context")?;
            }
            fs::copy(file, &target).with_context(|| format!("cannot copy {}", file.display()))?;
        }
        let what = format!("images: {}", recipe.name);
        if self.builder == Builder::Docker {
            let run = |command: &mut Command| exec::logged(&self.progress, &what, command, &log);
            let finished = docker::build(recipe, containerfile, archive, scratch.path(), run)?;
            return keep(&finished, archive);
        }
        let run = |args: &[&str], rest: &[&Path]| -> Result<()> {
            exec::logged(&self.progress, &what, &mut self.buildah(scratch.path(), args, rest)?, &log)
        };
        let local = local_name(recipe.name, &archive.key);
        // It makes this folder, and a lock in it, in /etc otherwise.
        let networks = format!("--cni-config-dir={}", scratch.path().join("cni").display());
        let mut args = vec!["build", "--isolation=chroot", "--pull-never", "--layers=false", &networks];
        let id_file = scratch.path().join("id");
        let id_argument = format!("--iidfile={}", id_file.display());
        args.extend([&id_argument, "--tag", &local]);
        let base = recipe.base.map(|base| local_name(&base.name, &base.key));
        if let (Some(archive), Some(name)) = (recipe.base, &base) {
            // The store may have been lost since the base was built.
            let mut list = self.buildah(scratch.path(), &["images", "--quiet", "--filter"], &[])?;
            list.arg(format!("reference={name}"));
            if exec::capture(&mut list).map_or(true, |ids| ids.trim().is_empty()) {
                run(&["pull", &format!("docker-archive:{}", archive.path.display())], &[])?;
                run(&["tag", &archive.reference, name], &[])?;
            }
            args.extend(["--from", name]);
        }
        args.push("--file");
        run(&args, &[containerfile, &context])?;
        // By its id: by name, the archive would carry the local name too.
        let id = fs::read_to_string(&id_file).context("buildah did not tell the image's id")?;
        let finished = scratch.path().join("image.tar");
        let target = format!("docker-archive:{}:{}", finished.display(), archive.reference);
        run(&["push", id.trim(), &target], &[])?;
        keep(&finished, archive)?;
        if !recipe.is_base {
            return run(&["rmi", id.trim()], &[]);
        }
        // Older bases and half-done images; another version of the sources gets its base from the archive.
        let listed =
            exec::capture(&mut self.buildah(scratch.path(), &["images", "--quiet", "--no-trunc"], &[])?)?;
        for other in listed.lines().filter(|other| *other != id.trim()) {
            run(&["rmi", "--force", other], &[])?;
        }
        Ok(())
    }

    /// buildah with a store of its own, in a mount namespace of its own: what it mounts ends with it.
    fn buildah(&self, scratch: &Path, args: &[&str], rest: &[&Path]) -> Result<Command> {
        let store = self.state.cache("buildah")?;
        let run_root = scratch.join("run");
        let mut buildah = command("unshare", ["--mount", "--propagation", "private", "--"]);
        // Whatever its options, it keeps a cache in /var/lib/containers.
        if store.starts_with("/var/lib") {
            buildah.arg("buildah");
        } else {
            buildah.args(["sh", "-c", "mount -t tmpfs none /var/lib && exec \"$@\"", "sh", "buildah"]);
        }
        buildah
            .arg("--root")
            .arg(&store)
            .arg("--runroot")
            .arg(&run_root)
            .args(["--storage-driver", "overlay"])
            .args(args)
            .args(rest)
            .env("TMPDIR", scratch)
            .current_dir(scratch);
        Ok(buildah)
    }
}

fn keep(finished: &Path, archive: &Archive) -> Result<()> {
    fs::rename(finished, &archive.path).with_context(|| format!("cannot keep {}", archive.path.display()))
}

/// The name in the builder's store, where the versions of several clones may meet.
pub(super) fn local_name(name: &str, key: &str) -> String {
    format!("roadstead.test/{name}:{key}")
}

fn key(recipe: &Recipe<'_>, builder: Builder, containerfile: &Path) -> Result<String> {
    let mut key = Key::new().part("build", BUILD_VERSION).file("Containerfile", containerfile)?;
    // Where both can build an image of one name, what they build differs.
    if builder == Builder::Docker {
        key = key.part("builder", "docker");
    }
    if let Some(base) = recipe.base {
        key = key.part("base", &base.key);
    }
    for Input { name, file, named_by_content } in &recipe.files {
        key = if *named_by_content {
            let own = file.file_name().context("an image's input has no name")?;
            key.part(name, own.as_encoded_bytes())
        } else {
            key.file(name, file)?
        };
    }
    Ok(key.finish())
}

/// Keeps the newest archives of an image.
fn remove_old(cache: &Path, name: &str) -> Result<()> {
    let mut archives: Vec<(std::time::SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(cache).with_context(|| format!("cannot list {}", cache.display()))?.flatten() {
        if is_version_of(&entry.file_name().to_string_lossy(), name) {
            let meta = entry.metadata().context("cannot look at an archive")?;
            archives.push((meta.modified().context("cannot tell an archive's age")?, entry.path()));
        }
    }
    archives.sort();
    archives.reverse();
    for (_, path) in archives.into_iter().skip(KEPT_VERSIONS) {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// `debian-git-0123.tar` is a version of `debian-git`, not of `debian`.
fn is_version_of(file: &str, name: &str) -> bool {
    file.strip_prefix(name)
        .and_then(|rest| rest.strip_prefix('-'))
        .and_then(|rest| rest.strip_suffix(".tar"))
        .is_some_and(|key| key.len() == 16 && key.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::images::Naming;

    #[test]
    fn versions_of_one_image_are_told_from_another_image() {
        assert!(is_version_of("debian-git-0123456789abcdef.tar", "debian-git"));
        assert!(!is_version_of("debian-git-0123456789abcdef.tar", "debian"));
        assert!(!is_version_of("debian-git-0123456789abcdef.tar.new", "debian-git"));
    }

    #[test]
    fn the_newest_archives_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let path = |index: u32| dir.path().join(format!("agent-{index:016x}.tar"));
        for index in 0..6 {
            let file = fs::File::create(path(index)).unwrap();
            file.set_modified(now + Duration::from_secs(u64::from(index))).unwrap();
        }
        fs::write(dir.path().join("other-0000000000000000.tar"), "").unwrap();
        remove_old(dir.path(), "agent").unwrap();
        let left: Vec<bool> = (0..6).map(|index| path(index).exists()).collect();
        assert_eq!(left, [false, false, true, true, true, true]);
        assert!(dir.path().join("other-0000000000000000.tar").exists());
    }

    #[test]
    fn a_key_follows_base_files_and_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "x").unwrap();
        let base = |key: &str| Archive {
            name: "b".into(),
            reference: "roadstead.test/b:e2e".into(),
            key: key.into(),
            path: "/b".into(),
        };
        let (one, two) = (base("1"), base("2"));
        let recipe = |base, name: &str| Recipe {
            name: "n",
            naming: Naming::Test,
            base,
            files: vec![Input::new(name, &file)],
            is_base: false,
        };
        let keys = [recipe(None, "f"), recipe(Some(&one), "f"), recipe(Some(&two), "f"), recipe(None, "g")]
            .map(|recipe| key(&recipe, Builder::Buildah, &file).unwrap());
        let docker = key(&recipe(None, "f"), Builder::Docker, &file).unwrap();
        assert!(!keys.contains(&docker));
        for (index, one) in keys.iter().enumerate() {
            assert!(!keys[index + 1..].contains(one), "{keys:?}");
        }
    }
}
