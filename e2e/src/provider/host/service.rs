//! The supervisor's services: when they start, how they end, when they start again.

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::plan::{Condition, Service as Wanted};
use crate::progress::Progress;

/// A service that ran this long is started again at once; a shorter life makes it wait.
const LONG_LIFE: Duration = Duration::from_secs(5);
/// The first wait; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait.
const LAST_WAIT: Duration = Duration::from_secs(5);
/// A condition's port is on this machine: it answers or refuses at once.
const CONNECT: Duration = Duration::from_millis(200);

/// What a service is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    /// Its conditions are not there yet.
    Waiting,
    /// It runs.
    Running(Pid),
    /// It ended by itself and starts again then.
    Backoff(Instant),
    /// It was told to stop and is still there.
    Ending(Pid),
    /// It was told to stop.
    Stopped,
}

/// One service.
pub(super) struct Service {
    wanted: Wanted,
    log: PathBuf,
    pub(super) state: State,
    pub(super) starts: u32,
    since: Instant,
    wait: Duration,
    /// Its next death was asked for: it starts again at once.
    killed: bool,
}

/// All services.
pub(super) struct Services {
    progress: Progress,
    all: Vec<Service>,
}

impl Services {
    pub(super) fn new(progress: Progress, wanted: &[Wanted], logs: &Path) -> Self {
        let service = |wanted: &Wanted| Service {
            log: logs.join(format!("{}.log", wanted.name)),
            wanted: wanted.clone(),
            state: State::Waiting,
            starts: 0,
            since: Instant::now(),
            wait: FIRST_WAIT,
            killed: false,
        };
        Self { progress, all: wanted.iter().map(service).collect() }
    }

    /// The service of that name.
    pub(super) fn find(&mut self, name: &str) -> Option<&mut Service> {
        self.all.iter_mut().find(|service| service.wanted.name == name)
    }

    /// One line per service: `NAME STATE PID STARTS`.
    pub(super) fn status(&self) -> String {
        let line = |service: &Service| {
            let (state, pid) = match service.state {
                State::Waiting => ("waiting", None),
                State::Running(pid) => ("running", Some(pid)),
                State::Backoff(_) => ("backoff", None),
                State::Ending(pid) => ("ending", Some(pid)),
                State::Stopped => ("stopped", None),
            };
            let pid = pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            format!("{} {state} {pid} {}\n", service.wanted.name, service.starts)
        };
        self.all.iter().map(line).collect()
    }

    /// Starts what can start now.
    pub(super) fn advance(&mut self) {
        for service in &mut self.all {
            let due = match service.state {
                State::Waiting => service.wanted.after.iter().all(holds),
                State::Backoff(until) => Instant::now() >= until,
                _ => false,
            };
            if due {
                service.start(self.progress);
            }
        }
    }

    /// Collects every ended process: services, and what the container shims leave to the first process.
    pub(super) fn reap(&mut self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(status) => {
                    if let Some(pid) = status.pid() {
                        self.ended(pid, status);
                    }
                }
                // Interrupted, or a status that the library has no name for: the process is collected all the same.
                Err(_) => {}
            }
        }
    }

    fn ended(&mut self, pid: Pid, status: WaitStatus) {
        let progress = self.progress;
        for service in &mut self.all {
            match service.state {
                State::Running(own) if own == pid => {
                    progress.say(format_args!("{}: ended ({status:?})", service.wanted.name));
                    service.ended();
                }
                State::Ending(own) if own == pid => {
                    progress.say(format_args!("{}: stopped ({status:?})", service.wanted.name));
                    service.state = State::Stopped;
                }
                _ => {}
            }
        }
    }
}

impl Service {
    /// Lets a stopped service start again.
    pub(super) fn resume(&mut self) {
        if matches!(self.state, State::Stopped | State::Backoff(_)) {
            self.wait = FIRST_WAIT;
            self.state = State::Waiting;
        }
    }

