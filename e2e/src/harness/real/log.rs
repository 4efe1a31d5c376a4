//! Reading what a real gitlab-runner wrote into the job log.

use crate::coordinator::{LogStream, decode};

use super::super::moment::Moment;
use super::super::record::is_echo;

/// A job log without its timestamps, and what they tell.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// The text.
    pub(super) text: Vec<u8>,
    /// Sections that have begun, in order.
    pub(super) sections: Vec<String>,
    /// Lines of standard output of stages, with their times.
    pub(super) lines: Vec<(Moment, Vec<u8>)>,
    /// When the first line of a user's step came.
    pub(super) first_output: Option<Moment>,
    /// When the first line of a user's step came that is no echoed command.
    pub(super) first_line: Option<Moment>,
}

const STDOUT: LogStream = LogStream { number: 1, stderr: false };

impl Log {
    /// Reads a trace.
    pub(super) fn read(trace: &[u8]) -> Self {
        let mut log = Self::default();
        for line in decode(trace) {
            log.sections.extend(section_starts(&line.text));
            log.text.extend_from_slice(&line.text);
            let (Some(at), Some(STDOUT)) = (line.at, line.stream) else { continue };
            let at = Moment::from_clock(at);
            if log.sections.last().is_some_and(|section| section.starts_with("step_")) {
                log.first_output.get_or_insert(at);
                if !is_echo(&line.text) {
                    log.first_line.get_or_insert(at);
                }
            }
            log.lines.push((at, line.text));
        }
        log
    }

    /// The last line that says `ERROR: `, without colours.
    pub(super) fn last_error(&self) -> String {
        let text = String::from_utf8_lossy(&self.text);
        let found = text.lines().rev().find_map(|line| line.split_once("ERROR: "));
        let message = found.map_or("", |(_, message)| message);
        let message = message.split('\u{1b}').next().unwrap_or(message);
        message
            .trim_start_matches("Job failed (system failure): ")
            .trim_start_matches("Job failed: ")
            .to_owned()
    }
}

/// Names of the sections that begin in a line.
fn section_starts(line: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(line);
    text.split("section_start:")
        .skip(1)
        .filter_map(|rest| rest.split_once(':'))
        .map(|(_, rest)| rest.split(['\r', '[', '\n']).next().unwrap_or(rest).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_lines_are_found() {
        let trace = b"2026-01-01T00:00:00.000000Z 00O section_start:1:get_sources\r\x1b[0K\n\
            2026-01-01T00:00:00.000000Z 00O+\x1b[0KGetting\n\
            2026-01-01T00:00:01.000000Z 01O fetched\n\
            2026-01-01T00:00:01.500000Z 00O section_start:2:step_script\r\x1b[0K\n\
            2026-01-01T00:00:02.000000Z 01O \x1b[32;1m$ echo hi\x1b[0;m\n\
            2026-01-01T00:00:03.000000Z 01O hi\n\
            2026-01-01T00:00:04.000000Z 00O \x1b[31;1mERROR: Job failed: exit status 3\x1b[0;m\n";
        let log = Log::read(trace);
        assert_eq!(log.sections, ["get_sources", "step_script"]);
        let apart = log.first_line.unwrap().since(log.first_output.unwrap());
        assert!((990..1010).contains(&apart.as_millis()), "{apart:?}");
        assert_eq!(log.last_error(), "exit status 3");
        assert!(crate::coordinator::contains(&log.text, b"\r\x1b[0K\x1b[0KGetting\n"));
    }
}
