//! Starting the driver's programs and stopping them, as gitlab-runner does.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::joblog::JobLog;
use super::moment::Moment;
use super::record::{CallExit, CallKind, CallRecord, Recorder, Stream};
use super::scope::Scope;

/// A task that ends with whoever started it.
#[derive(Debug)]
pub(super) struct Task<T>(Option<JoinHandle<T>>);

impl<T: Send + 'static> Task<T> {
    pub(super) fn spawn(work: impl Future<Output = T> + Send + 'static) -> Self {
        Self(Some(tokio::spawn(work)))
    }

    /// Waits for its end; `None` when it panicked or was stopped.
    pub(super) async fn join(&mut self) -> Option<T> {
        match &mut self.0 {
            Some(handle) => {
                let result = handle.await.ok();
                self.0 = None;
                result
            }
            None => None,
        }
    }

    /// Lets it go on by itself.
    pub(super) fn detach(mut self) {
        self.0 = None;
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.abort();
        }
    }
}

/// What is to be started.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) kind: CallKind,
    pub(super) stage: String,
    pub(super) attempt: u32,
    pub(super) argv: Vec<OsString>,
    pub(super) env: BTreeMap<OsString, OsString>,
    pub(super) tmpdir: PathBuf,
    pub(super) script: Option<String>,
}

/// How a call is stopped.
#[derive(Debug, Clone, Copy)]
pub(super) struct KillTimeouts {
    /// From SIGTERM to SIGKILL.
    pub(super) graceful: Duration,
    /// From SIGKILL to giving up.
    pub(super) force: Duration,
}

/// A process of the driver that may live longer than the runner.
#[derive(Debug, Clone)]
pub struct Orphan {
    /// Number of the process and of its group.
    pub pid: u32,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Orphan {
    /// How it ended; `None` while it lives.
    pub fn exit(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits for its end; `None` when the deadline passes first.
    pub async fn wait(&self, deadline: Duration) -> Option<ExitStatus> {
        let mut exit = self.exit.clone();
        let waited = tokio::time::timeout(deadline, exit.wait_for(Option::is_some)).await;
        waited.ok()?.ok().and_then(|status| *status)
    }

    /// Sends a signal to its whole group.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        ensure!(signal_group(self.pid, signal), "process {} is gone", self.pid);
        Ok(())
    }

    /// Kills its whole group; for cleaning up.
    pub fn kill(&self) {
        // It may be gone already, and then there is nothing to do.
        let _ = signal_group(self.pid, Signal::SIGKILL);
    }
}

/// A call that has ended.
pub(super) struct Ended {
    /// Its number in the recorder.
    pub(super) index: usize,
    pub(super) exit: CallExit,
}

/// Where calls are recorded and what they write to.
#[derive(Debug, Clone)]
pub(super) struct Runner {
    pub(super) recorder: Recorder,
    pub(super) log: JobLog,
    pub(super) timeouts: KillTimeouts,
    /// The process that was started last.
    pub(super) latest: watch::Sender<Option<Orphan>>,
}

impl Runner {
    /// Runs a call to its end: the end of the process and of both of its pipes. When the scope ends first, the
    /// process's group gets SIGTERM, later SIGKILL, and then the runner gives up.
    pub(super) async fn run(&self, call: Call, scope: &Scope) -> Ended {
        let kind = call.kind;
        let mut command = Command::new(&call.argv[0]);
        command
            .args(&call.argv[1..])
            .env_clear()
            .envs(&call.env)
            .current_dir(&call.tmpdir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let index = self.recorder.begin(CallRecord {
            kind,
            stage: call.stage,
            attempt: call.attempt,
            argv: call.argv,
            env: call.env,
            tmpdir: call.tmpdir,
            script: call.script,
            pid: None,
            started: Moment::now(),
            exited: None,
            ended: None,
            exit: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            events: Vec::new(),
            signals: Vec::new(),
        });
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return self.ended(index, CallExit::NotStarted(error.to_string())),
        };
        let pid = child.id();
        self.recorder.change(index, |call| call.pid = pid);

        // The readers end with this future, as pipes end with the runner; the process itself does not.
        let mut stdout = child.stdout.take().map(|pipe| self.reader(index, kind, Stream::Stdout, pipe));
        let mut stderr = child.stderr.take().map(|pipe| self.reader(index, kind, Stream::Stderr, pipe));
        let (report, mut exit) = watch::channel(None);
        let recorder = self.recorder.clone();
        tokio::spawn(async move {
            let status = child.wait().await;
            recorder.change(index, |call| call.exited = Some(Moment::now()));
            report.send_replace(status.ok());
        });
        let pid = pid.unwrap_or_default();
        self.latest.send_replace(Some(Orphan { pid, exit: exit.clone() }));

        let status = {
            let finished = async {
                let status = exit.wait_for(Option::is_some).await.ok().and_then(|status| *status);
                for reader in [&mut stdout, &mut stderr].into_iter().flatten() {
                    reader.join().await;
                }
                status
            };
            tokio::pin!(finished);
            tokio::select! {
                status = &mut finished => Some(status),
                _ = scope.done() => self.stop(index, pid, finished.as_mut()).await,
            }
        };
        if let Some(status) = status {
            return self.ended(index, exit_of(status));
        }
        for reader in [stdout, stderr].into_iter().flatten() {
            reader.detach();
        }
        self.ended(index, CallExit::Dormant)
    }

