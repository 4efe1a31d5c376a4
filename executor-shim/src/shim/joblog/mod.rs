//! The job log and the protocol with gitlab-runner: the only writer of this process's standard
//! output and standard error.
//!
//! Standard output carries what gitlab-runner asked for (the settings of `config`, a script's
//! output), and nothing else. What the shim itself has to say goes to standard error, in plain
//! sentences, without the job's secrets.

mod sink;

use std::future::Future;
use std::io;
use std::time::Duration;

pub use sink::{Sink, Stdio};

use crate::shim::env::RunnerEnv;
use crate::shim::redact::Secrets;

/// How long the shim waits for the reader of its own lines.
const PATIENCE: Duration = Duration::from_secs(5);

/// One of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Where a script's output goes.
pub trait Output {
    /// Writes some of the bytes and says how many. Waits until that is possible; a call that is
    /// dropped before it is done has written nothing.
    fn write(&mut self, stream: Stream, bytes: &[u8]) -> impl Future<Output = io::Result<usize>>;

    /// Writes a line of the shim's own. That nobody reads it is no reason to fail.
    fn line(&mut self, text: &str) -> impl Future<Output = ()>;
}

/// The job log.
pub struct JobLog {
    stdout: Sink,
    stderr: Sink,
    at_line_start: bool,
    secrets: Option<Secrets>,
    env: RunnerEnv,
}

impl JobLog {
    /// The standard streams of this process. Needs a running tokio runtime.
    pub fn new(env: RunnerEnv) -> io::Result<Self> {
        Ok(Self {
            stdout: Sink::new(Stdio::Stdout)?,
            stderr: Sink::new(Stdio::Stderr)?,
            at_line_start: true,
            secrets: None,
            env,
        })
    }

    /// Writes the answer to gitlab-runner's call on standard output.
    pub async fn answer(&mut self, text: &str) -> io::Result<()> {
        write_all(&mut self.stdout, text.as_bytes()).await
    }

    /// The text without the job's secrets.
    pub fn blackened(&mut self, text: &str) -> String {
        self.secrets.get_or_insert_with(|| Secrets::known(&self.env)).blacken(text)
    }
}

impl Output for JobLog {
    async fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<usize> {
        let sink = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let len = sink.write(bytes).await?;
        if let (Stream::Stderr, Some(last)) = (stream, bytes.get(..len).and_then(<[u8]>::last)) {
            self.at_line_start = *last == b'\n';
        }
        Ok(len)
    }

    async fn line(&mut self, text: &str) {
        let text = printable(&self.blackened(text));
        let line = if self.at_line_start { format!("{text}\n") } else { format!("\n{text}\n") };
        self.at_line_start = true;
        match tokio::time::timeout(PATIENCE, write_all(&mut self.stderr, line.as_bytes())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "cannot write to the job log"),
            Err(_) => tracing::debug!("nobody reads the job log"),
        }
    }
}

async fn write_all(sink: &mut Sink, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let len = sink.write(bytes).await?;
        bytes = bytes.get(len..).unwrap_or_default();
    }
    Ok(())
}

/// Texts of the cluster may hold anything; in a terminal it shall be text.
fn printable(text: &str) -> String {
    let odd = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    text.trim_end().chars().map(|c| if odd(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_no_commands() {
        assert_eq!(printable("a\u{1b}[2Jb\tc\nd\r\n\n"), "a\u{fffd}[2Jb\tc\nd");
    }
}
