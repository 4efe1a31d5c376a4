//! What is looked up at the moment of a scrape, so that it cannot drift.

use std::fmt;

use kube::runtime::reflector::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use roadstead_crds::{CiJob, Phase};

use crate::lead::Tenure;

/// Tells whether this operator leads.
#[derive(Debug)]
pub struct LeaderGauge(pub Tenure);

impl Collector for LeaderGauge {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let text = "Whether this operator holds the Lease and works (1) or stands by (0)";
        let gauge = encoder.encode_descriptor("leader", text, None, MetricType::Gauge)?;
        ConstGauge::new(i64::from(self.0.holds())).encode(gauge)
    }
}

/// Counts the cached CiJobs.
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
    use crate::telemetry::tests::scrape;
    use kube::runtime::{reflector, watcher};
    use prometheus_client::registry::Registry;
    use roadstead_crds::CiJobStatus;

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

    #[test]
    fn who_leads_says_so() {
        let tenure = Tenure::new();
        let mut registry = Registry::with_prefix("roadstead");
        registry.register_collector(Box::new(LeaderGauge(tenure.clone())));
        assert!(scrape(&registry).contains("\nroadstead_leader 0\n"));
        tenure.set_unlimited();
        assert!(scrape(&registry).contains("\nroadstead_leader 1\n"));
    }
}
