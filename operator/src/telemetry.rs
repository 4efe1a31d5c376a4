//! Metrics. Labels are words of closed lists, never names of jobs or projects.

mod gauges;

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use roadstead_crds::report::JobReport;
use roadstead_crds::status::StartBreakdown;
use roadstead_crds::{CiJobStatus, Phase};

pub use gauges::{JobCounts, LeaderGauge};

/// What the operator counts. Clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    reconciles: Family<ResultLabels, Counter>,
    reconcile_seconds: Histogram,
    errors: Family<ErrorLabels, Counter>,
    watch_errors: Family<ResourceLabels, Counter>,
    finished: Family<FinishedLabels, Counter>,
    start_seconds: Family<StepLabels, Histogram, fn() -> Histogram>,
    requests: Family<RequestLabels, Counter>,
    events_lost: Counter,
    pods_created: Counter,
    reconnects: Counter,
    output_bytes: Family<StreamLabels, Counter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ErrorLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResourceLabels {
    resource: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FinishedLabels {
    phase: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StepLabels {
    step: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    verb: &'static str,
    resource: &'static str,
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StreamLabels {
    stream: &'static str,
}

/// How a reconcile ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As planned.
    Done,
    /// Something had changed meanwhile.
    LookAgain,
    /// With an error.
    Failed,
}

impl Metrics {
    /// Metrics that the registry knows.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            reconciles: Family::default(),
            reconcile_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            errors: Family::default(),
            watch_errors: Family::default(),
            finished: Family::default(),
            start_seconds: Family::new_with_constructor(start_histogram),
            requests: Family::default(),
            events_lost: Counter::default(),
            pods_created: Counter::default(),
            reconnects: Counter::default(),
            output_bytes: Family::default(),
        };
        registry.register("reconciles", "Reconciles of CiJobs by their result", metrics.reconciles.clone());
        registry.register_with_unit(
            "reconcile_duration",
            "Time that a reconcile took, API calls included",
            Unit::Seconds,
            metrics.reconcile_seconds.clone(),
        );
        registry.register(
            "reconcile_errors",
            "Failed reconciles by the call that failed",
            metrics.errors.clone(),
        );
        registry.register(
            "watch_errors",
            "Watches that failed and were taken up again",
            metrics.watch_errors.clone(),
        );
        registry.register("jobs_finished", "Jobs that ended, by phase and reason", metrics.finished.clone());
        registry.register_with_unit(
            "job_start",
            "Time from the request of a job to each step of its start",
            Unit::Seconds,
            metrics.start_seconds.clone(),
        );
        registry.register("api_requests", "Requests to the API server", metrics.requests.clone());
        registry.register("events_lost", "Events that could not be written", metrics.events_lost.clone());
        registry.register("pods_created", "Pods created for jobs", metrics.pods_created.clone());
        registry.register(
            "stream_reconnects",
            "Connections to jobs that were lost and taken up again, as the shim reported when the job ended",
            metrics.reconnects.clone(),
        );
        registry.register_with_unit(
            "output",
            "Output of the stages of jobs that ended, as the shim reported",
            Unit::Bytes,
            metrics.output_bytes.clone(),
        );
        registry.register(
            "build",
            "The running build",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
        metrics
    }

    /// A reconcile ended.
    pub fn reconciled(&self, outcome: Outcome, took: Duration) {
        let result = match outcome {
            Outcome::Done => "done",
            Outcome::LookAgain => "look_again",
            Outcome::Failed => "failed",
        };
        self.reconciles.get_or_create(&ResultLabels { result }).inc();
        self.reconcile_seconds.observe(took.as_secs_f64());
    }

    /// A reconcile failed for this reason.
    pub fn failed(&self, reason: &'static str) {
        self.errors.get_or_create(&ErrorLabels { reason }).inc();
    }

    /// A watch failed.
    pub fn watch_failed(&self, resource: &'static str) {
        self.watch_errors.get_or_create(&ResourceLabels { resource }).inc();
    }

    /// An API request was answered, or not: code 0.
    pub fn requested(&self, verb: &'static str, resource: &'static str, code: u16) {
        self.requests.get_or_create(&RequestLabels { verb, resource, code }).inc();
    }

    /// An Event could not be written.
    pub fn event_lost(&self) {
        self.events_lost.inc();
    }

    /// A pod was created.
    pub fn pod_created(&self) {
        self.pods_created.inc();
    }

    /// A job ended with this report.
    pub fn reported(&self, report: &JobReport) {
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        self.reconnects.inc_by(count(report.reconnects.into()));
        for (stream, bytes) in [
            ("stdout", report.stages.iter().map(|stage| count(stage.stdout_bytes)).sum()),
            ("stderr", report.stages.iter().map(|stage| count(stage.stderr_bytes)).sum()),
        ] {
            self.output_bytes.get_or_create(&StreamLabels { stream }).inc_by(bytes);
        }
    }

    /// A status replaced another one.
    pub fn status_written(&self, before: &CiJobStatus, after: &CiJobStatus) {
        for (step, milliseconds) in new_steps(&before.start, &after.start) {
            let seconds = Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0)).as_secs_f64();
            self.start_seconds.get_or_create(&StepLabels { step }).observe(seconds);
        }
        let over = |status: &CiJobStatus| status.phase.is_some_and(Phase::is_final);
        if let (false, true, Some(phase), Some(reason)) =
            (over(before), over(after), after.phase, after.reason)
        {
            let labels = FinishedLabels { phase: phase.as_str(), reason: reason.as_str() };
            self.finished.get_or_create(&labels).inc();
        }
    }
}

