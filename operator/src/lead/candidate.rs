//! What a candidate does next. Pure: times are readings of the process's own clock, given as the
//! time since some origin.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};

/// How long everything takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long the Lease has to stay unchanged for another candidate to take it.
    pub duration: Duration,
    /// How long after the renewal that succeeded last the holder may work. What it lacks to
    /// `duration` is the margin: for writes on their way, and for clocks of different speed.
    pub tenure: Duration,
    /// How long after a renewal the holder renews again.
    pub renewal: Duration,
    /// How long after a failed try the next one follows.
    pub retry: Duration,
}

impl Default for Terms {
    /// Three renewals fit into a tenure, and a third of the duration is margin.
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            tenure: Duration::from_secs(10),
            renewal: Duration::from_secs(4),
            retry: Duration::from_millis(500),
        }
    }
}

/// What a candidate is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the Lease in the own name.
    Claim,
    /// Nothing for so long, unless the Lease changes before.
    Wait(Duration),
    /// Nothing until it is known how the Lease stands.
    Look,
    /// Stop working: the Lease is not the own one any more, or nobody can say so.
    StepDown,
}

/// One of those that want the Lease.
#[derive(Clone, Debug)]
pub struct Candidate {
    me: String,
    terms: Terms,
    seen: Option<Seen>,
    /// Until when this one may work. `None`: it does not lead.
    until: Option<Duration>,
    /// Before this there is no next try.
    not_before: Duration,
}

/// The Lease as it was seen last.
#[derive(Clone, Debug)]
struct Seen {
    /// `None`: there is none.
    lease: Option<Lease>,
    /// Whether another one may be at work.
    taken: bool,
    /// For how long it stays so without a change.
    duration: Duration,
    /// When it was first seen as it is.
    since: Duration,
}

impl Candidate {
    /// A candidate of this name that knows nothing yet. Of one name there must never be two at a
    /// time; one after the other is fine, and the later one goes on with what the earlier one held.
    pub fn new(me: impl Into<String>, terms: Terms) -> Self {
        Self { me: me.into(), terms, seen: None, until: None, not_before: Duration::ZERO }
    }

    /// What to do now.
    pub fn decide(&self, now: Duration) -> Action {
        let Some(seen) = &self.seen else { return Action::Look };
        if let Some(until) = self.until {
            return if now >= until || seen.taken {
                Action::StepDown
            } else if now >= self.not_before {
                Action::Claim
            } else {
                Action::Wait(self.not_before.min(until).saturating_sub(now))
            };
        }
        let free = if seen.taken { seen.since + seen.duration } else { Duration::ZERO };
        let then = free.max(self.not_before);
        if now >= then { Action::Claim } else { Action::Wait(then.saturating_sub(now)) }
    }

    /// The Lease is seen to be like this; `None`: there is none. What is seen late counts from when
    /// it is seen, so a late view only makes for patience.
    pub fn saw(&mut self, lease: Option<Lease>, now: Duration) {
        let Some(lease) = lease else {
            let existed = match &self.seen {
                Some(Seen { lease: None, .. }) => return,
                seen => seen.is_some(),
            };
            // Who deletes a Lease does not stop its holder, and that may be one who was never seen.
            let taken = existed && self.until.is_none();
            self.seen = Some(Seen { lease: None, taken, duration: self.terms.duration, since: now });
            return;
        };
        let known = self.seen.as_ref().and_then(|seen| seen.lease.as_ref());
        if known.is_some_and(|known| known.metadata.resource_version == lease.metadata.resource_version) {
            return;
        }
        let spec = lease.spec.as_ref();
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds);
        let duration = seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
        self.seen = Some(Seen {
            taken: holder(&lease).is_some_and(|holder| holder != self.me),
            duration: duration.filter(|duration| !duration.is_zero()).unwrap_or(self.terms.duration),
            since: now,
            lease: Some(lease),
        });
    }

    /// The Lease to write, to take it or to keep it. With a resource version it replaces that
    /// version and no other; without one it is new. The time of day in it is for people.
    pub fn claim(&self, today: Timestamp) -> Lease {
        let mut lease = self.seen.as_ref().and_then(|seen| seen.lease.clone()).unwrap_or_default();
        let kept = holder(&lease) == Some(&self.me);
        let before = lease.spec.take().unwrap_or_default();
        let transitions = before.lease_transitions.unwrap_or(0);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: Some(seconds(self.terms.duration)),
            acquire_time: before.acquire_time.filter(|_| kept).or(Some(MicroTime(today))),
            renew_time: Some(MicroTime(today)),
            lease_transitions: Some(if kept { transitions } else { transitions.saturating_add(1) }),
            ..before
        });
        lease
    }

    /// The claim that was sent at `sent` was carried out, and this is the Lease since then. `jitter`
    /// is from 0 to 1 and keeps renewals of several releases apart.
    pub fn claimed(&mut self, lease: Lease, sent: Duration, now: Duration, jitter: f64) {
        self.saw(Some(lease), now);
        self.until = Some(sent + self.terms.tenure);
        self.not_before = sent + self.terms.renewal.mul_f64(1.0 - 0.25 * jitter.clamp(0.0, 1.0));
    }

    /// The claim was not carried out, or nobody knows.
    pub fn failed(&mut self, now: Duration, jitter: f64) {
        self.not_before = now + self.terms.retry.mul_f64(1.0 + jitter.clamp(0.0, 1.0));
    }

    /// Leads no longer. Returns the Lease to write so that the next one need not wait, if there is one.
    pub fn resign(&mut self) -> Option<Lease> {
        self.until = None;
        let mut lease = self.seen.as_ref()?.lease.clone().filter(|lease| holder(lease) == Some(&self.me))?;
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
        }
        Some(lease)
    }

    /// Until when it may work; `None`: it may not.
    pub fn until(&self) -> Option<Duration> {
        self.until
    }

    /// The other one that holds the Lease, as far as this one knows.
    pub fn other(&self) -> Option<&str> {
        holder(self.seen.as_ref()?.lease.as_ref()?).filter(|holder| *holder != self.me)
    }
}

