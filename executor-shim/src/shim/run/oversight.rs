//! A look at the CiJob, for when the stream is lost.

use kube::Api;
use roadstead_crds::{CiJob, CiJobStatus, Phase};

use super::supervise::{JobEnd, Oversight};
use crate::shim::watch::{Seen, Watch};

/// Looks at the CiJob from the first time that it is asked.
pub struct CiJobOversight {
    api: Api<CiJob>,
    name: String,
    uid: Option<String>,
    /// The pod in which the script is.
    pod: String,
    watch: Option<Watch>,
    end: Option<JobEnd>,
}

impl CiJobOversight {
    /// A look at the CiJob of that name and UID, for a script in that pod.
    pub fn new(api: Api<CiJob>, name: String, uid: Option<String>, pod: String) -> Self {
        Self { api, name, uid, pod, watch: None, end: None }
    }
}

impl Oversight for CiJobOversight {
    async fn ended(&mut self) -> JobEnd {
        while self.end.is_none() {
            let watch = self.watch.get_or_insert_with(|| {
                Watch::start(self.api.clone(), self.name.clone(), self.uid.clone(), None)
            });
            match watch.next().await {
                Seen::Job(job) => self.end = job.status.as_ref().and_then(|status| end(status, &self.pod)),
                Seen::Gone => self.end = Some(JobEnd::Deleted),
                Seen::Blind(_) => {}
                Seen::Denied(reason) => tracing::warn!(reason, "cannot look at the CiJob"),
            }
        }
        match &self.end {
            Some(end) => end.clone(),
            None => std::future::pending().await,
        }
    }
}

fn end(status: &CiJobStatus, pod: &str) -> Option<JobEnd> {
    if status.phase.is_some_and(Phase::is_final) {
        return Some(JobEnd::Final { reason: status.reason, message: status.message.clone() });
    }
    let lost = status.lost_pod.as_ref().filter(|lost| lost.name == pod);
    lost.map(|lost| JobEnd::PodLost { reason: lost.reason, message: lost.message.clone() })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use roadstead_crds::Reason;
    use roadstead_crds::status::{LostPod, PodStatus};

    use super::*;

    #[test]
    fn a_pod_is_lost_whether_another_one_has_taken_its_place_or_not() {
        let named = |name: &str| PodStatus { name: name.into(), attempt: 1, uid: None, node: None };
        let lost = LostPod {
            name: "one".into(),
            reason: Reason::PodEvicted,
            message: "evicted".into(),
            since: MicroTime(jiff::Timestamp::UNIX_EPOCH),
        };
        let status = |pod: &str, lost: Option<LostPod>| CiJobStatus {
            phase: Some(Phase::Running),
            pod: Some(named(pod)),
            lost_pod: lost,
            ..CiJobStatus::default()
        };
        let gone = Some(JobEnd::PodLost { reason: Reason::PodEvicted, message: "evicted".into() });
        assert_eq!(end(&status("one", None), "one"), None);
        assert_eq!(end(&status("one", Some(lost.clone())), "one"), gone);
        assert_eq!(end(&status("two", Some(lost.clone())), "one"), gone);
        assert_eq!(end(&status("two", Some(lost.clone())), "two"), None);
        let over = CiJobStatus { phase: Some(Phase::Failed), ..status("two", Some(lost)) };
        assert_eq!(end(&over, "one"), Some(JobEnd::Final { reason: None, message: None }));
    }
}
