//! Roadstead on a real cluster, as its users meet it. `cargo e2e test` brings the cluster and runs these.

mod attempts;
mod bench;
mod by_hand;
mod chart;
mod class;
mod debugging;
mod existing;
mod exits;
mod explain;
mod faults;
mod images;
mod lifecycle;
mod limits;
mod matching;
mod namespaces;
mod output;
mod path;
mod placement;
mod queue;
mod registries;
mod requests;
mod resources;
mod secrets;
mod services;
mod trust;

use std::time::Duration;

use roadstead_crds::{CiJob, Phase, Reason};

/// Longer than any healthy job of these tests takes on a loaded machine.
const DEADLINE: Duration = Duration::from_mins(3);

/// What a watch of the cluster may take to show what has happened.
const SOON: Duration = Duration::from_secs(30);

/// That a CiJob stands there.
fn stands(phase: Phase, reason: Reason) -> impl Fn(Option<&CiJob>) -> bool {
    move |job| {
        job.and_then(|job| job.status.as_ref())
            .is_some_and(|status| (status.phase, status.reason) == (Some(phase), Some(reason)))
    }
}
