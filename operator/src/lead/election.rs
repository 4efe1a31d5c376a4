//! Takes part in the election: watches the Lease, claims it, renews it, gives it up.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::PostParams;
use thiserror::Error;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::candidate::{Action, Candidate, named};
use super::fence::Tenure;
use crate::api::{CallError, call};
use crate::backoff::Random;
use crate::chain;

/// How long a write of the Lease may take. Two fit between a renewal that is due and the end of
/// the tenure.
const PATIENCE: Duration = Duration::from_secs(3);

/// Nothing waits longer without a look.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Namespace and name of a Lease: `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl FromStr for LeaseName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("\"{text}\" is not NAMESPACE/NAME of a Lease")),
        }
    }
}

impl fmt::Display for LeaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Why the operator leads no longer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Loss {
    /// Another one holds the Lease.
    #[error("another operator, {holder}, holds Lease {lease}")]
    Taken {
        /// Which Lease.
        lease: String,
        /// Who.
        holder: String,
    },
    /// Renewals failed for too long.
    #[error(
        "Lease {lease} could not be renewed in time: the API server did not answer, or this process did not run"
    )]
    NotRenewed {
        /// Which Lease.
        lease: String,
    },
    /// The part that renews it is gone.
    #[error("nothing renews Lease {lease} any more")]
    Broken {
        /// Which Lease.
        lease: String,
    },
}

/// How this operator stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It waits for the Lease of this holder; without a holder it has still to find out.
    StandsBy(Option<String>),
    /// It works.
    Leads,
    /// It has worked and must not any more.
    Lost(Loss),
}

/// What an election needs.
pub struct Election<S> {
    /// Which Lease.
    pub lease: LeaseName,
    /// The Leases of its namespace, by a client that is not fenced.
    pub leases: Api<Lease>,
    /// The Lease whenever it changes, `None` when there is none.
    pub changes: S,
    /// Who stands.
    pub candidate: Candidate,
    /// Is told until when this one leads.
    pub tenure: Tenure,
    /// Jitter.
    pub random: Random,
}

