//! What happened: every call of the driver with its arguments, its environment, and each byte it wrote.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::moment::Moment;

/// Which of the driver's four programs was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallKind {
    /// `config_exec`.
    Config,
    /// `prepare_exec`.
    Prepare,
    /// `run_exec`.
    Run,
    /// `cleanup_exec`.
    Cleanup,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallExit {
    /// It exited.
    Code(i32),
    /// It was killed by this signal.
    Signal(i32),
    /// It could not be started.
    NotStarted(String),
    /// It, or something that holds its output, was still there after SIGKILL and `force_kill_timeout`.
    Dormant,
}

/// One of a process's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of output, as it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputEvent {
    /// When it was read.
    pub at: Moment,
    /// Where it came from.
    pub stream: Stream,
    /// Where it begins in that stream's bytes.
    pub offset: usize,
    /// How many bytes it has.
    pub len: usize,
}

/// One call of the driver.
#[derive(Clone)]
pub struct CallRecord {
    /// Which program.
    pub kind: CallKind,
    /// `config`, `prepare`, `cleanup`, or the name of the stage that `run` was called for.
    pub stage: String,
    /// The try of `prepare` that this call belongs to, from 1.
    pub attempt: u32,
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// The whole environment.
    pub env: BTreeMap<OsString, OsString>,
    /// `TMPDIR`, which is also the working directory.
    pub tmpdir: PathBuf,
    /// The script of a `run` call.
    pub script: Option<String>,
    /// Number of the process, which is also the number of its group.
    pub pid: Option<u32>,
    /// When it was started.
    pub started: Moment,
    /// When the process had ended.
    pub exited: Option<Moment>,
    /// When the runner went on: after the process and both of its pipes had ended.
    pub ended: Option<Moment>,
    /// How it ended; `None` while it runs, and for good when the runner died.
    pub exit: Option<CallExit>,
    /// Everything it wrote to standard output.
    pub stdout: Vec<u8>,
    /// Everything it wrote to standard error.
    pub stderr: Vec<u8>,
    /// In which pieces that came.
    pub events: Vec<OutputEvent>,
    /// Signals that the runner sent to its group.
    pub signals: Vec<(Moment, i32)>,
}

impl CallRecord {
    /// A variable of its environment.
    pub fn env(&self, name: &str) -> Option<String> {
        self.env.get(&OsString::from(name)).map(|value| value.to_string_lossy().into_owned())
    }

    /// Its standard output as text.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its standard error as text.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The exit code, if it exited.
    pub fn code(&self) -> Option<i32> {
        match self.exit {
            Some(CallExit::Code(code)) => Some(code),
            _ => None,
        }
    }

    /// How long the runner was in this call.
    pub fn duration(&self) -> Option<Duration> {
        self.ended.map(|ended| ended.since(self.started))
    }

    /// When the byte at `offset` of a stream had arrived.
    pub fn arrived(&self, stream: Stream, offset: usize) -> Option<Moment> {
        let event = self.events.iter().find(|event| {
            event.stream == stream && (event.offset..event.offset + event.len).contains(&offset)
        })?;
        Some(event.at)
    }

    /// When `text` was complete on standard output. Echoed commands (`$ …` in green) do not count.
    pub fn when(&self, text: &str) -> Option<Moment> {
        let text = text.as_bytes();
        let echoed = |place: usize| {
            let feed = self.stdout[..place].iter().rposition(|byte| *byte == b'\n');
            is_echo(&self.stdout[feed.map_or(0, |feed| feed + 1)..])
        };
        let mut places = self.stdout.windows(text.len().max(1)).enumerate();
        let (start, _) = places.find(|(place, window)| *window == text && !echoed(*place))?;
        self.arrived(Stream::Stdout, start + text.len() - 1)
    }

    /// When the first line of standard output was complete that is not an echoed command (`$ …` in green).
    pub fn first_line(&self) -> Option<Moment> {
        let mut offset = 0;
        for line in self.stdout.split_inclusive(|byte| *byte == b'\n') {
            offset += line.len();
            if line.ends_with(b"\n") && !is_echo(line) {
                return self.arrived(Stream::Stdout, offset - 1);
            }
        }
        None
    }
}

/// Whether a line is what the runner's script says before it runs a command.
pub(super) fn is_echo(line: &[u8]) -> bool {
    line.starts_with(b"\x1b[32;1m$ ")
}

impl fmt::Debug for CallRecord {
    /// Leaves out the environment and the script: they are long and full of secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallRecord")
            .field("stage", &self.stage)
            .field("attempt", &self.attempt)
            .field("argv", &self.argv)
            .field("pid", &self.pid)
            .field("exit", &self.exit)
            .field("duration", &self.duration())
            .field("stdout", &self.stdout_text())
            .field("stderr", &self.stderr_text())
            .field("signals", &self.signals.iter().map(|(_, signal)| *signal).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// Collects calls while they run. Clones are the same collection.
#[derive(Debug, Clone)]
pub(super) struct Recorder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    calls: Mutex<Vec<CallRecord>>,
    version: watch::Sender<u64>,
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner { calls: Mutex::new(Vec::new()), version: watch::Sender::new(0) }))
    }

    /// Adds a call and gives its number.
    pub(super) fn begin(&self, call: CallRecord) -> usize {
        let index = {
            let mut calls = self.lock();
            calls.push(call);
            calls.len() - 1
        };
        self.0.version.send_modify(|version| *version += 1);
        index
    }

    /// Changes a call.
    pub(super) fn change(&self, index: usize, change: impl FnOnce(&mut CallRecord)) {
        if let Some(call) = self.lock().get_mut(index) {
            change(call);
        }
        self.0.version.send_modify(|version| *version += 1);
    }

    /// Adds output to a call.
    pub(super) fn output(&self, index: usize, stream: Stream, bytes: &[u8]) {
        let at = Moment::now();
        self.change(index, |call| {
            let all = if stream == Stream::Stdout { &mut call.stdout } else { &mut call.stderr };
            let event = OutputEvent { at, stream, offset: all.len(), len: bytes.len() };
            all.extend_from_slice(bytes);
            call.events.push(event);
        });
    }

    /// All calls as they stand.
    pub(super) fn calls(&self) -> Vec<CallRecord> {
        self.lock().clone()
    }

    /// Looks at the calls without copying them.
    pub(super) fn look<T>(&self, look: impl FnOnce(&[CallRecord]) -> T) -> T {
        look(&self.lock())
    }

    /// Tells when something has changed.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<CallRecord>> {
        self.0.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
