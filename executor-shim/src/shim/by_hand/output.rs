//! Where output goes by hand: to standard error as it comes, and its end into the answer.

use std::io;

use crate::shim::env::RunnerEnv;
use crate::shim::joblog::{JobLog, Output, Stream};

/// How much of the output an answer holds, in bytes.
const LIMIT: usize = 1024 * 1024;

/// The terminal of whoever runs the job.
pub struct Console {
    log: JobLog,
    tail: Tail,
}

impl Console {
    /// The standard streams of this process. Needs a running tokio runtime.
    pub fn new() -> io::Result<Self> {
        // No environment: there is no job response with secrets to look for.
        Ok(Self { log: JobLog::new(RunnerEnv::new([]))?, tail: Tail::default() })
    }

    /// Writes the answer on standard output.
    pub async fn answer(&mut self, text: &str) -> io::Result<()> {
        self.log.answer(text).await
    }

    /// The end of what the script wrote.
    pub fn tail(&self) -> &Tail {
        &self.tail
    }
}

impl Output for Console {
    async fn write(&mut self, _: Stream, bytes: &[u8]) -> io::Result<usize> {
        let len = self.log.write(Stream::Stderr, bytes).await?;
        self.tail.push(bytes.get(..len).unwrap_or_default());
        Ok(len)
    }

    async fn line(&mut self, text: &str) {
        self.log.line(text).await;
    }
}

/// The last bytes of an output.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        // Not at every byte too many: it moves the rest.
        if self.bytes.len() > 2 * LIMIT {
            self.shorten();
        }
    }

    fn shorten(&mut self) {
        let surplus = self.bytes.len().saturating_sub(LIMIT);
        self.truncated |= surplus > 0;
        self.bytes.drain(..surplus);
    }

    /// Whether there was more before it.
    pub fn is_truncated(&self) -> bool {
        self.truncated || self.bytes.len() > LIMIT
    }

    /// The bytes as text. Where the beginning was cut off, a character that was cut is left out.
    pub fn text(&self) -> String {
        let start = self.bytes.len().saturating_sub(LIMIT);
        let mut bytes = self.bytes.get(start..).unwrap_or_default();
        if self.is_truncated() {
            let continues = |byte: &&u8| **byte & 0xc0 == 0x80;
            let cut = bytes.iter().take(3).take_while(continues).count();
            bytes = bytes.get(cut..).unwrap_or_default();
        }
        String::from_utf8_lossy(bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_short_output_is_there_as_it_was() {
        let mut tail = Tail::default();
        tail.push(b"one\n");
        tail.push("zw\u{f6}lf\n".as_bytes());
        tail.push(b"\xff\xc3");
        assert_eq!((tail.text().as_str(), tail.is_truncated()), ("one\nzw\u{f6}lf\n\u{fffd}\u{fffd}", false));
        let mut odd = Tail::default();
        odd.push(b"\x80x");
        assert_eq!(odd.text(), "\u{fffd}x", "nothing was cut");
    }

    #[test]
    fn of_a_long_one_the_end_is_kept() {
        let mut tail = Tail::default();
        tail.push("\u{20ac}".repeat(LIMIT / 3).as_bytes());
        assert!(!tail.is_truncated());
        tail.push(b"the end");
        assert!(tail.is_truncated());
        let text = tail.text();
        assert!(
            text.ends_with("\u{20ac}the end") && text.starts_with('\u{20ac}'),
            "{:?}",
            text.chars().next()
        );
        assert!(text.len() > LIMIT - 3 && text.len() <= LIMIT);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn the_end_is_the_end_however_it_came(pieces in prop::collection::vec(1usize..900_000, 1..8)) {
            let (mut tail, mut all) = (Tail::default(), Vec::new());
            for (number, len) in pieces.iter().enumerate() {
                let piece = vec![b'a' + u8::try_from(number).unwrap(); *len];
                tail.push(&piece);
                all.extend(piece);
            }
            let start = all.len().saturating_sub(LIMIT);
            let text = tail.text();
            prop_assert_eq!(text.as_bytes(), &all[start..]);
            prop_assert_eq!(tail.is_truncated(), start > 0);
            prop_assert!(tail.bytes.len() <= 2 * LIMIT);
        }
    }
}
