//! Points in time.

use std::time::{Duration, Instant, SystemTime};

/// A point in time, by the clock and by the monotonic timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    timer: Instant,
    clock: SystemTime,
}

impl Moment {
    /// Now.
    pub fn now() -> Self {
        Self { timer: Instant::now(), clock: SystemTime::now() }
    }

    /// When the clock showed, or will show, this time.
    pub fn from_clock(clock: SystemTime) -> Self {
        let now = Self::now();
        let timer = match now.clock.duration_since(clock) {
            Ok(ago) => now.timer.checked_sub(ago).unwrap_or(now.timer),
            Err(ahead) => now.timer + ahead.duration(),
        };
        Self { timer, clock }
    }

    /// Time from `earlier` to this; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.timer.saturating_duration_since(earlier.timer)
    }

    /// What the clock showed.
    pub fn clock(self) -> SystemTime {
        self.clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_times_become_moments() {
        let now = Moment::now();
        let before = Moment::from_clock(now.clock() - Duration::from_secs(2));
        let apart = now.since(before);
        assert!(apart > Duration::from_millis(1900) && apart < Duration::from_millis(2100), "{apart:?}");
        assert_eq!(before.since(now), Duration::ZERO);
    }
}
