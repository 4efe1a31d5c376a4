//! Watches that go on for ever: they say what is wrong, wait and try again.

use std::fmt::Debug;

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::{self, Event, watch_object};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Resource, ResourceExt};
use roadstead_crds::labels;
use serde::de::DeserializeOwned;

use crate::backoff::{Random, WatchBackoff};
use crate::telemetry::Metrics;

/// Objects in one page of a list. A page is in memory as text, as a tree and as objects at the same time, and what the
/// heap has grown by stays with the process.
const PAGE: u32 = 100;

/// Events of objects of our own kinds. One that cannot be decoded is left out and named in the
/// log: it must not hold up the others.
pub fn objects<K>(
    api: Api<DeserializeGuard<K>>,
    what: &'static str,
    metrics: Metrics,
    random: Random,
) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let events = lasting(watch(api, watcher::Config::default().page_size(PAGE)), what, metrics, random);
    events
        .filter_map(move |event| async move { decoded(event, what) })
        .map(|event| event.modify(|object: &mut K| object.meta_mut().managed_fields = None))
}

/// Events of job pods, without what the operator has no use for.
pub fn pods(api: Api<Pod>, metrics: Metrics, random: Random) -> impl Stream<Item = Event<Pod>> + Send {
    let config = watcher::Config::default().labels(labels::CIJOB).page_size(PAGE);
    lasting(watch(api, config), "pods", metrics, random).map(|event| event.modify(reduce))
}

/// A Lease whenever it changes, `None` when there is none.
pub fn lease(
    api: Api<Lease>,
    name: &str,
    metrics: Metrics,
    random: Random,
) -> impl Stream<Item = Option<Lease>> + Send + use<> {
    told(watch_object(api, name).backoff(WatchBackoff::new(random)), "leases", metrics)
}

/// Puts each event into a cache before it is passed on.
pub fn cached<K>(
    mut writer: Writer<K>,
    events: impl Stream<Item = Event<K>> + Send,
) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    events.map(move |event| {
        writer.apply_watcher_event(&event);
        event
    })
}

/// A stream that ends when `stop` comes, and is let go of then with all that it holds. A cache that it had not filled by
/// then will never be, which ends the wait for it.
pub fn until<S>(stream: S, stop: impl Future<Output = ()> + Send) -> impl Stream<Item = S::Item> + Send
where
    S: Stream<Item: Send> + Send,
{
    stream::unfold((Box::pin(stream), Box::pin(stop)), async |(mut stream, mut stop)| {
        tokio::select! {
            biased;
            () = &mut stop => None,
            item = stream.next() => Some((item?, (stream, stop))),
        }
    })
}

fn lasting<K: Send>(
    events: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send,
    what: &'static str,
    metrics: Metrics,
    random: Random,
) -> impl Stream<Item = Event<K>> + Send {
    told(events.backoff(WatchBackoff::new(random)), what, metrics)
}

/// Leaves errors out after they were told.
fn told<T: Send>(
    events: impl Stream<Item = Result<T, watcher::Error>> + Send,
    what: &'static str,
    metrics: Metrics,
) -> impl Stream<Item = T> + Send {
    events.filter_map(move |event| {
        let event = match event {
            Ok(event) => Some(event),
            Err(error) => {
                metrics.watch_failed(what);
                complain(what, &error);
                None
            }
        };
        std::future::ready(event)
    })
}

/// Says what is wrong with a watch, and what to do about it where that is plain.
fn complain(what: &'static str, error: &watcher::Error) {
    match code(error) {
        Some(404) => tracing::warn!(
            resource = what,
            "the API server does not know this resource: waiting for its CustomResourceDefinition to be installed"
        ),
        Some(403) => tracing::warn!(
            resource = what,
            error = %words(error),
            "the operator may not list and watch this resource: its Role or ClusterRole is missing a rule"
        ),
        // The watch was older than what the API server remembers; the list that follows is routine.
        Some(410) => tracing::debug!(resource = what, "the watch expired"),
        _ => tracing::warn!(resource = what, error = %words(error), "the watch failed and is taken up again"),
    }
}

fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => None,
    }
}

/// The API server's words where it had any: kube's own text repeats them as a structure.
fn words(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.message.clone(),
        other => other.to_string(),
    }
}

