//! Services that ended while scripts ran: most likely why a script failed.

use std::time::Duration;

use roadstead_crds::status::ServiceState;

use crate::shim::cluster::Cluster;
use crate::shim::prepare::lines;
use crate::shim::state::State;

/// How long the API server may take to tell it. It is worth no more.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

/// Lines on the services that have ended since they were last seen. A job without services asks nobody.
pub async fn ended_since(cluster: &Cluster, known: &mut State) -> Vec<String> {
    let ended = |state: ServiceState| state == ServiceState::Ended;
    if known.services.iter().all(|service| ended(service.state)) {
        return Vec::new();
    }
    let api = cluster.cijobs(&known.namespace);
    let looked = tokio::time::timeout(LOOK_WITHIN, api.get_opt(&known.cijob)).await;
    let Ok(Ok(Some(job))) = looked else { return Vec::new() };
    let now = job.status.unwrap_or_default().services;
    let before = |container: &str| known.services.iter().find(|service| service.container == container);
    let fresh = now
        .iter()
        .filter(|service| ended(service.state))
        .filter(|service| before(&service.container).is_none_or(|before| !ended(before.state)));
    let lines = fresh.map(lines::ended).collect();
    known.services = now;
    lines
}
