//! docs/metrics.md, the dashboard and the alerts speak of the metrics that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kube::runtime::{reflector, watcher};
use prometheus_client::encoding::text::encode;
use roadstead_crds::Reason;
use roadstead_crds::report::{JobReport, Outcome as Reported, ReportedStart};

use super::*;
use crate::fixture;
use crate::lead::Tenure;

/// A scrape in which every metric has a value.
fn full_scrape() -> String {
    let mut registry = Registry::with_prefix("roadstead");
    let metrics = Metrics::register(&mut registry);
    registry.register_collector(Box::new(LeaderGauge(Tenure::new())));
    let (store, mut writer) = reflector::store();
    writer.apply_watcher_event(&watcher::Event::Apply(fixture::job()));
    let stores = vec![(fixture::NAMESPACE.to_owned(), store)];
    registry.register_collector(Box::new(JobCounts { stores }));
    // A metric without a value is not scraped. A field that is new has to be given one below.
    let Metrics {
        reconciles: _,
        reconcile_seconds: _,
        errors: _,
        watch_errors: _,
        finished: _,
        start_seconds: _,
        requests: _,
        events_lost: _,
        pods_created: _,
        reconnects: _,
        output_bytes: _,
    } = &metrics;
    metrics.reconciled(Outcome::Done, Duration::from_millis(3));
    metrics.failed("create_pod");
    metrics.watch_failed("pods");
    let start = StartBreakdown { bound_ms: Some(120), ..StartBreakdown::default() };
    let after = CiJobStatus {
        phase: Some(Phase::Failed),
        reason: Some(Reason::ScriptFailed),
        start,
        ..CiJobStatus::default()
    };
    metrics.status_written(&CiJobStatus::default(), &after);
    metrics.requested("create", "pods", 201);
    metrics.event_lost();
    metrics.pod_created();
    metrics.reported(&JobReport {
        outcome: Reported::Succeeded,
        exit_code: None,
        message: None,
        start: ReportedStart::default(),
        reconnects: 2,
        stages: vec![],
    });
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    text
}

/// Names and types of all metrics, as a query names them, and their labels.
fn metrics() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let text = full_scrape();
    let mut found = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (family, kind) = line.split_once(' ').unwrap();
        let (name, sample) = match kind {
            "counter" => (format!("{family}_total"), format!("{family}_total")),
            "info" => (format!("{family}_info"), format!("{family}_info")),
            "histogram" => (family.to_owned(), format!("{family}_count")),
            _ => (family.to_owned(), family.to_owned()),
        };
        let line = text
            .lines()
            .find(|line| line.strip_prefix(sample.as_str()).is_some_and(|rest| rest.starts_with(['{', ' '])));
        let line = line.unwrap_or_else(|| panic!("{name} has no value in\n{text}"));
        let labels = line.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
        let labels = labels.map_or("", |(labels, _)| labels).split(',');
        let labels = labels.filter_map(|label| label.split_once('=')).map(|(name, _)| name.to_owned());
        found.insert(name, (kind.to_owned(), labels.collect()));
    }
    found
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn every_metric_is_in_the_document_and_nothing_else_is() {
    let mut documented = BTreeMap::new();
    for line in read("docs/metrics.md").lines().filter(|line| line.starts_with("| `roadstead_")) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, name, kind, labels, ..] = cells.as_slice() else { panic!("{line}") };
        let labels = labels.split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect::<BTreeSet<_>>();
        documented.insert(name.trim_matches('`').to_owned(), ((*kind).to_owned(), labels));
    }
    assert_eq!(documented, metrics());
}

#[test]
fn names_follow_prometheus_conventions() {
    for (name, (kind, _)) in metrics() {
        assert!(name.starts_with("roadstead_"), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        let base = name.trim_end_matches("_total");
        for unit in ["_ms", "_milliseconds", "_minutes", "_kb", "_mib", "_kilobytes"] {
            assert!(!base.ends_with(unit), "{name} is not in seconds or bytes");
        }
    }
}

#[test]
fn dashboard_and_alerts_ask_for_metrics_that_exist() {
    let known: BTreeSet<_> = metrics()
        .into_iter()
        .flat_map(|(name, (kind, _))| match kind.as_str() {
            "histogram" => ["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")).to_vec(),
            _ => vec![name],
        })
        .collect();
    for path in ["charts/roadstead/files/dashboard.json", "charts/roadstead/files/alerts.yaml"] {
        let text = read(path);
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let asked: BTreeSet<_> = words.filter(|word| word.starts_with("roadstead_")).collect();
        assert!(!asked.is_empty(), "{path} asks for nothing");
        for name in asked {
            assert!(known.contains(name), "{path} asks for {name}, which does not exist");
        }
    }
}
