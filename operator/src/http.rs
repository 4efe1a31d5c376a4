//! `/livez`, `/readyz` and `/metrics`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::FutureExt as _;
use kube::runtime::reflector::{Lookup, Store};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::lead::Standing;

/// The media type of OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the endpoints answer from.
pub struct Health {
    /// All metrics.
    pub registry: Registry,
    /// Whether this operator works or waits for another one to end.
    pub standing: watch::Receiver<Standing>,
    /// The caches that have to be filled before an operator that works is of use.
    pub caches: Vec<Cache>,
}

/// A cache and whether it is filled.
pub struct Cache {
    name: String,
    is_filled: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Cache {
    /// A cache under a name for people.
    pub fn new<K>(name: impl Into<String>, store: Store<K>) -> Self
    where
        K: Lookup<DynamicType = ()> + Clone + Send + Sync + 'static,
    {
        let is_filled = move || matches!(store.wait_until_ready().now_or_never(), Some(Ok(())));
        Self { name: name.into(), is_filled: Box::new(is_filled) }
    }
}

/// The endpoints.
pub fn router(health: Health) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(health))
}

/// Serves until `stop` comes.
///
/// # Errors
/// The listener broke.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(health)).with_graceful_shutdown(stop).await
}

async fn ready(State(health): State<Arc<Health>>) -> Response {
    match &*health.standing.borrow() {
        Standing::Leads => {}
        Standing::StandsBy(Some(holder)) => return format!("ok, standing by for {holder}\n").into_response(),
        Standing::StandsBy(None) => return unready("the Lease was not read yet, or is being taken"),
        Standing::Lost(loss) => return unready(&loss.to_string()),
    }
    let empty = health.caches.iter().filter(|cache| !(cache.is_filled)());
    let missing: Vec<_> = empty.map(|cache| cache.name.as_str()).collect();
    if missing.is_empty() {
        "ok\n".into_response()
    } else {
        unready(&format!("not listed yet: {}", missing.join(", ")))
    }
}

fn unready(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
}

async fn metrics(State(health): State<Arc<Health>>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &health.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::Request;
    use kube::runtime::{reflector, watcher};
    use roadstead_crds::CiJob;
    use tower::ServiceExt as _;

    async fn status(router: &Router, path: &str) -> StatusCode {
        let request = Request::get(path).body(Body::empty()).unwrap();
        router.clone().oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn ready_is_who_stands_by_or_has_listed_everything() {
        let (store, mut writer) = reflector::store::<CiJob>();
        let caches = vec![Cache::new("cijobs in ci-jobs", store)];
        let (stand, standing) = tokio::sync::watch::channel(Standing::StandsBy(None));
        let router = router(Health { registry: Registry::default(), standing, caches });
        assert_eq!(status(&router, "/livez").await, StatusCode::OK);
        assert_eq!(status(&router, "/metrics").await, StatusCode::OK);
        assert_eq!(status(&router, "/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        stand.send_replace(Standing::StandsBy(Some("other".to_owned())));
        assert_eq!(status(&router, "/readyz").await, StatusCode::OK);
        stand.send_replace(Standing::Leads);
        assert_eq!(status(&router, "/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        writer.apply_watcher_event(&watcher::Event::Init);
        assert_eq!(status(&router, "/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        writer.apply_watcher_event(&watcher::Event::InitDone);
        assert_eq!(status(&router, "/readyz").await, StatusCode::OK);
    }
}
