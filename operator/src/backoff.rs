//! How long to wait after a failure: twice as long each time, with jitter, per object. kube's
//! controller has no such thing of its own.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::runtime::utils::Backoff;
use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// A source of numbers from 0 to 1.
pub type Random = fn() -> f64;

/// The wait after so many failures in a row, of which this is the last.
fn delay(failures: u32, longest: Duration, random: Random) -> Duration {
    let doubled = FIRST.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    // Half of it at least, so that a crowd that failed together does not come back together.
    doubled.min(longest).mul_f64(0.5 + 0.5 * random().clamp(0.0, 1.0))
}

/// Failures in a row, by object.
#[derive(Debug)]
pub struct Backoffs {
    failures: Mutex<HashMap<String, u32>>,
    random: Random,
}

impl Backoffs {
    /// No failures yet.
    pub fn new(random: Random) -> Self {
        Self { failures: Mutex::default(), random }
    }

    /// The object failed again: how long to leave it alone.
    pub fn failed(&self, uid: &str) -> Duration {
        let mut failures = self.lock();
        let count = failures.entry(uid.to_owned()).or_default();
        *count = count.saturating_add(1);
        delay(*count, LONGEST, self.random)
    }

    /// The object succeeded, or is no more.
    pub fn reset(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits between tries to take up a watch.
#[derive(Debug)]
pub struct WatchBackoff {
    failures: u32,
    last: Option<Instant>,
    random: Random,
}

impl WatchBackoff {
    /// The longest wait. A watch that is down makes the operator blind.
    const LONGEST: Duration = Duration::from_secs(10);

    /// How long there must be no failure for the next one to count as the first.
    const STEADY: Duration = Duration::from_secs(60);

    /// No failures yet.
    pub fn new(random: Random) -> Self {
        Self { failures: 0, last: None, random }
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let steady = self.last.is_some_and(|last| now.duration_since(last) >= Self::STEADY);
        self.failures = if steady { 1 } else { self.failures.saturating_add(1) };
        self.last = Some(now);
        Some(delay(self.failures, Self::LONGEST, self.random))
    }
}

impl Backoff for WatchBackoff {
    /// Called at each event, and every try begins with an event that only says that it is one. So
    /// an event is no sign of health; time is.
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_a_bound_and_starts_anew() {
        let backoffs = Backoffs::new(|| 1.0);
        let waits: Vec<_> = (0..10).map(|_| backoffs.failed("a").as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        assert_eq!(backoffs.failed("b").as_millis(), 200, "each object for itself");
        backoffs.reset("a");
        assert_eq!(backoffs.failed("a").as_millis(), 200);
        assert_eq!(delay(u32::MAX, LONGEST, || 1.0), LONGEST);
    }

    #[test]
    fn jitter_takes_at_most_half() {
        assert_eq!(delay(1, LONGEST, || 0.0), FIRST / 2);
        assert_eq!(delay(1, LONGEST, || 7.0), FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_waits_less_and_events_alone_do_not_reset_it() {
        let mut backoff = WatchBackoff::new(|| 1.0);
        for _ in 0..9 {
            backoff.next();
            backoff.reset();
        }
        assert_eq!(backoff.next(), Some(WatchBackoff::LONGEST));
        tokio::time::advance(WatchBackoff::STEADY).await;
        assert_eq!(backoff.next(), Some(FIRST));
    }
}
