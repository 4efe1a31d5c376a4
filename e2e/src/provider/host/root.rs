//! The cluster's view of the file system: the machine's programs, read-only; its own `/var`, `/run` and `/tmp`; and
//! the state folder. Nothing that runs in the cluster can write anywhere else, and all mounts end with the namespace.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use super::cgroup;
use super::plan::Plan;

/// What the cluster sees of the machine. Links (`/bin` → `usr/bin`) are made as they are.
const SHARED: [&str; 8] = ["usr", "etc", "bin", "sbin", "lib", "lib32", "lib64", "opt"];

/// Settings of the whole machine that the kubelet wants to change. It is shown a file with the value it wants.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Builds the root folder and moves this process into it. Must run in a mount namespace of its own.
pub(super) fn enter(plan: &Plan) -> Result<()> {
    // First of all: nothing that happens from here on may reach the machine's own mount table.
    change(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    let root = plan.dir.join("root");
    make_dir(&root)?;
    bind(&root, &root, MsFlags::empty())?;
    for name in SHARED {
        share(name, &root)?;
    }
    let dev = make_dir(&root.join("dev"))?;
    bind(Path::new("/dev"), &dev, MsFlags::MS_REC)?;
    fresh("proc", &make_dir(&root.join("proc"))?, None)?;
    fresh("sysfs", &make_dir(&root.join("sys"))?, None)?;
    cgroups(plan, &root)?;
    fresh("tmpfs", &make_dir(&root.join("run"))?, Some("mode=755"))?;
    // cAdvisor, inside the kubelet, looks for containerd here and nowhere else.
    make_dir(&root.join("run/containerd"))?;
    link(&plan.dir.join("containerd.sock"), &root.join("run/containerd/containerd.sock"))?;
    for name in ["var/lib", "var/log"] {
        make_dir(&root.join(name))?;
    }
    for name in ["tmp", "var/tmp"] {
        let dir = make_dir(&root.join(name))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o1777))
            .with_context(|| format!("cannot open up {}", dir.display()))?;
    }
    link(Path::new("/run"), &root.join("var/run"))?;
    let state = make_dir(&below(&root, &plan.state))?;
    bind(&plan.state, &state, MsFlags::empty())?;

    chdir(&root).with_context(|| format!("cannot enter {}", root.display()))?;
    // The old root lands on top of the new one and is taken off: no folder for it is needed.
    pivot_root(".", ".").context("cannot change the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot let go of the machine's root")?;
    chdir("/").context("cannot enter the new root")?;
    change(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_SHARED)?;
    tunables(plan)
}

fn share(name: &str, root: &Path) -> Result<()> {
    let source = Path::new("/").join(name);
    let target = root.join(name);
    match fs::read_link(&source) {
        Ok(to) => return link(&to, &target),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    make_dir(&target)?;
    bind(&source, &target, MsFlags::MS_REC)?;
    bind(&source, &target, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)
}

/// `/sys/fs/cgroup` with the cluster's own groups as the roots of their hierarchies.
fn cgroups(plan: &Plan, root: &Path) -> Result<()> {
    let hierarchies = &plan.cgroups.hierarchies;
    let own = below(root, Path::new(cgroup::ROOT));
    if !hierarchies.iter().any(|hierarchy| hierarchy.mount == Path::new(cgroup::ROOT)) {
        fresh("tmpfs", &own, Some("mode=755"))?;
        // Names that stand for a pair: cpu → cpu,cpuacct.
        let listing = fs::read_dir(cgroup::ROOT).with_context(|| format!("cannot list {}", cgroup::ROOT))?;
        for entry in listing.flatten() {
            if let Ok(to) = fs::read_link(entry.path()) {
                link(&to, &own.join(entry.file_name()))?;
            }
        }
    }
    for hierarchy in hierarchies {
        let target = make_dir(&below(root, &hierarchy.mount))?;
        bind(&hierarchy.mount.join(&plan.cgroups.name), &target, MsFlags::empty())?;
    }
    Ok(())
}

fn tunables(plan: &Plan) -> Result<()> {
    let shown = make_dir(&plan.dir.join("tunables"))?;
    for (name, value) in TUNABLES {
        let target = Path::new("/proc/sys").join(name);
        if target.exists() {
            let file = shown.join(name.replace('/', "."));
            fs::write(&file, format!("{value}\n"))
                .with_context(|| format!("cannot write {}", file.display()))?;
            bind(&file, &target, MsFlags::empty())?;
        }
    }
    Ok(())
}

/// An absolute path, seen from outside the new root.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn make_dir(path: &Path) -> Result<PathBuf> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path.to_owned())
}

fn link(to: &Path, at: &Path) -> Result<()> {
    match symlink(to, at) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.with_context(|| format!("cannot link {}", at.display())),
    }
}

fn bind(source: &Path, target: &Path, flags: MsFlags) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | flags, None::<&str>)
        .with_context(|| format!("cannot bind {} to {}", source.display(), target.display()))
}

fn fresh(kind: &str, target: &Path, options: Option<&str>) -> Result<()> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("cannot mount {kind} on {}", target.display()))
}

fn change(target: &Path, flags: MsFlags) -> Result<()> {
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("cannot change the propagation of {}", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        assert_eq!(below(Path::new("/r"), Path::new("/sys/fs")), Path::new("/r/sys/fs"));
    }
}
