//! The only place where this crate prints. Progress goes to stderr, so that stdout stays free for `cargo e2e env`.

use std::fmt::Display;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// Prints one line per step, with the seconds since the command began.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    start: Instant,
}

impl Progress {
    /// Starts the clock.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Prints `[ 12.3s] message`.
    pub fn say(&self, message: impl Display) {
        error_line(format_args!("{} {message}", stamp(self.start.elapsed())));
    }
}

fn stamp(elapsed: Duration) -> String {
    format!("[{:5.1}s]", elapsed.as_secs_f64())
}

/// Prints one line to stderr. A closed stderr is nobody's loss.
pub fn error_line(line: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Prints to stdout, as it is.
pub fn output(text: impl Display) {
    let _ = write!(std::io::stdout().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_has_tenths_and_keeps_its_width() {
        assert_eq!(stamp(Duration::from_millis(12_340)), "[ 12.3s]");
        assert_eq!(stamp(Duration::from_millis(0)), "[  0.0s]");
        assert_eq!(stamp(Duration::from_mins(10)), "[600.0s]");
    }
}
