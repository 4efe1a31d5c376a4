//! A look at the CiJob, for when the stream is lost.

use kube::Api;
use roadstead_crds::CiJob;

use super::supervise::{JobEnd, Oversight};
use crate::shim::watch::{Seen, Watch};

/// Looks at the CiJob from the first time that it is asked.
pub struct CiJobOversight {
    api: Api<CiJob>,
    name: String,
    uid: Option<String>,
    watch: Option<Watch>,
    end: Option<JobEnd>,
}

impl CiJobOversight {
    /// A look at the CiJob of that name and UID.
    pub fn new(api: Api<CiJob>, name: String, uid: Option<String>) -> Self {
        Self { api, name, uid, watch: None, end: None }
    }
}

impl Oversight for CiJobOversight {
    async fn ended(&mut self) -> JobEnd {
        while self.end.is_none() {
            let watch = self.watch.get_or_insert_with(|| {
                Watch::start(self.api.clone(), self.name.clone(), self.uid.clone(), None)
            });
            match watch.next().await {
                Seen::Job(job) => self.end = job.status.as_ref().and_then(end),
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

fn end(status: &roadstead_crds::CiJobStatus) -> Option<JobEnd> {
    if status.phase.is_some_and(roadstead_crds::Phase::is_final) {
        return Some(JobEnd::Final { reason: status.reason, message: status.message.clone() });
    }
    let lost = status.loss()?;
    Some(JobEnd::PodLost { reason: lost.reason, message: lost.message.clone() })
}
