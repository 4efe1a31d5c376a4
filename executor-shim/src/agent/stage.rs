//! A running script.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::cgroup::{self, Memory};
use super::clock::{Moment, earliest};
use super::environment;
use super::lifecycle::{Act, Lifecycle};
use super::log;
use super::pipes::{Pipe, Taken};
use super::positions::Stream;
use super::process;
use super::script::{Script, Slot};
use super::spool::{FrameBuffer, Spool};
use super::start::Start;
use crate::wire::message::{ExitRecord, Limit, Run};

/// What every script of this container is started with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting<'a> {
    /// A directory of the agent's own for the search path.
    pub bin: Option<&'a Path>,
    /// Whether the checkout may belong to another user.
    pub foreign_checkout: bool,
}

/// A stage from the start of its shell to the end of its output.
#[derive(Debug)]
pub(super) struct Stage {
    /// What it was started for.
    pub run: Run,
    child: Child,
    pid: Pid,
    pipes: [Pipe; 2],
    spool: Spool,
    started: Moment,
    memory: Memory,
    cpu_ms: Option<u64>,
    life: Lifecycle,
    end: Option<(End, Moment)>,
    fault: Option<String>,
    leaving: bool,
    expired: bool,
}

/// How the shell has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Status(ExitStatus),
    /// Somebody else has reaped it.
    Unknown,
}

/// What is left of a stage that is over.
#[derive(Debug)]
pub(super) struct Remains {
    /// What it was started for.
    pub run: Run,
    /// How it ended.
    pub record: ExitRecord,
    /// Its output.
    pub spool: Spool,
    /// Pipes that other processes still hold.
    pub pipes: Vec<Pipe>,
}

impl Stage {
    /// Starts a script.
    pub fn start(
        run: Run,
        shell: &Path,
        (script, slot): (&Script, &mut Slot),
        setting: Setting<'_>,
        spool: Spool,
        now: Moment,
    ) -> io::Result<Self> {
        let memory = cgroup::memory();
        let (out, out_end) = Pipe::new(Stream::Out)?;
        let (err, err_end) = Pipe::new(Stream::Err)?;
        let vars = environment::of_script(std::env::vars_os(), setting.bin, setting.foreign_checkout);
        let mut start = Start::new(shell, &slot.path(), vars, (out_end, err_end))?;
        let mut child = slot.lend(script, || start.spawn())?;
        start.confirm(&mut child)?;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        Ok(Self {
            run,
            child,
            pid,
            pipes: [out, err],
            spool,
            started: now,
            memory,
            cpu_ms: cgroup::cpu_ms(),
            life: Lifecycle::new(),
            end: None,
            fault: None,
            leaving: false,
            expired: false,
        })
    }

    /// The shell's process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its output.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Its output, to be changed.
    pub fn spool_mut(&mut self) -> &mut Spool {
        &mut self.spool
    }

    /// The pipes from which something can still come.
    pub fn open_pipes(&self) -> impl Iterator<Item = (usize, &Pipe)> {
        self.pipes.iter().enumerate().filter(|(_, pipe)| pipe.is_open())
    }

    /// Takes what one pipe has, once.
    pub fn take(&mut self, pipe: usize, buffer: &mut FrameBuffer) -> Taken {
        let Some(pipe) = self.pipes.get_mut(pipe) else { return Taken::End };
        let room = crate::wire::frame::HEADER_LEN;
        let taken = pipe.take(buffer.get_mut(room..).unwrap_or_default());
        if let Taken::Data(len) = taken
            && self.fault.is_none()
            && let Err(error) = self.spool.append(pipe.stream(), buffer, len)
        {
            self.fail(format!("the output could not be stored: {error}"));
        }
        self.settle();
        taken
    }

    /// A client wants the script to end.
    pub fn stop(&mut self, now: Moment, grace_ms: u64) {
        let act = self.life.stop(now, grace_ms);
        self.act(act);
    }

    /// The container is being ended from outside. The script is told so, and whatever it makes of that:
    /// its end is not its own, and no success.
    pub fn leave(&mut self, now: Moment, grace_ms: u64) {
        // A shell that has ended before did so by itself.
        self.leaving = self.end.is_none();
        self.stop(now, grace_ms);
    }

    /// The script must end at once.
    pub fn kill(&mut self) {
        let act = self.life.kill();
        self.act(act);
    }

    /// The shell is dead, but not reaped. Takes what it had written, and its status.
    pub fn shell_ended(&mut self, now: Moment, buffer: &mut FrameBuffer) {
        if self.end.is_some() {
            return;
        }
        let act = self.life.shell_ended(now);
        self.act(act);
        let end = match self.child.try_wait() {
            Ok(Some(status)) => End::Status(status),
            Ok(None) | Err(_) => End::Unknown,
        };
        self.ended(end, now, buffer);
    }

