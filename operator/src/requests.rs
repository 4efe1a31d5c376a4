//! A layer under the Kubernetes client that counts requests.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Method, Request, Response};
use tower::{Layer, Service};

use crate::telemetry::Metrics;

/// Counts what passes.
#[derive(Clone, Debug)]
pub struct CountRequests {
    metrics: Metrics,
}

impl CountRequests {
    /// Counts into these metrics.
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for CountRequests {
    type Service = Counting<S>;

    fn layer(&self, inner: S) -> Counting<S> {
        Counting { inner, metrics: self.metrics.clone() }
    }
}

/// A client whose requests are counted.
#[derive(Clone, Debug)]
pub struct Counting<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, B, R> Service<Request<B>> for Counting<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (verb, resource) = kind(request.method(), request.uri().path(), request.uri().query());
        let metrics = self.metrics.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = answer.as_ref().map_or(0, |response| response.status().as_u16());
            metrics.requested(verb, resource, code);
            answer
        })
    }
}

/// Verb and resource in Kubernetes' words. Both are words of a closed list: they become labels.
fn kind(method: &Method, path: &str, query: Option<&str>) -> (&'static str, &'static str) {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    // /api/v1/… or /apis/<group>/<version>/…, then namespaces/<namespace> where there is one.
    let rest = match parts.as_slice() {
        ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => rest,
        _ => &[],
    };
    let rest = match rest {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    let resource = match rest {
        ["cijobs", _, "status"] => "cijobs/status",
        ["cijobs", ..] => "cijobs",
        ["pods", ..] => "pods",
        ["jobclasses", _, "status"] => "jobclasses/status",
        ["jobclasses", ..] => "jobclasses",
        ["events", ..] => "events",
        ["leases", ..] => "leases",
        _ => "other",
    };
    let watches = query.is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
    let verb = match (method, rest.len()) {
        (&Method::GET, _) if watches => "watch",
        (&Method::GET, 0 | 1) => "list",
        (&Method::GET, _) => "get",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, _) => "delete",
        _ => "other",
    };
    (verb, resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_in_kubernetes_words() {
        let jobs = "/apis/roadstead.dev/v1alpha1/namespaces/ci/cijobs";
        let table = [
            (Method::GET, jobs.to_owned(), Some("limit=500"), ("list", "cijobs")),
            (Method::GET, jobs.to_owned(), Some("watch=true&timeoutSeconds=290"), ("watch", "cijobs")),
            (Method::PUT, format!("{jobs}/x/status"), None, ("update", "cijobs/status")),
            (Method::DELETE, format!("{jobs}/x"), None, ("delete", "cijobs")),
            (Method::POST, "/api/v1/namespaces/ci/pods".to_owned(), None, ("create", "pods")),
            (Method::GET, "/api/v1/namespaces/ci/pods/x".to_owned(), None, ("get", "pods")),
            (Method::GET, "/apis/roadstead.dev/v1alpha1/jobclasses".to_owned(), None, ("list", "jobclasses")),
            (
                Method::POST,
                "/apis/events.k8s.io/v1/namespaces/ci/events".to_owned(),
                None,
                ("create", "events"),
            ),
            (
                Method::PUT,
                "/apis/coordination.k8s.io/v1/namespaces/roadstead-system/leases/x".to_owned(),
                None,
                ("update", "leases"),
            ),
            (Method::GET, "/version".to_owned(), None, ("list", "other")),
        ];
        for (method, path, query, expected) in table {
            assert_eq!(kind(&method, &path, query), expected, "{method} {path}");
        }
    }
}
