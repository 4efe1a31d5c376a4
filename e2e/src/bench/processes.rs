//! Memory and processor time of running programs, from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::unistd::{SysconfVar, sysconf};

/// How often [`Watch`] looks. A program lives for some tens of milliseconds at least, and its mark stays until it ends.
const EVERY: Duration = Duration::from_millis(2);

/// A process on this machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Process(i32);

impl Process {
    /// The first process of a container, by the id that its control group is named after.
    pub(super) fn of_container(id: &str) -> Result<Self> {
        let member = |process: &Self| {
            fs::read_to_string(process.path("cgroup")).is_ok_and(|groups| groups.contains(id))
        };
        match all().into_iter().find(member) {
            Some(process) => Ok(process),
            None => bail!("no process of this machine is in the container {id}"),
        }
    }

    fn path(self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.0))
    }

    /// The most memory that it ever had resident, in bytes: its own and what of its program's file was in use.
    pub(super) fn peak_memory(self) -> Result<u64> {
        self.memory("VmHWM")
    }

    /// A line of the process's status, in bytes.
    pub(super) fn memory(self, key: &str) -> Result<u64> {
        let text = fs::read_to_string(self.path("status")).context("the process is gone")?;
        kibibytes(&text, key).map(|kib| kib * 1024).with_context(|| format!("the process has no {key}"))
    }

    /// Lets [`Process::peak_memory`] begin anew with what it has now.
    pub(super) fn forget_peak(self) -> Result<()> {
        fs::write(self.path("clear_refs"), "5").context("cannot reset the process's peak memory")
    }

    /// Processor time that it has used so far, in its own code and in the kernel.
    pub(super) fn processor_time(self) -> Result<Duration> {
        let text = fs::read_to_string(self.path("stat")).context("the process is gone")?;
        let ticks = processor_ticks(&text).context("the process's times cannot be read")?;
        let per_second =
            sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u32::try_from(ticks).ok());
        let per_second =
            per_second.filter(|ticks| *ticks > 0).context("the kernel does not say what a tick is")?;
        Ok(Duration::from_secs(ticks) / per_second)
    }
}

/// All processes that this one can see.
fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Process)).collect()
}

/// A value of `/proc/PID/status`.
fn kibibytes(status: &str, key: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// User and system time from `/proc/PID/stat`. The program's name may hold spaces and parentheses.
fn processor_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Watches the processes that run one of some programs and keeps the highest peak of each.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    peaks: Arc<Mutex<BTreeMap<PathBuf, u64>>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches processes of these programs from now on.
    pub(super) fn start(programs: &[&Path]) -> Self {
        let programs: Vec<PathBuf> = programs
            .iter()
            .map(|program| program.canonicalize().unwrap_or_else(|_| program.into()))
            .collect();
        let stop = Arc::new(AtomicBool::new(false));
        let peaks = Arc::new(Mutex::new(BTreeMap::new()));
        let (stopped, found) = (Arc::clone(&stop), Arc::clone(&peaks));
        let thread = std::thread::spawn(move || {
            // What a process runs changes only while it is new.
            let mut known: BTreeMap<i32, Option<usize>> = BTreeMap::new();
            while !stopped.load(Ordering::Relaxed) {
                let now = all();
                known.retain(|pid, _| now.iter().any(|process| process.0 == *pid));
                for process in now {
                    let index = match known.get(&process.0) {
                        Some(index) => *index,
                        None => running(process, &programs),
                    };
                    known.insert(process.0, index);
                    let Some(program) = index.and_then(|index| programs.get(index)) else { continue };
                    let Ok(peak) = process.peak_memory() else { continue };
                    let mut peaks = found.lock().unwrap_or_else(PoisonError::into_inner);
                    let highest = peaks.entry(program.clone()).or_insert(0);
                    *highest = peak.max(*highest);
                }
                std::thread::sleep(EVERY);
            }
        });
        Self { stop, peaks, thread: Some(thread) }
    }

    /// The highest peak of a program's processes so far, in bytes; `None` when there was none.
    pub(super) fn peak(&self, program: &Path) -> Option<u64> {
        let program = program.canonicalize().unwrap_or_else(|_| program.into());
        self.peaks.lock().unwrap_or_else(PoisonError::into_inner).get(&program).copied()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to panic with.
            let _ = thread.join();
        }
    }
}

/// Which of the programs a process runs.
fn running(process: Process, programs: &[PathBuf]) -> Option<usize> {
    let program = fs::read_link(process.path("exe")).ok()?;
    programs.iter().position(|one| *one == program)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn status_and_stat_are_read_whatever_the_name() {
        let status = "Name:\tx\nVmPeak:\t 9000 kB\nVmHWM:\t    1234 kB\nThreads:\t3\n";
        assert_eq!(kibibytes(status, "VmHWM"), Some(1234));
        assert_eq!(kibibytes(status, "VmRSS"), None);
        assert_eq!(kibibytes(status, "Threads"), None);
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194304 100 0 0 0 25 17 3 4 20 0 1 0 5 6 7";
        assert_eq!(processor_ticks(stat), Some(42));
        assert_eq!(processor_ticks("7 (x) S 1"), None);
    }

    #[test]
    fn a_programs_peak_is_seen() {
        let program =
            ["/bin/cat", "/usr/bin/cat"].map(Path::new).into_iter().find(|path| path.exists()).unwrap();
        let watch = Watch::start(&[program]);
        let mut child = Command::new(program).stdin(Stdio::piped()).spawn().unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while watch.peak(program).is_none() {
            assert!(std::time::Instant::now() < until, "nothing was seen");
            std::thread::yield_now();
        }
        drop(child.stdin.take());
        child.wait().unwrap();
        let peak = watch.peak(program).unwrap();
        assert!((64 << 10..64 << 20).contains(&peak), "{peak}");
        assert_eq!(watch.peak(Path::new("/nonexistent")), None);
    }

    #[test]
    fn a_process_has_memory_and_time() {
        // One that does nothing: the memory of this one grows between two looks.
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = Process(i32::try_from(child.id()).unwrap());
        let resident = process.memory("VmRSS").unwrap();
        assert!(process.peak_memory().unwrap() >= resident);
        process.processor_time().unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
