//! Peak memory of the operator, of the shim, and of gitlab-runner with either executor.

use anyhow::Result;

use super::{mebibytes, operators, parallel};
use crate::bench::Bench;
use crate::bench::options::Topic;
use crate::bench::processes::Watch;
use crate::bench::report::{Row, Unit};
use crate::bench::stats::largest;
use crate::harness::real;

/// The most that the operator may take, in MiB.
const OPERATOR: f64 = 30.0;

/// The most that a call of the shim may take, in MiB.
const SHIM: f64 = 10.0;

pub(in crate::bench) async fn memory(bench: &Bench<'_>) -> Result<Vec<Row>> {
    let (jobs, output) = (bench.plan.parallel, bench.plan.output_mib);
    bench.progress.say(format_args!("bench: memory, with {jobs} jobs at once and {output} MiB of output"));
    let processes = operators(bench.installation).await?;
    for process in &processes {
        process.forget_peak()?;
    }
    let shim = bench.installation.shim();
    let runner = real::program().filter(|_| bench.plan.compare);
    let programs: Vec<_> = std::iter::once(shim).chain(runner.as_deref()).collect();
    let printing = super::output::command(output, "");

    let watch = Watch::start(&programs);
    bench.run_ours(&bench.job(&printing)?).await?;
    let peak = |watch: &Watch| watch.peak(runner.as_deref()?).map(mebibytes);
    let runner_with_ours = peak(&watch);
    parallel::ours(bench).await?;
    let shim_peak = watch.peak(shim).map(mebibytes);
    drop(watch);
    let peaks: Vec<f64> =
        processes.iter().map(|process| process.peak_memory().map(mebibytes)).collect::<Result<_>>()?;

    let row = |name: String, value| Row::new(Topic::Memory, Unit::Mebibytes, name, value);
    let mut rows = vec![
        row(format!("operator, {jobs} jobs at once and one with {output} MiB of output"), largest(&peaks))
            .samples(&peaks, &[])
            .target(OPERATOR),
        row("executor-shim, the largest of all its calls".to_owned(), shim_peak).target(SHIM),
    ];
    if bench.theirs.is_some() {
        let watch = Watch::start(&programs);
        bench.run_theirs(&bench.job(&printing)?).await?;
        rows.push(
            row(format!("gitlab-runner, one job with {output} MiB of output"), runner_with_ours)
                .against(peak(&watch)),
        );
    }
    Ok(rows)
}
