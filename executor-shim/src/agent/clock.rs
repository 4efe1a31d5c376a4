//! Time as the agent counts it.

use nix::time::{ClockId, clock_gettime};

/// A point in time in milliseconds of `CLOCK_BOOTTIME`: the same for all containers of a node, never
/// set back, and running on while the node sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(pub u64);

impl Moment {
    /// The moment `ms` milliseconds later.
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this moment; 0 where that is not earlier.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The present moment.
pub(super) fn now() -> Moment {
    // Both clocks exist on every kernel that runs containers; the second call is for sandboxes that
    // implement their own.
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).or_else(|_| clock_gettime(ClockId::CLOCK_MONOTONIC));
    Moment(time.map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec()).unwrap_or(0);
        seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)
    }))
}

/// The earliest of some deadlines.
pub(super) fn earliest(deadlines: impl IntoIterator<Item = Option<Moment>>) -> Option<Moment> {
    deadlines.into_iter().flatten().min()
}
