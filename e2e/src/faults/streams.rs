//! What networks do to the connection between the shim and the API server.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::judge::{BEGIN, END, Load, goes_on, longest_silence};
use super::{DEADLINE, EVERY_BYTE, Fault, Finding, Site};
use crate::coordinator::contains;
use crate::harness::RunningJob;
use crate::installation::{Cut, Proxy};

/// The faults.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "reset-at-random-bytes",
        what: "twelve connections in a row are reset, each after a random number of bytes of output",
        right: EVERY_BYTE,
        needs_host: false,
        alone: false,
        not_theirs: None,
        run: |site| Box::pin(reset_at_random_bytes(site)),
    },
    Fault {
        name: "reset-from-the-start",
        what: "connections are reset at random bytes while the pod is prepared and scripts of 2 MB are sent to it",
        right: EVERY_BYTE,
        needs_host: false,
        alone: false,
        not_theirs: None,
        run: |site| Box::pin(reset_from_the_start(site)),
    },
    Fault {
        name: "many-resets",
        what: "the connection is reset forty times, as soon as output flows again",
        right: EVERY_BYTE,
        needs_host: false,
        alone: false,
        not_theirs: None,
        run: |site| Box::pin(many_resets(site)),
    },
    Fault {
        name: "reset-in-silence",
        what: "the connection is reset while the script says nothing",
        right: EVERY_BYTE,
        needs_host: false,
        alone: false,
        not_theirs: None,
        run: |site| Box::pin(reset_in_silence(site)),
    },
    Fault {
        name: "half-open",
        what: "the connection stays open and passes nothing on any more",
        right: EVERY_BYTE,
        needs_host: false,
        alone: false,
        not_theirs: None,
        run: |site| Box::pin(half_open(site)),
    },
    Fault {
        name: "thin-line",
        what: "the connection passes 256 KiB a second",
        right: EVERY_BYTE,
        needs_host: false,
        alone: false,
        not_theirs: None,
        run: |site| Box::pin(thin_line(site)),
    },
    Fault {
        name: "shim-stopped",
        what: "the shim is stopped for 10 s, and the script writes more than its spool takes",
        right: EVERY_BYTE,
        needs_host: false,
        alone: false,
        not_theirs: Some("it has no shim"),
        run: |site| Box::pin(shim_stopped(site)),
    },
];

/// Much at once: 3 MB on each stream.
const FLOOD: Load = Load { chunks: 5, numbers: 90_000, pause: 2 };
/// A little now and then.
const TRICKLE: Load = Load { chunks: 40, numbers: 20, pause: 2 };

/// Runs the load behind a relay, which is disturbed once output flows.
async fn behind_relay(
    site: &Site<'_>,
    load: Load,
    disturb: impl AsyncFnOnce(&Proxy, &RunningJob) -> Result<Option<Duration>>,
) -> Result<Finding> {
    let relay = site.relay().await?;
    let spec = load.script(site.job()?);
    let job = site.start_behind(&relay, &spec).await?;
    job.wait_log(&format!("{BEGIN}\n"), DEADLINE).await?;
    let recovery = disturb(&relay.proxy, &job).await?;
    Ok(load.judge(spec.id, &job.finish(DEADLINE).await?, recovery))
}

async fn reset_at_random_bytes(site: &Site<'_>) -> Result<Finding> {
    let mut random = site.random.clone();
    behind_relay(site, FLOOD, async |proxy, job| {
        proxy.cut_next((0..12).map(|_| Cut::Down(random.u64(1..600_000))));
        proxy.cut();
        Ok(Some(longest_silence(job).await?))
    })
    .await
}

async fn reset_from_the_start(site: &Site<'_>) -> Result<Finding> {
    let mut random = site.random.clone();
    let relay = site.relay().await?;
    // Only the first line of a command is shown in the job log.
    let padding = "# 0123456789abc\n".repeat(1 << 17);
    let spec = site.job()?.script([format!("true\n{padding}")].into_iter().chain(TRICKLE.commands()));
    // Short ones for the small talk of `config` and `prepare`, longer ones for the scripts.
    relay.proxy.cut_next((0..24).map(|number| match number % 3 {
        0 => Cut::Down(random.u64(1..20_000)),
        1 => Cut::Up(random.u64(1..20_000)),
        _ => Cut::Up(random.u64(20_000..2_000_000)),
    }));
    let job = site.start_behind(&relay, &spec).await?;
    Ok(TRICKLE.judge(spec.id, &job.finish(DEADLINE).await?, None))
}

async fn many_resets(site: &Site<'_>) -> Result<Finding> {
    behind_relay(site, TRICKLE, async |proxy, job| {
        let mut slowest = Duration::ZERO;
        for _ in 0..40 {
            let log = job.log();
            if contains(&log, END.as_bytes()) {
                break;
            }
            proxy.cut();
            slowest = slowest.max(goes_on(job, &log).await?);
        }
        Ok(Some(slowest))
    })
    .await
}

async fn reset_in_silence(site: &Site<'_>) -> Result<Finding> {
    let load = Load { chunks: 2, numbers: 10, pause: 50 };
    behind_relay(site, load, async |proxy, job| {
        job.wait_log("\n10\n", DEADLINE).await?;
        proxy.cut();
        Ok(None)
    })
    .await
}

async fn half_open(site: &Site<'_>) -> Result<Finding> {
    // Longer than the 30 s after which a silent connection is given up.
    let load = Load { chunks: 200, ..TRICKLE };
    behind_relay(site, load, async |proxy, job| {
        proxy.freeze();
        Ok(Some(longest_silence(job).await?))
    })
    .await
}

async fn thin_line(site: &Site<'_>) -> Result<Finding> {
    let load = Load { chunks: 1, numbers: 150_000, pause: 0 };
    behind_relay(site, load, async |proxy, _| {
        proxy.throttle(256 << 10);
        Ok(None)
    })
    .await
}

async fn shim_stopped(site: &Site<'_>) -> Result<Finding> {
    let load = Load { chunks: 5, numbers: 90_000, pause: 10 };
    let spec = load.script(site.job()?);
    let class = site.class(|class| class.spec.pod.spool_size = Some("1Mi".to_owned())).await?;
    let job = site.start_in(&class, &spec).await?;
    job.wait_log(&format!("{BEGIN}\n"), DEADLINE).await?;
    let shim = job.process().context("no shim is running")?;
    shim.signal(Signal::SIGSTOP)?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let log = job.log();
    shim.signal(Signal::SIGCONT)?;
    let recovery = goes_on(&job, &log).await?;
    Ok(load.judge(spec.id, &job.finish(DEADLINE).await?, Some(recovery)))
}
