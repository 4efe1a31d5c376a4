//! A minimal Debian of this machine's own release, from the package sources that this machine uses.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::exec::{self, capture, command};
use crate::hash::Key;
use crate::lock::Lock;
use crate::packages::apt;
use crate::progress::Progress;
use crate::state::State;

/// What the job images and the helper have beyond Debian's essentials.
const INCLUDED: &str = "ca-certificates,git,git-lfs";
/// Folders without use in an image.
const DROPPED: [&str; 6] = [
    "var/cache/apt/archives",
    "var/lib/apt/lists",
    "var/log",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
];

/// A tar archive of the root file system.
pub(super) fn rootfs(progress: Progress, state: &State) -> Result<PathBuf> {
    let release = release()?;
    let key = Key::new()
        .part("release", &release)
        .part("included", INCLUDED)
        .part("dropped", DROPPED.join(","))
        .finish();
    let archive = state.cache("rootfs")?.join(format!("{release}-{key}.tar"));
    if archive.exists() {
        return Ok(archive);
    }
    let _lock = Lock::wait(&progress, "rootfs", &state.cache_lock("rootfs"))?;
    if archive.exists() {
        return Ok(archive);
    }
    progress.say(format_args!("rootfs: making a minimal Debian ({release})"));
    let mirror = mirror(progress, state, &release)?;
    let scratch = tempfile::Builder::new()
        .prefix("rootfs-")
        .tempdir_in(state.cache("tmp")?)
        .context("cannot make a folder for the root file system")?;
    let root = scratch.path().join("root");
    let log = state.cache("logs")?.join("rootfs.log");
    // In a mount namespace of its own: debootstrap mounts /proc, and may be interrupted.
    let mut debootstrap = command("unshare", ["--mount", "--propagation", "private", "--", "debootstrap"]);
    debootstrap
        .args(["--variant=minbase", &format!("--include={INCLUDED}"), &release])
        .arg(&root)
        .arg(&mirror);
    exec::logged(&progress, "rootfs", &mut debootstrap, &log)?;
    for dropped in DROPPED {
        empty(&root.join(dropped))?;
    }
    let finished = scratch.path().join("rootfs.tar");
    let mut tar = command("tar", ["--create", "--sort=name", "--numeric-owner", "--xattrs", "--file"]);
    capture(tar.arg(&finished).arg("--directory").arg(&root).arg("."))?;
    fs::rename(&finished, &archive).with_context(|| format!("cannot keep {}", archive.display()))?;
    Ok(archive)
}

/// A package's `.deb`, as the machine's package sources have it.
pub(super) fn package(progress: Progress, state: &State, name: &str) -> Result<PathBuf> {
    let cached = state.cache("debs")?.join(format!("{name}-{}.deb", release()?));
    if cached.exists() {
        return Ok(cached);
    }
    progress.say(format_args!("images: fetching the package {name}"));
    let scratch = tempfile::Builder::new()
        .prefix("deb-")
        .tempdir_in(state.cache("tmp")?)
        .context("cannot make a folder for the package")?;
    refresh(progress, state, || {
        // apt fetches as a user of its own where it can; as root it needs no permission on our folder.
        let mut download = apt(["-o", "APT::Sandbox::User=root", "download", name]);
        capture(download.current_dir(scratch.path())).map(drop)
    })?;
    let fetched = fs::read_dir(scratch.path()).context("cannot list the fetched package")?.flatten().next();
    let fetched = fetched.with_context(|| format!("apt-get fetched no package {name}"))?.path();
    fs::rename(&fetched, &cached).with_context(|| format!("cannot keep {}", cached.display()))?;
    Ok(cached)
}

/// Tries, and tries again with fresh package lists.
fn refresh<T>(progress: Progress, state: &State, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    if let Ok(value) = attempt() {
        return Ok(value);
    }
    let log = state.cache("logs")?.join("apt-update.log");
    exec::logged(&progress, "packages: apt-get update", &mut apt(["update"]), &log)?;
    attempt()
}

/// The machine's release, by its code name.
fn release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    match code_name(&text) {
        Some(name) => Ok(name.to_owned()),
        None => bail!("/etc/os-release names no VERSION_CODENAME: the host provider needs Debian"),
    }
}

fn code_name(os_release: &str) -> Option<&str> {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"'))
}

/// Where the machine gets that release's packages from.
fn mirror(progress: Progress, state: &State, release: &str) -> Result<String> {
    let format = "$(CODENAME) $(COMPONENT) $(REPO_URI)";
    refresh(progress, state, || {
        let listing = capture(&mut apt(["indextargets", "--format", format, "Created-By: Packages"]))?;
        match repository(&listing, release) {
            Some(uri) => Ok(uri.to_owned()),
            None => bail!("the package sources of this machine do not have the release {release}"),
        }
    })
}

fn repository<'a>(listing: &'a str, release: &str) -> Option<&'a str> {
    listing.lines().find_map(|line| {
        let mut words = line.split(' ');
        let found = words.next() == Some(release) && words.next() == Some("main");
        found.then(|| words.next()).flatten()
    })
}

fn empty(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
        fs::create_dir(dir).with_context(|| format!("cannot make {} again", dir.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_from_os_release() {
        assert_eq!(code_name("NAME=\"Debian\"\nVERSION_CODENAME=bookworm\n"), Some("bookworm"));
        assert_eq!(code_name("VERSION_CODENAME=\"noble\"\n"), Some("noble"));
        assert_eq!(code_name("NAME=x\n"), None);
    }

    #[test]
    fn the_mirror_is_the_one_of_the_release_itself() {
        let listing =
            "nodistro main http://a/\nbookworm-updates main http://b/\nbookworm main http://c/debian/\n";
        assert_eq!(repository(listing, "bookworm"), Some("http://c/debian/"));
        assert_eq!(repository(listing, "trixie"), None);
    }
}
