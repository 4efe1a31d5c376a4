//! The way to the cluster, and what its errors mean.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use roadstead_crds::CiJob;
use thiserror::Error;
use tokio::time::Instant;

use crate::shim::cli::Options;
use crate::shim::proxy::ProxyEnv;
use crate::shim::random;

/// How long the API server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take to come to be.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the API server may take to answer a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Port of an API server whose URL names none.
const HTTPS_PORT: u16 = 443;

/// First and longest wait before a request is repeated.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// A client and the namespace that it is for.
#[derive(Clone)]
pub struct Cluster {
    /// The client.
    pub client: Client,
    /// Namespace of jobs.
    pub namespace: String,
}

/// Why there is no client.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// No configuration.
    #[error("cannot find the cluster: {0}")]
    Config(String),
    /// A configuration that cannot be used.
    #[error("cannot use the configuration of the cluster: {0}")]
    Client(String),
}

impl Cluster {
    /// Finds the cluster as the options say. Sends nothing.
    pub async fn find(options: &Options) -> Result<Self, ClusterError> {
        let context = KubeConfigOptions { context: options.context.clone(), cluster: None, user: None };
        let config = match &options.kubeconfig {
            Some(path) => match Kubeconfig::read_from(path) {
                Ok(file) => Config::from_custom_kubeconfig(file, &context).await.map_err(|e| chain(&e)),
                Err(error) => Err(chain(&error)),
            },
            None if options.context.is_some() => {
                Config::from_kubeconfig(&context).await.map_err(|error| chain(&error))
            }
            None => Config::infer().await.map_err(|error| chain(&error)),
        };
        let mut config = config.map_err(ClusterError::Config)?;
        config.proxy_url = config.proxy_url.and_then(|proxy| {
            let (host, port) = (config.cluster_url.host().unwrap_or_default(), config.cluster_url.port_u16());
            // kube's own reading of NO_PROXY compares it with the proxy instead of the cluster.
            let excepted =
                ProxyEnv::of_this_process().excepts(&proxy.to_string(), host, port.unwrap_or(HTTPS_PORT));
            (!excepted).then_some(proxy)
        });
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // Whether and how long to repeat a request depends on what it is for.
        config.default_retry = false;
        let namespace = options.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        // It runs the kubeconfig's credential plugin, and waits for it.
        let client = tokio::task::spawn_blocking(|| Client::try_from(config));
        let client = tokio::time::timeout(CLIENT_TIMEOUT, client).await.map_err(|_| {
            let seconds = CLIENT_TIMEOUT.as_secs();
            ClusterError::Client(format!("its credential plugin did not answer within {seconds} s"))
        })?;
        let client = client.map_err(|error| ClusterError::Client(chain(&error)))?;
        let client = client.map_err(|error| ClusterError::Client(chain(&error)))?;
        Ok(Self { client, namespace })
    }

    /// The CiJobs of a namespace.
    pub fn cijobs(&self, namespace: &str) -> Api<CiJob> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

/// What an error of a request means for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// There is no such object.
    NotFound,
    /// It exists already, or is another one than was meant.
    Conflict,
    /// The version that was asked for is too old.
    Expired,
    /// The same request will not be accepted later either.
    Rejected,
    /// It may work later.
    Trouble,
}

/// What the error means.
pub fn meaning(error: &kube::Error) -> Meaning {
    match error {
        kube::Error::Api(status) => match status.code {
            404 => Meaning::NotFound,
            // Others were counted at the same moment.
            409 if status.message.contains("on resourcequotas") => Meaning::Trouble,
            409 => Meaning::Conflict,
            410 => Meaning::Expired,
            408 | 429 | 500..=599 | 0 => Meaning::Trouble,
            _ if is_starting(&status.message) => Meaning::Trouble,
            _ => Meaning::Rejected,
        },
        kube::Error::SerdeError(_)
        | kube::Error::BuildRequest(_)
        | kube::Error::HttpError(_)
        | kube::Error::Auth(_) => Meaning::Rejected,
        _ => Meaning::Trouble,
    }
}

/// Whether the API server says that there is no such namespace for this account: it has no rights there, or it does not
/// exist.
pub fn is_foreign_namespace(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let kind = status.details.as_ref().map_or("", |details| details.kind.as_str());
    match status.code {
        403 => status.message.contains("cannot create resource"),
        404 => kind == "namespaces",
        _ => false,
    }
}

/// Whether an API server says no because it has just started: its admission does not know the
/// policies yet.
pub fn is_starting(message: &str) -> bool {
    message.contains("not yet ready to handle request")
}

/// A failed request in a sentence. `what` says what was tried, as in "create the CiJob x/y".
pub fn sentence(what: &str, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 401 => {
            format!(
                "cannot {what}: the API server does not accept the shim's credentials ({})",
                status.message
            )
        }
        kube::Error::Api(status) if status.code == 403 => {
            format!("not allowed to {what}: {}", status.message)
        }
        // The API server has no such kind, rather than no such object.
        kube::Error::Api(status) if status.code == 404 && status.details.is_none() => {
            format!("cannot {what}: the cluster does not know CiJobs; is Roadstead installed there?")
        }
        kube::Error::Api(status) => format!("cannot {what}: {}", status.message),
        error => format!("cannot {what}: {}", chain(error)),
    }
}

