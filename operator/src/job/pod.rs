//! Builds the pod of a job. Only image, resources, placement, labels, owner and deadline are the job's own:
//! everything else about it reaches the agent over the shim's connection, never the pod's spec.

mod services;
mod trial;
mod volumes;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, EnvVar, EnvVarSource, LocalObjectReference, ObjectFieldSelector, Pod, PodSpec, SecurityContext,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use roadstead_crds::jobclass::{AgentSource, DnsPolicy, MountingContainer};
use roadstead_crds::labels::{
    AGENT_CONTAINER, AGENT_IMAGE_PATH, AGENT_PATH, BUILD_CONTAINER, HELPER_CONTAINER, MANAGER,
};
use roadstead_crds::names::pull_secret_name;
use roadstead_crds::request::{JobRequest, PullPolicy};
use roadstead_crds::{GROUP, JobClassSpec, VERSION, labels};

use crate::job::Identity;
use crate::job::overlay::{self, OverlayError};
use crate::policy::class::Terms;
use crate::policy::placement::Placement;
use crate::policy::{Images, resources, timeouts};

pub use trial::problems;

use volumes::{AGENT_DIR, Access, Space};

/// Environment variable in which the agent finds its pod's UID.
const POD_UID: &str = "ROADSTEAD_POD_UID";

/// What a pod is built from.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// The CiJob that the pod is for.
    pub identity: &'a Identity,
    /// What GitLab asked for.
    pub request: &'a JobRequest,
    /// What was granted.
    pub terms: &'a Terms,
    /// Where it may run.
    pub placement: &'a Placement,
    /// The class, for all that the terms do not fix.
    pub class: &'a JobClassSpec,
    /// The operator's images.
    pub images: &'a Images,
}

/// The pod, under this name.
///
/// # Errors
/// What is wrong with the class.
pub fn build(order: Order<'_>, name: &str) -> Result<Pod, OverlayError> {
    let Order { identity, request, terms, placement, class, .. } = order;
    let filled_map = |map: &BTreeMap<String, String>| (!map.is_empty()).then(|| map.clone());
    // What the administrator fixes, a job does not change; and nobody changes Roadstead's own.
    let mut labels = placement.labels.clone();
    labels.extend(class.pod.labels.clone());
    labels.extend(pod_labels(identity, request, terms));
    let mut annotations = placement.annotations.clone();
    annotations.extend(class.pod.annotations.clone());
    let pod = Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(identity.namespace.clone()),
            labels: Some(labels),
            annotations: filled_map(&annotations),
            owner_references: Some(vec![owner(identity)]),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            restart_policy: Some("Never".to_owned()),
            service_account_name: placement.service_account_name.clone(),
            automount_service_account_token: Some(class.pod.automount_service_account_token),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(terms.timeouts.termination_grace_seconds),
            active_deadline_seconds: Some(
                terms.timeouts.job_seconds.saturating_add(timeouts::BEHIND_OPERATOR_SECONDS),
            ),
            image_pull_secrets: filled(pull_secrets(order)),
            node_selector: filled_map(&placement.node_selector),
            tolerations: filled(placement.tolerations.clone()),
            affinity: placement.affinity.clone(),
            topology_spread_constraints: filled(placement.topology_spread_constraints.clone()),
            runtime_class_name: placement.runtime_class_name.clone(),
            priority_class_name: placement.priority_class_name.clone(),
            scheduler_name: placement.scheduler_name.clone(),
            resources: terms.resources.get(resources::POD).and_then(resources::requirements),
            security_context: class.pod.security_context.clone(),
            host_users: class.pod.host_users,
            dns_policy: class.pod.dns_policy.map(DnsPolicy::as_str).map(str::to_owned),
            dns_config: class.pod.dns_config.clone(),
            host_aliases: filled(services::host_aliases(order)),
            containers: containers(order),
            volumes: Some(volumes::volumes(space(order))),
            ..PodSpec::default()
        }),
        status: None,
    };
    overlay::lay(pod, &class.pod)
}

