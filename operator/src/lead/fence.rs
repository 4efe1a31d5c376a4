//! Keeps an operator that leads no longer from writing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Method, Request, Response};
use thiserror::Error;
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

/// How long the operator may write. Clones tell the same.
///
/// It ends by itself: a process that was stopped and goes on later finds it over, whatever its
/// tasks come to do first.
#[derive(Clone, Debug)]
pub struct Tenure {
    origin: Instant,
    until: Arc<AtomicU64>,
}

impl Tenure {
    /// One that has not begun.
    pub fn new() -> Self {
        Self { origin: Instant::now(), until: Arc::default() }
    }

    /// Time since this value was made, by a clock that is never set.
    pub fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// It lasts until this reading of [`Self::now`]; `None`: it is over.
    pub fn set(&self, until: Option<Duration>) {
        let until = until.map_or(0, |until| u64::try_from(until.as_millis()).unwrap_or(u64::MAX));
        self.until.store(until, Ordering::SeqCst);
    }

    /// It lasts as long as the process: nobody else works.
    pub fn set_unlimited(&self) {
        self.until.store(u64::MAX, Ordering::SeqCst);
    }

    /// Whether it lasts.
    pub fn holds(&self) -> bool {
        self.now().as_millis() < u128::from(self.until.load(Ordering::SeqCst))
    }
}

impl Default for Tenure {
    fn default() -> Self {
        Self::new()
    }
}

/// Why a write was not sent.
#[derive(Clone, Copy, Debug, Error)]
#[error("this operator does not lead, so it writes nothing")]
pub struct NotLeading;

/// A layer under the Kubernetes client that lets writes pass only during the tenure.
#[derive(Clone, Debug)]
pub struct Fenced {
    tenure: Tenure,
}

impl Fenced {
    /// Asks this tenure.
    pub fn by(tenure: Tenure) -> Self {
        Self { tenure }
    }
}

impl<S> Layer<S> for Fenced {
    type Service = Fence<S>;

    fn layer(&self, inner: S) -> Fence<S> {
        Fence { inner, tenure: self.tenure.clone() }
    }
}

/// A client that writes only during the tenure.
#[derive(Clone, Debug)]
pub struct Fence<S> {
    inner: S,
    tenure: Tenure,
}

impl<S, B, R> Service<Request<B>> for Fence<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    R: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if request.method() != Method::GET && !self.tenure.holds() {
            return Box::pin(std::future::ready(Err(BoxError::from(NotLeading))));
        }
        let answer = self.inner.call(request);
        Box::pin(async move { answer.await.map_err(Into::into) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use tower::{ServiceBuilder, ServiceExt as _, service_fn};

    async fn sends(method: Method, tenure: &Tenure) -> bool {
        let service = ServiceBuilder::new()
            .layer(Fenced::by(tenure.clone()))
            .service(service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(()))));
        let request = Request::builder().method(method).body(()).unwrap();
        match service.oneshot(request).await {
            Ok(_) => true,
            Err(error) => {
                assert!(error.is::<NotLeading>(), "{error}");
                false
            }
        }
    }

    #[tokio::test]
    async fn reading_is_free_and_writing_is_the_leaders() {
        let tenure = Tenure::new();
        for (until, writes) in
            [(None, false), (Some(tenure.now() + Duration::from_secs(60)), true), (Some(tenure.now()), false)]
        {
            tenure.set(until);
            assert!(sends(Method::GET, &tenure).await);
            for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
                assert_eq!(sends(method.clone(), &tenure).await, writes, "{method} {until:?}");
            }
        }
        tenure.set_unlimited();
        assert!(sends(Method::POST, &tenure).await);
    }
}
