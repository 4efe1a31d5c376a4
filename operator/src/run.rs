//! Puts the parts together and keeps them running.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, pin_mut};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector;
use kube::runtime::watcher::Event;
use kube::{Api, Client};
use prometheus_client::registry::Registry;
use roadstead_crds::JobClass;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, watch as flag};
use tokio::task::JoinSet;

use crate::classes::Classes;
use crate::classes::writer::write_statuses;
use crate::cli::Cli;
use crate::connect::{ConnectError, connect};
use crate::controller::{Controller, Shared};
use crate::http::{self, Cache, Health};
use crate::journal::{Journal, write_events};
use crate::lead::{Candidate, Election, Leadership, Loss, Tenure, Terms};
use crate::policy::Images;
use crate::queues::Queues;
use crate::telemetry::{JobCounts, LeaderGauge, Metrics};
use crate::watch;

/// How long reconciles may take to finish once the operator is told to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// Class changes that a controller may be behind before it looks at all waiting jobs instead.
const CLASS_CHANGES: usize = 64;

/// Name under which Events are written.
const REPORTER: &str = "roadstead-operator";

/// Why the operator ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// There is no client for the API server.
    #[error("cannot reach the API server")]
    Connect {
        /// Why not.
        source: ConnectError,
    },
    /// The HTTP endpoints have no address.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The process cannot be told to stop.
    #[error("cannot wait for signals")]
    Signals {
        /// Why not.
        source: std::io::Error,
    },
    /// Another one leads, or may.
    #[error("this operator does not lead any more")]
    Lead {
        /// Why not.
        source: Loss,
    },
    /// A part ended that should run as long as the operator.
    #[error("{part} ended unexpectedly")]
    Ended {
        /// Which one.
        part: String,
    },
}

impl RunError {
    fn ended(part: Option<String>) -> Self {
        Self::Ended { part: part.unwrap_or_else(|| "the last part".to_owned()) }
    }
}

