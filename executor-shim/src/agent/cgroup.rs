//! What the kernel says about the container's memory, with either version of control groups.

use std::fs;
use std::path::{Path, PathBuf};

/// Memory figures of the container; absent where the kernel does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Processes killed for memory so far.
    pub oom_kills: Option<u64>,
    /// Most that was ever used, in bytes.
    pub peak: Option<u64>,
    /// Limit in bytes; absent where there is none.
    pub limit: Option<u64>,
}

/// Values from here on mean "no limit" in version 1, which rounds the largest number to pages.
const UNLIMITED: u64 = 1 << 60;

/// Reads the figures of the own control group.
pub(super) fn memory() -> Memory {
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    below(Path::new("/sys/fs/cgroup"), &membership)
}

fn below(mount: &Path, membership: &str) -> Memory {
    match own(membership, "memory") {
        Some(Own::V1(path)) => {
            let dir = existing(&mount.join("memory"), path, "memory.oom_control");
            Memory {
                oom_kills: field(&dir.join("memory.oom_control"), "oom_kill"),
                peak: number(&dir.join("memory.max_usage_in_bytes")),
                limit: number(&dir.join("memory.limit_in_bytes")).filter(|limit| *limit < UNLIMITED),
            }
        }
        Some(Own::V2(path)) => {
            let dir = existing(mount, path, "memory.events");
            Memory {
                oom_kills: field(&dir.join("memory.events"), "oom_kill"),
                peak: number(&dir.join("memory.peak")),
                // The word "max" is no number.
                limit: number(&dir.join("memory.max")),
            }
        }
        None => Memory::default(),
    }
}

/// Processor time that the own control group has used so far, in milliseconds.
pub(super) fn cpu_ms() -> Option<u64> {
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    cpu_below(Path::new("/sys/fs/cgroup"), &membership)
}

fn cpu_below(mount: &Path, membership: &str) -> Option<u64> {
    match own(membership, "cpuacct")? {
        Own::V1(path) => {
            let dir = existing(&mount.join("cpuacct"), path, "cpuacct.usage");
            number(&dir.join("cpuacct.usage")).map(|nanoseconds| nanoseconds / 1_000_000)
        }
        Own::V2(path) => {
            let dir = existing(mount, path, "cpu.stat");
            field(&dir.join("cpu.stat"), "usage_usec").map(|microseconds| microseconds / 1000)
        }
    }
}

enum Own<'a> {
    V1(&'a str),
    V2(&'a str),
}

/// Finds the own group for a controller in `/proc/self/cgroup`. Where it is one of version 1, the line of version 2 has
/// no files of it.
fn own<'a>(membership: &'a str, controller: &str) -> Option<Own<'a>> {
    let mut v2 = None;
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        if controllers.split(',').any(|name| name == controller) {
            return Some(Own::V1(path));
        }
        if controllers.is_empty() {
            v2 = Some(Own::V2(path));
        }
    }
    v2
}

/// The own group's directory. Without a namespace of its own, a container sees the host's path in
/// its membership but has its own group at the mount's top.
fn existing(mount: &Path, path: &str, file: &str) -> PathBuf {
    let dir = mount.join(path.trim_start_matches('/'));
    if dir.join(file).exists() { dir } else { mount.to_owned() }
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn field(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        }
        dir
    }

    #[test]
    fn version_1_in_a_container() {
        let dir = tree(&[
            ("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ("memory/memory.max_usage_in_bytes", "4096\n"),
            ("memory/memory.limit_in_bytes", "67108864\n"),
        ]);
        let membership = "12:cpu,cpuacct:/kubepods/x\n5:memory:/kubepods/burstable/pod1/c1\n0::/x\n";
        let memory = below(dir.path(), membership);
        assert_eq!(memory, Memory { oom_kills: Some(2), peak: Some(4096), limit: Some(67_108_864) });
    }

    #[test]
    fn version_1_without_a_limit() {
        let dir = tree(&[
            ("memory/a/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n"),
            ("memory/a/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(below(dir.path(), "5:memory:/a\n"), Memory::default());
    }

    #[test]
    fn version_2() {
        let events = "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n";
        let dir = tree(&[("memory.events", events), ("memory.peak", "123\n"), ("memory.max", "max\n")]);
        let memory = below(dir.path(), "0::/\n");
        assert_eq!(memory, Memory { oom_kills: Some(1), peak: Some(123), limit: None });
        fs::write(dir.path().join("memory.max"), "1048576\n").unwrap();
        assert_eq!(below(dir.path(), "0::/../x\n").limit, Some(1_048_576));
    }

    #[test]
    fn processor_time_is_told_by_either_version() {
        let v1 = tree(&[("cpuacct/a/cpuacct.usage", "1234567890\n")]);
        assert_eq!(cpu_below(v1.path(), "4:cpu,cpuacct:/a\n5:memory:/b\n"), Some(1234));
        let v2 = tree(&[("cpu.stat", "usage_usec 7654321\nuser_usec 1\n")]);
        assert_eq!(cpu_below(v2.path(), "0::/\n"), Some(7654));
        assert_eq!(cpu_below(v2.path(), ""), None);
    }

    #[test]
    fn nothing_is_known_without_control_groups() {
        let dir = tree(&[]);
        for membership in ["", "0::/\n", "5:memory:/\n", "nonsense"] {
            assert_eq!(below(dir.path(), membership), Memory::default(), "{membership:?}");
        }
    }
}
