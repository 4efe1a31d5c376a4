//! The benchmark itself, with as little work as it can do.

use std::fs;

use anyhow::{Context as _, Result};
use roadstead_e2e::Cluster;
use roadstead_e2e::bench::{Plan, Topic, measure};
use roadstead_e2e::harness::real;

#[tokio::test(flavor = "multi_thread")]
async fn the_benchmark_measures_every_row() -> Result<()> {
    let plan = Plan::smallest();
    let report = measure(&plan).await?;
    for topic in &plan.topics {
        let rows: Vec<_> = report.rows.iter().filter(|row| row.topic == *topic).collect();
        assert!(!rows.is_empty(), "{topic:?}: {report:#?}");
        // A single pair of jobs may differ by less than the machine's noise, and a second's work by less than a tick.
        let may_vanish = matches!(topic, Topic::Output | Topic::Idle);
        for row in rows {
            let value = row.roadstead.with_context(|| format!("{row:?} has no value"))?;
            assert!(value > 0.0 || may_vanish, "{row:?}");
        }
    }
    let dir = tempfile::tempdir()?;
    let [json, markdown] = report.write(dir.path())?;
    let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(json)?)?;
    assert_eq!(json["rows"].as_array().map(Vec::len), Some(report.rows.len()));
    let markdown = fs::read_to_string(markdown)?;
    assert!(markdown.starts_with("<!-- bench:begin -->\n"), "{markdown}");
    assert!(markdown.ends_with("<!-- bench:end -->\n"), "{markdown}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn gitlabs_executor_can_be_compared_with() -> Result<()> {
    if real::program().is_none() || Cluster::find()?.image("gitlab-helper").is_err() {
        eprintln!("there is no real gitlab-runner with its helper to compare with");
        return Ok(());
    }
    let report = measure(&Plan { compare: true, topics: vec![Topic::Start], ..Plan::smallest() }).await?;
    let row = report.rows.first().context("no row")?;
    assert!(row.roadstead.is_some() && row.gitlab.is_some() && row.ratio.is_some(), "{row:?}");
    Ok(())
}