    /// Looks whether the shell has ended without having been seen dead.
    pub fn shell_may_have_ended(&mut self, now: Moment, buffer: &mut FrameBuffer) {
        if self.end.is_some() {
            return;
        }
        let end = match self.child.try_wait() {
            Ok(None) => return,
            Ok(Some(status)) => End::Status(status),
            Err(_) => End::Unknown,
        };
        let _ = self.life.shell_ended(now);
        self.ended(end, now, buffer);
    }

    fn ended(&mut self, end: End, now: Moment, buffer: &mut FrameBuffer) {
        self.end = Some((end, now));
        for pipe in 0..self.pipes.len() {
            // More than the pipe holds was not there when the shell ended.
            let mut left = self.pipes.get(pipe).map_or(0, Pipe::capacity);
            while let Taken::Data(len) = self.take(pipe, buffer) {
                left = left.saturating_sub(len);
                if left == 0 {
                    break;
                }
            }
        }
        self.settle();
    }

    /// Does what its time has come for.
    pub fn tick(&mut self, now: Moment) {
        if let Some((limit, at)) = self.expiry()
            && at <= now
        {
            self.expired = true;
            log::say(format_args!(
                "stage {:?} has run for {} ms: its time is up",
                self.run.stage, limit.after_ms
            ));
            self.stop(now, limit.grace_ms);
        }
        let act = self.life.tick(now);
        self.act(act);
    }

    /// The limit of a script that still runs and was not told to end, and when that will be.
    fn expiry(&self) -> Option<(Limit, Moment)> {
        let limit = self.run.limit.filter(|_| self.end.is_none() && !self.life.stopped())?;
        Some((limit, self.started.plus(limit.after_ms)))
    }

    /// When to [`tick`](Self::tick).
    pub fn deadline(&self) -> Option<Moment> {
        earliest([self.life.deadline(), self.expiry().map(|(_, at)| at)])
    }

    /// Whether it has ended and its output is complete.
    pub fn is_over(&self) -> bool {
        self.life.is_over()
    }

    /// Settles the account of a stage that is over.
    pub fn into_remains(self) -> Remains {
        let now = cgroup::memory();
        let (end, ended) = self.end.unwrap_or((End::Unknown, self.started));
        let (code, signal, error) = match (self.fault, end) {
            (Some(fault), _) => (None, None, Some(fault)),
            (None, End::Status(_)) if self.leaving => {
                (None, None, Some("the container was ended from outside while the script ran".to_owned()))
            }
            (None, End::Status(status)) => (status.code(), status.signal(), None),
            (None, End::Unknown) => (None, None, Some("the shell's exit status was lost".to_owned())),
        };
        let positions = self.spool.positions();
        let record = ExitRecord {
            attempt: self.run.attempt.clone(),
            code,
            signal,
            stdout_bytes: positions.offset(Stream::Out),
            stderr_bytes: positions.offset(Stream::Err),
            spool_bytes: positions.len(),
            wall_ms: ended.since(self.started),
            stopped: self.life.stopped(),
            expired: self.expired,
            cpu_ms: cgroup::cpu_ms().zip(self.cpu_ms).map(|(now, before)| now.saturating_sub(before)),
            oom_kills: now.oom_kills.map(|kills| kills.saturating_sub(self.memory.oom_kills.unwrap_or(0))),
            peak_memory_bytes: now.peak,
            memory_limit_bytes: now.limit,
            error,
        };
        let pipes = self.pipes.into_iter().filter(Pipe::is_open).collect();
        Remains { run: self.run, record, spool: self.spool, pipes }
    }

    /// The output cannot be kept as it was: the stage cannot succeed any more, and there is no point in
    /// going on.
    pub fn fail(&mut self, fault: String) {
        if self.fault.is_none() {
            log::say(format_args!("stage {:?}: {fault}", self.run.stage));
            self.fault = Some(fault);
            self.kill();
        }
    }

    fn settle(&mut self) {
        if self.open_pipes().next().is_none() {
            self.life.pipes_closed();
        }
    }

    fn act(&self, act: Option<Act>) {
        // Once the shell is reaped its number may be another's.
        if self.end.is_some() {
            return;
        }
        match act {
            None => {}
            Some(Act::Kill) => process::signal_group(self.pid, Signal::SIGKILL),
            Some(Act::Terminate) => {
                process::signal_group(self.pid, Signal::SIGTERM);
                process::signal_group(self.pid, Signal::SIGCONT);
            }
        }
    }
}
