//! A stage from its start to its end: pure.

use super::clock::Moment;

/// How long output is still taken after the shell has ended while other processes hold its pipes.
/// The end of `exec > >(tee log)` comes from such a process, a moment after the shell is gone; a
/// process in the background that holds the pipes for good must not hold up the stage.
pub(super) const LINGER_MS: u64 = 100;

/// What is to be done to the script's process group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// SIGTERM, then SIGCONT so that also a stopped process gets it.
    Terminate,
    /// SIGKILL.
    Kill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running { kill_at: Option<Moment> },
    Lingering { until: Moment },
    Over,
}

/// Where a stage is between its start and its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifecycle {
    state: State,
    stopped: bool,
    killed: bool,
}

impl Lifecycle {
    /// The shell has just been started.
    pub fn new() -> Self {
        Self { state: State::Running { kill_at: None }, stopped: false, killed: false }
    }

    /// A client wants the script to end. A repetition sends no second SIGTERM and can only bring the
    /// kill forward.
    pub fn stop(&mut self, now: Moment, grace_ms: u64) -> Option<Act> {
        let State::Running { kill_at } = &mut self.state else { return None };
        let first = !std::mem::replace(&mut self.stopped, true);
        let wanted = now.plus(grace_ms);
        *kill_at = match *kill_at {
            None if self.killed => None,
            None => Some(wanted),
            Some(earlier) => Some(earlier.min(wanted)),
        };
        (first && !self.killed).then_some(Act::Terminate)
    }

    /// The script must end at once: another one takes its place, or its output cannot be kept.
    pub fn kill(&mut self) -> Option<Act> {
        let State::Running { kill_at } = &mut self.state else { return None };
        *kill_at = None;
        let first = !std::mem::replace(&mut self.killed, true);
        first.then_some(Act::Kill)
    }

    /// The shell has ended and is not reaped yet. What a stopped script has left behind ends with it.
    pub fn shell_ended(&mut self, now: Moment) -> Option<Act> {
        if let State::Running { .. } = self.state {
            self.state = State::Lingering { until: now.plus(LINGER_MS) };
        }
        (self.stopped || self.killed).then_some(Act::Kill)
    }

    /// Nothing can come from either pipe any more.
    pub fn pipes_closed(&mut self) {
        if let State::Lingering { .. } = self.state {
            self.state = State::Over;
        }
    }

    /// The moment has come that [`deadline`](Self::deadline) names, or may have.
    pub fn tick(&mut self, now: Moment) -> Option<Act> {
        match self.state {
            State::Running { kill_at: Some(at) } if at <= now => self.kill(),
            State::Lingering { until } if until <= now => {
                self.state = State::Over;
                None
            }
            _ => None,
        }
    }

    /// When to call [`tick`](Self::tick).
    pub fn deadline(&self) -> Option<Moment> {
        match self.state {
            State::Running { kill_at } => kill_at,
            State::Lingering { until } => Some(until),
            State::Over => None,
        }
    }

    /// Whether a client had wanted the end before it came.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Whether the stage has ended: the shell is gone and its output is complete.
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Moment = Moment(1000);

    #[test]
    fn a_stage_that_just_ends() {
        let mut life = Lifecycle::new();
        assert_eq!(life.deadline(), None);
        life.pipes_closed();
        assert!(!life.is_over(), "a script may close its output and go on");
        assert_eq!(life.shell_ended(NOW), None);
        life.pipes_closed();
        assert!(life.is_over());
        assert!(!life.stopped());
    }

    #[test]
    fn a_holder_of_the_pipes_delays_the_end_by_a_moment() {
        let mut life = Lifecycle::new();
        life.shell_ended(NOW);
        assert_eq!(life.deadline(), Some(NOW.plus(LINGER_MS)));
        assert_eq!(life.tick(NOW.plus(LINGER_MS - 1)), None);
        assert!(!life.is_over());
        life.tick(NOW.plus(LINGER_MS));
        assert!(life.is_over());
    }

    #[test]
    fn a_stop_terminates_once_and_kills_after_the_shortest_grace() {
        let mut life = Lifecycle::new();
        assert_eq!(life.stop(NOW, 500), Some(Act::Terminate));
        assert_eq!(life.stop(NOW, 900), None);
        assert_eq!(life.deadline(), Some(Moment(1500)));
        assert_eq!(life.stop(NOW, 100), None);
        assert_eq!(life.deadline(), Some(Moment(1100)));
        assert_eq!(life.tick(Moment(1099)), None);
        assert_eq!(life.tick(Moment(1100)), Some(Act::Kill));
        assert_eq!(life.tick(Moment(1200)), None, "killed once");
        assert_eq!(life.stop(Moment(1200), 5), None);
        assert_eq!(life.deadline(), None);
        assert_eq!(life.shell_ended(Moment(1300)), Some(Act::Kill), "what came up in between");
        assert!(life.stopped());
    }

    #[test]
    fn a_stop_after_the_end_changes_nothing() {
        let mut life = Lifecycle::new();
        life.shell_ended(NOW);
        assert_eq!(life.stop(NOW, 5), None);
        assert_eq!(life.kill(), None);
        assert!(!life.stopped());
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Stop(u64),
        Kill,
        Ended,
        Closed,
        Wait(u64),
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0u64..300).prop_map(Event::Stop),
            Just(Event::Kill),
            Just(Event::Ended),
            Just(Event::Closed),
            (0u64..300).prop_map(Event::Wait),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_every_stage_has_one_end(events in prop::collection::vec(events(), 0..40)) {
            let (mut life, mut now, mut ended, mut terms, mut kills) = (Lifecycle::new(), NOW, None, 0, 0);
            for event in events {
                let over = life.is_over();
                let act = match event {
                    Event::Stop(grace) => life.stop(now, grace),
                    Event::Kill => life.kill(),
                    Event::Ended => {
                        if ended.is_some() {
                            continue;
                        }
                        ended = Some(now);
                        life.shell_ended(now)
                    }
                    Event::Closed => { life.pipes_closed(); None }
                    Event::Wait(ms) => { now = now.plus(ms); life.tick(now) }
                };
                match act {
                    Some(Act::Terminate) => terms += 1,
                    Some(Act::Kill) => kills += 1,
                    None => {}
                }
                prop_assert!(act.is_none() || ended.is_none_or(|at| at == now && !over), "signals a reaped shell");
                prop_assert!(!over || life.is_over(), "an end is final");
                prop_assert!(!life.is_over() || ended.is_some(), "an end without an end of the shell");
                prop_assert!(life.deadline().is_none_or(|at| at > now) || matches!(event, Event::Stop(_) | Event::Kill | Event::Ended | Event::Closed));
            }
            prop_assert!(terms <= 1);
            prop_assert!(kills <= 2);
            if let Some(at) = ended {
                life.tick(at.plus(LINGER_MS).max(now));
                prop_assert!(life.is_over());
            }
        }
    }
}