fn decoded<K>(event: Event<DeserializeGuard<K>>, what: &'static str) -> Option<Event<K>>
where
    K: Resource<DynamicType = ()>,
{
    let take = |guard: DeserializeGuard<K>| match guard.0 {
        Ok(object) => Some(object),
        Err(invalid) => {
            let name = invalid.metadata.name.as_deref().unwrap_or_default();
            tracing::error!(
                resource = what,
                name,
                error = invalid.error,
                "an object cannot be read and is ignored"
            );
            None
        }
    };
    match event {
        Event::Apply(guard) => take(guard).map(Event::Apply),
        Event::Delete(guard) => take(guard).map(Event::Delete),
        Event::InitApply(guard) => take(guard).map(Event::InitApply),
        Event::Init => Some(Event::Init),
        Event::InitDone => Some(Event::InitDone),
    }
}

/// Leaves of a pod what plans are made from: who it is, whose it is, where it is, what it has as a whole and how it
/// does.
fn reduce(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    pod.annotations_mut().clear();
    let PodSpec { node_name, resources, .. } = pod.spec.take().unwrap_or_default();
    pod.spec = Some(PodSpec { node_name, resources, ..PodSpec::default() });
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::fixture;
    use k8s_openapi::api::core::v1::ResourceRequirements;
    use kube::runtime::controller::{self, Action, ReconcileRequest};
    use kube::runtime::reflector::{self, ObjectRef};
    use kube::runtime::{Config, applier};
    use roadstead_crds::CiJob;
    use serde_json::json;

    #[test]
    fn an_object_that_cannot_be_read_is_left_out() {
        let guard = |value| serde_json::from_value::<DeserializeGuard<CiJob>>(value).unwrap();
        let good = serde_json::to_value(fixture::job()).unwrap();
        let mut bad = good.clone();
        bad["spec"]["request"]["timeoutSeconds"] = json!("soon");
        assert!(matches!(decoded(Event::InitApply(guard(good)), "cijobs"), Some(Event::InitApply(_))));
        assert!(decoded(Event::InitApply(guard(bad.clone())), "cijobs").is_none());
        assert!(decoded(Event::Apply(guard(bad)), "cijobs").is_none());
        assert!(matches!(decoded::<CiJob>(Event::InitDone, "cijobs"), Some(Event::InitDone)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_before_a_cache_is_filled_waits_for_it_no_longer() {
        let reconcile =
            |_: Arc<CiJob>, _: Arc<()>| future::ready(Ok::<_, Infallible>(Action::await_change()));
        let (store, writer) = reflector::store::<CiJob>();
        let events = stream::iter([Event::Init, Event::InitApply(fixture::job())]).chain(stream::pending());
        let stop = tokio::time::sleep(Duration::from_secs(1));
        let queue = until(cached(writer, events), stop).filter_map(async |event| match event {
            Event::InitApply(job) => {
                Some(Ok::<_, Infallible>(ReconcileRequest::from(ObjectRef::from_obj(&job))))
            }
            _ => None,
        });
        let error = |_: Arc<CiJob>, _: &Infallible, _: Arc<()>| Action::await_change();
        let results = applier(reconcile, error, Arc::new(()), store, Box::pin(queue), Config::default());
        let ended = tokio::time::timeout(Duration::from_secs(60), results.collect::<Vec<_>>()).await;
        let results = ended.expect("it ends");
        assert!(matches!(results[..], [Err(controller::Error::RunnerError(_))]), "{results:?}");
    }

    #[test]
    fn a_cached_pod_is_small_and_can_still_be_inspected() {
        let mut pod = fixture::with_status(
            fixture::pod("p", "u", fixture::birth()),
            Some("n"),
            json!({"phase": "Running"}),
        );
        pod.spec.get_or_insert_default().resources = Some(ResourceRequirements::default());
        let before = pod.clone();
        reduce(&mut pod);
        assert_eq!(pod.metadata.labels, before.metadata.labels);
        assert_eq!(pod.metadata.owner_references, before.metadata.owner_references);
        assert_eq!(pod.status, before.status);
        let spec = pod.spec.unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("n"));
        assert!(spec.resources.is_some(), "whether the API server knows these");
        assert!(spec.containers.is_empty());
    }
}
