//! Looks at one CiJob: what it is now, and every change of it.

use std::future::Future;
use std::io;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::WatchParams;
use kube::core::WatchEvent;
use kube::{Api, ResourceExt as _};
use roadstead_crds::CiJob;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::shim::cluster::{self, Backoff, Meaning};

/// How long the API server keeps one watch, in seconds: an idle one costs two requests an hour.
const WATCH_SECONDS: u32 = 1_800;

/// A watch that brings nothing for this long is opened again, because nothing else would notice a
/// connection that is dead. The API server sends a bookmark about once a minute.
const SILENCE: Duration = Duration::from_secs(300);

/// How long the API server may take to answer a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// How often in a row it may not be allowed to look, once it was. An API server that has just
/// started may not know who may do what.
const MOST_DENIALS: u32 = 8;

/// Waits before a watch that failed is opened again.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What was seen of the CiJob.
#[derive(Clone, Debug)]
pub enum Seen {
    /// It looks like this now.
    Job(Box<CiJob>),
    /// It is gone, or one of the same name has taken its place.
    Gone,
    /// It cannot be seen at the moment; it is tried again.
    Blind(String),
    /// It cannot be seen, and trying again will not help. Nothing follows.
    Denied(String),
}

/// A look at one CiJob. It ends when it is dropped.
pub struct Watch {
    seen: mpsc::Receiver<Seen>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Watches the CiJob of that name and UID. With the version of an object that was just seen
    /// only later changes are told, without one what there is comes first.
    pub fn start(api: Api<CiJob>, name: String, uid: Option<String>, version: Option<String>) -> Self {
        let (sender, seen) = mpsc::channel(16);
        let watcher = Watcher { api, name, uid, version, sender };
        Self { seen, task: tokio::spawn(watcher.run()) }
    }

    /// Waits for what is seen next. May be dropped and called again.
    pub async fn next(&mut self) -> Seen {
        match self.seen.recv().await {
            Some(seen) => seen,
            // After Gone or Denied nothing follows.
            None => std::future::pending().await,
        }
    }
}

struct Watcher {
    api: Api<CiJob>,
    name: String,
    uid: Option<String>,
    version: Option<String>,
    sender: mpsc::Sender<Seen>,
}

async fn in_time<T>(request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    let late = || kube::Error::ReadEvents(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
    tokio::time::timeout(ANSWER_TIMEOUT, request).await.map_err(|_| late())?
}

/// Why a round of watching ended.
enum Round {
    /// As watches do; it goes on where it ended.
    Over,
    /// What happened since is not known any more; it starts anew.
    Expired,
    /// It failed.
    Failed(kube::Error),
    /// There is nothing more to see.
    Finished,
}

impl Watcher {
    async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut denials = 0;
        loop {
            let started = tokio::time::Instant::now();
            let round = self.round().await;
            if started.elapsed() > LONGEST_WAIT {
                backoff.reset();
                denials = 0;
            }
            match round {
                Round::Finished => return,
                Round::Over => {}
                Round::Expired => self.version = None,
                Round::Failed(error) => {
                    let text = cluster::sentence(&format!("watch the CiJob {}", self.name), &error);
                    tracing::info!(error = %text, "the watch of the CiJob failed");
                    let denied = cluster::meaning(&error) != Meaning::Trouble;
                    denials += u32::from(denied);
                    let trouble = !denied || (self.uid.is_some() && denials < MOST_DENIALS);
                    let seen = if trouble { Seen::Blind(text) } else { Seen::Denied(text) };
                    if self.sender.send(seen).await.is_err() || !trouble {
                        return;
                    }
                    // What comes next is told even if it is nothing new: it can be seen again.
                    self.version = None;
                }
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    async fn round(&mut self) -> Round {
        let version = match self.version.clone() {
            Some(version) => version,
            None => match in_time(self.api.get_opt(&self.name)).await {
                Ok(Some(job)) => {
                    let version = job.resource_version().unwrap_or_default();
                    if !self.tell(job).await {
                        return Round::Finished;
                    }
                    version
                }
                Ok(None) => return self.gone().await,
                Err(error) => return Round::Failed(error),
            },
        };
        let params = WatchParams {
            label_selector: None,
            field_selector: Some(format!("metadata.name={}", self.name)),
            timeout: Some(WATCH_SECONDS),
            bookmarks: true,
            send_initial_events: false,
        };
        let events = match in_time(self.api.watch(&params, &version)).await {
            Ok(events) => events,
            Err(error) if cluster::meaning(&error) == Meaning::Expired => return Round::Expired,
            Err(error) => return Round::Failed(error),
        };
        let mut events = events.into_stream().boxed();
        loop {
            match tokio::time::timeout(SILENCE, events.next()).await {
                Ok(Some(Ok(WatchEvent::Added(job) | WatchEvent::Modified(job)))) => {
                    self.version = job.resource_version();
                    if !self.tell(job).await {
                        return Round::Finished;
                    }
                }
                Ok(Some(Ok(WatchEvent::Deleted(_)))) => return self.gone().await,
                Ok(Some(Ok(WatchEvent::Bookmark(bookmark)))) => {
                    self.version = Some(bookmark.metadata.resource_version);
                }
                Ok(Some(Ok(WatchEvent::Error(status)))) => {
                    let error = kube::Error::Api(status);
                    let expired = cluster::meaning(&error) == Meaning::Expired;
                    return if expired { Round::Expired } else { Round::Failed(error) };
                }
                Ok(Some(Err(error))) => return Round::Failed(error),
                Ok(None) | Err(_) => return Round::Over,
            }
        }
    }

    /// Tells what the job looks like; `false` where nobody listens or it is another one.
    async fn tell(&mut self, job: CiJob) -> bool {
        self.version = job.resource_version();
        if self.uid.is_some() && job.uid() != self.uid {
            self.gone().await;
            return false;
        }
        self.uid = job.uid();
        self.sender.send(Seen::Job(Box::new(job))).await.is_ok()
    }

    async fn gone(&self) -> Round {
        // Whether anybody listens does not matter any more.
        let _ = self.sender.send(Seen::Gone).await;
        Round::Finished
    }
}