/// An error and its sources in one line. Parsers add a picture of what they could not read, which
/// may be a kubeconfig with its token: only the first line of each error is taken.
pub fn chain(error: &dyn Error) -> String {
    let first_line = |error: &dyn Error| error.to_string().lines().next().unwrap_or_default().to_owned();
    let mut text = first_line(error);
    let mut source = error.source();
    while let Some(error) = source {
        let more = first_line(error);
        // Many errors repeat their source.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

/// Sends a request until it is answered, but not beyond the deadline. An answer that comes too
/// late counts as trouble.
pub async fn persistently<T, F>(deadline: Instant, mut request: impl FnMut() -> F) -> Result<T, RequestError>
where
    F: Future<Output = kube::Result<T>>,
{
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        let patience = (Instant::now() + ANSWER_TIMEOUT).min(deadline);
        let error = match tokio::time::timeout_at(patience, request()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => match meaning(&error) {
                Meaning::Trouble => RequestError::Failed(error),
                _ => return Err(RequestError::Failed(error)),
            },
            Err(_) => RequestError::Late,
        };
        let wait = backoff.next_wait();
        if Instant::now() + wait >= deadline {
            return Err(error);
        }
        tracing::info!(error = %error, "a request failed and will be repeated");
        tokio::time::sleep(wait).await;
    }
}

/// Why a request was given up.
#[derive(Debug, Error)]
pub enum RequestError {
    /// The API server or the way to it said no.
    #[error("{}", chain(.0))]
    Failed(kube::Error),
    /// It did not answer in time.
    #[error("the API server did not answer in time")]
    Late,
}

impl RequestError {
    /// In a sentence, as [`sentence`].
    pub fn sentence(&self, what: &str) -> String {
        match self {
            Self::Failed(error) => sentence(what, error),
            Self::Late => format!("cannot {what}: {self}"),
        }
    }

    /// Whether the API server says that there is no such namespace for this account.
    pub fn is_foreign_namespace(&self) -> bool {
        matches!(self, Self::Failed(error) if is_foreign_namespace(error))
    }

    /// What it means.
    pub fn meaning(&self) -> Meaning {
        match self {
            Self::Failed(error) => meaning(error),
            Self::Late => Meaning::Trouble,
        }
    }
}

/// Waits that double up to a limit, each between a half and all of it, so that many callers that
/// failed together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// Waits from `first` to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, next: first, longest }
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        wait / 2 + wait.mul_f64(random::fraction() / 2.0)
    }

    /// It worked: the next wait is the first again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use kube::core::response::StatusDetails;

    use super::*;

    fn api(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Status::failure(message, "").with_code(code).boxed())
    }

    #[test]
    fn meanings() {
        for (code, expected) in [
            (404, Meaning::NotFound),
            (409, Meaning::Conflict),
            (410, Meaning::Expired),
            (400, Meaning::Rejected),
            (401, Meaning::Rejected),
            (403, Meaning::Rejected),
            (422, Meaning::Rejected),
            (429, Meaning::Trouble),
            (500, Meaning::Trouble),
            (503, Meaning::Trouble),
            (504, Meaning::Trouble),
        ] {
            assert_eq!(meaning(&api(code, "")), expected, "{code}");
        }
        assert!(is_foreign_namespace(&api(
            403,
            "cijobs is forbidden: User \"x\" cannot create resource \"cijobs\""
        )));
        for (code, message) in
            [(401, "Unauthorized"), (403, "exceeded quota: q"), (404, "page not found"), (422, "x")]
        {
            assert!(!is_foreign_namespace(&api(code, message)), "{code}");
        }
        let starting = api(403, "cijobs \"cij-1\" is forbidden: not yet ready to handle request");
        assert_eq!(meaning(&starting), Meaning::Trouble);
        let counted =
            api(409, "Operation cannot be fulfilled on resourcequotas \"q\": the object has been modified");
        assert_eq!(meaning(&counted), Meaning::Trouble);
        let broken = kube::Error::ReadEvents(std::io::Error::other("reset"));
        assert_eq!(meaning(&broken), Meaning::Trouble);
    }

    #[test]
    fn sentences() {
        let what = "create the CiJob jobs/cij-1";
        assert_eq!(
            sentence(what, &api(403, "cijobs is forbidden")),
            "not allowed to create the CiJob jobs/cij-1: cijobs is forbidden"
        );
        assert_eq!(
            sentence(what, &api(404, "404 page not found")),
            "cannot create the CiJob jobs/cij-1: the cluster does not know CiJobs; is Roadstead installed there?"
        );
        let details = StatusDetails {
            name: "jobs".into(),
            group: String::new(),
            kind: "namespaces".into(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: 0,
        };
        let no_namespace =
            Status::failure("namespaces \"jobs\" not found", "NotFound").with_code(404).with_details(details);
        assert_eq!(
            sentence(what, &kube::Error::Api(no_namespace.boxed())),
            "cannot create the CiJob jobs/cij-1: namespaces \"jobs\" not found"
        );
    }

    #[test]
    fn waits_double_up_to_the_limit() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        for full in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let wait = backoff.next_wait();
            let range = Duration::from_millis(full / 2)..=Duration::from_millis(full);
            assert!(range.contains(&wait), "{wait:?} {full}");
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_repeated_until_it_is_answered_or_rejected() {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut tries = 0;
        let answer = persistently(deadline, || {
            tries += 1;
            let result = if tries < 4 { Err(api(503, "starting")) } else { Ok(tries) };
            std::future::ready(result)
        });
        assert_eq!(answer.await.unwrap(), 4);

        let mut tries = 0;
        let rejected = persistently(deadline, || {
            tries += 1;
            std::future::ready(Err::<(), _>(api(403, "no")))
        });
        assert_eq!(rejected.await.unwrap_err().meaning(), Meaning::Rejected);
        assert_eq!(tries, 1);

        let late = persistently(deadline, std::future::pending::<kube::Result<()>>).await.unwrap_err();
        assert!(matches!(late, RequestError::Late));
        assert_eq!(Instant::now(), deadline);
    }
}