/// Runs the operator until it is told to stop by SIGTERM or SIGINT.
///
/// # Errors
/// Why it cannot run, which of its parts ended, or how it came not to lead any more.
pub async fn run(cli: Cli) -> Result<(), RunError> {
    let mut registry = Registry::with_prefix("roadstead");
    let metrics = Metrics::register(&mut registry);
    let tenure = Tenure::new();
    registry.register_collector(Box::new(LeaderGauge(tenure.clone())));
    let clients = connect(&metrics, &tenure).await.map_err(|source| RunError::Connect { source })?;
    let (stop, stopped) = flag::channel(false);
    let signals = signals()?;
    pin_mut!(signals);
    let listener = TcpListener::bind(cli.listen)
        .await
        .map_err(|source| RunError::Listen { address: cli.listen, source })?;

    let (work, caches, counts) = prepare(&cli, &clients.work, &metrics, &stopped);
    registry.register_collector(Box::new(counts));
    let mut leadership = stand(&cli, clients.election, tenure, metrics);
    let mut parts = Parts::default();
    let health = Health { registry, standing: leadership.standing(), caches };
    parts.add("the HTTP server", async move {
        if let Err(error) = http::serve(listener, health, told(stopped)).await {
            tracing::error!(%error, "the HTTP server failed");
        }
    });

    let ended = tokio::select! {
        () = &mut signals => None,
        result = lead(&mut leadership, work, &mut parts) => Some(result),
    };
    // Nobody listening is fine.
    let _ = stop.send(true);
    if let Some(error) = ended {
        return Err(error);
    }
    tracing::info!("told to stop: finishing what is at work");
    let rest = async { while parts.next().await.is_some() {} };
    if tokio::time::timeout(STOP_PATIENCE, rest).await.is_err() {
        tracing::warn!("stopped before all was finished; the next operator goes on from there");
        parts.tasks.shutdown().await;
    }
    leadership.resign().await;
    Ok(())
}
/// What an operator that leads runs: parts by their names.
type Work = Vec<(String, BoxFuture<'static, ()>)>;

/// The work, which has not begun, the caches that it fills, and the counts that come from these.
fn prepare(
    cli: &Cli,
    client: &Client,
    metrics: &Metrics,
    stopped: &flag::Receiver<bool>,
) -> (Work, Vec<Cache>, JobCounts) {
    let (journal, notes) = Journal::new(metrics.clone());
    let recorder = Recorder::new(client.clone(), Reporter::from(REPORTER));
    let mut work: Work =
        vec![("the writer of Events".to_owned(), write_events(recorder, notes, metrics.clone()).boxed())];

    let (class_cache, classes_writer) = reflector::store::<JobClass>();
    let (classes, faults) = Classes::new(class_cache.clone());
    let (class_changed, _) = broadcast::channel(CLASS_CHANGES);
    let mut caches = vec![Cache::new("jobclasses", class_cache.clone())];
    let mut counts = JobCounts { stores: vec![] };
    let shared = Shared {
        client: client.clone(),
        images: Arc::new(Images { helper: cli.helper_image.clone(), agent: cli.agent_image.clone() }),
        classes: Arc::clone(&classes),
        // The writer of Events ends with the last of those that bring it any.
        journal,
        metrics: metrics.clone(),
        random: fastrand::f64,
    };
    let mut controllers = vec![];
    for namespace in cli.job_namespaces.iter().collect::<BTreeSet<_>>() {
        let controller = Controller::new(shared.clone(), namespace.clone(), class_changed.subscribe());
        caches.push(Cache::new(format!("cijobs in {namespace}"), controller.jobs()));
        caches.push(Cache::new(format!("pods in {namespace}"), controller.pods()));
        counts.stores.push((namespace.clone(), controller.jobs()));
        tracing::info!(namespace, "for the CiJobs of this namespace");
        controllers.push((namespace, controller));
    }
    let members = controllers.iter().map(|(_, controller)| controller.member()).collect();
    let (queues, touched) = Queues::new(members, Arc::clone(&classes), fastrand::f64);
    for (namespace, controller) in controllers {
        let run = controller.run(Arc::clone(&queues), cli.concurrency, told(stopped.clone()));
        work.push((format!("the controller of namespace {namespace}"), run.boxed()));
    }

    let class_events = watch::objects(Api::all(client.clone()), "jobclasses", metrics.clone(), fastrand::f64);
    let class_events = watch::until(watch::cached(classes_writer, class_events), told(stopped.clone()));
    let mut generations = HashMap::new();
    let class_events = class_events.inspect(move |event| {
        if let Event::Apply(JobClass { metadata, .. })
        | Event::InitApply(JobClass { metadata, .. })
        | Event::Delete(JobClass { metadata, .. }) = event
        {
            let name = metadata.name.clone().unwrap_or_default();
            let version = (metadata.uid.clone(), metadata.generation, matches!(event, Event::Delete(_)));
            // A status that was written is nothing to wake jobs for.
            if generations.insert(name.clone(), version.clone()) != Some(version) {
                // Nobody listening is fine.
                let _ = class_changed.send(name);
            }
        }
    });
    let statuses = write_statuses(
        Api::all(client.clone()),
        class_cache,
        classes,
        class_events,
        faults,
        (queues, touched),
    );
    work.push(("the watch of JobClasses".to_owned(), statuses.boxed()));
    (work, caches, counts)
}

/// Stands for the Lease, or leads at once where there is none.
fn stand(cli: &Cli, client: Client, tenure: Tenure, metrics: Metrics) -> Leadership {
    let (Some(lease), Some(identity)) = (cli.lease.clone(), cli.identity.clone()) else {
        return Leadership::unopposed(&tenure);
    };
    let leases = Api::namespaced(client, &lease.namespace);
    let changes = watch::lease(leases.clone(), &lease.name, metrics, fastrand::f64);
    let candidate = Candidate::new(identity, Terms::default());
    Election { lease, leases, changes, candidate, tenure, random: fastrand::f64 }.stand()
}

/// Begins the work once this operator leads. Returns why it cannot go on.
async fn lead(leadership: &mut Leadership, work: Work, parts: &mut Parts) -> RunError {
    let won = tokio::select! {
        won = leadership.won() => won,
        part = parts.next() => return RunError::ended(part),
    };
    if let Err(source) = won {
        return RunError::Lead { source };
    }
    for (name, part) in work {
        parts.add(name, part);
    }
    tokio::select! {
        source = leadership.lost() => RunError::Lead { source },
        part = parts.next() => RunError::ended(part),
    }
}

/// Resolves when the process is told to stop.
fn signals() -> Result<impl Future<Output = ()>, RunError> {
    let listen = |kind| signal(kind).map_err(|source| RunError::Signals { source });
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Resolves when the operator is to stop.
async fn told(mut stopped: flag::Receiver<bool>) {
    // An error means that nobody is left to say so.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// The parts that run as long as the operator.
#[derive(Default)]
struct Parts {
    tasks: JoinSet<String>,
}

impl Parts {
    fn add(&mut self, name: impl Into<String>, part: impl Future<Output = ()> + Send + 'static) {
        let name = name.into();
        self.tasks.spawn(async move {
            part.await;
            name
        });
    }

    /// The next part that ends. `None`: all have.
    async fn next(&mut self) -> Option<String> {
        match self.tasks.join_next().await? {
            Ok(part) => Some(part),
            Err(error) => Some(format!("a part that panicked ({error})")),
        }
    }
}
