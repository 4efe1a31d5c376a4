//! How a job ended.
//!
//! Three witnesses, in this order: the operator's own observation of the pod, the shim's report,
//! and silence (the clocks). Two exceptions, where a later witness disproves an earlier one:
//!
//! - A report of success stands. It is made of exit records and complete output, so whatever
//!   happened to the pod happened after the job was done.
//! - A report of a failed script or a cancellation disproves a lost client: there was one to write
//!   it.

use std::collections::BTreeMap;

use roadstead_crds::Reason;
use roadstead_crds::labels::{BUILD_CONTAINER, is_service_container};
use roadstead_crds::reason::Blame;
use roadstead_crds::report::{JobReport, Outcome};
use roadstead_crds::status::{EffectiveResources, Phase};

use crate::policy::start::Trouble;
use crate::policy::storage::Overrun;
use crate::policy::timeouts::Clock;
use crate::policy::words::{quoted, sentence, span};

/// Why a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// In one word.
    pub reason: Reason,
    /// In a sentence for the job log: what happened, where, what to change.
    pub message: String,
}

impl Verdict {
    /// A verdict; `message` is made a sentence.
    pub fn new(reason: Reason, message: impl AsRef<str>) -> Self {
        Self { reason, message: sentence(message.as_ref()) }
    }

    /// The final phase that the verdict means.
    pub fn phase(&self) -> Phase {
        match (self.reason, self.reason.blame()) {
            (Reason::Succeeded, _) => Phase::Succeeded,
            (Reason::Canceled, _) => Phase::Canceled,
            (Reason::DeadlineExceeded | Reason::QueueTimeout | Reason::ScriptTimeout, _) => Phase::TimedOut,
            (_, Blame::User) => Phase::Failed,
            (_, Blame::System) => Phase::Errored,
        }
    }
}

/// How a job's pod came to an end, as the operator saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodEnd {
    /// The API server has no such pod any more.
    Gone {
        /// Whether the cluster had announced that it would take the pod away.
        disrupted: bool,
    },
    /// A pod of that name exists, but it is not the one that the job was started in.
    Impostor,
    /// Somebody deleted it.
    Deleted,
    /// The cluster took it away: eviction, preemption, node shutdown.
    Evicted(String),
    /// The node did not take it.
    Refused(String),
    /// The kubelet ended it for its `activeDeadlineSeconds`.
    DeadlineExceeded,
    /// A container exceeded its memory.
    OutOfMemory {
        /// Its name.
        container: String,
        /// Its limit, if it has one.
        limit: Option<String>,
    },
    /// The job wrote more to the node's disk than a limit allows, and the kubelet evicted the pod for it.
    StorageExceeded(Overrun),
    /// The agent in the helper gave up waiting for a client.
    ClientLost,
    /// A container cannot be started.
    CannotStart(Trouble),
    /// A container ended by itself.
    Terminated {
        /// Its name.
        container: String,
        /// How: exit code, signal, the runtime's words.
        how: String,
    },
    /// The pod ended and nothing says more about it.
    Ended(String),
    /// It was lost before, as this verdict says, and no other one took its place.
    Lost(Verdict),
}

impl PodEnd {
    /// Whether the pod was taken from the job, by nobody's fault of what is in it: another one may do
    /// what this one did not.
    pub fn is_loss(&self) -> bool {
        match self {
            Self::Gone { .. } | Self::Deleted | Self::Evicted(_) | Self::Refused(_) => true,
            Self::Impostor
            | Self::DeadlineExceeded
            | Self::OutOfMemory { .. }
            | Self::ClientLost
            | Self::CannotStart(_)
            | Self::Terminated { .. }
            | Self::Ended(_)
            | Self::StorageExceeded(_)
            | Self::Lost(_) => false,
        }
    }
}

/// Everything that decides how a job ended, or that it goes on.
#[derive(Clone, Debug)]
pub struct Case<'a> {
    /// The end of the pod, if it came to one.
    pub pod: Option<PodEnd>,
    /// The shim's report, if there is one.
    pub report: Option<&'a JobReport>,
    /// Where the job stands against its timeout.
    pub clock: Clock,
    /// The job's timeout in seconds.
    pub job_seconds: i64,
    /// Time without a client in seconds that the job is allowed.
    pub orphan_seconds: i64,
    /// Who the client is, in words.
    pub client: &'a str,
    /// The verdict on a job that did not start in time, if it did not.
    pub late: Option<Verdict>,
    /// Where the pod is or was: `pod "x" on node "y"`.
    pub place: &'a str,
    /// The job's class.
    pub class: &'a str,
    /// What was granted, by container name.
    pub resources: &'a BTreeMap<String, EffectiveResources>,
}

