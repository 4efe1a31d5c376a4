//! The last step before a script: a process of this program that becomes its shell.
//!
//! The agent has signals blocked to read them from a descriptor, and a child inherits that. If the
//! agent opened its mask for the moment of starting a child, a SIGTERM of that moment would be lost on
//! PID 1. So the child opens its own.

use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::sys::signal::SigSet;
use nix::unistd;

/// Exit code where there is no shell in the end. Nobody sees it: the agent has been told why.
const NO_SHELL: u8 = 126;

/// Longest sentence that is read from a child that could not become a shell.
const SENTENCE: u64 = 4096;

/// A command that becomes `shell` with `script`, in a process group of its own.
pub(super) struct Start {
    command: Command,
    told: PipeReader,
}

impl Start {
    /// Prepares it.
    pub fn new(
        shell: &Path,
        script: &Path,
        environment: Vec<(OsString, OsString)>,
        (stdout, stderr): (PipeWriter, PipeWriter),
    ) -> io::Result<Self> {
        let (told, tells) = io::pipe()?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("stage-agent")
            .arg("start")
            .arg(shell)
            .arg(script)
            .stdin(tells)
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0)
            .env_clear()
            .envs(environment);
        Ok(Self { command, told })
    }

    /// Starts it. Like the standard library's own start, this waits until the child has become another
    /// program or has said why not; both take a moment.
    pub fn spawn(&mut self) -> io::Result<Child> {
        self.command.spawn()
    }

    /// Waits until the child is the shell.
    pub fn confirm(self, child: &mut Child) -> io::Result<()> {
        let Self { command, told } = self;
        // With it go this process's copies of the child's ends.
        drop(command);
        let mut sentence = Vec::new();
        told.take(SENTENCE).read_to_end(&mut sentence)?;
        if sentence.is_empty() {
            return Ok(());
        }
        let _ = child.wait();
        Err(io::Error::other(String::from_utf8_lossy(&sentence).into_owned()))
    }
}

/// Becomes the shell. Standard input leads to the agent until that has worked.
pub(super) fn start(shell: &Path, script: &Path) -> ExitCode {
    let agent = io::stdin().as_fd().try_clone_to_owned();
    let error = match SigSet::empty().thread_set_mask() {
        Ok(()) => Command::new(shell).arg(script).stdin(Stdio::null()).exec(),
        Err(error) => error.into(),
    };
    if let Ok(agent) = agent {
        let _ = unistd::write(agent, format!("{}: {error}", shell.display()).as_bytes());
    }
    ExitCode::from(NO_SHELL)
}
