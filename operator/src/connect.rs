//! The connection to the API server.
//!
//! kube's own stack leaves TCP as it comes: a peer that vanishes without a word is noticed by a
//! watch after five minutes, and small writes wait for acknowledgements. This one notices within
//! half a minute and does not wait.

use std::time::Duration;

use hyper_util::client::legacy::Builder;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::{Client, Config};
use thiserror::Error;
use tower::{BoxError, Layer as _, ServiceBuilder};

use crate::lead::{Fenced, Tenure};
use crate::requests::CountRequests;
use crate::telemetry::Metrics;

/// Silence after which TCP asks whether the peer is there, and how often it asks again.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Questions without an answer after which a connection is given up.
const QUESTIONS: u32 = 2;

/// How long what was sent may stay unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// Why there is no client.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Neither a kubeconfig nor a service account tells where the API server is.
    #[error("no configuration for the API server")]
    Infer {
        /// What was tried.
        source: kube::config::InferConfigError,
    },
    /// The configuration asks for a proxy.
    #[error("a proxy to the API server is not supported: the operator runs beside it")]
    Proxy,
    /// The configuration cannot be used.
    #[error("the configuration for the API server cannot be used")]
    Unusable {
        /// What is wrong with it.
        source: kube::Error,
    },
}

/// Clients of one configuration and one pool of connections. Their requests are counted.
#[derive(Clone)]
pub struct Clients {
    /// For the work: writes only while this operator leads.
    pub work: Client,
    /// For the election.
    pub election: Client,
}

/// Clients that repeat no request by themselves: whether a call may be made again is the plan's to
/// say, and a POST that was answered 504 is not one.
///
/// # Errors
/// The configuration is missing or cannot be used.
pub async fn connect(metrics: &Metrics, tenure: &Tenure) -> Result<Clients, ConnectError> {
    let config = Config::infer().await.map_err(|source| ConnectError::Infer { source })?;
    if config.proxy_url.is_some() {
        return Err(ConnectError::Proxy);
    }
    let unusable = |source| ConnectError::Unusable { source };
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(config.connect_timeout);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE));
    tcp.set_keepalive_retries(Some(QUESTIONS));
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let tls = config.rustls_https_connector_with_connector(tcp).map_err(unusable)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(CountRequests::new(metrics.clone()))
        .option_layer(config.auth_layer().map_err(unusable)?)
        .layer(config.extra_headers_layer().map_err(unusable)?)
        .map_err(BoxError::from)
        .service(Builder::new(TokioExecutor::new()).build::<_, Body>(tls));
    let fenced = Fenced::by(tenure.clone()).layer(service.clone());
    Ok(Clients {
        work: ClientBuilder::new(fenced, config.default_namespace.clone()).build(),
        election: ClientBuilder::new(service, config.default_namespace).build(),
    })
}
