//! What jobs of a class may use: defaults, and bounds of what a job asks for itself.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// Requests and limits of each container of the pod.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ContainerResources {
    /// The container that runs the job's scripts. Jobs change it with `KUBERNETES_CPU_LIMIT` and
    /// its kin, and with `ROADSTEAD_RESOURCE_*`.
    #[serde(default)]
    pub build: Resources,
    /// The container that checks out and moves caches and artifacts. Jobs change it with
    /// `KUBERNETES_HELPER_CPU_LIMIT` and its kin. The container that only copies the agent gets
    /// the same, but what a job asks for is not added to it.
    #[serde(default)]
    pub helper: Resources,
    /// Each container of a service. Jobs change it with `KUBERNETES_SERVICE_CPU_LIMIT` and its kin:
    /// among the job's variables for all of its services, among a service's own for that one.
    #[serde(default)]
    pub services: Resources,
    /// The pod as a whole, `cpu` and `memory`: what its containers may use together, beside what each
    /// of them has of its own. Jobs change it with `KUBERNETES_POD_CPU_LIMIT` and its kin. Needs
    /// Kubernetes 1.34.
    /// <https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/#pod-level-resource-specification>
    #[serde(default)]
    pub pod: Resources,
}

/// Requests and limits by resource name: `cpu`, `memory`, `ephemeral-storage`, and extended ones.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    validation = Rule::new("[self.requests, self.limits, self.max, self.min].all(amounts, amounts.all(name, isQuantity(amounts[name]) && quantity(amounts[name]).compareTo(quantity('0')) >= 0))")
        .message("requests, limits, max and min must be Kubernetes quantities such as 500m or 2Gi, and not negative"),
    validation = Rule::new("self.requests.all(name, !isQuantity(self.requests[name]) || !(name in self.limits) || !isQuantity(self.limits[name]) || quantity(self.requests[name]).compareTo(quantity(self.limits[name])) <= 0)")
        .message("a request must not exceed its limit")
)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler sets aside for the container, where the job does not say.
    #[serde(default)]
    #[schemars(schema_with = "schema::quantities")]
    pub requests: BTreeMap<String, String>,

    /// What the container cannot exceed, where the job does not say.
    #[serde(default)]
    #[schemars(schema_with = "schema::quantities")]
    pub limits: BTreeMap<String, String>,

    /// Most that a job may ask for with its variables, as a request and as a limit. A resource
    /// that is not listed cannot be asked for.
    #[serde(default)]
    #[schemars(schema_with = "schema::quantities")]
    pub max: BTreeMap<String, String>,

    /// Least that a job may ask for with its variables, as a request and as a limit.
    #[serde(default)]
    #[schemars(schema_with = "schema::quantities")]
    pub min: BTreeMap<String, String>,

    /// What happens to a job that asks for more than `max` or less than `min`. `Reject`: it fails
    /// with a sentence that names the bound. `Clamp`: it gets the bound, and its log says so.
    #[serde(default)]
    pub on_exceed: OnExceed,

    /// What happens to a job that asks for a resource that `max` does not list. `Ignore`: it gets
    /// the class's amount, and its log says so. `Reject`: it fails with a sentence that says so.
    #[serde(default)]
    pub on_forbidden: OnForbidden,
}

/// What happens to a job that asks for more, or for less, than its class allows.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExceed {
    /// It fails with a sentence that names the bound.
    #[default]
    Reject,
    /// It gets the bound, and its log says so.
    Clamp,
}

/// What happens to a job that asks for a resource that its class leaves no choice of.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnForbidden {
    /// It gets the class's amount, and its log says so.
    #[default]
    Ignore,
    /// It fails with a sentence that says so.
    Reject,
}