/// Who holds the Lease. Some write an empty name where they mean nobody.
fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)
}

/// A Lease that does not exist yet is created under this name.
pub fn named(mut lease: Lease, name: &str) -> Lease {
    if lease.metadata.resource_version.is_none() {
        lease.metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    }
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn lease(version: &str, holder: Option<&str>) -> Lease {
        Lease {
            metadata: ObjectMeta { resource_version: Some(version.to_owned()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: holder.map(str::to_owned),
                lease_duration_seconds: Some(15),
                lease_transitions: Some(3),
                ..LeaseSpec::default()
            }),
        }
    }

    fn at(seconds: u32) -> Duration {
        SECOND * seconds
    }

    fn who_saw(seen: Option<Lease>) -> Candidate {
        let mut candidate = Candidate::new("me", Terms::default());
        candidate.saw(seen, at(100));
        candidate
    }

    fn leader() -> Candidate {
        let mut candidate = who_saw(None);
        candidate.claimed(lease("1", Some("me")), at(100), at(101), 0.0);
        candidate
    }

    #[test]
    fn who_does_not_lead_takes_what_is_free() {
        assert_eq!(Candidate::new("me", Terms::default()).decide(at(0)), Action::Look);
        for (seen, now, action) in [
            (None, 100, Action::Claim),
            (Some(lease("1", None)), 100, Action::Claim),
            (Some(lease("1", Some(""))), 100, Action::Claim),
            // Held by an earlier process of the same pod.
            (Some(lease("1", Some("me"))), 100, Action::Claim),
            (Some(lease("1", Some("other"))), 100, Action::Wait(at(15))),
            (Some(lease("1", Some("other"))), 114, Action::Wait(SECOND)),
            (Some(lease("1", Some("other"))), 115, Action::Claim),
        ] {
            assert_eq!(who_saw(seen.clone()).decide(at(now)), action, "{seen:?} at {now}");
        }
    }

    #[test]
    fn only_a_change_counts() {
        let mut candidate = who_saw(Some(lease("1", Some("other"))));
        candidate.saw(Some(lease("1", Some("other"))), at(110));
        assert_eq!(candidate.decide(at(115)), Action::Claim);
        candidate.saw(Some(lease("2", Some("other"))), at(115));
        assert_eq!(candidate.decide(at(115)), Action::Wait(at(15)));
        // Deleting the object does not stop its holder.
        candidate.saw(None, at(116));
        candidate.saw(None, at(120));
        assert_eq!(candidate.decide(at(130)), Action::Wait(SECOND));
        assert_eq!(candidate.decide(at(131)), Action::Claim);
        assert!(candidate.claim(Timestamp::UNIX_EPOCH).metadata.resource_version.is_none());
    }

    #[test]
    fn a_leader_renews_and_stops_in_time() {
        let candidate = leader();
        for (now, action) in [
            (101, Action::Wait(at(3))),
            (104, Action::Claim),
            (109, Action::Claim),
            // Ten seconds after the claim was sent, not after it was answered.
            (110, Action::StepDown),
        ] {
            assert_eq!(candidate.decide(at(now)), action, "at {now}");
        }
        let mut candidate = leader();
        candidate.failed(at(106), 1.0);
        assert_eq!(candidate.decide(at(106)), Action::Wait(SECOND));
        candidate.failed(Duration::from_millis(109_500), 1.0);
        assert_eq!(candidate.decide(Duration::from_millis(109_500)), Action::Wait(SECOND / 2));
        assert_eq!(candidate.decide(at(110)), Action::StepDown);
    }

    #[test]
    fn a_leader_whose_lease_another_holds_stops_at_once() {
        let mut candidate = leader();
        candidate.saw(Some(lease("2", Some("other"))), at(102));
        assert_eq!(candidate.decide(at(102)), Action::StepDown);
        // One that is only gone is made again.
        let mut candidate = leader();
        candidate.saw(None, at(104));
        assert_eq!(candidate.decide(at(104)), Action::Claim);
    }

    #[test]
    fn a_claim_says_since_when_and_how_often() {
        let (then, now) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(60).unwrap());
        let mut candidate = who_saw(Some(lease("7", None)));
        let first = candidate.claim(then);
        let spec = first.spec.clone().unwrap();
        assert_eq!(first.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_duration_seconds), (Some("me"), Some(15)));
        assert_eq!(spec.lease_transitions, Some(4));
        let answer = Lease { metadata: lease("8", None).metadata, ..first };
        candidate.claimed(answer, at(100), at(100), 0.0);
        let spec = candidate.claim(now).spec.unwrap();
        assert_eq!(spec.lease_transitions, Some(4));
        assert_eq!(spec.acquire_time.map(|time| time.0), Some(then));
        assert_eq!(spec.renew_time.map(|time| time.0), Some(now));
    }

    #[test]
    fn who_resigns_leads_no_longer_and_frees_what_it_held() {
        let mut candidate = leader();
        let freed = candidate.resign().unwrap();
        assert_eq!(holder(&freed), None);
        assert_eq!(freed.metadata.resource_version.as_deref(), Some("1"));
        assert_eq!(candidate.until(), None);
        assert!(who_saw(Some(lease("1", Some("other")))).resign().is_none());
        assert!(Candidate::new("me", Terms::default()).resign().is_none());
    }
}
