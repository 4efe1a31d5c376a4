//! What a cluster knows of the matter: its classes, and whether it would take the pod.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use roadstead_crds::JobClass;

use crate::api::{CallError, call};
use crate::chain;
use crate::explain::decision::Trial;
use crate::policy::waiting;

/// A cluster, by the kubeconfig or the service account of whoever asks.
pub struct Server {
    client: Client,
}

impl Server {
    /// Connects.
    pub async fn connect() -> Result<Self, String> {
        let client = Client::try_default().await;
        Ok(Self { client: client.map_err(|error| format!("cannot find the cluster: {}", chain(&error)))? })
    }

    /// Its classes.
    pub async fn classes(&self) -> Result<Vec<JobClass>, String> {
        let classes: Api<JobClass> = Api::all(self.client.clone());
        let list = classes.list(&ListParams::default()).await;
        Ok(list
            .map_err(|error| format!("cannot list the JobClasses of the cluster: {}", chain(&error)))?
            .items)
    }

    /// Lets the API server judge a pod, admission included, without creating it.
    pub async fn try_out(&self, pod: &Pod) -> Result<Trial, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let error = match call(pods.create(&dry, pod)).await {
            Ok(mut pod) => {
                pod.metadata.managed_fields = None;
                pod.status = None;
                return Ok(Trial::Taken(Box::new(pod)));
            }
            Err(error) => error,
        };
        match &error {
            CallError::Refused(status)
                if error.is_quota() && waiting::beyond_quota(&status.message).is_none() =>
            {
                Ok(Trial::Waits(status.message.clone()))
            }
            // Not allowed to ask is something else than not allowed to be.
            CallError::Refused(status) if !status.is_forbidden() || !is_rbac(&status.message) => {
                Ok(Trial::Refused(status.message.clone()))
            }
            _ => Err(format!("cannot ask the API server about the pod: {}", chain(&error))),
        }
    }
}

/// Whether a refusal is of the person, not of the pod: quota and Pod Security are 403 too.
fn is_rbac(message: &str) -> bool {
    message.contains("cannot create resource \"pods\"")
}
