//! Runs the CiJobs of one namespace: watches what concerns them and reconciles what changed.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::controller::{self, Action, ReconcileRequest};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::runtime::{Config, applier};
use kube::{Api, Client};
use roadstead_crds::{CiJob, Phase, Reason};
use thiserror::Error;
use tokio::sync::{broadcast, mpsc};
use tracing::Instrument as _;

use crate::backoff::{Backoffs, Random};
use crate::classes::Classes;
use crate::job::apply::{Applied, ApplyError, Writer};
use crate::job::memory::Memory;
use crate::job::observe::{ObserveError, Sources, observe};
use crate::job::plan::{Action as Step, plan};
use crate::job::status::waits_for_room;
use crate::job::{Identity, named_by};
use crate::journal::Journal;
use crate::policy::{Images, select};
use crate::queues::{Member, Queues};
use crate::telemetry::{Metrics, Outcome};
use crate::{chain, watch};

/// Why a reconcile failed.
#[derive(Debug, Error)]
pub enum ReconcileError {
    /// The job could not be observed.
    #[error("the job cannot be observed")]
    Observe {
        /// Why.
        source: ObserveError,
    },
    /// The plan could not be carried out.
    #[error("the plan cannot be carried out")]
    Apply {
        /// Why.
        source: ApplyError,
    },
    /// The caches are being taken down.
    #[error("the operator is shutting down")]
    Stopping,
}

impl ReconcileError {
    /// In one word, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Observe { source } => source.reason(),
            Self::Apply { source } => source.reason(),
            Self::Stopping => "stopping",
        }
    }

    /// How long to wait at least before the next try. `None`: as long as the back-off says.
    pub fn retry(&self) -> Option<Duration> {
        match self {
            Self::Observe { source } => source.retry(),
            Self::Apply { source } => source.retry(),
            Self::Stopping => None,
        }
    }
}

/// What all namespaces share.
#[derive(Clone)]
pub struct Shared {
    /// The connection to the API server.
    pub client: Client,
    /// Images that no class names.
    pub images: Arc<Images>,
    /// All classes.
    pub classes: Arc<Classes>,
    /// Is told of every status that was written.
    pub journal: Arc<Journal>,
    /// Counts.
    pub metrics: Metrics,
    /// Jitter.
    pub random: Random,
}

/// The controller of one namespace.
pub struct Controller {
    shared: Shared,
    namespace: String,
    jobs: Store<CiJob>,
    jobs_writer: reflector::store::Writer<CiJob>,
    pods: Store<Pod>,
    pods_writer: reflector::store::Writer<Pod>,
    class_changes: broadcast::Receiver<String>,
    memory: Arc<Memory>,
    wake: mpsc::UnboundedSender<ObjectRef<CiJob>>,
    woken: mpsc::UnboundedReceiver<ObjectRef<CiJob>>,
}

/// What a reconcile needs.
struct Context {
    shared: Shared,
    sources: Sources,
    writer: Writer,
    backoffs: Arc<Backoffs>,
}

impl Controller {
    /// A controller that has not begun. `class_changes` brings the names of classes that changed.
    pub fn new(shared: Shared, namespace: String, class_changes: broadcast::Receiver<String>) -> Self {
        let (jobs, jobs_writer) = reflector::store();
        let (pods, pods_writer) = reflector::store();
        let (wake, woken) = mpsc::unbounded_channel();
        let memory = Arc::default();
        Self { shared, namespace, jobs, jobs_writer, pods, pods_writer, class_changes, memory, wake, woken }
    }

    /// The namespace as the queues see it.
    pub fn member(&self) -> Member {
        Member {
            namespace: self.namespace.clone(),
            jobs: self.jobs.clone(),
            memory: Arc::clone(&self.memory),
            wake: self.wake.clone(),
        }
    }

    /// The namespace's CiJobs.
    pub fn jobs(&self) -> Store<CiJob> {
        self.jobs.clone()
    }

    /// The namespace's job pods.
    pub fn pods(&self) -> Store<Pod> {
        self.pods.clone()
    }

