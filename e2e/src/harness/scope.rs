//! How long something may go on: until it is canceled, until a deadline, and never longer than what it is part of.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Why something has to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Somebody asked for it.
    Canceled,
    /// The time of the job, or of the step, is up.
    Deadline,
    /// `prepare_timeout` has passed.
    PrepareTimeout(Duration),
    /// `get_sources_timeout` has passed.
    GetSourcesTimeout(Duration),
}

/// A part of a job's life. Clones are the same scope.
#[derive(Debug, Clone)]
pub(super) struct Scope(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parent: Option<Scope>,
    deadline: Option<(Instant, Cause)>,
    canceled: watch::Sender<bool>,
    first: OnceLock<Cause>,
}

impl Scope {
    /// A scope that ends by itself after `limit`.
    pub(super) fn root(limit: Option<Duration>) -> Self {
        Self::build(None, limit.map(|limit| (limit, Cause::Deadline)))
    }

    /// A part of this scope that can be canceled alone.
    pub(super) fn child(&self) -> Self {
        Self::build(Some(self.clone()), None)
    }

    /// A part of this scope that ends for `cause` after `limit`.
    pub(super) fn child_with_limit(&self, limit: Duration, cause: Cause) -> Self {
        Self::build(Some(self.clone()), Some((limit, cause)))
    }

    fn build(parent: Option<Scope>, limit: Option<(Duration, Cause)>) -> Self {
        Self(Arc::new(Inner {
            parent,
            deadline: limit.map(|(limit, cause)| (Instant::now() + limit, cause)),
            canceled: watch::Sender::new(false),
            first: OnceLock::new(),
        }))
    }

    /// Ends this scope and its parts.
    pub(super) fn cancel(&self) {
        self.0.canceled.send_replace(true);
    }

    /// Why this scope has ended; `None` while it goes on. The first cause stays.
    pub(super) fn ended(&self) -> Option<Cause> {
        let inner = &self.0;
        if let Some(first) = inner.first.get() {
            return Some(*first);
        }
        let own = inner.canceled.borrow().then_some(Cause::Canceled);
        let cause = own.or_else(|| inner.parent.as_ref().and_then(Scope::ended)).or_else(|| {
            inner.deadline.filter(|(deadline, _)| *deadline <= Instant::now()).map(|(_, cause)| cause)
        })?;
        Some(*inner.first.get_or_init(|| cause))
    }

    /// Time until the deadline of this scope or of one around it, whichever is nearest.
    pub(super) fn remaining(&self) -> Option<Duration> {
        let own = self.0.deadline.map(|(at, _)| at.saturating_duration_since(Instant::now()));
        let outer = self.0.parent.as_ref().and_then(Scope::remaining);
        own.into_iter().chain(outer).min()
    }

    /// Waits until this scope has ended.
    pub(super) fn done(&self) -> Pin<Box<dyn Future<Output = Cause> + Send + '_>> {
        Box::pin(async move {
            let mut canceled = self.0.canceled.subscribe();
            loop {
                if let Some(cause) = self.ended() {
                    return cause;
                }
                let parent = async {
                    match &self.0.parent {
                        Some(parent) => parent.done().await,
                        None => std::future::pending().await,
                    }
                };
                let deadline = async {
                    match self.0.deadline {
                        Some((at, _)) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    _ = parent => {}
                    () = deadline => {}
                    _ = canceled.changed() => {}
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_ends_with_the_whole_but_not_the_other_way_round() {
        let job = Scope::root(Some(Duration::from_millis(300)));
        let script = job.child();
        script.cancel();
        assert_eq!(script.done().await, Cause::Canceled);
        assert_eq!(job.ended(), None);
        let after = job.child_with_limit(Duration::from_mins(1), Cause::GetSourcesTimeout(Duration::ZERO));
        assert!(after.remaining().is_some_and(|left| left <= Duration::from_millis(300)));
        assert_eq!(after.done().await, Cause::Deadline);
        assert_eq!(job.ended(), Some(Cause::Deadline));
    }

    #[tokio::test]
    async fn the_first_cause_stays() {
        let scope = Scope::root(None).child_with_limit(Duration::from_millis(10), Cause::Deadline);
        assert_eq!(scope.done().await, Cause::Deadline);
        scope.cancel();
        assert_eq!(scope.ended(), Some(Cause::Deadline));
    }

    #[tokio::test]
    async fn a_waiter_is_woken_by_cancel() {
        let scope = Scope::root(None);
        let part = scope.child();
        let waiter = tokio::spawn(async move { part.done().await });
        tokio::task::yield_now().await;
        scope.cancel();
        assert_eq!(waiter.await.unwrap(), Cause::Canceled);
    }
}
