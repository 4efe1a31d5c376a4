//! When the pod is nobody's: pure.
//!
//! One clock per pod, kept in `helper`. The other container only leaves word of its clients
//! ([`Presence`]), and the clock looks at that when its own time has run out, so nothing is polled.

use super::clock::Moment;

/// Whether an agent has a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// It has.
    Connected,
    /// It has none.
    Idle {
        /// Since when.
        since: Moment,
        /// For how long it may be so, in milliseconds.
        orphan_ms: u64,
    },
}

/// What [`OrphanClock::check`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Somebody is there, or may still come.
    Kept,
    /// Nobody came for the orphan time.
    Orphaned,
}

/// The time without a client.
#[derive(Clone, Debug)]
pub(super) struct OrphanClock {
    orphan_ms: u64,
    failed_orphan_ms: u64,
    failed: bool,
    idle_since: Option<Moment>,
    look_at: Option<Moment>,
}

impl OrphanClock {
    /// A clock that starts now, without a client.
    pub fn new(now: Moment, orphan_ms: u64, failed_orphan_ms: u64) -> Self {
        Self { orphan_ms, failed_orphan_ms, failed: false, idle_since: Some(now), look_at: None }
    }

    /// A client has said what it wants, and for how long it may be away afterwards.
    pub fn opened(&mut self, orphan_ms: u64) {
        self.orphan_ms = orphan_ms;
        self.failed = false;
    }

    /// A stage has ended. Before gitlab-runner tries one again it may wait for minutes.
    pub fn stage_ended(&mut self, may_be_tried_again: bool) {
        self.failed = may_be_tried_again;
    }

    /// Whether clients are there at all. Only a change counts.
    pub fn clients(&mut self, present: bool, now: Moment) {
        if present {
            self.idle_since = None;
            self.look_at = None;
        } else if self.idle_since.is_none() {
            self.idle_since = Some(now);
        }
    }

    /// How long the pod may be without a client at the moment, in milliseconds.
    pub fn allowed_ms(&self) -> u64 {
        if self.failed { self.orphan_ms.max(self.failed_orphan_ms) } else { self.orphan_ms }
    }

    /// What to tell the other container.
    pub fn presence(&self) -> Presence {
        self.idle_since
            .map_or(Presence::Connected, |since| Presence::Idle { since, orphan_ms: self.allowed_ms() })
    }

    /// When to call [`check`](Self::check) next; never while a client is there.
    pub fn deadline(&self) -> Option<Moment> {
        let own = self.idle_since?.plus(self.allowed_ms());
        Some(self.look_at.map_or(own, |look_at| look_at.max(own)))
    }

    /// Decides at the deadline. `other` is what the other container has left word of, if anything.
    pub fn check(&mut self, now: Moment, other: Option<Presence>) -> Verdict {
        let Some(deadline) = self.deadline().filter(|deadline| *deadline <= now) else {
            return Verdict::Kept;
        };
        let look_at = match other {
            None => return Verdict::Orphaned,
            // Its word changes when its client goes; until then there is no moment to wait for.
            Some(Presence::Connected) => now.plus(self.allowed_ms().max(1)),
            // The word may be older than this boot or forged into the future.
            Some(Presence::Idle { since, orphan_ms }) => since.min(now).plus(orphan_ms),
        };
        if look_at <= now || look_at <= deadline {
            return Verdict::Orphaned;
        }
        self.look_at = Some(look_at);
        Verdict::Kept
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[expect(
        clippy::unnecessary_wraps,
        reason = "the clock is told what the other container left, if anything"
    )]
    fn idle(since: u64, orphan_ms: u64) -> Option<Presence> {
        Some(Presence::Idle { since: Moment(since), orphan_ms })
    }

    #[test]
    fn nobody_ever_came() {
        let mut clock = OrphanClock::new(Moment(1000), 120, 330);
        assert_eq!(clock.deadline(), Some(Moment(1120)));
        assert_eq!(clock.check(Moment(1119), None), Verdict::Kept);
        assert_eq!(clock.check(Moment(1120), None), Verdict::Orphaned);
    }

    #[test]
    fn a_client_stops_the_clock_and_sets_it() {
        let mut clock = OrphanClock::new(Moment(0), 120, 330);
        clock.opened(500);
        clock.clients(true, Moment(10));
        assert_eq!(clock.deadline(), None);
        assert_eq!(clock.presence(), Presence::Connected);
        clock.clients(false, Moment(1000));
        clock.clients(false, Moment(1200));
        assert_eq!(clock.deadline(), Some(Moment(1500)));
        assert_eq!(clock.presence(), Presence::Idle { since: Moment(1000), orphan_ms: 500 });
    }

    #[test]
    fn a_failed_stage_earns_time_until_the_next_client() {
        let mut clock = OrphanClock::new(Moment(0), 120, 330);
        clock.stage_ended(true);
        assert_eq!(clock.deadline(), Some(Moment(330)));
        clock.opened(120);
        assert_eq!(clock.deadline(), Some(Moment(120)));
        clock.opened(9000);
        clock.stage_ended(true);
        assert_eq!(clock.deadline(), Some(Moment(9000)), "more than the least stays as it is");
        clock.stage_ended(false);
        clock.opened(120);
        assert_eq!(clock.deadline(), Some(Moment(120)));
    }

    #[test]
    fn the_other_container_is_asked_when_the_own_time_is_over() {
        for (other, verdict, deadline) in [
            (None, Verdict::Orphaned, 100),
            (Some(Presence::Connected), Verdict::Kept, 200),
            (idle(50, 100), Verdict::Kept, 150),
            (idle(0, 100), Verdict::Orphaned, 100),
            (idle(10, 20), Verdict::Orphaned, 100),
            (idle(5000, 100), Verdict::Kept, 200),
        ] {
            let mut clock = OrphanClock::new(Moment(0), 100, 330);
            assert_eq!(clock.check(Moment(100), other), verdict, "{other:?}");
            assert_eq!(clock.deadline(), Some(Moment(deadline)), "{other:?}");
        }
    }

    #[test]
    fn a_new_client_forgets_what_the_other_container_said() {
        let mut clock = OrphanClock::new(Moment(0), 100, 330);
        assert_eq!(clock.check(Moment(100), Some(Presence::Connected)), Verdict::Kept);
        clock.clients(true, Moment(110));
        clock.clients(false, Moment(120));
        assert_eq!(clock.deadline(), Some(Moment(220)));
    }

    proptest! {
        /// A pod is kept exactly as long as either side has had a client within its time.
        #[test]
        fn an_idle_pod_ends_at_the_later_deadline(own in 1u64..1000, since in 0u64..2000, theirs in 0u64..2000) {
            let mut clock = OrphanClock::new(Moment(0), own, 330);
            let other = idle(since, theirs);
            let mut now = Moment(0);
            let mut looks = 0;
            loop {
                let deadline = clock.deadline().unwrap();
                prop_assert!(deadline >= now, "the clock goes back");
                now = deadline;
                // The word is there once it has been left.
                let word = other.filter(|_| Moment(since) <= now);
                looks += 1;
                prop_assert!(looks < 4, "polls");
                if clock.check(now, word) == Verdict::Orphaned {
                    break;
                }
            }
            let expected = if since <= own { own.max(since + theirs) } else { own };
            prop_assert_eq!(now.0, expected);
        }
    }
}
