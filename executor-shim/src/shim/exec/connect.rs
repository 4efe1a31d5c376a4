//! Opens the exec stream to a container's agent.

use std::future::Future;
use std::time::Duration;

use kube::Client;
use kube::api::AttachParams;
use kube::client::UpgradeConnectionError;
use kube::core::Status;
use roadstead_crds::labels;
use thiserror::Error;

use super::Socket;
use crate::shim::cluster;
use crate::shim::stage::Container;

/// How long the API server may take to open a stream.
const PATIENCE: Duration = Duration::from_secs(20);

/// Opens sockets to the agents of one pod.
pub trait Connector {
    /// An open socket.
    type Socket: Socket;

    /// Opens one to the agent in that container.
    fn connect(&self, container: Container) -> impl Future<Output = Result<Self::Socket, ConnectError>>;
}

/// Why there is no stream.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// The container cannot be reached (yet).
    #[error("{0}")]
    NotReady(String),
    /// There is no such pod (any more).
    #[error("{0}")]
    NoPod(String),
    /// It is not allowed, and trying again will not change that.
    #[error("{0}")]
    Denied(String),
    /// The API server has trouble, as it says itself.
    #[error("{0}")]
    Unable(String),
    /// There is no answer.
    #[error("{0}")]
    Trouble(String),
}

impl ConnectError {
    /// Whether it is what the API server says, so that there is one.
    pub fn is_answer(&self) -> bool {
        !matches!(self, Self::Trouble(_))
    }
}

/// Exec through the API server.
#[derive(Clone)]
pub struct Exec {
    client: Client,
    namespace: String,
    pod: String,
}

impl Exec {
    /// Exec into the containers of a pod.
    pub fn new(client: Client, namespace: String, pod: String) -> Self {
        Self { client, namespace, pod }
    }
}

impl Connector for Exec {
    type Socket = Box<dyn Socket + Send>;

    async fn connect(&self, container: Container) -> Result<Self::Socket, ConnectError> {
        let params = AttachParams::default().container(container.name()).stdin(true).tty(false);
        let request = kube::core::Request::new(format!("/api/v1/namespaces/{}/pods", self.namespace))
            // The admission policy allows no other command.
            .exec(&self.pod, [labels::AGENT_PATH, "attach"], &params)
            .map_err(|error| ConnectError::Denied(format!("cannot form the exec request: {error}")))?;
        let connection = tokio::time::timeout(PATIENCE, self.client.connect(request)).await;
        let late = || ConnectError::Trouble(format!("no answer within {} s", PATIENCE.as_secs()));
        match connection.map_err(|_| late())? {
            Ok(connection) => Ok(Box::new(connection.into_stream())),
            Err(error) => Err(classify(&error)),
        }
    }
}

fn classify(error: &kube::Error) -> ConnectError {
    match error {
        kube::Error::Api(status) => by_status(status),
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(code)) => by_status(
            &Status::failure(&format!("the API server answered {code}"), "").with_code(code.as_u16()),
        ),
        error => ConnectError::Trouble(cluster::chain(error)),
    }
}

fn by_status(status: &Status) -> ConnectError {
    let message = status.message.trim().to_owned();
    match status.code {
        403 if cluster::is_starting(&message) => ConnectError::Unable(message),
        401 => {
            ConnectError::Denied(format!("the API server does not accept the shim's credentials: {message}"))
        }
        403 => ConnectError::Denied(format!(
            "the shim may not exec into the job's pod; check its Role (get and create on pods/exec) \
             and the admission policies: {message}"
        )),
        404 => ConnectError::NoPod(message),
        // The pod has no node yet, or the kubelet has not seen it, or the container does not run.
        400 => ConnectError::NotReady(message),
        500 if is_about_the_container(&message) => ConnectError::NotReady(message),
        _ => ConnectError::Unable(message),
    }
}

fn is_about_the_container(message: &str) -> bool {
    message.contains("container not found")
        || message.contains("not running")
        || message.contains("is not created")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_api_server() {
        for (code, message, error) in [
            (404, "pods \"cij-1\" not found", ConnectError::NoPod("pods \"cij-1\" not found".into())),
            (
                400,
                "pod cij-1 does not have a host assigned",
                ConnectError::NotReady("pod cij-1 does not have a host assigned".into()),
            ),
            (
                500,
                "unable to upgrade connection: container not found (\"build\")",
                ConnectError::NotReady(
                    "unable to upgrade connection: container not found (\"build\")".into(),
                ),
            ),
            (500, "etcdserver: leader changed", ConnectError::Unable("etcdserver: leader changed".into())),
            (429, "too many requests", ConnectError::Unable("too many requests".into())),
            (
                403,
                "forbidden: not yet ready to handle request",
                ConnectError::Unable("forbidden: not yet ready to handle request".into()),
            ),
        ] {
            assert_eq!(by_status(&Status::failure(message, "").with_code(code)), error, "{code} {message}");
        }
        let forbidden = by_status(&Status::failure("pods is forbidden", "Forbidden").with_code(403));
        let ConnectError::Denied(text) = forbidden else { panic!("{forbidden:?}") };
        assert!(text.contains("pods/exec") && text.ends_with("pods is forbidden"), "{text}");
    }
}
