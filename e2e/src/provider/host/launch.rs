//! The step between `cargo e2e up` and the supervisor: makes the namespaces and leaves the supervisor as their first
//! process, so that the death of that one process is the end of everything in them.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::setsid;
use serde::{Deserialize, Serialize};

use super::plan::{Plan, file};
use crate::state::replace;

/// The supervisor, as this machine sees it. A process number alone could have been given to another one since.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// Clock ticks between the machine's start and the process's.
    pub(super) started: u64,
}

impl Process {
    /// The process that has this number now.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, started: start_time(&stat)? })
    }

    /// Whether that very process is there still.
    pub(super) fn lives(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// The 22nd field of `/proc/PID/stat`. The second one, the name in parentheses, may contain anything. None for a
/// process that has ended and waits to be collected.
fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Starts the supervisor and returns; it goes on without a parent.
///
/// # Errors
/// When this is not root, or the kernel refuses one of the steps.
pub fn run(plan_file: &Path) -> Result<()> {
    let plan: Plan = super::read_json(plan_file)?;
    close_inherited()?;
    setsid().context("cannot leave the session")?;
    plan.cgroups.enter()?;
    // The cgroup namespace comes after the move: its root is where the process is.
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .context("cannot make namespaces (this needs root)")?;
    let log = plan.dir.join("logs/supervisor.log");
    let log =
        File::options().append(true).open(&log).with_context(|| format!("cannot open {}", log.display()))?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let child = Command::new(program)
        .arg("supervise")
        .arg(plan_file)
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share the log")?)
        .stderr(log)
        .spawn()
        .context("cannot start the supervisor")?;
    let process = Process::of(child.id()).context("the supervisor ended at once")?;
    let text = serde_json::to_vec(&process).context("cannot write the supervisor's number")?;
    replace(&plan.dir.join(file::PROCESS), text)
}

/// Whoever called may have handed down files, such as the pipe of a CI system that waits for its end.
fn close_inherited() -> Result<()> {
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")
        .context("cannot list the open files")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        match nix::unistd::close(fd) {
            // The listing's own file is closed already.
            Ok(()) | Err(Errno::EBADF) => {}
            Err(error) => return Err(error).context("cannot close an inherited file"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let me = Process::of(std::process::id()).unwrap();
        assert!(me.lives());
        assert!(!Process { started: me.started + 1, ..me }.lives());
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let fields: Vec<String> = (4..=30).map(|field| field.to_string()).collect();
        let stat = |state: &str| format!("7 (a) b) c) {state} {}", fields.join(" "));
        assert_eq!(start_time(&stat("S")), Some(22));
        assert_eq!(start_time(&stat("Z")), None);
    }
}
