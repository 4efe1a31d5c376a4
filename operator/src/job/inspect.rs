//! Reads a pod: how far its start is, what hinders it, whether and how it ended.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodCondition,
};
use roadstead_crds::labels::{AGENT_CONTAINER, BUILD_CONTAINER, HELPER_CONTAINER, ORPHANED_EXIT_CODE};
use roadstead_crds::status::{EffectiveResources, ServiceState, ServiceStatus};
use std::collections::BTreeMap;

use crate::policy::image::Chooser;
use crate::policy::start::{self, Container, Role, Trouble};
use crate::policy::storage;
use crate::policy::verdict::PodEnd;
use crate::policy::waiting;
use crate::policy::words::quoted;

/// What is known of the job besides its pod.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// Name of the JobClass.
    pub class: &'a str,
    /// Who chose the build container's image.
    pub chooser: Chooser,
    /// Requests and limits by container name.
    pub resources: &'a BTreeMap<String, EffectiveResources>,
    /// The job's services.
    pub services: &'a [ServiceStatus],
}

/// What a pod shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Node that it is bound to.
    pub node: Option<String>,
    /// When the API server accepted it.
    pub created: Option<Timestamp>,
    /// Whether both containers that run scripts are up, and those of services have begun.
    pub running: bool,
    /// The job's services, as they are now.
    pub services: Vec<ServiceStatus>,
    /// Why no node can take it, from the scheduler's words.
    pub unschedulable: Option<String>,
    /// The cluster's words on why it is about to take the pod away.
    pub disrupted: Option<String>,
    /// What keeps a container from starting and may pass.
    pub trouble: Option<Trouble>,
    /// How it ended.
    pub end: Option<PodEnd>,
}

/// What the kubelet calls the end of a container that its runtime has lost: the node was set up anew,
/// or its runtime's storage was.
const FORGOTTEN: &str = "ContainerStatusUnknown";

/// Reads a pod of a job.
pub fn inspect(pod: &Pod, setting: Setting<'_>) -> Inspection {
    let status = pod.status.as_ref();
    let condition = |kind: &str, value: &str| {
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        conditions.iter().find(|condition| condition.type_ == kind && condition.status == value)
    };
    let containers = containers(pod);
    let running = [BUILD_CONTAINER, HELPER_CONTAINER].iter().all(|name| {
        let container = containers.iter().find(|container| container.name == *name);
        container.and_then(|container| container.state.as_ref()).is_some_and(|state| state.running.is_some())
    });
    let services: Vec<_> = setting.services.iter().map(|service| seen(service, &containers)).collect();
    let begun = services.iter().all(|service| service.state != ServiceState::Waiting);
    let disrupted = condition("DisruptionTarget", "True").map(words);
    let trouble = worst(containers.iter().filter_map(|container| hindrance(container, setting)));
    let definite = trouble.as_ref().is_some_and(|trouble| trouble.definite);
    let (cannot_start, trouble) = if definite { (trouble, None) } else { (None, trouble) };
    let end = ended_by_cluster(pod, disrupted.as_deref())
        .or_else(|| told_by_containers(&containers, setting))
        .or_else(|| pod.metadata.deletion_timestamp.is_some().then(|| deleted(disrupted.as_deref())))
        .or(cannot_start.map(PodEnd::CannotStart))
        .or_else(|| ended_by_itself(pod, &containers, disrupted.as_deref()));
    Inspection {
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).filter(|node| !node.is_empty()),
        created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
        running: running && begun,
        services,
        unschedulable: condition("PodScheduled", "False").map(|condition| {
            let message = condition.message.as_deref().filter(|message| !message.is_empty());
            waiting::no_node(message.or(condition.reason.as_deref()).unwrap_or_default(), setting.resources)
        }),
        disrupted,
        trouble,
        end,
    }
}

fn containers(pod: &Pod) -> Vec<&ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|status| status.init_container_statuses.as_deref()).unwrap_or_default();
    let main = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    init.iter().chain(main).collect()
}

