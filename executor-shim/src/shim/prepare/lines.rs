//! What `prepare` says in the job log. Pure.

use jiff::Timestamp;
use roadstead_crds::reason::Reason;
use roadstead_crds::report::ReportedStart;
use roadstead_crds::status::{ServiceState, ServiceStatus, StartBreakdown, condition, table};
use roadstead_crds::{CiJobStatus, Phase};

use crate::shim::exit::Failure;
use crate::shim::services::READINESS_PORT;
use crate::shim::stage::Container;
use crate::wire::message::Tools;

/// Remembers what was said, so that each change gives one line.
#[derive(Debug, Default)]
pub struct Lines {
    class: Option<String>,
    /// Pod and node.
    place: Option<(String, String)>,
    message: Option<String>,
}

impl Lines {
    /// Goes on where the class has been told already, if it has.
    pub fn after(class: Option<String>) -> Self {
        Self { class, ..Self::default() }
    }

    /// Lines on what is new in the status of the job.
    pub fn on(&mut self, job: &str, status: &CiJobStatus, now: Timestamp) -> Vec<String> {
        let mut lines = Vec::new();
        if self.class.is_none()
            && let Some(class) = &status.class
        {
            lines.push(format!("Job {job}, class {class}"));
            lines.extend(table::lines(class, &status.overrides));
            self.class = Some(class.clone());
        }
        if let Some(line) = self.waiting(status, now) {
            lines.push(line);
        }
        let pod = status.pod.as_ref();
        let place = pod.and_then(|pod| Some((pod.name.clone(), pod.node.clone()?)));
        if let Some((name, node)) =
            place.filter(|place| status.loss().is_none() && self.place.as_ref() != Some(place))
        {
            lines.push(format!("Pod {name} starts on node {node}"));
            self.place = Some((name, node));
        }
        lines
    }

    /// Why the job does not run yet, where that is more than the usual second.
    fn waiting(&mut self, status: &CiJobStatus, now: Timestamp) -> Option<String> {
        let telling = match status.phase {
            Some(Phase::Queued) => true,
            Some(Phase::Admitted | Phase::Starting) => {
                // What it was held for is there.
                !matches!(status.reason, Some(Reason::Scheduling | Reason::Starting | Reason::Held) | None)
            }
            _ => false,
        };
        let message = status.message.as_ref().filter(|message| telling && !message.is_empty())?;
        if self.message.as_ref() == Some(message) {
            return None;
        }
        self.message = Some(message.clone());
        if let Some(queue) = &status.queue {
            let seconds = now.duration_since(queue.since.0).as_secs().max(0);
            return Some(format!("Waiting for room for {seconds} s: {message}"));
        }
        let scheduled = status.conditions.iter().find(|condition| condition.type_ == condition::SCHEDULED);
        Some(match (status.reason, scheduled) {
            (Some(Reason::Unschedulable), Some(scheduled)) => {
                let seconds = now.duration_since(scheduled.last_transition_time.0).as_secs().max(0);
                format!("Waiting for a node for {seconds} s: {message}")
            }
            (Some(Reason::Unschedulable), None) => format!("Waiting for a node: {message}"),
            _ => message.clone(),
        })
    }
}

/// Where the time of the start went.
pub fn ready(total_ms: i64, operator: &StartBreakdown, shim: &ReportedStart) -> String {
    let steps = [
        ("admitted", operator.admitted_ms),
        ("room", operator.room_ms),
        ("pod created", operator.pod_created_ms),
        ("on a node", operator.bound_ms),
        ("helper", shim.helper_ms),
        ("build", shim.build_ms),
    ];
    let known: Vec<String> =
        steps.into_iter().filter_map(|(step, ms)| Some(format!("{step} {}", seconds(ms?)))).collect();
    format!("Ready after {} s ({})", seconds(total_ms), known.join(", "))
}

