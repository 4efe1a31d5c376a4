//! Ending processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgid, getpid};

use super::peer::{self, Stat};

/// How often [`kill_descendants`] looks again for processes that were started while it looked.
const ROUNDS: usize = 100;

/// Sends a signal to a script's process group, and to the shell itself where it has left the group: not
/// to it twice, a trap would run twice. Only to be called while the shell has not been reaped: its
/// number could be another's then.
pub(super) fn signal_group(shell: Pid, signal: Signal) {
    let _ = killpg(shell, signal);
    if getpgid(Some(shell)) != Ok(shell) {
        let _ = kill(shell, signal);
    }
}

/// Kills every process that descends from this one. In a container that is everything but this
/// process and what was exec'd from outside: orphans come to PID 1.
pub(super) fn kill_descendants() {
    let me = getpid().as_raw();
    let mut killed = BTreeSet::new();
    for _ in 0..ROUNDS {
        let found: Vec<i32> = descendants(me, &table()).difference(&killed).copied().collect();
        if found.is_empty() {
            return;
        }
        for pid in found {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            killed.insert(pid);
        }
    }
}

/// All processes with their parents.
fn table() -> BTreeMap<i32, Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            Some((pid, peer::stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)?))
        })
        .collect()
}

/// The living processes below `root`. A chain may lead over dead ones: a zombie keeps its parent
/// until it is reaped, and has no children.
fn descendants(root: i32, table: &BTreeMap<i32, Stat>) -> BTreeSet<i32> {
    let below = |pid: i32| {
        let mut at = pid;
        // No chain is longer than there are processes, even if the table was read while it changed.
        for _ in 0..=table.len() {
            match table.get(&at).map(|stat| stat.parent) {
                Some(parent) if parent == root => return true,
                Some(parent) if parent > 1 => at = parent,
                _ => return false,
            }
        }
        false
    };
    table
        .iter()
        .filter(|(pid, stat)| **pid != root && !matches!(stat.state, b'Z' | b'X') && below(**pid))
        .map(|(pid, _)| *pid)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn below(root: i32, table: &[(i32, u8, i32)]) -> Vec<i32> {
        let table = table.iter().map(|(pid, state, parent)| (*pid, Stat { state: *state, parent: *parent }));
        descendants(root, &table.collect()).into_iter().collect()
    }

    #[test]
    fn what_was_execed_from_outside_is_left_alone() {
        // 1 is the agent, 20 a relay, 30 somebody's shell with a child.
        let table = [
            (1, b'S', 0),
            (5, b'S', 1),
            (6, b'R', 5),
            (7, b'Z', 1),
            (20, b'S', 0),
            (30, b'S', 0),
            (31, b'S', 30),
        ];
        assert_eq!(below(1, &table), [5, 6]);
    }

    #[test]
    fn outside_a_container_only_descendants_count() {
        let table =
            [(1, b'S', 0), (2, b'S', 1), (100, b'S', 2), (101, b'S', 100), (102, b'S', 101), (103, b'S', 1)];
        assert_eq!(below(100, &table), [101, 102]);
    }

    #[test]
    fn a_table_with_a_circle_has_an_end() {
        assert!(below(1, &[(1, b'S', 0), (5, b'S', 6), (6, b'S', 5), (7, b'S', 99)]).is_empty());
    }
}