fn start_histogram() -> Histogram {
    Histogram::new([0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0])
}

/// The steps of the start that the later one knows and the earlier one does not.
fn new_steps(before: &StartBreakdown, after: &StartBreakdown) -> impl Iterator<Item = (&'static str, i64)> {
    [
        ("admitted", before.admitted_ms, after.admitted_ms),
        ("pod_created", before.pod_created_ms, after.pod_created_ms),
        ("bound", before.bound_ms, after.bound_ms),
        ("running", before.running_ms, after.running_ms),
        ("helper", before.helper_ms, after.helper_ms),
        ("build", before.build_ms, after.build_ms),
        ("first_byte", before.first_byte_ms, after.first_byte_ms),
    ]
    .into_iter()
    .filter_map(|(step, before, after)| Some((step, after.filter(|_| before.is_none())?)))
}

#[cfg(test)]
mod document;

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use roadstead_crds::Reason;

    pub(super) fn scrape(registry: &Registry) -> String {
        let mut text = String::new();
        encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn each_step_and_each_end_counts_once() {
        let mut registry = Registry::with_prefix("roadstead");
        let metrics = Metrics::register(&mut registry);
        let before = CiJobStatus { phase: Some(Phase::Running), ..CiJobStatus::default() };
        let start = StartBreakdown { bound_ms: Some(120), running_ms: Some(-7), ..StartBreakdown::default() };
        let after = CiJobStatus {
            phase: Some(Phase::Failed),
            reason: Some(Reason::ScriptFailed),
            start,
            ..CiJobStatus::default()
        };
        metrics.status_written(&before, &after);
        metrics.status_written(&after, &after);
        metrics.requested("create", "pods", 201);
        let text = scrape(&registry);
        for line in [
            "roadstead_jobs_finished_total{phase=\"Failed\",reason=\"ScriptFailed\"} 1",
            "roadstead_job_start_seconds_count{step=\"bound\"} 1",
            "roadstead_job_start_seconds_count{step=\"running\"} 1",
            "roadstead_api_requests_total{verb=\"create\",resource=\"pods\",code=\"201\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("step=\"helper\""), "{text}");
    }
}