/// Milliseconds as seconds with two decimals.
fn seconds(milliseconds: i64) -> String {
    let hundredths = milliseconds.max(0) / 10;
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// What became of the job's services when scripts can run.
pub fn services(services: &[ServiceStatus]) -> impl Iterator<Item = String> {
    services.iter().map(|service| {
        let ServiceStatus { container, image, .. } = service;
        match service.state {
            ServiceState::Ready => format!("Service {image} runs in the container {container}"),
            ServiceState::Ended => ended(service),
            ServiceState::Running | ServiceState::Waiting => format!(
                "WARNING: the service {image} in the container {container} takes no connections at its port yet ({READINESS_PORT}); the job goes on"
            ),
        }
    })
}

/// That a service has ended.
pub fn ended(service: &ServiceStatus) -> String {
    let ServiceStatus { container, image, ended, .. } = service;
    let how = ended.as_deref().unwrap_or("nobody knows how");
    format!("WARNING: the service {image} in the container {container} has ended: {how}")
}

/// What scripts run in, and what will not work.
pub fn tools(image: Option<&str>, helper: &Tools, build: &Tools) -> Result<Vec<String>, Failure> {
    let shell = |tools: &Tools, container: Container| {
        tools.shell.clone().ok_or_else(|| {
            let text =
                format!("the image of the container {container} has neither bash nor sh to run scripts with");
            // The helper's image is the administrator's choice.
            if container == Container::Build { Failure::user(text) } else { Failure::system(text) }
        })
    };
    let build_shell = shell(build, Container::Build)?;
    shell(helper, Container::Helper)?;
    let image = image.map(|image| format!("Image {image}, ")).unwrap_or_default();
    let mut lines = vec![format!("{image}user {}:{}, shell {build_shell}", build.uid, build.gid)];
    if helper.git.is_none() {
        lines.push("WARNING: checkout is disabled: the helper image has no git".to_owned());
    }
    if helper.gitlab_runner.is_none() {
        lines.push(
            "WARNING: caches and artifacts are disabled: the helper image has neither gitlab-runner nor gitlab-runner-helper"
                .to_owned(),
        );
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
    use roadstead_crds::reason::Blame;
    use roadstead_crds::status::{PodStatus, QueueStatus};

    use super::*;

    fn status(phase: Phase, reason: Reason, message: &str) -> CiJobStatus {
        CiJobStatus {
            phase: Some(phase),
            reason: Some(reason),
            message: Some(message.into()),
            class: Some("default".into()),
            ..CiJobStatus::default()
        }
    }

    #[test]
    fn each_change_gives_one_line() {
        let mut lines = Lines::default();
        let now = Timestamp::UNIX_EPOCH;
        let mut say = |status: &CiJobStatus| lines.on("jobs/cij-1", status, now);
        let scheduling = status(Phase::Starting, Reason::Scheduling, "the pod waits for a node");
        assert_eq!(say(&CiJobStatus::default()), [""; 0]);
        assert_eq!(say(&scheduling), ["Job jobs/cij-1, class default"]);
        assert_eq!(say(&scheduling), [""; 0]);
        let scheduled = Condition {
            type_: condition::SCHEDULED.into(),
            status: "False".into(),
            reason: "Unschedulable".into(),
            message: String::new(),
            last_transition_time: Time(Timestamp::from_second(-12).unwrap()),
            observed_generation: None,
        };
        let full = CiJobStatus {
            conditions: vec![scheduled],
            ..status(Phase::Starting, Reason::Unschedulable, "No node can take it: 1 node: not enough cpu.")
        };
        assert_eq!(say(&full), ["Waiting for a node for 12 s: No node can take it: 1 node: not enough cpu."]);
        assert_eq!(say(&full), [""; 0]);
        let pod =
            PodStatus { name: "cij-1-1".into(), attempt: 1, uid: Some("u".into()), node: Some("n1".into()) };
        let starting =
            CiJobStatus { pod: Some(pod.clone()), ..status(Phase::Starting, Reason::Starting, "as usual") };
        assert_eq!(say(&starting), ["Pod cij-1-1 starts on node n1"]);
        let failing = CiJobStatus {
            pod: Some(pod.clone()),
            ..status(Phase::Starting, Reason::ImagePullFailed, "cannot be pulled yet")
        };
        assert_eq!(say(&failing), ["cannot be pulled yet"]);
        let running = CiJobStatus { pod: Some(pod), ..status(Phase::Running, Reason::Running, "running") };
        assert_eq!(say(&running), [""; 0]);
    }

    #[test]
    fn a_job_that_waits_for_room_says_where_it_stands_and_for_how_long() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let mut lines = Lines::default();
        let queue = QueueStatus {
            since: MicroTime(at(100)),
            position: Some(3),
            of: Some(7),
            running: None,
            max: None,
        };
        let waiting = CiJobStatus {
            queue: Some(queue),
            ..status(Phase::Queued, Reason::ConcurrencyLimit, "Position 3 of 7.")
        };
        let said = lines.on("jobs/cij-1", &waiting, at(140));
        assert_eq!(said, ["Job jobs/cij-1, class default", "Waiting for room for 40 s: Position 3 of 7."]);
        assert_eq!(lines.on("jobs/cij-1", &waiting, at(150)), [""; 0]);
        let next = CiJobStatus { message: Some("Position 2 of 6.".into()), ..waiting };
        assert_eq!(lines.on("jobs/cij-1", &next, at(99)), ["Waiting for room for 0 s: Position 2 of 6."]);
    }

    #[test]
    fn the_breakdown_has_what_is_known() {
        let operator =
            StartBreakdown { admitted_ms: Some(12), bound_ms: Some(105), ..StartBreakdown::default() };
        let shim = ReportedStart { helper_ms: Some(900), build_ms: Some(1234), first_byte_ms: None };
        assert_eq!(
            ready(1239, &operator, &shim),
            "Ready after 1.23 s (admitted 0.01, on a node 0.10, helper 0.90, build 1.23)"
        );
        assert_eq!(seconds(-5), "0.00", "clocks may differ");
    }

    #[test]
    fn each_service_is_told_of() {
        let service = |state, ended: Option<&str>| ServiceStatus {
            container: "svc-0".into(),
            image: "redis:7".into(),
            pull_policies: vec![],
            state,
            ended: ended.map(str::to_owned),
        };
        let all = [
            service(ServiceState::Ready, None),
            service(ServiceState::Running, None),
            service(ServiceState::Ended, Some("exit code 137 (signal 9), OOMKilled")),
        ];
        assert_eq!(
            services(&all).collect::<Vec<_>>(),
            [
                "Service redis:7 runs in the container svc-0",
                "WARNING: the service redis:7 in the container svc-0 takes no connections at its port yet (HEALTHCHECK_TCP_PORT); the job goes on",
                "WARNING: the service redis:7 in the container svc-0 has ended: exit code 137 (signal 9), OOMKilled",
            ]
        );
    }

    #[test]
    fn what_is_missing_is_said() {
        let all = Tools {
            uid: 1000,
            gid: 0,
            shell: Some("/bin/bash".into()),
            git: Some("/usr/bin/git".into()),
            git_lfs: None,
            gitlab_runner: Some("/usr/bin/gitlab-runner-helper".into()),
        };
        assert_eq!(
            tools(Some("alpine:3.20"), &all, &all).unwrap(),
            ["Image alpine:3.20, user 1000:0, shell /bin/bash"]
        );
        let bare = Tools { shell: Some("/bin/sh".into()), ..Tools::default() };
        let lines = tools(None, &bare, &bare).unwrap();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!(lines[0], "user 0:0, shell /bin/sh");
        let none = Tools::default();
        assert_eq!(tools(None, &all, &none).unwrap_err().blame, Blame::User);
        assert_eq!(tools(None, &none, &all).unwrap_err().blame, Blame::System);
    }
}
