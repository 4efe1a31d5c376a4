//! Control groups: a cluster lives in one group per hierarchy, which it sees as the root (cgroup namespace).
//! Both versions are handled, and machines that mix them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::wait;

/// Where hierarchies are mounted.
pub(super) const ROOT: &str = "/sys/fs/cgroup";
/// The group of the cluster's own programs, beside the kubelet's `kubepods`.
const SYSTEM: &str = "system";

/// One mounted hierarchy.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Hierarchy {
    /// Its mount point.
    pub(super) mount: PathBuf,
    /// Version 2.
    pub(super) unified: bool,
}

/// A cluster's groups.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Cgroups {
    /// The group's name in every hierarchy.
    pub(super) name: String,
    /// All hierarchies of the machine.
    pub(super) hierarchies: Vec<Hierarchy>,
}

impl Cgroups {
    /// The groups of that name in the hierarchies of this machine.
    pub(super) fn of_machine(name: String) -> Result<Self> {
        let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
        Ok(Self { name, hierarchies: hierarchies(&text) })
    }

    /// Makes the groups and puts this process into them.
    pub(super) fn enter(&self) -> Result<()> {
        for hierarchy in &self.hierarchies {
            if hierarchy.unified {
                delegate(&hierarchy.mount)?;
            }
            join(&hierarchy.mount, &self.name)?;
        }
        Ok(())
    }

    /// Inside the cgroup namespace: makes room at the (new) root, where version 2 allows no process once there are
    /// groups below it.
    pub(super) fn enter_system(&self) -> Result<()> {
        for hierarchy in &self.hierarchies {
            join(&hierarchy.mount, SYSTEM)?;
            if hierarchy.unified {
                delegate(&hierarchy.mount)?;
            }
        }
        Ok(())
    }

    /// Removes the groups, once their processes are gone.
    pub(super) fn remove(&self) -> Result<()> {
        for hierarchy in &self.hierarchies {
            let group = hierarchy.mount.join(&self.name);
            let what = format!("removal of the control group {}", group.display());
            // A process that has just died counts a moment longer.
            wait::until(&what, Duration::from_secs(20), Duration::from_millis(20), || {
                remove_tree(&group).map(Some).map_err(Into::into)
            })?;
        }
        Ok(())
    }
}

fn join(parent: &Path, name: &str) -> Result<()> {
    let group = parent.join(name);
    let context = || format!("cannot enter the control group {}", group.display());
    match fs::create_dir(&group) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.with_context(context)?,
    }
    // Version 1: a new cpuset is empty, and takes no process before it has processors and memory nodes.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (own, above) = (group.join(file), parent.join(file));
        if own.exists() && above.exists() && fs::read_to_string(&own).with_context(context)?.trim().is_empty()
        {
            let value = fs::read_to_string(&above).with_context(context)?;
            fs::write(&own, value.trim()).with_context(context)?;
        }
    }
    fs::write(group.join("cgroup.procs"), "0").with_context(context)
}

/// Version 2: lets the groups below have every controller that this one has.
fn delegate(group: &Path) -> Result<()> {
    let context = || format!("cannot hand on controllers in {}", group.display());
    let has = fs::read_to_string(group.join("cgroup.controllers")).with_context(context)?;
    let control = group.join("cgroup.subtree_control");
    let given = fs::read_to_string(&control).with_context(context)?;
    for controller in has.split_whitespace().filter(|name| !given.split_whitespace().any(|own| own == *name))
    {
        fs::write(&control, format!("+{controller}")).with_context(context)?;
    }
    Ok(())
}

/// Removes groups from the bottom up. (Files in there are the kernel's and go with their folder.)
fn remove_tree(group: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The hierarchies in a mountinfo text.
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let Some(mount) = before.split(' ').nth(4) else { continue };
        let unified = match after.split(' ').next() {
            Some("cgroup") => false,
            Some("cgroup2") => true,
            _ => continue,
        };
        let hierarchy = Hierarchy { mount: PathBuf::from(mount), unified };
        if hierarchy.mount.starts_with(ROOT) && !found.contains(&hierarchy) {
            found.push(hierarchy);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(mount: &str, unified: bool) -> Hierarchy {
        Hierarchy { mount: mount.into(), unified }
    }

    #[test]
    fn both_versions_and_their_mixture_are_found() {
        let mixed = "24 1 0:5 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                     25 24 0:6 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                     26 24 0:7 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
                     27 24 0:7 / /somewhere/else rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(
            hierarchies(mixed),
            [hierarchy("/sys/fs/cgroup/cpu,cpuacct", false), hierarchy("/sys/fs/cgroup/unified", true)]
        );
        let two = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(hierarchies(two), [hierarchy("/sys/fs/cgroup", true)]);
    }

    #[test]
    fn a_tree_of_groups_goes_from_the_bottom_up() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("g");
        fs::create_dir_all(group.join("a/b")).unwrap();
        fs::create_dir_all(group.join("c")).unwrap();
        remove_tree(&group).unwrap();
        assert!(!group.exists());
        remove_tree(&group).unwrap();
    }
}
