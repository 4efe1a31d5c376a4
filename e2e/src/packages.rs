//! The Debian packages that a cluster needs.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use nix::unistd::Uid;

use crate::exec::{self, command};
use crate::progress::Progress;

/// What the cluster's node, the image builds and the network set-up use.
const PACKAGES: [&str; 13] = [
    "buildah",
    "busybox-static",
    "ca-certificates",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "debootstrap",
    "gcc",
    "iproute2",
    "iptables",
    "libc6-dev",
    "runc",
    "util-linux",
];

/// Installs what is missing.
///
/// # Errors
/// When the machine has no apt-get, this is not root, or the installation fails.
pub fn ensure(progress: &Progress, log_dir: &Path) -> Result<()> {
    if !exec::succeeds(&mut command("apt-get", ["--version"])) {
        bail!("the host provider needs Debian (or a derivative): there is no apt-get here");
    }
    let mut query = command("dpkg-query", ["--show", "--showformat", "${Package} ${db:Status-Status}\n"]);
    // dpkg-query fails when it knows nothing of a name; what it knows is on stdout all the same.
    let known = query.args(PACKAGES).output().map(|output| output.stdout).unwrap_or_default();
    let missing = missing(&String::from_utf8_lossy(&known));
    if missing.is_empty() {
        return Ok(());
    }
    if !Uid::effective().is_root() {
        bail!("these packages are missing, and installing them needs root: {}", missing.join(" "));
    }
    progress.say(format_args!("packages: installing {}", missing.join(" ")));
    let mut update = apt(["update"]);
    exec::logged(progress, "packages: apt-get update", &mut update, &log_dir.join("apt-update.log"))?;
    let mut install = apt(["install", "--yes", "--no-install-recommends"]);
    install.args(&missing);
    exec::logged(progress, "packages: apt-get install", &mut install, &log_dir.join("apt-install.log"))
}

/// `apt-get` that asks nothing and waits for another one's lock.
pub fn apt<const N: usize>(args: [&str; N]) -> Command {
    let mut apt = command("apt-get", ["-o", "DPkg::Lock::Timeout=300"]);
    apt.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    apt
}

/// Which packages `dpkg-query`'s answer does not show as installed.
fn missing(known: &str) -> Vec<&'static str> {
    let installed: Vec<&str> = known.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    PACKAGES.into_iter().filter(|name| !installed.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_is_what_is_not_installed() {
        let mut known = PACKAGES.map(|name| format!("{name} installed")).to_vec();
        assert!(missing(&known.join("\n")).is_empty());
        known[0] = format!("{} config-files", PACKAGES[0]);
        known.remove(1);
        assert_eq!(missing(&known.join("\n")), PACKAGES[..2].to_vec());
    }
}