/// This operator's part in the election.
#[derive(Debug)]
pub struct Leadership {
    lease: String,
    standing: watch::Receiver<Standing>,
    resign: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Leadership {
    /// Of an operator that has no others beside it.
    pub fn unopposed(tenure: &Tenure) -> Self {
        tenure.set_unlimited();
        let (sender, standing) = watch::channel(Standing::Leads);
        let (resign, resigned) = oneshot::channel();
        let task = tokio::spawn(async move {
            let _: Result<(), _> = resigned.await;
            drop(sender);
        });
        Self { lease: String::new(), standing, resign, task }
    }

    /// How it stands, also later.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Resolves when this operator leads.
    ///
    /// # Errors
    /// It never will.
    pub async fn won(&mut self) -> Result<(), Loss> {
        let over = |standing: &Standing| !matches!(standing, Standing::StandsBy(_));
        match self.until(over).await {
            Standing::Lost(loss) => Err(loss),
            Standing::Leads | Standing::StandsBy(_) => Ok(()),
        }
    }

    /// Resolves when this operator leads no longer.
    pub async fn lost(&mut self) -> Loss {
        match self.until(|standing| matches!(standing, Standing::Lost(_))).await {
            Standing::Lost(loss) => loss,
            Standing::Leads | Standing::StandsBy(_) => Loss::Broken { lease: self.lease.clone() },
        }
    }

    async fn until(&mut self, reached: impl FnMut(&Standing) -> bool) -> Standing {
        let found = self.standing.wait_for(reached).await.map(|standing| standing.clone());
        // Whoever would tell is gone.
        found.unwrap_or_else(|_| Standing::Lost(Loss::Broken { lease: self.lease.clone() }))
    }

    /// Gives the Lease up, if this operator has it. All work must be over.
    pub async fn resign(self) {
        let _ = self.resign.send(());
        // It ends within its patience, or it is gone already.
        let _ = self.task.await;
    }
}

impl<S> Election<S>
where
    S: Stream<Item = Option<Lease>> + Send + 'static,
{
    /// Stands, from now on.
    pub fn stand(self) -> Leadership {
        let (sender, standing) = watch::channel(Standing::StandsBy(None));
        let (resign, resigned) = oneshot::channel();
        let lease = self.lease.to_string();
        let campaign = Campaign {
            lease: self.lease,
            leases: self.leases,
            changes: Some(self.changes.boxed()),
            candidate: self.candidate,
            tenure: self.tenure,
            random: self.random,
            standing: sender,
        };
        Leadership { lease, standing, resign, task: tokio::spawn(campaign.run(resigned)) }
    }
}

struct Campaign {
    lease: LeaseName,
    leases: Api<Lease>,
    /// Only until this one leads: then it hears of changes by its own writes.
    changes: Option<BoxStream<'static, Option<Lease>>>,
    candidate: Candidate,
    tenure: Tenure,
    random: Random,
    standing: watch::Sender<Standing>,
}

impl Campaign {
    async fn run(mut self, mut resigned: oneshot::Receiver<()>) {
        loop {
            let wait = match self.candidate.decide(self.tenure.now()) {
                Action::Claim => {
                    self.claim().await;
                    continue;
                }
                Action::StepDown => return self.step_down(),
                Action::Wait(wait) => wait,
                Action::Look => LONGEST_WAIT,
            };
            tokio::select! {
                biased;
                // An error means that whoever could say so is gone: so is the operator.
                _ = &mut resigned => return self.resign().await,
                lease = next(&mut self.changes) => {
                    self.candidate.saw(lease, self.tenure.now());
                    self.tell_holder();
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Writes the Lease in the own name.
    async fn claim(&mut self) {
        let lease = named(self.candidate.claim(Timestamp::now()), &self.lease.name);
        let sent = self.tenure.now();
        let jitter = (self.random)();
        match write(&self.leases, &self.lease.name, &lease).await {
            Ok(lease) => {
                self.candidate.claimed(lease, sent, self.tenure.now(), jitter);
                self.tenure.set(self.candidate.until());
                if self.tenure.holds() && self.changes.take().is_some() {
                    tracing::info!(lease = %self.lease, "this operator leads");
                    self.standing.send_replace(Standing::Leads);
                }
            }
            Err(error) => {
                self.candidate.failed(self.tenure.now(), jitter);
                if error.is_conflict() || error.is_already_exists() || error.is_not_found() {
                    self.look().await;
                } else {
                    tracing::warn!(lease = %self.lease, error = chain(&error), "the Lease cannot be written");
                }
            }
        }
    }

    /// Asks how the Lease stands. No answer changes nothing.
    async fn look(&mut self) {
        match in_time(self.leases.get_opt(&self.lease.name)).await {
            Ok(lease) => self.candidate.saw(lease, self.tenure.now()),
            Err(error) => {
                tracing::warn!(lease = %self.lease, error = chain(&error), "the Lease cannot be read");
            }
        }
    }

    fn step_down(&mut self) {
        self.tenure.set(None);
        let lease = self.lease.to_string();
        let loss = match self.candidate.other() {
            Some(holder) => Loss::Taken { lease, holder: holder.to_owned() },
            None => Loss::NotRenewed { lease },
        };
        self.standing.send_replace(Standing::Lost(loss));
    }

    /// The last write: the Lease is nobody's, so the next one need not wait for its end.
    async fn resign(&mut self) {
        self.tenure.set(None);
        let Some(lease) = self.candidate.resign() else { return };
        match write(&self.leases, &self.lease.name, &lease).await {
            Ok(_) => tracing::info!(lease = %self.lease, "gave the Lease up"),
            Err(error) => {
                tracing::warn!(lease = %self.lease, error = chain(&error), "the Lease could not be given up; it runs out");
            }
        }
    }

    /// Says once of each holder that this operator stands by for it.
    fn tell_holder(&mut self) {
        let standing = Standing::StandsBy(self.candidate.other().map(str::to_owned));
        let is_new = |told: &mut Standing| {
            let is_new = *told != standing;
            told.clone_from(&standing);
            is_new
        };
        if self.standing.send_if_modified(is_new)
            && let Standing::StandsBy(Some(holder)) = &standing
        {
            tracing::info!(lease = %self.lease, holder, "standing by");
        }
    }
}

/// Replaces the version of the Lease that was seen, or creates it.
async fn write(leases: &Api<Lease>, name: &str, lease: &Lease) -> Result<Lease, CallError> {
    let parameters = PostParams::default();
    if lease.metadata.resource_version.is_some() {
        in_time(leases.replace(name, &parameters, lease)).await
    } else {
        in_time(leases.create(&parameters, lease)).await
    }
}

/// The next change, while there is somebody to tell of it.
async fn next(changes: &mut Option<BoxStream<'static, Option<Lease>>>) -> Option<Lease> {
    let Some(stream) = changes else { return std::future::pending().await };
    match stream.next().await {
        Some(lease) => lease,
        None => std::future::pending().await,
    }
}

async fn in_time<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, CallError> {
    match tokio::time::timeout(PATIENCE, call(request)).await {
        Ok(answer) => answer,
        Err(_) => Err(CallError::Silence(PATIENCE)),
    }
}

#[cfg(test)]
mod tests;
