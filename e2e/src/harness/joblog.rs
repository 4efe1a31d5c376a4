//! The job log: what the runner and the driver's calls write, in the order in which it comes.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::coordinator::contains;

const RESET: &str = "\u{1b}[0;m";
const CLEAR: &str = "\u{1b}[0K";
const BOLD_RED: &str = "\u{1b}[31;1m";
const BOLD_GREEN: &str = "\u{1b}[32;1m";
const BOLD_CYAN: &str = "\u{1b}[36;1m";
const YELLOW: &str = "\u{1b}[0;33m";

/// A job log that can be waited on. Clones are the same log.
#[derive(Debug, Clone)]
pub(super) struct JobLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes: Mutex<Vec<u8>>,
    length: watch::Sender<usize>,
}

impl JobLog {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner { bytes: Mutex::new(Vec::new()), length: watch::Sender::new(0) }))
    }

    /// Adds what a driver's call has written.
    pub(super) fn append(&self, bytes: &[u8]) {
        let length = {
            let mut log = self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner);
            log.extend_from_slice(bytes);
            log.len()
        };
        self.0.length.send_replace(length);
    }

    /// A line of the runner itself.
    pub(super) fn line(&self, text: &str) {
        self.append(format!("{CLEAR}{text}{RESET}\n").as_bytes());
    }

    /// A heading such as `Preparing environment`.
    pub(super) fn heading(&self, text: &str) {
        self.line(&format!("{BOLD_CYAN}{text}{RESET}"));
    }

    /// A line in green.
    pub(super) fn info(&self, text: &str) {
        self.append(format!("{BOLD_GREEN}{text}{RESET}\n").as_bytes());
    }

    /// A line that begins with `WARNING: `.
    pub(super) fn warning(&self, text: &str) {
        self.append(format!("{YELLOW}WARNING: {text}{RESET}\n").as_bytes());
    }

    /// A line that begins with `ERROR: `.
    pub(super) fn error(&self, text: &str) {
        self.append(format!("{BOLD_RED}ERROR: {text}{RESET}\n").as_bytes());
    }

    /// Marks the begin or the end of a section that GitLab folds.
    pub(super) fn section(&self, edge: &str, name: &str) {
        let now = jiff::Timestamp::now().as_second();
        self.append(format!("section_{edge}:{now}:{name}\r{CLEAR}").as_bytes());
    }

    /// All of it so far.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a text begins at `from` or later, and where to go on if it does not.
    pub(super) fn find(&self, text: &[u8], from: usize) -> (bool, usize) {
        let log = self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let found = contains(log.get(from..).unwrap_or_default(), text);
        (found, log.len().saturating_sub(text.len().saturating_sub(1)).max(from))
    }

    /// Tells when something is added.
    pub(super) fn changes(&self) -> watch::Receiver<usize> {
        self.0.length.subscribe()
    }
}