    /// Reconciles until `stop` comes, then finishes what it is at.
    pub async fn run(
        self,
        queues: Arc<Queues>,
        concurrency: u16,
        stop: impl Future<Output = ()> + Send + 'static,
    ) {
        let Self { shared, namespace, jobs, jobs_writer, pods, pods_writer, .. } = self;
        let Self { class_changes, memory, woken, .. } = self;
        let Shared { client, metrics, random, .. } = shared.clone();
        let backoffs = Arc::new(Backoffs::new(random));
        let api = Api::namespaced(client.clone(), &namespace);
        let context = Arc::new(Context {
            sources: Sources {
                pods,
                classes: Arc::clone(&shared.classes),
                api: api.clone(),
                memory: Arc::clone(&memory),
                queues: Arc::clone(&queues),
            },
            writer: Writer {
                jobs: Api::namespaced(client.clone(), &namespace),
                pods: api.clone(),
                secrets: Api::namespaced(client.clone(), &namespace),
                memory: Arc::clone(&memory),
                journal: Arc::clone(&shared.journal),
                clock: Timestamp::now,
            },
            backoffs: Arc::clone(&backoffs),
            shared,
        });

        let job_events =
            watch::objects(Api::namespaced(client, &namespace), "cijobs", metrics.clone(), random);
        let pod_events = watch::pods(api, metrics, random);
        let job_events = watch::cached(jobs_writer, job_events);
        let pod_events = watch::cached(pods_writer, pod_events);
        let known = Known { jobs: jobs.clone(), memory, backoffs, queues };
        let triggers = stream::select_all([
            by_job(job_events, known.clone()).boxed(),
            by_pod(pod_events, known).boxed(),
            by_class(class_changes, jobs.clone()).boxed(),
            stream::unfold(woken, async |mut woken| woken.recv().await.map(|job| (job, woken))).boxed(),
        ]);
        let queue = watch::until(triggers, stop).map(|job| Ok::<_, Infallible>(ReconcileRequest::from(job)));
        let mut results = pin!(applier(
            reconcile,
            on_error,
            context,
            jobs,
            queue,
            Config::default().concurrency(concurrency)
        ));
        while let Some(result) = results.next().await {
            match result {
                Ok(_) | Err(controller::Error::ReconcilerFailed(..)) => {} // told in `reconcile`
                Err(controller::Error::ObjectNotFound(job)) => {
                    tracing::trace!(job = job.name, "gone before it was looked at again");
                }
                Err(controller::Error::QueueError(never)) => match never {},
                Err(controller::Error::RunnerError(_)) => {
                    tracing::info!(namespace, "told to stop before the CiJobs were known");
                }
            }
        }
    }
}

type Triggers = BoxStream<'static, ObjectRef<CiJob>>;

fn all(jobs: &Store<CiJob>) -> impl Stream<Item = ObjectRef<CiJob>> + use<> {
    stream::iter(jobs.state()).map(|job| ObjectRef::from_obj(&*job))
}

/// What events are looked up in, and who is told of them.
#[derive(Clone)]
struct Known {
    jobs: Store<CiJob>,
    memory: Arc<Memory>,
    backoffs: Arc<Backoffs>,
    queues: Arc<Queues>,
}

/// A job for each change of it, and all of them after a list: a list goes into the cache as a
/// whole at its end, and says nothing of what is no more.
fn by_job(
    events: impl Stream<Item = Event<CiJob>> + Send + 'static,
    known: Known,
) -> impl Stream<Item = ObjectRef<CiJob>> + Send {
    let Known { jobs, memory, backoffs, queues } = known;
    events.flat_map(move |event| -> Triggers {
        match event {
            Event::Apply(job) => {
                queues.changed(&job, Timestamp::now());
                stream::iter([ObjectRef::from_obj(&job)]).boxed()
            }
            Event::Delete(job) => {
                let uid = job.metadata.uid.as_deref().unwrap_or_default();
                memory.forget(uid);
                backoffs.reset(uid);
                queues.changed(&job, Timestamp::now());
                stream::empty().boxed()
            }
            Event::Init | Event::InitApply(_) => stream::empty().boxed(),
            Event::InitDone => {
                let known = jobs.state();
                let exists = |uid: &str| known.iter().any(|job| job.metadata.uid.as_deref() == Some(uid));
                memory.retain(exists);
                queues.listed();
                all(&jobs).boxed()
            }
        }
    })
}

/// The job of each pod that changes, and all jobs after a list.
fn by_pod(
    events: impl Stream<Item = Event<Pod>> + Send + 'static,
    known: Known,
) -> impl Stream<Item = ObjectRef<CiJob>> + Send {
    let Known { jobs, memory, queues, .. } = known;
    events.flat_map(move |event| -> Triggers {
        let ended = matches!(event, Event::Delete(_));
        match event {
            Event::Apply(pod) | Event::Delete(pod) => {
                memory.saw(&pod);
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                // A quota counts pods until they have ended, and some of it until they are gone.
                if ended || matches!(phase, Some("Succeeded" | "Failed")) {
                    queues.freed(namespace, Timestamp::now());
                }
                stream::iter(named_by(&pod).map(|name| ObjectRef::new(name).within(namespace))).boxed()
            }
            Event::Init | Event::InitApply(_) => stream::empty().boxed(),
            Event::InitDone => all(&jobs).boxed(),
        }
    })
}

