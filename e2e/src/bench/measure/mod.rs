//! The measurements, one file for each group of rows.

mod idle;
mod memory;
mod output;
mod parallel;
mod requests;
mod size;
mod start;

pub(super) use idle::idle;
pub(super) use memory::memory;
pub(super) use output::output;
pub(super) use parallel::parallel;
pub(super) use requests::requests;
pub(super) use size::size;
pub(super) use start::start;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;

use super::processes::Process;
use crate::installation::Installation;

/// Labels of the operator's pods, without the release's name.
const OPERATOR: &str = "app.kubernetes.io/component=operator,app.kubernetes.io/instance=";

/// The operator's processes: one for each of its pods.
async fn operators(installation: &Installation) -> Result<Vec<Process>> {
    let pods: Api<Pod> = Api::namespaced(installation.client.clone(), installation.system_namespace());
    let selector = format!("{OPERATOR}{}", installation.release().name);
    let list = pods
        .list(&ListParams::default().labels(&selector))
        .await
        .context("cannot list the operator's pods")?;
    let statuses = list.items.into_iter().filter_map(|pod| pod.status?.container_statuses).flatten();
    let running =
        statuses.filter(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()));
    let processes: Vec<Process> = running
        .filter_map(|status| status.container_id)
        .map(|id| Process::of_container(id.rsplit('/').next().unwrap_or(&id)))
        .collect::<Result<_>>()?;
    if processes.is_empty() {
        bail!("the operator does not run");
    }
    Ok(processes)
}

/// Bytes as MiB.
fn mebibytes(bytes: u64) -> f64 {
    // Exact up to 4 GiB, and nothing here is larger.
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
}

/// A number of things.
fn count(things: usize) -> f64 {
    f64::from(u32::try_from(things).unwrap_or(u32::MAX))
}
