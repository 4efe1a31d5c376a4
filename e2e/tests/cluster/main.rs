//! Roadstead on a real cluster, as its users meet it. `cargo e2e test` brings the cluster and runs these.

mod bench;
mod by_hand;
mod chart;
mod debugging;
mod existing;
mod exits;
mod faults;
mod images;
mod lifecycle;
mod limits;
mod matching;
mod output;
mod path;
mod placement;
mod queue;
mod requests;
mod resources;
mod secrets;
mod trust;

use std::time::Duration;

/// Longer than any healthy job of these tests takes on a loaded machine.
const DEADLINE: Duration = Duration::from_mins(3);

/// What a watch of the cluster may take to show what has happened.
const SOON: Duration = Duration::from_secs(30);
