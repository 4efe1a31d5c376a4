//! The agent's own words. Standard error of PID 1 is what `kubectl logs` shows; no script, no
//! output, no variable and no attempt's name ever goes there.

use std::fmt::Arguments;
use std::io::Write;

/// Writes one line to standard error. What cannot be written is dropped: there is nobody to tell.
pub(super) fn say(line: Arguments<'_>) {
    let _ = std::io::stderr().write_all(format!("stage-agent: {line}\n").as_bytes());
}

/// Writes one line to standard output.
pub(super) fn answer(line: Arguments<'_>) {
    let _ = std::io::stdout().write_all(format!("{line}\n").as_bytes());
}