/// The verdict on a case. `None`: the job goes on.
pub fn verdict(case: &Case<'_>) -> Option<Verdict> {
    let report = case.report.map(|report| reported(report, case));
    let report_stands = case.report.is_some_and(|report| match (report.outcome, &case.pod) {
        (Outcome::Succeeded, _)
        | (Outcome::Failed | Outcome::TimedOut | Outcome::Canceled, Some(PodEnd::ClientLost)) => true,
        (Outcome::Failed | Outcome::TimedOut | Outcome::Canceled | Outcome::Errored, _) => false,
    });
    let observed = case.pod.as_ref().filter(|_| !report_stands).map(|end| observed(end, case));
    observed.or(report).or_else(|| silent(case))
}

fn observed(end: &PodEnd, case: &Case<'_>) -> Verdict {
    let (place, class) = (case.place, case.class);
    match end {
        PodEnd::Gone { disrupted: false } => Verdict::new(
            Reason::PodDeleted,
            format!("{place} is gone: somebody deleted it while the job needed it"),
        ),
        PodEnd::Gone { disrupted: true } => {
            Verdict::new(Reason::PodEvicted, format!("the cluster took {place} away while the job needed it"))
        }
        PodEnd::Impostor => Verdict::new(
            Reason::PodImpostor,
            format!(
                "{place} is not the pod that was created for the job: another one has its name, and nothing is run in it"
            ),
        ),
        PodEnd::Deleted => {
            Verdict::new(Reason::PodDeleted, format!("somebody deleted {place} while the job needed it"))
        }
        PodEnd::Evicted(words) => Verdict::new(
            Reason::PodEvicted,
            with(format!("the cluster took {place} away while the job needed it"), words),
        ),
        PodEnd::Refused(words) => {
            Verdict::new(Reason::PodRejected, with(format!("the node refused {place}"), words))
        }
        PodEnd::DeadlineExceeded => out_of_time(case),
        PodEnd::OutOfMemory { container, limit } => {
            let limit = limit.as_ref().map_or(String::new(), |limit| format!(" of {limit}"));
            let what = format!(
                "container \"{container}\" of {place} was killed because it used more memory than its limit{limit}"
            );
            if container == BUILD_CONTAINER {
                let remedy = more_for_build(case, "memory", "KUBERNETES_MEMORY_LIMIT");
                Verdict::new(Reason::OutOfMemory, format!("{what}: {remedy}"))
            } else {
                // Its limit is the administrator's choice, and no script of the job runs in it.
                let remedy = format!("the administrator has to raise its limit in JobClass \"{class}\"");
                Verdict::new(Reason::ContainerTerminated, format!("{what}: {remedy}"))
            }
        }
        PodEnd::StorageExceeded(overrun) => storage_exceeded(overrun, case),
        PodEnd::ClientLost => Verdict::new(
            Reason::ClientLost,
            format!(
                "nobody spoke to {place} for {} s, so {} is gone or cut off: the pod ended itself",
                case.orphan_seconds, case.client
            ),
        ),
        PodEnd::CannotStart(trouble) => Verdict::new(trouble.reason, &trouble.message),
        PodEnd::Terminated { container, how } => Verdict::new(
            Reason::ContainerTerminated,
            format!("container \"{container}\" of {place} ended while the job needed it: {how}"),
        ),
        PodEnd::Ended(words) => Verdict::new(
            Reason::ContainerTerminated,
            with(format!("{place} ended while the job needed it"), words),
        ),
        PodEnd::Lost(verdict) => verdict.clone(),
    }
}

/// What the job's author can do who needs more for the build container.
fn more_for_build(case: &Case<'_>, resource: &str, variable: &str) -> String {
    more_for(case, BUILD_CONTAINER, resource, variable)
}

fn more_for(case: &Case<'_>, container: &str, resource: &str, variable: &str) -> String {
    let none = EffectiveResources::default();
    case.resources.get(container).unwrap_or(&none).more_of(resource, variable, case.class)
}