fn words(condition: &PodCondition) -> String {
    let message = condition.message.as_deref().unwrap_or_default();
    quoted(if message.is_empty() { condition.reason.as_deref().unwrap_or_default() } else { message })
}

fn role(name: &str, setting: Setting<'_>) -> Role {
    match name {
        BUILD_CONTAINER => Role::Build(setting.chooser),
        HELPER_CONTAINER => Role::Helper,
        AGENT_CONTAINER => Role::Agent,
        name if setting.services.iter().any(|service| service.container == name) => Role::Service,
        _ => Role::Extra,
    }
}

/// A service as its container is now. What has ended stays so: with the restart policy `Never` nobody starts it again.
fn seen(service: &ServiceStatus, containers: &[&ContainerStatus]) -> ServiceStatus {
    let container = containers.iter().find(|container| container.name == service.container);
    let state = container.and_then(|container| container.state.as_ref());
    let (state, ended) = match (container, state) {
        (Some(container), Some(ContainerState { terminated: Some(how), .. })) => {
            (ServiceState::Ended, Some(manner(container, how)))
        }
        // What was ready once is what the job's scripts waited for. Whether it is at the moment is not written down: it
        // may change every second.
        (Some(container), Some(ContainerState { running: Some(_), .. }))
            if container.ready || service.state == ServiceState::Ready =>
        {
            (ServiceState::Ready, None)
        }
        (_, Some(ContainerState { running: Some(_), .. })) => (ServiceState::Running, None),
        _ => (service.state, service.ended.clone()),
    };
    ServiceStatus { state, ended, ..service.clone() }
}

/// What keeps the container from starting, if anything does.
fn hindrance(status: &ContainerStatus, setting: Setting<'_>) -> Option<Trouble> {
    let container = Container {
        role: role(&status.name, setting),
        name: &status.name,
        image: &status.image,
        class: setting.class,
    };
    let state = status.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let message = waiting.message.as_deref().unwrap_or_default();
        return start::waiting(container, waiting.reason.as_deref().unwrap_or_default(), message);
    }
    // The job goes on without a service that has ended, however it did.
    let terminated = state.terminated.as_ref().filter(|_| container.role != Role::Service)?;
    let reason = terminated.reason.as_deref().unwrap_or_default();
    let message = terminated.message.as_deref().unwrap_or_default();
    // What containerd and CRI-O call it when the command could not be run at all. A command in a format that
    // the kernel does not know is found only when runc has started the container, and runc's words are its log.
    // A job that writes them itself makes the failure its own.
    let unknown = || reason == "Error" && message.trim() == "exec /bin/sh: exec format error";
    (matches!(reason, "StartError" | "ContainerCannotRun") || unknown())
        .then(|| start::not_started(container, reason, message))
}

/// The trouble to tell: one that cannot pass before one that can, otherwise the first.
fn worst(troubles: impl Iterator<Item = Trouble>) -> Option<Trouble> {
    troubles.reduce(|worst, next| if next.definite && !worst.definite { next } else { worst })
}

/// What the kubelet or the control plane says of the pod as a whole.
fn ended_by_cluster(pod: &Pod, disrupted: Option<&str>) -> Option<PodEnd> {
    let status = pod.status.as_ref()?;
    if status.phase.as_deref() != Some("Failed") {
        return None;
    }
    let reason = status.reason.as_deref().unwrap_or_default();
    let message = status.message.as_deref().filter(|message| !message.is_empty()).unwrap_or(reason);
    match reason {
        "DeadlineExceeded" => Some(PodEnd::DeadlineExceeded),
        "Evicted" if let Some(overrun) = storage::overrun(message) => Some(PodEnd::StorageExceeded(overrun)),
        "Evicted" | "Preempting" | "Terminated" | "Shutdown" | "NodeShutdown" | "NodeLost" => {
            Some(PodEnd::Evicted(message.to_owned()))
        }
        // UnexpectedAdmissionError, OutOfcpu, NodeAffinity and their kin: no container ever was.
        _ if !reason.is_empty() && containers(pod).iter().all(|container| never_started(container)) => {
            Some(PodEnd::Refused(format!("{reason}: {message}")))
        }
        _ => disrupted.map(|words| PodEnd::Evicted(words.to_owned())),
    }
}