    /// Stops a call; `None` when even SIGKILL did not end it.
    async fn stop<F>(&self, index: usize, pid: u32, mut finished: F) -> Option<Option<ExitStatus>>
    where
        F: Future<Output = Option<ExitStatus>> + Unpin,
    {
        if !self.signal(index, pid, Signal::SIGTERM) {
            self.signal(index, pid, Signal::SIGKILL);
        }
        if let Ok(status) = tokio::time::timeout(self.timeouts.graceful, &mut finished).await {
            return Some(status);
        }
        self.signal(index, pid, Signal::SIGKILL);
        tokio::time::timeout(self.timeouts.force, finished).await.ok()
    }

    fn signal(&self, index: usize, pid: u32, signal: Signal) -> bool {
        self.recorder.change(index, |call| call.signals.push((Moment::now(), signal as i32)));
        signal_group(pid, signal)
    }

    /// Records what comes from a pipe, and writes it to the job log where the runner does.
    fn reader(
        &self,
        index: usize,
        kind: CallKind,
        stream: Stream,
        mut pipe: impl AsyncRead + Unpin + Send + 'static,
    ) -> Task<()> {
        let recorder = self.recorder.clone();
        let logged = match kind {
            CallKind::Prepare | CallKind::Run => true,
            CallKind::Config => stream == Stream::Stderr,
            CallKind::Cleanup => false,
        };
        let log = logged.then(|| self.log.clone());
        Task::spawn(async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
                recorder.output(index, stream, &buffer[..count]);
                if let Some(log) = &log {
                    log.append(&buffer[..count]);
                }
            }
        })
    }

    fn ended(&self, index: usize, exit: CallExit) -> Ended {
        let recorded = exit.clone();
        self.recorder.change(index, |call| {
            call.ended = Some(Moment::now());
            call.exit = Some(recorded);
        });
        Ended { index, exit }
    }
}

fn exit_of(status: Option<ExitStatus>) -> CallExit {
    match status {
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) => CallExit::Code(code),
            (None, Some(signal)) => CallExit::Signal(signal),
            (None, None) => CallExit::Dormant,
        },
        None => CallExit::Dormant,
    }
}

/// Sends a signal to a process group; whether there was one.
fn signal_group(pid: u32, signal: Signal) -> bool {
    match i32::try_from(pid) {
        Ok(pid) if pid > 1 => killpg(Pid::from_raw(pid), signal).is_ok(),
        _ => false,
    }
}
