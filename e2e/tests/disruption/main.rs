//! What needs the cluster for itself: operators that come, go, stop and die, a change of the class
//! `default`, and the time of a start. One test after the other.

mod matching;
mod namespace;
mod operators;
mod start;
mod takeover;

use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

/// Longer than any healthy job of these tests takes on a loaded machine.
const DEADLINE: Duration = Duration::from_mins(3);

/// What a watch of the cluster may take to show what has happened.
const SOON: Duration = Duration::from_secs(30);

/// Waits for its turn.
async fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}
