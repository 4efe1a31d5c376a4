//! Every fault of `cargo e2e faults`, once.

use anyhow::{Result, ensure};
use roadstead_e2e::Cluster;
use roadstead_e2e::faults::{self, Options};
use roadstead_e2e::progress::Progress;

#[tokio::test(flavor = "multi_thread")]
async fn jobs_survive_what_can_break_or_say_why_not() -> Result<()> {
    let options = Options { only: Vec::new(), repeat: 1, seed: 1, compare: false };
    let table = faults::run(Progress::start(), Cluster::find()?, &options).await?;
    ensure!(table.is_right(), "\n{table}");
    Ok(())
}
