//! Running programs: what they were, what they said, where their log is.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::progress::Progress;

/// How often a long step says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How much of a log a failure quotes.
const TAIL_LINES: usize = 20;

/// A command with its arguments, in one expression.
pub fn command<I, A>(program: impl AsRef<OsStr>, args: I) -> Command
where
    I: IntoIterator<Item = A>,
    A: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// Runs a command to its end and returns its stdout.
///
/// # Errors
/// When it cannot be started or fails; the message carries the command line and its stderr.
pub fn capture(command: &mut Command) -> Result<String> {
    let line = line(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` printed something that is not UTF-8"))
}

/// Whether a command ends with success; its output is dropped.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs a long command with its output in a log file. Every ten seconds one line tells that it is alive, with
/// the log's last line.
///
/// # Errors
/// When it cannot be started or fails; the message names the log and quotes its end.
pub fn logged(progress: &Progress, what: &str, command: &mut Command, log: &Path) -> Result<()> {
    let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let both = file.try_clone().context("cannot share the log file")?;
    let line = line(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(both)
        .spawn()
        .with_context(|| format!("{what}: cannot start `{line}`"))?;
    let start = Instant::now();
    let mut next = HEARTBEAT;
    let status = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("{what}: cannot wait for `{line}`"))? {
            break status;
        }
        if start.elapsed() >= next {
            next += HEARTBEAT;
            let seconds = start.elapsed().as_secs();
            match tail(log, 1).as_str() {
                "" => progress.say(format_args!("{what}: running for {seconds} s")),
                last => progress.say(format_args!("{what}: running for {seconds} s: {last}")),
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    if !status.success() {
        bail!("{what}: `{line}` failed ({status}); {}", quote(log));
    }
    Ok(())
}

/// Names a log and quotes its last lines, for error messages.
#[must_use]
pub fn quote(log: &Path) -> String {
    match tail(log, TAIL_LINES) {
        text if text.is_empty() => format!("its log {} is empty", log.display()),
        text => format!("the end of its log {}:\n{text}", log.display()),
    }
}

/// The last lines of a file, at most 64 KiB of it; empty when it cannot be read.
fn tail(path: &Path, lines: usize) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let size = fs::metadata(path).map_or(0, |meta| meta.len());
        let _ = std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(size.saturating_sub(64 << 10)));
        let _ = file.read_to_end(&mut text);
    }
    last_lines(&String::from_utf8_lossy(&text), lines)
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The command line as one would type it (without quoting; it is for people).
fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(OsStr::to_string_lossy));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_are_the_last_ones() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
        assert_eq!(last_lines("", 2), "");
    }

    #[test]
    fn a_failure_carries_command_line_and_stderr() {
        let error = capture(&mut command("sh", ["-c", "echo broken >&2; exit 3"])).unwrap_err().to_string();
        assert!(
            error.contains("sh -c") && error.contains("exit status: 3") && error.ends_with("broken"),
            "{error}"
        );
    }

    #[test]
    fn a_logged_failure_names_and_quotes_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("x.log");
        let mut fails = command("sh", ["-c", "echo one; echo two >&2; exit 1"]);
        let error = logged(&Progress::start(), "try", &mut fails, &log).unwrap_err().to_string();
        assert!(error.starts_with("try: `sh") && error.ends_with("one\ntwo"), "{error}");
        assert!(error.contains(log.to_str().unwrap()), "{error}");
    }
}