fn never_started(status: &ContainerStatus) -> bool {
    status.container_id.as_deref().unwrap_or_default().is_empty()
}

fn deleted(disrupted: Option<&str>) -> PodEnd {
    disrupted.map_or(PodEnd::Deleted, |words| PodEnd::Evicted(words.to_owned()))
}

/// Ends that only the containers can tell, and that no deletion explains.
fn told_by_containers(containers: &[&ContainerStatus], setting: Setting<'_>) -> Option<PodEnd> {
    let oom = ended(containers).find(|(container, how)| {
        matches!(container.name.as_str(), BUILD_CONTAINER | HELPER_CONTAINER)
            && how.reason.as_deref() == Some("OOMKilled")
    });
    if let Some((container, _)) = oom {
        let limit =
            setting.resources.get(&container.name).and_then(|resources| resources.limits.get("memory"));
        return Some(PodEnd::OutOfMemory { container: container.name.clone(), limit: limit.cloned() });
    }
    ended(containers)
        .any(|(container, how)| container.name == HELPER_CONTAINER && how.exit_code == ORPHANED_EXIT_CODE)
        .then_some(PodEnd::ClientLost)
}

/// A container that the job needs is no more, or the whole pod.
fn ended_by_itself(pod: &Pod, containers: &[&ContainerStatus], disrupted: Option<&str>) -> Option<PodEnd> {
    let needed = ended(containers).find(|(container, how)| match container.name.as_str() {
        BUILD_CONTAINER | HELPER_CONTAINER => true,
        AGENT_CONTAINER => how.exit_code != 0,
        _ => false,
    });
    if let Some((container, how)) = needed {
        return Some(match disrupted {
            Some(words) => PodEnd::Evicted(words.to_owned()),
            None if how.reason.as_deref() == Some(FORGOTTEN) => {
                PodEnd::Evicted(format!("its node does not know container \"{}\" any more", container.name))
            }
            None => PodEnd::Terminated { container: container.name.clone(), how: manner(container, how) },
        });
    }
    let status = pod.status.as_ref()?;
    let phase = status.phase.as_deref().filter(|phase| matches!(*phase, "Failed" | "Succeeded"))?;
    // An init container of the overlay that failed, for one.
    let culprit = ended(containers).find(|(_, how)| how.exit_code != 0);
    Some(match culprit {
        Some((container, how)) => {
            PodEnd::Terminated { container: container.name.clone(), how: manner(container, how) }
        }
        None => PodEnd::Ended(format!("phase {phase} {}", status.message.as_deref().unwrap_or_default())),
    })
}

fn ended<'a>(
    containers: &'a [&'a ContainerStatus],
) -> impl Iterator<Item = (&'a ContainerStatus, &'a ContainerStateTerminated)> {
    containers.iter().filter_map(|container| {
        let ContainerState { terminated, .. } = container.state.as_ref()?;
        Some((*container, terminated.as_ref()?))
    })
}