fn filled<T>(items: Vec<T>) -> Option<Vec<T>> {
    (!items.is_empty()).then_some(items)
}

/// The job's own credentials come first.
fn pull_secrets(order: Order<'_>) -> Vec<LocalObjectReference> {
    let Order { identity, request, class, .. } = order;
    let own = request
        .registry_credentials
        .then(|| LocalObjectReference { name: pull_secret_name(&identity.name, &identity.uid) });
    own.into_iter().chain(class.pod.image_pull_secrets.iter().cloned()).collect()
}

fn pod_labels(identity: &Identity, request: &JobRequest, terms: &Terms) -> BTreeMap<String, String> {
    BTreeMap::from([
        (labels::CIJOB.to_owned(), identity.name.clone()),
        (labels::JOB_ID.to_owned(), request.job.id.to_string()),
        (labels::PROJECT_ID.to_owned(), request.project.id.to_string()),
        (labels::CLASS.to_owned(), terms.class.clone()),
        (labels::MANAGED_BY.to_owned(), MANAGER.to_owned()),
    ])
}

fn owner(identity: &Identity) -> OwnerReference {
    OwnerReference {
        api_version: format!("{GROUP}/{VERSION}"),
        kind: "CiJob".to_owned(),
        name: identity.name.clone(),
        uid: identity.uid.clone(),
        controller: Some(true),
        // Deleting the CiJob in the foreground need not wait for the pod.
        block_owner_deletion: Some(false),
    }
}

/// The kubelet starts them in this order; of those that scripts run in the one with the largest image comes last. No
/// service holds those up.
fn containers(order: Order<'_>) -> Vec<Container> {
    let mut containers = match order.class.helper.agent {
        AgentSource::Container => vec![agent(order), helper(order), build_container(order)],
        AgentSource::HelperImage => vec![helper(order), build_container(order)],
    };
    containers.extend(services::containers(order));
    containers
}

fn agent(order: Order<'_>) -> Container {
    Container {
        name: AGENT_CONTAINER.to_owned(),
        image: Some(order.images.agent.clone()),
        image_pull_policy: policy(order.class.helper.pull_policy),
        command: Some(strings([AGENT_IMAGE_PATH, "install", AGENT_DIR])),
        volume_mounts: Some(vec![volumes::agent(Access::Write)]),
        ..common(order, AGENT_CONTAINER)
    }
}

fn helper(order: Order<'_>) -> Container {
    let (command, access) = match order.class.helper.agent {
        AgentSource::Container => (wait_and_serve(HELPER_CONTAINER, order), Access::Read),
        AgentSource::HelperImage => {
            let mut command = strings([AGENT_IMAGE_PATH, "serve", "--install", AGENT_DIR]);
            command.extend(serve_options(HELPER_CONTAINER, order));
            (command, Access::Write)
        }
    };
    let mut mounts = volumes::mounts(space(order), MountingContainer::Helper, access);
    mounts.push(volumes::spool_of_build());
    Container {
        name: HELPER_CONTAINER.to_owned(),
        image: Some(order.class.helper.image.clone().unwrap_or_else(|| order.images.helper.clone())),
        image_pull_policy: policy(order.class.helper.pull_policy),
        command: Some(command),
        env: Some(vec![pod_uid()]),
        lifecycle: order.class.pod.lifecycle.as_deref().cloned(),
        volume_mounts: Some(mounts),
        ..common(order, HELPER_CONTAINER)
    }
}

fn build_container(order: Order<'_>) -> Container {
    let Order { terms, class, request, .. } = order;
    let user = request.image.as_ref().and_then(|image| image.user.as_deref());
    Container {
        name: BUILD_CONTAINER.to_owned(),
        image: Some(terms.image.clone()),
        image_pull_policy: policy(terms.pull_policies.first().copied()),
        command: Some(wait_and_serve(BUILD_CONTAINER, order)),
        env: Some(vec![pod_uid()]),
        security_context: as_user(order, BUILD_CONTAINER, user),
        lifecycle: class.pod.lifecycle.as_deref().cloned(),
        volume_mounts: Some(volumes::mounts(space(order), MountingContainer::Build, Access::Read)),
        ..common(order, BUILD_CONTAINER)
    }
}

