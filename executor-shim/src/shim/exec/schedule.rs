//! When to try to reach a container that is about to start. Pure.
//!
//! Neither the kubelet nor the API server says in time that a container runs: its status arrives
//! about a second later. So it is tried, a few times and with growing waits; after that only when
//! the CiJob's status says that something has changed.

use std::time::Duration;

/// Waits in milliseconds from the moment when the pod has a node. The first container of a pod
/// whose images are there can be reached about half a second after it. A try takes some 50 ms itself.
const FIRST_FROM_NODE: [u64; 8] = [300, 80, 80, 120, 160, 240, 400, 800];

/// The same for a container that the kubelet starts after that one.
const SECOND_FROM_NODE: [u64; 8] = [450, 80, 80, 120, 160, 240, 400, 800];

/// Waits in milliseconds from the moment when a connection was lost.
const FROM_LOSS: [u64; 8] = [0, 200, 500, 1_000, 2_000, 4_000, 8_000, 16_000];

/// Waits in milliseconds from the moment when the status says that the containers run, so that only
/// the way there can be at fault.
const FROM_RUNNING: [u64; 8] = FROM_LOSS;

/// What a series of tries starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// The pod has been given a node, and its first container is waited for.
    FirstOfNode,
    /// The pod has been given a node, and a later container is waited for.
    SecondOfNode,
    /// The container had answered, and the connection was lost.
    Loss,
    /// The status says that the containers run.
    Running,
}

/// When to try next.
#[derive(Clone, Debug)]
pub struct Schedule {
    waits: std::slice::Iter<'static, u64>,
    running: bool,
}

impl Schedule {
    /// A new series, and the wait before its first try.
    pub fn new(occasion: Occasion) -> (Self, Duration) {
        let waits = match occasion {
            Occasion::FirstOfNode => &FIRST_FROM_NODE,
            Occasion::SecondOfNode => &SECOND_FROM_NODE,
            Occasion::Loss => &FROM_LOSS,
            Occasion::Running => &FROM_RUNNING,
        };
        let mut schedule = Self { waits: waits.iter(), running: occasion == Occasion::Running };
        let first = schedule.failed().unwrap_or_default();
        (schedule, first)
    }

    /// A try has failed: the wait before the next one, if the series has one.
    pub fn failed(&mut self) -> Option<Duration> {
        self.waits.next().copied().map(Duration::from_millis)
    }

    /// The status says that the containers run: whether that starts a new series, as it does once.
    pub fn running(&self) -> bool {
        !self.running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(occasion: Occasion) -> Vec<u128> {
        let (mut schedule, first) = Schedule::new(occasion);
        std::iter::once(first)
            .chain(std::iter::from_fn(|| schedule.failed()))
            .map(|wait| wait.as_millis())
            .collect()
    }

    #[test]
    fn a_series_has_eight_tries_with_growing_waits() {
        for occasion in [Occasion::FirstOfNode, Occasion::SecondOfNode, Occasion::Loss, Occasion::Running] {
            let waits = waits(occasion);
            assert_eq!(waits.len(), 8, "{occasion:?}");
            assert!(waits[1..].is_sorted(), "{occasion:?}");
        }
    }

    #[test]
    fn a_container_that_starts_as_usual_is_reached_soon_after() {
        for occasion in [Occasion::FirstOfNode, Occasion::SecondOfNode] {
            let mut at = 0;
            for wait in waits(occasion) {
                // Within the first second a try is never further away than this.
                assert!(at == 0 || at >= 900 || wait <= 240, "{occasion:?} {at} + {wait}");
                at += wait;
            }
        }
    }

    #[test]
    fn running_containers_start_a_new_series_once() {
        assert!(Schedule::new(Occasion::FirstOfNode).0.running());
        assert!(Schedule::new(Occasion::Loss).0.running());
        assert!(!Schedule::new(Occasion::Running).0.running());
    }
}