/// Exit code or signal, and what the runtime says. A job can write the termination message of its
/// own containers, so only the agent's is quoted.
fn manner(container: &ContainerStatus, how: &ContainerStateTerminated) -> String {
    let code = match how.signal.filter(|signal| *signal != 0) {
        Some(signal) => format!("signal {signal}"),
        None if how.exit_code > 128 => {
            format!("exit code {} (signal {})", how.exit_code, how.exit_code - 128)
        }
        None => format!("exit code {}", how.exit_code),
    };
    let reason = how.reason.as_deref().filter(|reason| !matches!(*reason, "" | "Error" | "Completed"));
    // Of a container that never ran the runtime says why.
    let never_ran = matches!(reason, Some("StartError" | "ContainerCannotRun"));
    let believed = never_ran || container.name == AGENT_CONTAINER;
    let message = how.message.as_deref().filter(|_| believed).map(quoted);
    let mut text = code;
    for part in reason.map(str::to_owned).into_iter().chain(message.filter(|message| !message.is_empty())) {
        text.push_str(", ");
        text.push_str(&part);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use crate::policy::storage::Overrun;
    use roadstead_crds::Reason;
    use serde_json::{Value, json};

    fn look(node: Option<&str>, status: Value) -> Inspection {
        let pod = fixture::with_status(fixture::pod("p-1", "u-1", fixture::birth()), node, status);
        read(&pod)
    }

    fn read(pod: &Pod) -> Inspection {
        read_with(pod, &[])
    }

    fn read_with(pod: &Pod, services: &[ServiceStatus]) -> Inspection {
        let limits = BTreeMap::from([("memory".to_owned(), "512Mi".to_owned())]);
        let build = EffectiveResources { limits, ..EffectiveResources::default() };
        let resources = BTreeMap::from([("build".to_owned(), build)]);
        inspect(pod, Setting { class: "default", chooser: Chooser::Job, resources: &resources, services })
    }

    fn container(name: &str, state: &Value) -> Value {
        let id = if state.get("waiting").is_some() { "" } else { "containerd://1" };
        json!({"name": name, "image": "img:1", "imageID": "", "ready": false, "restartCount": 0, "containerID": id, "state": state})
    }

    fn running() -> Value {
        json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}})
    }

    fn waiting(reason: &str, message: &str) -> Value {
        json!({"waiting": {"reason": reason, "message": message}})
    }

    fn terminated(code: i32, reason: &str) -> Value {
        json!({"terminated": {"exitCode": code, "reason": reason, "message": "words of the job"}})
    }

    /// A pod with the containers in these states.
    fn with(agent: &Value, helper: &Value, build: &Value) -> Value {
        json!({"phase": "Running", "containerStatuses": [
            container("agent", agent), container("helper", helper), container("build", build)]})
    }

    fn failed(reason: &str, message: &str) -> Value {
        json!({"phase": "Failed", "reason": reason, "message": message})
    }

    #[test]
    fn a_pod_on_its_way() {
        let fresh = look(None, json!({"phase": "Pending"}));
        assert_eq!((fresh.node, fresh.running, fresh.end.clone()), (None, false, None));
        assert_eq!(fresh.created, Some(fixture::birth()));
        let done = terminated(0, "Completed");
        let started = look(Some("n"), with(&done, &running(), &running()));
        assert_eq!((started.node.as_deref(), started.running, started.end), (Some("n"), true, None));
        let creating = waiting("ContainerCreating", "");
        let half = look(Some("n"), with(&done, &running(), &creating));
        assert_eq!((half.running, half.trouble, half.end), (false, None, None));
    }

    #[test]
    fn the_scheduler_says_why_it_waits() {
        let status = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient cpu."}]});
        assert_eq!(look(None, status).unschedulable.as_deref(), Some("3 nodes: not enough cpu"));
    }

    #[test]
    fn trouble_that_may_pass_is_no_end() {
        let seen = look(Some("n"), with(&running(), &running(), &waiting("ErrImagePull", "i/o timeout")));
        assert_eq!(seen.trouble.unwrap().reason, Reason::ImagePullFailed);
        assert_eq!(seen.end, None);
        let seen = look(
            Some("n"),
            with(&waiting("ErrImagePull", "i/o timeout"), &running(), &waiting("InvalidImageName", "x")),
        );
        let Some(PodEnd::CannotStart(trouble)) = seen.end else { panic!("{:?}", seen.end) };
        assert_eq!(trouble.reason, Reason::InvalidImageName);
    }

    #[test]
    fn ends() {
        let done = terminated(0, "Completed");
        let evicted = || Some(PodEnd::Evicted("The node was low on resource: memory".to_owned()));
        let disruption = json!([{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "The node was low on resource: memory"}]);
        let disrupted = |mut status: Value| {
            status["conditions"] = disruption.clone();
            status
        };
        let ended = |container: &str, how: &str| {
            Some(PodEnd::Terminated { container: container.to_owned(), how: how.to_owned() })
        };
        let oom =
            Some(PodEnd::OutOfMemory { container: "build".to_owned(), limit: Some("512Mi".to_owned()) });
        let table = [
            ("all is well", with(&done, &running(), &running()), None),
            ("announced only", disrupted(with(&done, &running(), &running())), None),
            ("evicted", failed("Evicted", "The node was low on resource: memory"), evicted()),
            (
                "wrote too much",
                failed("Evicted", "Container build exceeded its local ephemeral storage limit \"32Mi\". "),
                Some(PodEnd::StorageExceeded(Overrun::Container {
                    name: "build".to_owned(),
                    limit: "32Mi".to_owned(),
                })),
            ),
            ("preempted", failed("Preempting", "The node was low on resource: memory"), evicted()),
            ("node shut down", failed("Terminated", "The node was low on resource: memory"), evicted()),
            (
                "deadline",
                failed("DeadlineExceeded", "Pod was active too long"),
                Some(PodEnd::DeadlineExceeded),
            ),
            (
                "refused by the kubelet",
                failed("OutOfcpu", "Node didn't have enough resource: cpu"),
                Some(PodEnd::Refused("OutOfcpu: Node didn't have enough resource: cpu".to_owned())),
            ),
            (
                "forgotten by its node",
                with(&done, &running(), &terminated(137, "ContainerStatusUnknown")),
                Some(PodEnd::Evicted("its node does not know container \"build\" any more".to_owned())),
            ),
            ("disrupted and failed", disrupted(failed("", "")), evicted()),
            ("disrupted and over", disrupted(with(&done, &running(), &terminated(137, "Error"))), evicted()),
            ("out of memory", with(&done, &running(), &terminated(137, "OOMKilled")), oom.clone()),
            (
                "out of memory, not disrupted",
                disrupted(with(&done, &running(), &terminated(137, "OOMKilled"))),
                oom,
            ),
            ("orphaned", with(&done, &terminated(86, "Error"), &running()), Some(PodEnd::ClientLost)),
            (
                "86 of a job is just a number",
                with(&done, &running(), &terminated(86, "Error")),
                ended("build", "exit code 86"),
            ),
            (
                "helper over",
                with(&done, &terminated(137, "Error"), &running()),
                ended("helper", "exit code 137 (signal 9)"),
            ),
            (
                "build over",
                with(&done, &running(), &terminated(0, "Completed")),
                ended("build", "exit code 0"),
            ),
            (
                "agent failed",
                with(&terminated(1, "Error"), &running(), &running()),
                ended("agent", "exit code 1, words of the job"),
            ),
            ("failed without a word", failed("", ""), Some(PodEnd::Ended("phase Failed ".to_owned()))),
        ];
        for (what, status, expected) in table {
            assert_eq!(look(Some("n"), status).end, expected, "{what}");
        }
    }

    #[test]
    fn a_container_that_never_ran_tells_why() {
        let no_shell = json!({"terminated": {"exitCode": 128, "reason": "StartError",
            "message": "exec: \"/bin/sh\": stat /bin/sh: no such file or directory"}});
        let seen = look(Some("n"), with(&terminated(0, "Completed"), &running(), &no_shell));
        let Some(PodEnd::CannotStart(trouble)) = seen.end else { panic!("{:?}", seen.end) };
        assert_eq!(trouble.reason, Reason::ImageUnusable);
        // As runc's own log, which the kubelet has copied.
        let foreign = json!({"terminated": {"exitCode": 1, "reason": "Error",
            "message": "exec /bin/sh: exec format error\n"}});
        let seen = look(Some("n"), with(&terminated(0, "Completed"), &running(), &foreign));
        let Some(PodEnd::CannotStart(trouble)) = seen.end else { panic!("{:?}", seen.end) };
        assert_eq!(trouble.reason, Reason::ImageUnusable);
    }

    #[test]
    fn a_service_that_ends_ends_no_job_and_one_that_cannot_be_pulled_does() {
        let service = ServiceStatus {
            container: "svc-0".to_owned(),
            image: "redis:7".to_owned(),
            pull_policies: vec![],
            state: ServiceState::Waiting,
            ended: None,
        };
        let look_at = |service: &ServiceStatus, state: &Value, ready: bool| {
            let mut status = with(&terminated(0, "Completed"), &running(), &running());
            let mut container = container("svc-0", state);
            container["ready"] = json!(ready);
            status["containerStatuses"].as_array_mut().unwrap().push(container);
            let pod = fixture::with_status(fixture::pod("p-1", "u-1", fixture::birth()), Some("n"), status);
            read_with(&pod, std::slice::from_ref(service))
        };
        let look = |state: &Value, ready: bool| look_at(&service, state, ready);
        // Whether it is ready at the moment is not written down.
        let ready = ServiceStatus { state: ServiceState::Ready, ..service.clone() };
        assert_eq!(look_at(&ready, &running(), false).services, std::slice::from_ref(&ready));
        assert_eq!(look_at(&ready, &terminated(3, "Error"), false).services[0].state, ServiceState::Ended);
        let oom = terminated(137, "OOMKilled");
        let start_error = json!({"terminated": {"exitCode": 128, "reason": "StartError", "message": "exec: \"x\": not found"}});
        for (state, ready, running, expected, ended) in [
            (&waiting("ContainerCreating", ""), false, false, ServiceState::Waiting, None),
            (&running(), false, true, ServiceState::Running, None),
            (&running(), true, true, ServiceState::Ready, None),
            (&terminated(3, "Error"), false, true, ServiceState::Ended, Some("exit code 3")),
            (&oom, false, true, ServiceState::Ended, Some("exit code 137 (signal 9), OOMKilled")),
            (
                &start_error,
                false,
                true,
                ServiceState::Ended,
                Some("exit code 128, StartError, exec: \"x\": not found"),
            ),
        ] {
            let seen = look(state, ready);
            assert_eq!((seen.running, seen.end, seen.trouble), (running, None, None), "{state}");
            let told = &seen.services[0];
            assert_eq!((told.state, told.ended.as_deref()), (expected, ended), "{state}");
        }
        let seen = look(&waiting("ErrImagePull", "redis:7: not found"), false);
        let Some(PodEnd::CannotStart(trouble)) = seen.end else { panic!("{:?}", seen.end) };
        assert_eq!((trouble.reason, trouble.unpulled.as_deref()), (Reason::ImageNotFound, Some("svc-0")));
        assert!(trouble.message.contains("`services:`"), "{}", trouble.message);
    }

    #[test]
    fn deletion_by_somebody_else() {
        let mut pod = fixture::pod("p-1", "u-1", fixture::birth());
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(fixture::birth()));
        assert_eq!(read(&pod).end, Some(PodEnd::Deleted));
        // What the containers can tell for sure explains more than the deletion; an exit that the deletion caused does not.
        let oom = fixture::with_status(
            pod.clone(),
            None,
            with(&running(), &running(), &terminated(137, "OOMKilled")),
        );
        assert!(matches!(read(&oom).end, Some(PodEnd::OutOfMemory { .. })));
        let killed =
            fixture::with_status(pod.clone(), None, with(&running(), &terminated(143, "Error"), &running()));
        assert_eq!(read(&killed).end, Some(PodEnd::Deleted));
        let drained = json!({"phase": "Running", "conditions": [
            {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drain"}]});
        assert_eq!(
            read(&fixture::with_status(pod, None, drained)).end,
            Some(PodEnd::Evicted("drain".to_owned()))
        );
    }
}
