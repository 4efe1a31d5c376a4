//! What a job costs the API server, counted in its audit log.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use roadstead_e2e::audit::AuditLog;
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::installation::Installation;

use crate::{DEADLINE, SOON};

/// Most requests of shim and operator for a job without a checkout.
const MOST: usize = 35;

/// By how much the status writes of two equal jobs may differ. A request every three seconds would
/// make thirteen of it.
const COALESCED: usize = 2;

/// Requests that are about the job, by account, verb and resource.
fn requests_for(bench: &Installation, cijob: &str) -> Result<BTreeMap<String, usize>> {
    let accounts = format!("system:serviceaccount:{}:", bench.system_namespace());
    let mut counts = BTreeMap::new();
    for request in AuditLog::of(&bench.cluster)?.requests()? {
        let ours = request.user.strip_prefix(&accounts);
        if let Some(account) = ours.filter(|_| request.concerns(cijob)) {
            *counts.entry(format!("{account} {}", request.kind())).or_default() += 1;
        }
    }
    Ok(counts)
}

/// Law: nothing is polled, so a longer job costs no more requests than a short one.
#[tokio::test(flavor = "multi_thread")]
async fn the_requests_of_a_job_do_not_grow_with_its_duration() -> Result<()> {
    let bench = Installation::join().await?;
    let harness = bench.harness()?;
    let mut totals = Vec::new();
    // Long enough for the kubelet to report that the containers run, which costs a write and an Event.
    for seconds in [3, 40] {
        let spec = JobSpec::fresh().image(bench.image("busybox")?).script([format!("sleep {seconds}")]);
        harness.run(&spec, DEADLINE).await?.assert_success();
        bench.wait_no_pods(spec.id, SOON).await?;
        let name = bench.cijob_of(spec.id).await?.metadata.name.context("no name")?;
        let counts = requests_for(&bench, &name)?;
        // Tries to reach an agent that is not there yet depend on the machine's load, not on the job.
        let settled: usize =
            counts.iter().filter(|(what, _)| !what.contains("exec")).map(|(_, count)| count).sum();
        assert!(counts.keys().any(|what| what.contains("exec")), "{counts:?}");
        assert!(counts.values().sum::<usize>() <= MOST, "{counts:#?}");
        totals.push((settled, counts));
    }
    // Two changes that fall together are one status write less.
    assert!(totals[1].0 <= totals[0].0 + COALESCED, "{totals:#?}");
    Ok(())
}