/// The jobs that wait for a class that changed.
fn by_class(
    changes: broadcast::Receiver<String>,
    jobs: Store<CiJob>,
) -> impl Stream<Item = ObjectRef<CiJob>> + Send {
    let changes = stream::unfold(changes, async |mut changes| match changes.recv().await {
        Ok(name) => Some((Some(name), changes)),
        // Which ones is not known any more.
        Err(broadcast::error::RecvError::Lagged(_)) => Some((None, changes)),
        Err(broadcast::error::RecvError::Closed) => None,
    });
    changes.flat_map(move |changed| {
        let waiting = jobs.state_filter(|job| awaits(job, changed.as_deref()));
        stream::iter(waiting).map(|job| ObjectRef::from_obj(&*job))
    })
}

/// Whether the job waits for this class or for room in it, or for any class that takes it; `None`: for some class.
fn awaits(job: &CiJob, name: Option<&str>) -> bool {
    let status = job.status.as_ref();
    if let Some(status) = status.filter(|status| waits_for_room(status)) {
        return name.is_none_or(|name| status.class.as_deref() == Some(name));
    }
    let waits = status.is_some_and(|status| {
        status.reason == Some(Reason::ClassNotFound) && !status.phase.is_some_and(Phase::is_final)
    });
    waits && name.is_none_or(|name| select::concerns(&job.spec.request, name))
}

type Reconciled = Pin<Box<dyn Future<Output = Result<Action, ReconcileError>> + Send>>;

fn reconcile(job: Arc<CiJob>, context: Arc<Context>) -> Reconciled {
    let Some(identity) = Identity::of(&job) else {
        return Box::pin(std::future::ready(Ok(Action::await_change())));
    };
    let span = tracing::info_span!("reconcile", namespace = identity.namespace, job = identity.name);
    Box::pin(timed(job, identity, context).instrument(span))
}

async fn timed(job: Arc<CiJob>, identity: Identity, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let began = Instant::now();
    let uid = identity.uid.clone();
    let result = once(job, identity, &context).await;
    let (outcome, action) = match result {
        Ok((Applied::Done | Applied::Queued, wait)) => {
            context.backoffs.reset(&uid);
            (Outcome::Done, Ok(wait.map_or_else(Action::await_change, Action::requeue)))
        }
        // The change that was in the way is on its way through the watch; this is for the case that it is not.
        Ok((Applied::LookAgain, _)) => {
            (Outcome::LookAgain, Ok(Action::requeue(context.backoffs.failed(&uid))))
        }
        Ok((Applied::Gone, _)) => {
            context.backoffs.reset(&uid);
            (Outcome::Done, Ok(Action::await_change()))
        }
        Err(error) => {
            context.shared.metrics.failed(error.reason());
            tracing::warn!(reason = error.reason(), error = chain(&error), "reconcile failed");
            (Outcome::Failed, Err(error))
        }
    };
    context.shared.metrics.reconciled(outcome, began.elapsed());
    action
}

async fn once(
    job: Arc<CiJob>,
    identity: Identity,
    context: &Context,
) -> Result<(Applied, Option<Duration>), ReconcileError> {
    let Sources { pods, classes, queues, .. } = &context.sources;
    // A cache that is not filled yet would look like a cluster without pods and classes.
    pods.wait_until_ready().await.map_err(|_| ReconcileError::Stopping)?;
    classes.wait_until_ready().await.map_err(|_| ReconcileError::Stopping)?;
    let now = Timestamp::now();
    let observed = observe(&context.sources, identity, job, now)
        .await
        .map_err(|source| ReconcileError::Observe { source })?;
    let plan = plan(&observed, &context.shared.images, now);
    plan.faults.iter().cloned().for_each(|fault| classes.found(fault));
    let wait = plan.requeue;
    tracing::debug!(why = ?plan.why, actions = plan.actions.len(), wait_seconds = wait.map(|wait| wait.as_secs()), "planned");
    let class = plan.status.class.clone().unwrap_or_default();
    let creates = plan.actions.iter().any(|action| matches!(action, Step::CreatePod(_)));
    let applied =
        context.writer.apply(&observed, plan).await.map_err(|source| ReconcileError::Apply { source })?;
    // After an error nobody knows what was written: the place stays promised until the next look.
    queues.settle(&observed.identity.uid);
    let namespace = &observed.identity.namespace;
    match applied {
        Applied::Queued => queues.refused(namespace, &class, Timestamp::now()),
        Applied::Done if creates => queues.created(namespace, &class),
        Applied::Done | Applied::LookAgain | Applied::Gone => {}
    }
    Ok((applied, wait))
}

#[allow(clippy::needless_pass_by_value)] // kube's signature
fn on_error(job: Arc<CiJob>, error: &ReconcileError, context: Arc<Context>) -> Action {
    let wait = context.backoffs.failed(job.metadata.uid.as_deref().unwrap_or_default());
    Action::requeue(error.retry().map_or(wait, |least| least.max(wait)))
}

#[cfg(test)]
mod tests;
