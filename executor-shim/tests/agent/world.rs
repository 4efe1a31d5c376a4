//! An agent for a test, with its directories.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::client::Connection;

/// The longest that anything may take. Only a failing test takes that long.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub const POD: &str = "0d9ac1a2-6a7c-4a0c-9b4e-7d5f3c1f2a10";

/// The binary under test.
pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_stage-agent")
}

/// Waits until something holds.
pub fn until<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = holds() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A running agent. It ends with the test.
pub struct Agent {
    pub dir: TempDir,
    pub child: Child,
}

impl Agent {
    pub fn start() -> Self {
        Self::with("build", &[], &[])
    }

    pub fn with(container: &str, flags: &[&str], env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["run", "spool", "build-spool"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self::over(dir, container, flags, env)
    }

    /// An agent that finds what an earlier one has left.
    pub fn over(dir: TempDir, container: &str, flags: &[&str], env: &[(&str, &str)]) -> Self {
        let child = Command::new(binary())
            .args(Self::serve(dir.path(), container, flags))
            .env("ROADSTEAD_POD_UID", POD)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { dir, child }
    }

    /// The arguments of an agent with directories of its own.
    pub fn serve(dir: &Path, container: &str, flags: &[&str]) -> Vec<String> {
        let mut args: Vec<String> =
            ["serve", "--container", container, "--any-peer"].map(String::from).into();
        for name in ["run", "spool", "build-spool"] {
            args.push(format!("--{name}-dir"));
            args.push(dir.join(name).to_str().unwrap().to_owned());
        }
        if !flags.iter().any(|flag| flag.starts_with("--orphan")) {
            args.extend(["--orphan-seconds", "1000"].map(String::from));
        }
        args.extend(flags.iter().map(ToString::to_string));
        args
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn spool_dir(&self) -> PathBuf {
        self.dir.path().join("spool")
    }

    /// A connection without a relay.
    pub fn connect(&self) -> Connection {
        let path = self.run_dir().join("agent.sock");
        let stream = until("a socket", || UnixStream::connect(&path).ok());
        Connection::over(stream)
    }

    /// Whether an attempt has ended.
    pub fn has_record(&self, attempt: &str) -> bool {
        self.spool_dir().join(format!("{attempt}.json")).exists()
    }

    /// The exit status, once there is one.
    pub fn wait(&mut self) -> ExitStatus {
        until("the agent's end", || self.child.try_wait().unwrap())
    }

    /// Everything that was said on standard error, after the end.
    pub fn log(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// CPU time that the agent has used, in clock ticks, and how often it was scheduled.
    pub fn cpu(&self) -> (u64, u64) {
        cpu(self.child.id())
    }
}

/// CPU time of a process in clock ticks, and how often it gave the processor up by itself.
pub fn cpu(pid: u32) -> (u64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let words: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = words[11].parse::<u64>().unwrap() + words[12].parse::<u64>().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("voluntary")).unwrap();
    (ticks, line.split_whitespace().last().unwrap().parse().unwrap())
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process is there and not a zombie.
pub fn lives(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'))
}