fn storage_exceeded(overrun: &Overrun, case: &Case<'_>) -> Verdict {
    let (place, class) = (case.place, case.class);
    let more = || more_for_build(case, "ephemeral-storage", "KUBERNETES_EPHEMERAL_STORAGE_LIMIT");
    let (what, remedy) = match overrun {
        Overrun::Container { name, limit } if name == BUILD_CONTAINER => (
            format!(
                "container \"{name}\" of {place} wrote more than its limit of {limit} of ephemeral storage"
            ),
            more(),
        ),
        Overrun::Container { name, limit } if is_service_container(name) => (
            format!(
                "the service in container \"{name}\" of {place} wrote more than its limit of {limit} of ephemeral storage"
            ),
            more_for(case, name, "ephemeral-storage", "KUBERNETES_SERVICE_EPHEMERAL_STORAGE_LIMIT"),
        ),
        Overrun::Pod { limit } => (
            format!(
                "the job wrote more than the {limit} of ephemeral storage that the containers of {place} may use together"
            ),
            more(),
        ),
        Overrun::Volume { name, limit } if !name.starts_with("roadstead-") => (
            format!("the job wrote more than {limit} into the volume \"{name}\" of {place}"),
            format!("let the job write less, or use a class with a larger volume than JobClass \"{class}\""),
        ),
        // What they write is not the job's choice.
        Overrun::Container { name, limit } | Overrun::Volume { name, limit } => {
            return Verdict::new(
                Reason::PodEvicted,
                format!(
                    "the kubelet evicted {place} because \"{name}\" wrote more than its limit of {limit}: \
                     the administrator has to raise it in JobClass \"{class}\""
                ),
            );
        }
    };
    Verdict::new(Reason::StorageExceeded, format!("{what}, and the kubelet evicted the pod: {remedy}"))
}

fn reported(report: &JobReport, case: &Case<'_>) -> Verdict {
    let words = report.message.as_deref().map(quoted).filter(|words| !words.is_empty());
    match report.outcome {
        Outcome::Succeeded => {
            Verdict::new(Reason::Succeeded, words.as_deref().unwrap_or("all stages of the job succeeded"))
        }
        Outcome::Failed => {
            let plain = match report.exit_code {
                Some(code) => format!("a script of the job failed with exit code {code}"),
                None => "the job failed".to_owned(),
            };
            Verdict::new(Reason::ScriptFailed, words.unwrap_or(plain))
        }
        Outcome::TimedOut => {
            let plain = format!("a script of the job ran longer than JobClass \"{}\" lets it", case.class);
            Verdict::new(Reason::ScriptTimeout, words.unwrap_or(plain))
        }
        Outcome::Errored => Verdict::new(
            Reason::SystemFailure,
            words.as_deref().unwrap_or("the executor shim failed to run the job"),
        ),
        // gitlab-runner ends a job that ran out of time just as it ends one that was canceled.
        Outcome::Canceled if case.clock != Clock::InTime => out_of_time(case),
        Outcome::Canceled => Verdict::new(
            Reason::Canceled,
            words.as_deref().unwrap_or("the job was canceled, or its gitlab-runner was stopped"),
        ),
    }
}

fn silent(case: &Case<'_>) -> Option<Verdict> {
    if case.clock == Clock::Up {
        return Some(out_of_time(case));
    }
    case.late.clone()
}

fn out_of_time(case: &Case<'_>) -> Verdict {
    Verdict::new(
        Reason::DeadlineExceeded,
        format!(
            "the job ran longer than its timeout of {} s ({}), the smaller one of the job's and that of JobClass \"{}\"",
            case.job_seconds,
            span(case.job_seconds),
            case.class
        ),
    )
}

