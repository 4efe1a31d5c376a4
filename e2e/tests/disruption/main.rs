//! What happens to jobs while operators come, go, stop and die. These tests have the cluster to
//! themselves, one after the other: while one runs, nobody else's job could be timed.

mod matching;
mod operators;
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
