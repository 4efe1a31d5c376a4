//! What the operator costs while no job runs.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::api::ListParams;

use super::{count, operators};
use crate::audit::AuditLog;
use crate::bench::Bench;
use crate::bench::options::Topic;
use crate::bench::processes::Process;
use crate::bench::report::{Row, Unit};

pub(in crate::bench) async fn idle(bench: &Bench<'_>) -> Result<Vec<Row>> {
    let window = bench.plan.idle;
    let kept = bench.installation.cijobs().list_metadata(&ListParams::default()).await;
    let kept = kept.context("cannot list CiJobs")?.items.len();
    bench.progress.say(format_args!("bench: {} s of nothing, with {kept} CiJobs kept", window.as_secs()));
    let processes = operators(bench.installation).await?;
    let log = AuditLog::from_now(&bench.installation.cluster)?;
    let before = processor_time(&processes)?;
    tokio::time::sleep(window).await;
    let used = processor_time(&processes)?.saturating_sub(before);
    let (requests, release) = (log.requests()?, bench.installation.release());
    let own =
        requests.iter().filter(|request| request.is_by(&release.namespace, &release.operator())).count();
    let minutes = window.as_secs_f64() / 60.0;
    Ok(vec![
        Row::new(
            Topic::Idle,
            Unit::Milliseconds,
            "processor time in a minute",
            Some(used.as_secs_f64() * 1000.0 / minutes),
        ),
        Row::new(Topic::Idle, Unit::Requests, "requests in a minute", Some(count(own) / minutes)),
    ])
}

fn processor_time(processes: &[Process]) -> Result<Duration> {
    processes.iter().map(|process| process.processor_time()).sum()
}
