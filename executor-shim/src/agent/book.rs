//! Which attempts are known, and what is kept of them: pure. An attempt that was ever started is never
//! forgotten by name, so that it cannot be started again.

use std::collections::{BTreeSet, VecDeque};

use crate::wire::message::ExitRecord;

/// Ended attempts whose records are kept. A job has about ten stages.
const KEPT: usize = 64;

/// An attempt that has ended.
#[derive(Debug)]
pub(super) struct Ended<S> {
    /// How.
    pub record: ExitRecord,
    /// Its output, until that has arrived.
    pub spool: Option<S>,
}

/// What is known of an attempt.
#[derive(Debug)]
pub(super) enum Standing<'a, S> {
    /// Nothing: it may be started.
    Unknown,
    /// It runs.
    Running,
    /// It has ended.
    Ended(&'a Ended<S>),
    /// It has ended, and nothing else is kept of it.
    Forgotten,
}

/// The attempts of this run of the agent.
#[derive(Debug)]
pub(super) struct Book<S> {
    names: BTreeSet<String>,
    running: Option<String>,
    ended: VecDeque<Ended<S>>,
}

impl<S> Default for Book<S> {
    fn default() -> Self {
        Self { names: BTreeSet::new(), running: None, ended: VecDeque::new() }
    }
}

impl<S> Book<S> {
    /// Looks an attempt up.
    pub fn standing(&self, attempt: &str) -> Standing<'_, S> {
        if self.running.as_deref() == Some(attempt) {
            return Standing::Running;
        }
        if let Some(ended) = self.ended.iter().find(|ended| ended.record.attempt == attempt) {
            return Standing::Ended(ended);
        }
        if self.names.contains(attempt) { Standing::Forgotten } else { Standing::Unknown }
    }

    /// Takes an attempt down before it is started; `false` where it must not be.
    pub fn start(&mut self, attempt: &str) -> bool {
        if self.running.is_some() || !self.names.insert(attempt.to_owned()) {
            return false;
        }
        self.running = Some(attempt.to_owned());
        true
    }

    /// The attempt that was to be started has not been: nothing of it has run.
    pub fn not_started(&mut self) {
        if let Some(attempt) = self.running.take() {
            self.names.remove(&attempt);
        }
    }

    /// The running attempt has ended. Answers with what is kept no longer.
    pub fn end(&mut self, record: ExitRecord, spool: S) -> Vec<Ended<S>> {
        self.running = None;
        self.ended.push_back(Ended { record, spool: Some(spool) });
        self.ended.drain(..self.ended.len().saturating_sub(KEPT)).collect()
    }

    /// An ended attempt's output and record have arrived. Answers with the output that is not needed
    /// any more.
    pub fn close(&mut self, attempt: &str) -> Option<S> {
        self.ended.iter_mut().find(|ended| ended.record.attempt == attempt)?.spool.take()
    }

    /// An ended attempt's output, to be changed.
    pub fn spool_mut(&mut self, attempt: &str) -> Option<&mut S> {
        self.ended.iter_mut().find(|ended| ended.record.attempt == attempt)?.spool.as_mut()
    }

    /// Lets go of the oldest outputs until what is left takes `limit` bytes at most. Nobody comes for
    /// them once the next stage has begun, but for a shim that was cut off for long. The newest stays
    /// whatever it takes: its reader may just be slow.
    pub fn shrink(&mut self, limit: u64, size: impl Fn(&S) -> u64) -> Vec<S> {
        let mut total: u64 = self.ended.iter().filter_map(|ended| ended.spool.as_ref()).map(&size).sum();
        let mut gone = Vec::new();
        let older = self.ended.len().saturating_sub(1);
        for ended in self.ended.iter_mut().take(older) {
            if total <= limit {
                break;
            }
            if let Some(spool) = ended.spool.take() {
                total = total.saturating_sub(size(&spool));
                gone.push(spool);
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(attempt: &str) -> ExitRecord {
        ExitRecord { attempt: attempt.into(), ..ExitRecord::default() }
    }

    #[test]
    fn an_attempt_goes_its_way_once() {
        let mut book: Book<u64> = Book::default();
        assert!(matches!(book.standing("a"), Standing::Unknown));
        assert!(book.start("a"));
        assert!(matches!(book.standing("a"), Standing::Running));
        assert!(!book.start("a"));
        assert!(!book.start("b"), "one at a time");
        book.end(record("a"), 7);
        assert!(matches!(book.standing("a"), Standing::Ended(Ended { spool: Some(7), .. })));
        assert!(!book.start("a"));
        assert_eq!(book.close("a"), Some(7));
        assert_eq!(book.close("a"), None);
        assert!(matches!(book.standing("a"), Standing::Ended(Ended { spool: None, .. })));
        assert!(!book.start("a"));
    }

    #[test]
    fn what_could_not_be_started_may_be_tried_again() {
        let mut book: Book<u64> = Book::default();
        assert!(book.start("a"));
        book.not_started();
        assert!(book.start("a"));
    }

    #[test]
    fn old_outputs_make_room_first() {
        let mut book: Book<u64> = Book::default();
        for (attempt, size) in [("a", 5), ("b", 6), ("c", 7)] {
            assert!(book.start(attempt));
            book.end(record(attempt), size);
        }
        assert!(book.shrink(18, |size| *size).is_empty());
        assert_eq!(book.shrink(8, |size| *size), [5, 6]);
        assert_eq!(book.spool_mut("c").copied(), Some(7));
        assert!(matches!(book.standing("a"), Standing::Ended(Ended { spool: None, .. })));
    }

    proptest! {
        #[test]
        fn no_attempt_is_ever_started_twice(order in prop::collection::vec(0u8..120, 0..400)) {
            let mut book: Book<u64> = Book::default();
            let mut started = BTreeSet::new();
            let mut gone = 0;
            for number in order {
                let attempt = number.to_string();
                prop_assert_eq!(book.start(&attempt), started.insert(number));
                if matches!(book.standing(&attempt), Standing::Running) {
                    gone += book.end(record(&attempt), 1).len();
                }
            }
            prop_assert_eq!(gone, started.len().saturating_sub(KEPT));
        }
    }
}
