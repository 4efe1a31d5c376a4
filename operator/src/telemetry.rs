//! Metrics. Labels are words of closed lists, never names of jobs or projects.

use std::fmt;
use std::time::Duration;

use kube::runtime::reflector::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use roadstead_crds::status::StartBreakdown;
use roadstead_crds::{CiJob, CiJobStatus, Phase};

use crate::lead::Tenure;

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

/// Tells whether this operator leads, at the moment of the scrape.
#[derive(Debug)]
pub struct LeaderGauge(pub Tenure);

impl Collector for LeaderGauge {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let text = "Whether this operator holds the Lease and works (1) or stands by (0)";
        let gauge = encoder.encode_descriptor("leader", text, None, MetricType::Gauge)?;
        ConstGauge::new(i64::from(self.0.holds())).encode(gauge)
    }
}

/// Counts the cached CiJobs when it is scraped, so that no count can drift.
pub struct JobCounts {
    /// Namespace and cache of its CiJobs.
    pub stores: Vec<(String, Store<CiJob>)>,
}

impl fmt::Debug for JobCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobCounts").finish_non_exhaustive()
    }
}

impl Collector for JobCounts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut family =
            encoder.encode_descriptor("jobs", "CiJobs that exist, by phase", None, MetricType::Gauge)?;
        for (namespace, store) in &self.stores {
            let phases: Vec<_> = store
                .state()
                .iter()
                .filter_map(|job| job.status.as_ref().and_then(|status| status.phase))
                .collect();
            for phase in PHASES {
                let count = phases.iter().filter(|other| **other == phase).count();
                let labels = [("namespace", namespace.as_str()), ("phase", phase.as_str())];
                ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX))
                    .encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

const PHASES: [Phase; 9] = [
    Phase::Queued,
    Phase::Admitted,
    Phase::Starting,
    Phase::Running,
    Phase::Succeeded,
    Phase::Failed,
    Phase::Errored,
    Phase::Canceled,
    Phase::TimedOut,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use kube::runtime::{reflector, watcher};
    use prometheus_client::encoding::text::encode;
    use roadstead_crds::Reason;

    fn scrape(registry: &Registry) -> String {
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

    #[test]
    fn jobs_are_counted_from_the_cache() {
        let (store, mut writer) = reflector::store();
        let mut job = fixture::job();
        job.status = Some(CiJobStatus { phase: Some(Phase::Starting), ..CiJobStatus::default() });
        writer.apply_watcher_event(&watcher::Event::Apply(job));
        let mut registry = Registry::with_prefix("roadstead");
        let stores = vec![(fixture::NAMESPACE.to_owned(), store)];
        registry.register_collector(Box::new(JobCounts { stores }));
        let text = scrape(&registry);
        assert!(text.contains("jobs{namespace=\"ci-jobs\",phase=\"Starting\"} 1"), "{text}");
        assert!(text.contains("jobs{namespace=\"ci-jobs\",phase=\"Running\"} 0"), "{text}");
    }
}