    /// Sends a signal. Says whether there was a process to send it to.
    pub(super) fn signal(&mut self, signal: Signal) -> Result<bool> {
        let (State::Running(pid) | State::Ending(pid)) = self.state else { return Ok(false) };
        if signal == Signal::SIGKILL {
            self.killed = true;
        }
        kill(pid, signal).with_context(|| format!("cannot send {signal} to {}", self.wanted.name))?;
        Ok(true)
    }

    /// Marks it as not wanted any more.
    pub(super) fn end(&mut self) {
        self.state = match self.state {
            State::Running(pid) | State::Ending(pid) => State::Ending(pid),
            _ => State::Stopped,
        };
    }

    fn start(&mut self, progress: Progress) {
        self.since = Instant::now();
        self.starts += 1;
        self.killed = false;
        match spawn(&self.wanted, &self.log) {
            Ok(pid) => {
                self.state = State::Running(pid);
                progress.say(format_args!("{}: started as {pid}", self.wanted.name));
            }
            Err(error) => {
                progress.say(format_args!("{}: {error:#}", self.wanted.name));
                self.ended();
            }
        }
    }

    fn ended(&mut self) {
        let wait = if self.killed || self.since.elapsed() >= LONG_LIFE {
            self.wait = FIRST_WAIT;
            Duration::ZERO
        } else {
            let wait = self.wait;
            self.wait = (wait * 2).min(LAST_WAIT);
            wait
        };
        self.state = State::Backoff(Instant::now() + wait);
    }
}

fn spawn(wanted: &Wanted, log: &Path) -> Result<Pid> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot open {}", log.display()))?;
    let (program, args) = wanted.argv.split_first().context("the service has no command")?;
    // The handle is dropped on purpose: `reap` collects every process.
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share the log")?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let pid = i32::try_from(child.id()).context("a process number out of range")?;
    Ok(Pid::from_raw(pid))
}

fn holds(condition: &Condition) -> bool {
    match condition {
        Condition::Port(address) => TcpStream::connect_timeout(address, CONNECT).is_ok(),
        Condition::Socket(path) => UnixStream::connect(path).is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(argv: &[&str], after: Vec<Condition>) -> (tempfile::TempDir, Services) {
        let dir = tempfile::tempdir().unwrap();
        let argv = argv.iter().map(ToString::to_string).collect();
        let wanted = Wanted { name: "x".into(), argv, after };
        let services = Services::new(Progress::start(), &[wanted], dir.path());
        (dir, services)
    }

    #[test]
    fn a_service_waits_for_its_conditions() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let (_dir, mut services) = services(&["/nonexistent"], vec![Condition::Socket(socket.clone())]);
        services.advance();
        assert_eq!(services.status(), "x waiting - 0\n");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        services.advance();
        assert_eq!(services.status(), "x backoff - 1\n");
    }

    #[test]
    fn waits_grow_after_short_lives_and_a_kill_is_forgiven() {
        let (_dir, mut services) = services(&["/nonexistent"], vec![]);
        services.advance();
        let service = services.find("x").unwrap();
        assert_eq!(service.wait, FIRST_WAIT * 2);
        for _ in 0..10 {
            service.ended();
        }
        assert_eq!(service.wait, LAST_WAIT);
        service.killed = true;
        service.ended();
        assert_eq!(service.wait, FIRST_WAIT);
        assert!(matches!(service.state, State::Backoff(until) if until <= Instant::now()));
    }

    #[test]
    fn a_stopped_service_stays_stopped_until_it_is_resumed() {
        let (_dir, mut services) = services(&["/nonexistent"], vec![]);
        services.find("x").unwrap().end();
        services.advance();
        assert_eq!(services.status(), "x stopped - 0\n");
        assert!(!services.find("x").unwrap().signal(Signal::SIGTERM).unwrap());
        services.find("x").unwrap().resume();
        services.advance();
        assert_eq!(services.status(), "x backoff - 1\n");
    }
}
