//! One CiJob, from what is known of it to what is written: observe → plan → apply.
//!
//! `observe` asks, `apply` writes, everything between them is pure.

pub mod apply;
pub mod inspect;
pub mod memory;
pub mod observe;
pub mod overlay;
pub mod place;
pub mod plan;
pub mod pod;
pub mod status;

use k8s_openapi::api::core::v1::Pod;
use roadstead_crds::{CiJob, labels};

/// What names a CiJob for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID, which tells it from an older one of that name.
    pub uid: String,
}

impl Identity {
    /// The identity of an object that the API server sent. `None`: it never did.
    pub fn of(job: &CiJob) -> Option<Self> {
        Some(Self {
            namespace: job.metadata.namespace.clone()?,
            name: job.metadata.name.clone()?,
            uid: job.metadata.uid.clone()?,
        })
    }

    /// Whether the pod carries the CiJob's owner reference.
    pub fn owns(&self, pod: &Pod) -> bool {
        let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
        owners.iter().any(|owner| owner.uid == self.uid)
    }
}

/// Name of the CiJob that a pod says it belongs to.
pub fn named_by(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(labels::CIJOB).map(String::as_str)
}