fn space(order: Order<'_>) -> Space<'_> {
    let config = &order.terms.config;
    Space { builds_dir: &config.builds_dir, cache_dir: &config.cache_dir, pod: &order.class.pod }
}

fn common(order: Order<'_>, name: &str) -> Container {
    Container {
        resources: order.terms.resources.get(name).and_then(resources::requirements),
        security_context: security_context(order, name),
        // For the last words of the agent, and of a container runtime that could not start it.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

/// What the class says of containers of that kind, or of all.
fn security_context(order: Order<'_>, name: &str) -> Option<SecurityContext> {
    let pod = &order.class.pod;
    let own = match name {
        BUILD_CONTAINER => &pod.build_security_context,
        HELPER_CONTAINER | AGENT_CONTAINER => &pod.helper_security_context,
        _ => &pod.service_security_context,
    };
    own.as_deref().or(pod.container_security_context.as_deref()).cloned()
}

/// Waits for the agent with the shell that the image has, then becomes it. The shell is PID 1,
/// for which a signal without a trap does nothing. Not every `sleep` knows fractions.
fn wait_and_serve(container: &str, order: Order<'_>) -> Vec<String> {
    let options = serve_options(container, order).join(" ");
    let script = format!(
        "trap 'exit 143' TERM INT; \
         until [ -x {AGENT_PATH} ]; do sleep 0.02 2>/dev/null || sleep 1; done; \
         exec {AGENT_PATH} serve {options}"
    );
    vec!["/bin/sh".to_owned(), "-c".to_owned(), script]
}

/// What every agent is told.
fn serve_options(container: &str, order: Order<'_>) -> Vec<String> {
    let timeouts = &order.terms.timeouts;
    let numbers = [
        ("--orphan-seconds", Some(timeouts.orphan_seconds.to_string())),
        ("--grace-seconds", Some(timeouts.termination_grace_seconds.to_string())),
        ("--spool-bytes", volumes::spool_bytes(&order.class.pod).map(|bytes| bytes.to_string())),
    ];
    let numbers = numbers.into_iter().filter_map(|(name, number)| Some([name.to_owned(), number?]));
    [["--container".to_owned(), container.to_owned()]].into_iter().chain(numbers).flatten().collect()
}

/// The class's security context with the user that the job asks for, unless the class says which
/// one it is: what an administrator fixes, a job does not change.
fn as_user(order: Order<'_>, name: &str, asked: Option<&str>) -> Option<SecurityContext> {
    let class = security_context(order, name);
    let Some(asked) = asked else { return class };
    let (user, group) = asked.split_once(':').map_or((asked, None), |(user, group)| (user, Some(group)));
    let pod = order.class.pod.security_context.as_ref();
    let mut context = class.unwrap_or_default();
    if context.run_as_user.is_none() && pod.and_then(|pod| pod.run_as_user).is_none() {
        context.run_as_user = user.parse().ok();
        if context.run_as_group.is_none() && pod.and_then(|pod| pod.run_as_group).is_none() {
            context.run_as_group = group.and_then(|group| group.parse().ok());
        }
    }
    (context != SecurityContext::default()).then_some(context)
}

fn policy(policy: Option<PullPolicy>) -> Option<String> {
    policy.map(|policy| policy.as_str().to_owned())
}

fn strings<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

/// Constant, so that a pod can be made before its job is known.
fn pod_uid() -> EnvVar {
    let source =
        ObjectFieldSelector { field_path: "metadata.uid".to_owned(), ..ObjectFieldSelector::default() };
    EnvVar {
        name: POD_UID.to_owned(),
        value: None,
        value_from: Some(EnvVarSource { field_ref: Some(source), ..EnvVarSource::default() }),
    }
}

#[cfg(test)]
mod tests;
