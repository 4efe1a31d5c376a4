//! What is told to others about a status that was written: metrics, and an Event for each of the
//! steps that people look for.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use kube::runtime::events::{Event, EventType, Recorder};
use roadstead_crds::status::condition;
use roadstead_crds::{CiJob, CiJobStatus, Phase, Reason};
use tokio::sync::mpsc;

use crate::job::status::is_true;
use crate::telemetry::Metrics;

/// Events that may wait to be written. What comes on top is lost, and counted.
const QUEUE: usize = 1024;

/// Longest note that Kubernetes takes, in bytes.
const LONGEST_NOTE: usize = 1024;

/// Tells of statuses.
pub struct Journal {
    metrics: Metrics,
    notes: mpsc::Sender<Note>,
}

/// An Event to write.
pub struct Note {
    regarding: ObjectReference,
    event: Event,
}

impl Journal {
    /// A journal, and the Events that it wants to have written.
    pub fn new(metrics: Metrics) -> (Arc<Self>, mpsc::Receiver<Note>) {
        let (notes, queue) = mpsc::channel(QUEUE);
        (Arc::new(Self { metrics, notes }), queue)
    }

    /// A pod was created.
    pub fn created_pod(&self) {
        self.metrics.pod_created();
    }

    /// The job's status replaced this one.
    pub fn wrote(&self, job: &CiJob, before: &CiJobStatus) {
        let Some(after) = &job.status else { return };
        self.metrics.status_written(before, after);
        let over = |status: &CiJobStatus| status.phase.is_some_and(Phase::is_final);
        if let Some(report) = job.spec.report.as_ref().filter(|_| over(after) && !over(before)) {
            self.metrics.reported(report);
        }
        if (before.phase, before.reason) != (after.phase, after.reason) {
            let phase = after.phase.map_or("", Phase::as_str);
            let pod = after.pod.as_ref().map(|pod| pod.name.as_str());
            tracing::info!(phase, reason = after.reason.map(Reason::as_str), pod, "the job moved on");
        }
        for event in events(before, after) {
            let regarding = job.object_ref(&());
            if self.notes.try_send(Note { regarding, event }).is_err() {
                self.metrics.event_lost();
            }
        }
    }
}

/// Writes Events until the journal is gone. An Event that cannot be written is lost: nothing waits
/// for it and nothing fails for it.
pub async fn write_events(recorder: Recorder, mut queue: mpsc::Receiver<Note>, metrics: Metrics) {
    while let Some(Note { regarding, event }) = queue.recv().await {
        if let Err(error) = recorder.publish(&event, &regarding).await {
            metrics.event_lost();
            tracing::debug!(job = regarding.name, reason = event.reason, error = %error, "an Event could not be written");
        }
    }
}

/// One Event for each step that the later status has taken and the earlier one had not.
fn events(before: &CiJobStatus, after: &CiJobStatus) -> Vec<Event> {
    let steps = [
        (condition::ADMITTED, "Admit"),
        (condition::AUDITED, "Audit"),
        (condition::STARTED, "Start"),
        (condition::FINISHED, "Finish"),
    ];
    let taken = steps.into_iter().filter(|(kind, _)| is_true(after, kind) && !is_true(before, kind));
    taken
        .map(|(kind, action)| {
            let condition = after.conditions.iter().find(|condition| condition.type_ == kind);
            let (reason, bad) = if kind == condition::FINISHED {
                let bad = !matches!(after.phase, Some(Phase::Succeeded | Phase::Canceled));
                (after.reason.map_or(kind, |reason| reason.as_str()), bad)
            } else {
                (kind, kind == condition::AUDITED)
            };
            Event {
                type_: if bad { EventType::Warning } else { EventType::Normal },
                reason: reason.to_owned(),
                note: condition.map(|condition| shortened(&condition.message)),
                action: action.to_owned(),
                secondary: None,
            }
        })
        .collect()
}

fn shortened(message: &str) -> String {
    let mut end = message.len().min(LONGEST_NOTE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use crate::job::status::Draft;
    use crate::policy::verdict::Verdict;

    #[test]
    fn one_event_for_each_step() {
        let mut job = fixture::job();
        let mut draft = Draft::of(&job, fixture::at(10));
        draft.finish(&Verdict::new(Reason::OutOfMemory, "too much"));
        let (before, after) = (CiJobStatus::default(), draft.status);
        let written = events(&before, &after);
        assert_eq!(written.len(), 1);
        assert_eq!((written[0].reason.as_str(), written[0].type_), ("OutOfMemory", EventType::Warning));
        assert_eq!(written[0].note.as_deref(), Some("Too much."));
        assert!(events(&after, &after).is_empty());

        job.status = Some(after);
        let (journal, mut queue) =
            Journal::new(Metrics::register(&mut prometheus_client::registry::Registry::default()));
        journal.wrote(&job, &before);
        assert_eq!(queue.try_recv().unwrap().regarding.name.as_deref(), Some(fixture::JOB));
        assert!(queue.try_recv().is_err());
    }

    #[test]
    fn notes_fit() {
        let note = shortened(&"ä".repeat(LONGEST_NOTE));
        assert_eq!(note.len(), LONGEST_NOTE);
        assert_eq!(shortened("short"), "short");
    }
}
