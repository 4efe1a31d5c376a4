//! The containers of a job's services, and the names under which its other containers reach them.

use k8s_openapi::api::core::v1::{
    Container, EnvFromSource, HostAlias, Probe, SecretEnvSource, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use roadstead_crds::names::service_secret_name;
use roadstead_crds::request::ServiceRequest;
use roadstead_crds::status::ServiceStatus;

use super::{Order, as_user, common, filled, policy, space, volumes};

/// Where all containers of a pod reach each other.
const LOCALHOST: &str = "127.0.0.1";

/// Seconds between two tries of a port; Kubernetes knows no less.
const PROBE_SECONDS: i32 = 1;

/// The containers, in the job's order.
pub(super) fn containers(order: Order<'_>) -> impl Iterator<Item = Container> {
    let services = order.request.services.iter().zip(&order.terms.services).enumerate();
    services.map(move |(place, (asked, granted))| container(order, place, asked, granted))
}

/// No agent is in it: what runs is what the image or the job says.
fn container(order: Order<'_>, place: usize, asked: &ServiceRequest, granted: &ServiceStatus) -> Container {
    let name = &granted.container;
    Container {
        name: name.clone(),
        image: Some(granted.image.clone()),
        image_pull_policy: policy(granted.pull_policies.first().copied()),
        command: filled(asked.entrypoint.clone()),
        args: filled(asked.command.clone()),
        env_from: Some(vec![variables(order, place)]),
        readiness_probe: asked.readiness_port.map(probe),
        security_context: as_user(order, name, asked.user.as_deref()),
        volume_mounts: Some(volumes::mounts_of_service(space(order))),
        // What a service logs may be secret, and belongs into no object.
        termination_message_policy: None,
        ..common(order, name)
    }
}

/// The Secret that the shim made for it.
fn variables(order: Order<'_>, place: usize) -> EnvFromSource {
    let identity = order.identity;
    let name = service_secret_name(&identity.name, &identity.uid, place);
    let secret_ref = Some(SecretEnvSource { name, optional: Some(false) });
    EnvFromSource { secret_ref, ..EnvFromSource::default() }
}

fn probe(port: u16) -> Probe {
    Probe {
        tcp_socket: Some(TCPSocketAction { port: IntOrString::Int(port.into()), host: None }),
        period_seconds: Some(PROBE_SECONDS),
        timeout_seconds: Some(PROBE_SECONDS),
        ..Probe::default()
    }
}

/// The services' names come first: of the lines in /etc/hosts the first one counts.
pub(super) fn host_aliases(order: Order<'_>) -> Vec<HostAlias> {
    let mut names: Vec<String> = Vec::new();
    for alias in order.request.services.iter().flat_map(|service| &service.aliases) {
        if !names.contains(alias) {
            names.push(alias.clone());
        }
    }
    let ours = (!names.is_empty()).then(|| HostAlias { ip: LOCALHOST.to_owned(), hostnames: Some(names) });
    ours.into_iter().chain(order.class.pod.host_aliases.iter().cloned()).collect()
}
