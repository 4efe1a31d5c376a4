//! Puts the parts together and keeps them running.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::Api;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector;
use kube::runtime::watcher::Event;
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
use crate::policy::Images;
use crate::telemetry::{JobCounts, Metrics};
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
    /// A part ended that should run as long as the operator.
    #[error("{part} ended unexpectedly")]
    Ended {
        /// Which one.
        part: String,
    },
}

/// Runs the operator until it is told to stop by SIGTERM or SIGINT.
///
/// # Errors
/// Why it cannot run, or which of its parts ended.
pub async fn run(cli: Cli) -> Result<(), RunError> {
    let mut registry = Registry::with_prefix("roadstead");
    let metrics = Metrics::register(&mut registry);
    let client = connect(&metrics).await.map_err(|source| RunError::Connect { source })?;
    let (stop, stopped) = flag::channel(false);
    let signals = signals()?;
    let listener = TcpListener::bind(cli.listen)
        .await
        .map_err(|source| RunError::Listen { address: cli.listen, source })?;

    let mut parts = Parts::default();
    let (journal, notes) = Journal::new(metrics.clone());
    let recorder = Recorder::new(client.clone(), Reporter::from(REPORTER));
    parts.add("the writer of Events", write_events(recorder, notes, metrics.clone()));

    let (class_cache, classes_writer) = reflector::store::<JobClass>();
    let (classes, faults) = Classes::new(class_cache.clone());
    let (class_changed, _) = broadcast::channel(CLASS_CHANGES);
    let shared = Shared {
        client: client.clone(),
        images: Arc::new(Images { helper: cli.helper_image, agent: cli.agent_image }),
        classes: Arc::clone(&classes),
        journal,
        metrics: metrics.clone(),
        random: fastrand::f64,
    };
    let mut health = Health { registry, caches: vec![Cache::new("jobclasses", class_cache.clone())] };
    let mut counts = JobCounts { stores: vec![] };
    for namespace in cli.job_namespaces.into_iter().collect::<BTreeSet<_>>() {
        let controller = Controller::new(shared.clone(), namespace.clone(), class_changed.subscribe());
        health.caches.push(Cache::new(format!("cijobs in {namespace}"), controller.jobs()));
        health.caches.push(Cache::new(format!("pods in {namespace}"), controller.pods()));
        counts.stores.push((namespace.clone(), controller.jobs()));
        tracing::info!(namespace, "running the CiJobs of this namespace");
        parts.add(
            format!("the controller of namespace {namespace}"),
            controller.run(cli.concurrency, told(stopped.clone())),
        );
    }
    health.registry.register_collector(Box::new(counts));
    // The writer of Events ends with the last of those that bring it any.
    drop(shared);

    let class_events = watch::objects(Api::all(client.clone()), "jobclasses", metrics, fastrand::f64);
    let class_events = watch::cached(classes_writer, class_events).take_until(told(stopped.clone()));
    let class_events = class_events.inspect(move |event| {
        if let Event::Apply(JobClass { metadata, .. }) | Event::InitApply(JobClass { metadata, .. }) = event {
            // Nobody listening is fine.
            let _ = class_changed.send(metadata.name.clone().unwrap_or_default());
        }
    });
    parts.add(
        "the watch of JobClasses",
        write_statuses(Api::all(client), class_cache, classes, class_events, faults),
    );
    parts.add("the HTTP server", async move {
        if let Err(error) = http::serve(listener, health, told(stopped)).await {
            tracing::error!(%error, "the HTTP server failed");
        }
    });

    let ended = tokio::select! {
        () = signals => None,
        part = parts.next() => part,
    };
    // Nobody listening is fine.
    let _ = stop.send(true);
    if let Some(part) = ended {
        return Err(RunError::Ended { part });
    }
    tracing::info!("told to stop: finishing what is at work");
    let rest = async { while parts.next().await.is_some() {} };
    if tokio::time::timeout(STOP_PATIENCE, rest).await.is_err() {
        tracing::warn!("stopped before all was finished; the next operator goes on from there");
    }
    Ok(())
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