fn with(sentence: String, words: &str) -> String {
    let words = quoted(words);
    if words.is_empty() { sentence } else { format!("{sentence}: {words}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roadstead_crds::report::ReportedStart;

    fn report(outcome: Outcome) -> JobReport {
        JobReport {
            outcome,
            exit_code: (outcome == Outcome::Failed).then_some(3),
            message: None,
            start: ReportedStart::default(),
            reconnects: 0,
            stages: vec![],
        }
    }

    fn case(pod: Option<PodEnd>, report: Option<&JobReport>, clock: Clock) -> Case<'_> {
        Case {
            pod,
            report,
            clock,
            job_seconds: 3600,
            orphan_seconds: 120,
            client: "gitlab-runner",
            late: None,
            place: "pod \"p\" on node \"n\"",
            class: "default",
            resources: &NOTHING,
        }
    }

    static NOTHING: BTreeMap<String, EffectiveResources> = BTreeMap::new();

    fn oom() -> PodEnd {
        PodEnd::OutOfMemory { container: "build".to_owned(), limit: Some("512Mi".to_owned()) }
    }

    #[test]
    fn observation_then_report_then_silence() {
        use Outcome::{Canceled, Errored, Failed, Succeeded, TimedOut};
        let evicted = || PodEnd::Evicted("disk pressure".to_owned());
        let ended = || PodEnd::Terminated { container: "helper".to_owned(), how: "exit code 137".to_owned() };
        let gone = || PodEnd::Gone { disrupted: false };
        let table = [
            // The report speaks where the pod is well.
            (None, Some(Succeeded), Clock::InTime, Some(Reason::Succeeded)),
            (None, Some(Failed), Clock::InTime, Some(Reason::ScriptFailed)),
            (None, Some(TimedOut), Clock::InTime, Some(Reason::ScriptTimeout)),
            (Some(oom()), Some(TimedOut), Clock::InTime, Some(Reason::OutOfMemory)),
            (None, Some(Errored), Clock::InTime, Some(Reason::SystemFailure)),
            (None, Some(Canceled), Clock::InTime, Some(Reason::Canceled)),
            // What happened to the pod explains a failure better than the failure does.
            (Some(oom()), None, Clock::InTime, Some(Reason::OutOfMemory)),
            (Some(oom()), Some(Errored), Clock::InTime, Some(Reason::OutOfMemory)),
            (Some(oom()), Some(Failed), Clock::InTime, Some(Reason::OutOfMemory)),
            (Some(evicted()), Some(Failed), Clock::InTime, Some(Reason::PodEvicted)),
            (Some(evicted()), Some(Canceled), Clock::InTime, Some(Reason::PodEvicted)),
            (Some(ended()), Some(Errored), Clock::InTime, Some(Reason::ContainerTerminated)),
            (Some(gone()), Some(Errored), Clock::InTime, Some(Reason::PodDeleted)),
            (Some(PodEnd::Gone { disrupted: true }), None, Clock::InTime, Some(Reason::PodEvicted)),
            (Some(PodEnd::Deleted), None, Clock::InTime, Some(Reason::PodDeleted)),
            (Some(PodEnd::Impostor), None, Clock::InTime, Some(Reason::PodImpostor)),
            (Some(PodEnd::DeadlineExceeded), Some(Canceled), Clock::InTime, Some(Reason::DeadlineExceeded)),
            (Some(PodEnd::ClientLost), None, Clock::InTime, Some(Reason::ClientLost)),
            (Some(PodEnd::ClientLost), Some(Errored), Clock::InTime, Some(Reason::ClientLost)),
            // Who reported was not lost.
            (Some(PodEnd::ClientLost), Some(Failed), Clock::InTime, Some(Reason::ScriptFailed)),
            (Some(PodEnd::ClientLost), Some(Canceled), Clock::InTime, Some(Reason::Canceled)),
            // Nothing undoes a success.
            (Some(oom()), Some(Succeeded), Clock::Up, Some(Reason::Succeeded)),
            (Some(gone()), Some(Succeeded), Clock::InTime, Some(Reason::Succeeded)),
            (Some(PodEnd::ClientLost), Some(Succeeded), Clock::InTime, Some(Reason::Succeeded)),
            // The clocks.
            (None, None, Clock::InTime, None),
            (None, None, Clock::AlmostUp, None),
            (None, None, Clock::Up, Some(Reason::DeadlineExceeded)),
            (None, Some(Canceled), Clock::AlmostUp, Some(Reason::DeadlineExceeded)),
            (None, Some(Canceled), Clock::Up, Some(Reason::DeadlineExceeded)),
            (None, Some(Failed), Clock::Up, Some(Reason::ScriptFailed)),
            (Some(oom()), None, Clock::Up, Some(Reason::OutOfMemory)),
        ];
        for (pod, outcome, clock, expected) in table {
            let report = outcome.map(report);
            let case = case(pod.clone(), report.as_ref(), clock);
            let reason = verdict(&case).map(|verdict| verdict.reason);
            assert_eq!(reason, expected, "{pod:?}, {outcome:?}, {clock:?}");
        }
    }

    #[test]
    fn only_the_build_containers_memory_is_the_jobs_own() {
        let helper = PodEnd::OutOfMemory { container: "helper".to_owned(), limit: Some("128Mi".to_owned()) };
        let ended = verdict(&case(Some(helper), None, Clock::InTime)).unwrap();
        assert_eq!((ended.reason, ended.reason.blame()), (Reason::ContainerTerminated, Blame::System));
        assert!(
            ended.message.contains("administrator") && ended.message.contains("128Mi"),
            "{}",
            ended.message
        );
    }

    #[test]
    fn a_job_that_does_not_start_ends() {
        let mut late = case(None, None, Clock::InTime);
        late.late = Some(Verdict::new(Reason::StartTimeout, "its containers did not start"));
        let ended = verdict(&late).unwrap();
        assert_eq!(ended.reason, Reason::StartTimeout);
        assert_eq!(ended.message, "Its containers did not start.");
        late.clock = Clock::Up;
        assert_eq!(verdict(&late).unwrap().reason, Reason::DeadlineExceeded);
    }

    #[test]
    fn who_exceeded_a_limit_is_told_how_to_get_more() {
        let limits = |amount: &str| {
            ["memory", "ephemeral-storage"].map(|name| (name.to_owned(), amount.to_owned())).into()
        };
        let build = EffectiveResources {
            limits: limits("512Mi"),
            max: limits("2Gi"),
            ..EffectiveResources::default()
        };
        let resources = BTreeMap::from([("build".to_owned(), build)]);
        let overrun = |name: &str| {
            PodEnd::StorageExceeded(Overrun::Container { name: name.to_owned(), limit: "512Mi".to_owned() })
        };
        let volume = |name: &str| {
            PodEnd::StorageExceeded(Overrun::Volume { name: name.to_owned(), limit: "512Mi".to_owned() })
        };
        for (end, reason, words) in [
            (oom(), Reason::OutOfMemory, "KUBERNETES_MEMORY_LIMIT, at most 2Gi in JobClass \"default\""),
            (
                overrun("build"),
                Reason::StorageExceeded,
                "KUBERNETES_EPHEMERAL_STORAGE_LIMIT, at most 2Gi in JobClass \"default\"",
            ),
            (
                PodEnd::StorageExceeded(Overrun::Pod { limit: "512Mi".to_owned() }),
                Reason::StorageExceeded,
                "KUBERNETES_EPHEMERAL_STORAGE_LIMIT",
            ),
            (volume("builds"), Reason::StorageExceeded, "a larger volume"),
            (overrun("helper"), Reason::PodEvicted, "the administrator"),
            (volume("roadstead-spool-build"), Reason::PodEvicted, "the administrator"),
        ] {
            let mut case = case(Some(end.clone()), None, Clock::InTime);
            case.resources = &resources;
            let ended = verdict(&case).unwrap();
            assert_eq!(ended.reason, reason, "{end:?}");
            assert!(ended.message.contains(words) && ended.message.contains("512Mi"), "{}", ended.message);
        }
    }

    #[test]
    fn phases() {
        for (reason, phase) in [
            (Reason::Succeeded, Phase::Succeeded),
            (Reason::ScriptFailed, Phase::Failed),
            (Reason::OutOfMemory, Phase::Failed),
            (Reason::ImageUnusable, Phase::Failed),
            (Reason::Canceled, Phase::Canceled),
            (Reason::DeadlineExceeded, Phase::TimedOut),
            (Reason::QueueTimeout, Phase::TimedOut),
            (Reason::ScriptTimeout, Phase::TimedOut),
            (Reason::StartTimeout, Phase::Errored),
            (Reason::ClientLost, Phase::Errored),
        ] {
            assert_eq!(Verdict::new(reason, "x").phase(), phase, "{reason}");
        }
    }

    #[test]
    fn messages_say_what_where_and_what_to_change() {
        let message = verdict(&case(Some(oom()), None, Clock::InTime)).unwrap().message;
        assert_eq!(
            message,
            "Container \"build\" of pod \"p\" on node \"n\" was killed because it used more memory than its limit of 512Mi: \
             let the job use less, or use a class with a higher limit than JobClass \"default\"."
        );
        let failed = report(Outcome::Failed);
        let message = verdict(&case(None, Some(&failed), Clock::InTime)).unwrap().message;
        assert_eq!(message, "A script of the job failed with exit code 3.");
        let message = verdict(&case(None, None, Clock::Up)).unwrap().message;
        assert!(message.contains("3600 s (1h00m00s)"), "{message}");
    }
}
