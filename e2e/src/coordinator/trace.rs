//! Reading a job log that gitlab-runner has put timestamps into (its default).
//!
//! Each physical line is `2026-01-01T00:00:00.000000Z 01O text`: the moment, the number of the stream in
//! hexadecimal (0 the executor, 1 the script), `O` or `E`, then a space, or `+` when the text continues the line
//! that the same stream has begun.

use std::time::SystemTime;

/// Where a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogStream {
    /// 0 for the runner and the driver's own output, 1 for stages.
    pub number: u8,
    /// Whether it is standard error.
    pub stderr: bool,
}

/// A piece of the log: a line, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceLine {
    /// When the runner read it; `None` for text without a timestamp.
    pub at: Option<SystemTime>,
    /// Where it comes from; `None` for text without a timestamp.
    pub stream: Option<LogStream>,
    /// The text, with its line feed if it had one.
    pub text: Vec<u8>,
}

/// Length of `2026-01-01T00:00:00.000000Z 01O `.
const HEADER: usize = 32;

/// Takes the timestamps out of a trace.
pub fn decode(trace: &[u8]) -> Vec<TraceLine> {
    let mut lines: Vec<TraceLine> = Vec::new();
    for line in trace.split_inclusive(|byte| *byte == b'\n') {
        let Some((at, stream, continues)) = header(line) else {
            lines.push(TraceLine { at: None, stream: None, text: line.to_vec() });
            continue;
        };
        if continues {
            // The line feed of what is continued belongs to the timestamps, not to the text.
            let before = lines.iter_mut().rev().find(|earlier| earlier.stream == Some(stream));
            if let Some(before) = before
                && before.text.last() == Some(&b'\n')
            {
                before.text.pop();
            }
        }
        lines.push(TraceLine { at: Some(at), stream: Some(stream), text: line[HEADER..].to_vec() });
    }
    lines
}

fn header(line: &[u8]) -> Option<(SystemTime, LogStream, bool)> {
    let head = std::str::from_utf8(line.get(..HEADER)?).ok()?;
    let at: jiff::Timestamp = head[..27].parse().ok()?;
    let number = u8::from_str_radix(&head[28..30], 16).ok()?;
    let stderr = match head.as_bytes()[30] {
        b'O' => false,
        b'E' => true,
        _ => return None,
    };
    let continues = match head.as_bytes()[31] {
        b' ' => false,
        b'+' => true,
        _ => return None,
    };
    Some((at.into(), LogStream { number, stderr }, continues))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_taken_out() {
        let trace = b"2026-01-01T00:00:00.000000Z 00O Running\n2026-01-01T00:00:00.500000Z 01E oops\nplain\n";
        let lines = decode(trace);
        assert_eq!(lines[0].text, b"Running\n");
        assert_eq!(lines[0].stream, Some(LogStream { number: 0, stderr: false }));
        assert_eq!(lines[1].text, b"oops\n");
        assert_eq!(lines[1].stream, Some(LogStream { number: 1, stderr: true }));
        let apart = lines[1].at.unwrap().duration_since(lines[0].at.unwrap()).unwrap();
        assert_eq!(apart.as_millis(), 500);
        assert_eq!(lines[2], TraceLine { at: None, stream: None, text: b"plain\n".to_vec() });
    }

    #[test]
    fn continued_lines_are_joined() {
        let trace = b"2026-01-01T00:00:00.000000Z 01O 10%\r\n\
            2026-01-01T00:00:00.000000Z 01E between\n\
            2026-01-01T00:00:01.000000Z 01O+20%\n";
        let text: Vec<u8> = decode(trace)
            .into_iter()
            .filter(|line| line.stream == Some(LogStream { number: 1, stderr: false }))
            .flat_map(|line| line.text)
            .collect();
        assert_eq!(text, b"10%\r20%\n");
    }
}
