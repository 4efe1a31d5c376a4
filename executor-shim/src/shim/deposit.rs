//! What a job needs and nobody may read in its CiJob: stored in Secrets that the CiJob owns, before its pod is made.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use roadstead_crds::labels::{JOB_ID, MANAGED_BY, MANAGER};
use roadstead_crds::status::JobConfig;
use roadstead_crds::{GROUP, VERSION, names};
use serde_json::json;
use tokio::time::Instant;

use crate::shim::cluster::{Cluster, Meaning, persistently};
use crate::shim::exit::Failure;
use crate::shim::service_variables::Sources;
use crate::shim::state::State;

/// How long the API server may take to store it all.
const STORE_WITHIN: Duration = Duration::from_secs(30);

/// What has to be stored for a job.
#[derive(Clone, Default)]
pub struct Deposit {
    /// Variables of its services.
    pub services: Sources,
    /// Credentials of registries, as a Docker configuration. Secret.
    pub registries: Option<String>,
}

impl Deposit {
    /// Whether there is nothing, and the job's pod need not be held back.
    pub fn is_empty(&self) -> bool {
        self.services.services.is_empty() && self.registries.is_none()
    }
}

/// Stores it for a job that is admitted, and lets go of its pod.
pub async fn store(
    cluster: &Cluster,
    state: &State,
    (job_id, config): (i64, &JobConfig),
    deposit: &Deposit,
) -> Result<(), Failure> {
    let (name, uid) = (state.cijob.as_str(), state.cijob_uid.as_deref().unwrap_or_default());
    let deadline = Instant::now() + STORE_WITHIN;
    let owned = |secret: String| ObjectMeta {
        name: Some(secret),
        labels: Some(
            [(JOB_ID, job_id.to_string()), (MANAGED_BY, MANAGER.to_owned())]
                .map(|(label, value)| (label.to_owned(), value))
                .into(),
        ),
        owner_references: Some(vec![owner(name, uid)]),
        ..ObjectMeta::default()
    };
    let of_services = deposit.services.variables(config).into_iter().enumerate().map(|(place, variables)| {
        let data = variables.into_iter().map(|(name, value)| (name, ByteString(value.into_bytes())));
        Secret {
            metadata: owned(names::service_secret_name(name, uid, place)),
            data: Some(data.collect()),
            immutable: Some(true),
            ..Secret::default()
        }
    });
    let of_registries = deposit.registries.as_ref().map(|registries| Secret {
        metadata: owned(names::pull_secret_name(name, uid)),
        type_: Some("kubernetes.io/dockerconfigjson".to_owned()),
        data: Some(BTreeMap::from([(
            ".dockerconfigjson".to_owned(),
            ByteString(registries.clone().into_bytes()),
        )])),
        immutable: Some(true),
        ..Secret::default()
    });
    let api: Api<Secret> = Api::namespaced(cluster.client.clone(), &state.namespace);
    for secret in of_services.chain(of_registries) {
        create(&api, &state.namespace, &secret, deadline).await?;
    }
    release(cluster, state, deadline).await
}

fn owner(cijob: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: format!("{GROUP}/{VERSION}"),
        kind: "CiJob".to_owned(),
        name: cijob.to_owned(),
        uid: uid.to_owned(),
        controller: None,
        block_owner_deletion: None,
    }
}

async fn create(
    api: &Api<Secret>,
    namespace: &str,
    secret: &Secret,
    deadline: Instant,
) -> Result<(), Failure> {
    let params = PostParams::default();
    match persistently(deadline, || api.create(&params, secret)).await {
        Ok(_) => Ok(()),
        // No other job has the name: an earlier try came through and its answer was lost.
        Err(error) if error.meaning() == Meaning::Conflict => Ok(()),
        Err(error) => {
            let name = secret.metadata.name.as_deref().unwrap_or_default();
            Err(Failure::system(error.sentence(&format!("create the Secret {namespace}/{name}"))))
        }
    }
}

/// The operator may make the job's pod.
async fn release(cluster: &Cluster, state: &State, deadline: Instant) -> Result<(), Failure> {
    let api = cluster.cijobs(&state.namespace);
    // The API server refuses the patch for any other object of the name.
    let patch = json!({"metadata": {"uid": state.cijob_uid}, "spec": {"hold": false}});
    let (patch, params) = (Patch::Merge(patch), PatchParams::default());
    let sent = persistently(deadline, || api.patch(&state.cijob, &params, &patch)).await;
    let what = format!("release the CiJob {}/{}", state.namespace, state.cijob);
    sent.map(drop).map_err(|error| Failure::system(error.sentence(&what)))
}
