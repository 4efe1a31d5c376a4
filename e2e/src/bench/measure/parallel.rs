//! Several jobs at once: when does each have its first line?

use anyhow::Result;
use futures::future::try_join_all;

use crate::bench::options::Topic;
use crate::bench::report::{Row, Unit};
use crate::bench::stats::{largest, median};
use crate::bench::{Bench, DEADLINE, SOON, first_line, succeeded};

pub(in crate::bench) async fn parallel(bench: &Bench<'_>) -> Result<Vec<Row>> {
    let jobs = bench.plan.parallel;
    bench.progress.say(format_args!("bench: {jobs} jobs at once by Roadstead"));
    let ours = ours(bench).await?;
    let mut theirs = Vec::new();
    if bench.theirs.is_some() {
        bench.progress.say(format_args!("bench: {jobs} jobs at once by GitLab's executor"));
        theirs = self::theirs(bench).await?;
    }
    let row = |what: &str, of: fn(&[f64]) -> Option<f64>| {
        let name = format!("{jobs} jobs at once: {what}");
        Row::new(Topic::Parallel, Unit::Seconds, name, of(&ours)).against(of(&theirs))
    };
    Ok(vec![
        row("first line, median", median).samples(&ours, &theirs),
        row("first line of the slowest", largest),
    ])
}

pub(super) async fn ours(bench: &Bench<'_>) -> Result<Vec<f64>> {
    let specs = (0..bench.plan.parallel).map(|_| bench.job("echo first line"));
    let specs = specs.collect::<Result<Vec<_>>>()?;
    let jobs = try_join_all(specs.iter().map(|spec| bench.ours.start(spec))).await?;
    let results = try_join_all(jobs.into_iter().map(|job| job.finish(DEADLINE))).await?;
    try_join_all(specs.iter().map(|spec| bench.installation.wait_no_pods(spec.id, SOON))).await?;
    results.into_iter().map(|result| first_line(&succeeded(result)?)).collect()
}

async fn theirs(bench: &Bench<'_>) -> Result<Vec<f64>> {
    let Some(theirs) = &bench.theirs else { return Ok(Vec::new()) };
    let specs = (0..bench.plan.parallel).map(|_| bench.job("echo first line"));
    let specs = specs.collect::<Result<Vec<_>>>()?;
    let jobs = try_join_all(specs.iter().map(|spec| theirs.start(spec))).await?;
    let results = try_join_all(jobs.into_iter().map(|(job, _)| job.finish(DEADLINE))).await?;
    theirs.wait_no_pods().await?;
    results.into_iter().map(|result| first_line(&succeeded(result)?)).collect()
}
