//! A job's start: from its assignment to the first line of its script, and each step on the way.

use std::fs;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use roadstead_crds::status::StartBreakdown;

use super::count;
use crate::bench::options::Topic;
use crate::bench::report::{Row, Unit};
use crate::bench::runtime::{RuntimeLog, Started};
use crate::bench::stats::median;
use crate::bench::{Bench, SOON, first_line};
use crate::harness::JobResult;

/// The most that the first line may take, in seconds.
const TARGET: f64 = 1.3;

/// The steps, in the order in which they are passed.
const STEPS: [&str; 9] = [
    "the shim asks for the CiJob",
    "the operator has admitted it",
    "its pod is created",
    "the pod has a node",
    "the kubelet begins with the sandbox",
    "the sandbox is there",
    "the containers are started",
    "both agents answer the shim",
    "first byte of the first stage",
];

pub(in crate::bench) async fn start(bench: &Bench<'_>) -> Result<Vec<Row>> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut steps = vec![Vec::new(); STEPS.len()];
    for number in 1..=bench.plan.starts {
        let spec = bench.job("echo first line")?;
        let result = bench.run_ours(&spec).await?;
        ours.push(first_line(&result)?);
        for (samples, at) in steps.iter_mut().zip(milliseconds(bench, &result).await?) {
            samples.extend(at);
        }
        if let Some(result) = bench.run_theirs(&bench.job("echo first line")?).await? {
            theirs.push(first_line(&result)?);
        }
        let last = |samples: &[f64]| samples.last().map(|seconds| format!("{seconds:.2} s"));
        let both: Vec<String> = [last(&ours), last(&theirs)].into_iter().flatten().collect();
        let starts = bench.plan.starts;
        bench.progress.say(format_args!("bench: start {number} of {starts}: {}", both.join(" against ")));
    }
    let first = Row::new(Topic::Start, Unit::Seconds, "first line of the script", median(&ours));
    let mut rows = vec![first.against(median(&theirs)).samples(&ours, &theirs).target(TARGET)];
    for (name, samples) in STEPS.into_iter().zip(&steps) {
        let row = Row::new(Topic::Start, Unit::Milliseconds, format!("· {name}"), median(samples));
        rows.push(row.samples(samples, &[]));
    }
    // Not every container runtime's log can be read.
    rows.retain(|row| row.roadstead.is_some());
    Ok(rows)
}

/// When each of [`STEPS`] was passed, in milliseconds from the job's assignment.
async fn milliseconds(bench: &Bench<'_>, result: &JobResult) -> Result<[Option<f64>; STEPS.len()]> {
    let name =
        bench.installation.cijob_of(result.id).await?.metadata.name.context("a CiJob without a name")?;
    let job = bench.installation.wait_finished(&name, SOON).await?;
    let status = job.status.unwrap_or_default();
    let runtime = bench.installation.cluster.host_parts().map(|parts| parts.logs.join("containerd.log"));
    // Other providers' nodes keep their logs to themselves.
    let runtime = runtime.ok().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let started = status.pod.map(|pod| RuntimeLog::new(&runtime).started(&pod.name)).unwrap_or_default();
    Ok(since(result.assigned.clock(), job.spec.request.requested_at.0.into(), &status.start, &started))
}

fn since(
    assigned: SystemTime,
    requested: SystemTime,
    start: &StartBreakdown,
    runtime: &Started,
) -> [Option<f64>; STEPS.len()] {
    let clock = |at: SystemTime| at.duration_since(assigned).ok().map(|after| after.as_secs_f64() * 1000.0);
    let requested = clock(requested);
    let own = |after: Option<i64>| Some(requested? + count(usize::try_from(after?).ok()?));
    [
        requested,
        own(start.admitted_ms),
        own(start.pod_created_ms),
        own(start.bound_ms),
        runtime.begun.and_then(clock),
        runtime.sandbox.and_then(clock),
        runtime.containers.and_then(clock),
        own(start.build_ms),
        own(start.first_byte_ms),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn both_clocks_begin_at_the_assignment() {
        let assigned = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let at = |millis| assigned + Duration::from_millis(millis);
        let start =
            StartBreakdown { admitted_ms: Some(20), build_ms: Some(900), ..StartBreakdown::default() };
        let runtime = Started { begun: Some(at(80)), ..Started::default() };
        let steps = since(assigned, at(30), &start, &runtime);
        assert_eq!(steps[0], Some(30.0));
        assert_eq!(steps[1], Some(50.0));
        assert_eq!((steps[4], steps[5]), (Some(80.0), None));
        assert_eq!(steps[7], Some(930.0));
    }
}
