//! What the container has: looked up, never run.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access, getegid, geteuid};

use crate::wire::message::Tools;

/// Where programs are looked for in a container that sets no PATH.
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// GitLab's order of looking for a shell. Busybox images may have theirs in a place of its own.
const BASHES: [&str; 3] = ["/usr/local/bin/bash", "/usr/bin/bash", "/bin/bash"];
const SHS: [&str; 4] = ["/usr/local/bin/sh", "/usr/bin/sh", "/bin/sh", "/busybox/sh"];

/// Finds the shell for a dialect: `bash` may fall back on `sh`, as GitLab's scripts for bash avoid
/// what only bash has. `exists` says whether a path is a program.
pub(super) fn shell(dialect: &str, exists: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let bashes: &[&str] = match dialect {
        "bash" => &BASHES,
        "sh" => &[],
        _ => return None,
    };
    bashes.iter().chain(&SHS).map(Path::new).find(|path| exists(path)).map(Path::to_owned)
}

/// Whether a path is a program that this user may run.
pub(super) fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file()) && access(path, AccessFlags::X_OK).is_ok()
}

/// Finds a program on a search path. Relative entries are left out: scripts change their directory.
pub(super) fn on_path(name: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|file| is_program(file))
}

/// The container's search path.
pub(super) fn search_path() -> OsString {
    std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into())
}

/// GitLab's scripts call the runner for caches and artifacts by the name `gitlab-runner`; its helper
/// images have it under another one. Makes the name and says where, if it is wanted.
pub(super) fn link_runner(run_dir: &Path, path: &OsStr) -> io::Result<Option<PathBuf>> {
    if on_path("gitlab-runner", path).is_some() {
        return Ok(None);
    }
    let Some(helper) = on_path("gitlab-runner-helper", path) else { return Ok(None) };
    let bin = run_dir.join("bin");
    fs::create_dir_all(&bin)?;
    let link = bin.join("gitlab-runner");
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => symlink(helper, link)?,
    }
    Ok(Some(bin))
}

/// Answers a probe.
pub(super) fn tools(dialect: &str, bin: Option<&Path>) -> Tools {
    let path = search_path();
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let find = |name: &str| on_path(name, &path).map(text);
    Tools {
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        shell: shell(dialect, is_program).map(text),
        git: find("git"),
        git_lfs: find("git-lfs"),
        gitlab_runner: find("gitlab-runner").or_else(|| bin.map(|bin| text(bin.join("gitlab-runner")))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn shells_are_looked_for_in_gitlabs_order() {
        for (dialect, has, expected) in [
            ("bash", vec!["/bin/bash", "/usr/bin/bash", "/bin/sh"], Some("/usr/bin/bash")),
            ("bash", vec!["/bin/bash", "/usr/local/bin/bash"], Some("/usr/local/bin/bash")),
            ("bash", vec!["/bin/sh", "/busybox/sh"], Some("/bin/sh")),
            ("bash", vec!["/busybox/sh"], Some("/busybox/sh")),
            ("sh", vec!["/bin/bash", "/bin/sh"], Some("/bin/sh")),
            ("sh", vec!["/bin/bash"], None),
            ("bash", vec![], None),
            ("pwsh", vec!["/bin/sh", "/bin/bash"], None),
        ] {
            let found = shell(dialect, |path| has.contains(&path.to_str().unwrap()));
            assert_eq!(found, expected.map(PathBuf::from), "{dialect} {has:?}");
        }
    }

    fn program(dir: &Path, name: &str, mode: u32) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join(name), "").unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_runner_gets_its_name_only_where_it_lacks_it() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two, run) = (dir.path().join("one"), dir.path().join("two"), dir.path().join("run"));
        let path = std::env::join_paths([Path::new("relative"), &one, &two]).unwrap();
        fs::create_dir(&run).unwrap();
        assert_eq!(link_runner(&run, &path).unwrap(), None);
        program(&one, "gitlab-runner-helper", 0o644);
        fs::create_dir_all(two.join("gitlab-runner")).unwrap();
        assert_eq!(link_runner(&run, &path).unwrap(), None, "neither is a program");
        program(&two, "gitlab-runner-helper", 0o755);
        for _ in 0..2 {
            assert_eq!(link_runner(&run, &path).unwrap(), Some(run.join("bin")));
            let link = fs::read_link(run.join("bin/gitlab-runner")).unwrap();
            assert_eq!(link, two.join("gitlab-runner-helper"));
        }
        program(&one, "gitlab-runner", 0o755);
        assert_eq!(link_runner(&run, &path).unwrap(), None);
    }
}
