//! Builds the pod of a job. Only image, resources, placement, labels, owner and deadline are the job's own:
//! everything else about it reaches the agent over the shim's connection, never the pod's spec.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, EnvVar, EnvVarSource, ObjectFieldSelector, Pod, PodSpec,
    SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use roadstead_crds::jobclass::AgentSource;
use roadstead_crds::labels::{
    AGENT_CONTAINER, AGENT_IMAGE_PATH, AGENT_PATH, BUILD_CONTAINER, BUILD_SPOOL_DIR, HELPER_CONTAINER,
    MANAGER, RUN_DIR, SPOOL_DIR,
};
use roadstead_crds::request::{JobRequest, PullPolicy};
use roadstead_crds::{GROUP, JobClassSpec, VERSION, labels};

use crate::job::Identity;
use crate::job::overlay::{self, OverlayError};
use crate::policy::class::Terms;
use crate::policy::placement::Placement;
use crate::policy::{Images, image, resources, timeouts};

/// Folder of [`AGENT_PATH`].
const AGENT_DIR: &str = "/.roadstead/agent";

const AGENT_VOLUME: &str = "roadstead-agent";
const BUILDS_VOLUME: &str = "builds";
const CACHE_VOLUME: &str = "cache";

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
/// What is wrong with the class's overlay.
pub fn build(order: Order<'_>, name: &str) -> Result<Pod, OverlayError> {
    let Order { identity, request, terms, placement, class, .. } = order;
    let filled_map = |map: &BTreeMap<String, String>| (!map.is_empty()).then(|| map.clone());
    let mut labels = placement.labels.clone();
    labels.extend(pod_labels(identity, request, terms));
    let pod = Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(identity.namespace.clone()),
            labels: Some(labels),
            annotations: filled_map(&placement.annotations),
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
            image_pull_secrets: filled(class.pod.image_pull_secrets.clone()),
            node_selector: filled_map(&placement.node_selector),
            tolerations: filled(placement.tolerations.clone()),
            affinity: placement.affinity.clone(),
            topology_spread_constraints: filled(placement.topology_spread_constraints.clone()),
            runtime_class_name: placement.runtime_class_name.clone(),
            priority_class_name: placement.priority_class_name.clone(),
            scheduler_name: placement.scheduler_name.clone(),
            security_context: class.pod.security_context.clone(),
            containers: containers(order),
            volumes: Some(volumes()),
            ..PodSpec::default()
        }),
        status: None,
    };
    match &class.pod.overlay {
        Some(overlay) => overlay::lay(pod, overlay),
        None => Ok(pod),
    }
}

fn filled<T>(items: Vec<T>) -> Option<Vec<T>> {
    (!items.is_empty()).then_some(items)
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

/// The kubelet starts them in this order; the one with the largest image comes last.
fn containers(order: Order<'_>) -> Vec<Container> {
    match order.class.helper.agent {
        AgentSource::Container => vec![agent(order), helper(order), build_container(order)],
        AgentSource::HelperImage => vec![helper(order), build_container(order)],
    }
}

fn agent(order: Order<'_>) -> Container {
    Container {
        name: AGENT_CONTAINER.to_owned(),
        image: Some(order.images.agent.clone()),
        image_pull_policy: policy(order.class.helper.pull_policy),
        command: Some(strings([AGENT_IMAGE_PATH, "install", AGENT_DIR])),
        volume_mounts: Some(vec![mount(AGENT_VOLUME, AGENT_DIR, Access::Write)]),
        // No job runs in it, so its last words can be believed.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..common(order, AGENT_CONTAINER)
    }
}

fn helper(order: Order<'_>) -> Container {
    let orphan = order.terms.timeouts.orphan_seconds;
    let (command, access) = match order.class.helper.agent {
        AgentSource::Container => (wait_and_serve(HELPER_CONTAINER, orphan), Access::Read),
        AgentSource::HelperImage => {
            let seconds = orphan.to_string();
            let command = [
                AGENT_IMAGE_PATH,
                "serve",
                "--install",
                AGENT_DIR,
                "--container",
                HELPER_CONTAINER,
                "--orphan-seconds",
                &seconds,
            ];
            (strings(command), Access::Write)
        }
    };
    let mut mounts = working(order, HELPER_CONTAINER, access);
    mounts.push(mount(&spool(BUILD_CONTAINER), BUILD_SPOOL_DIR, Access::Read));
    Container {
        name: HELPER_CONTAINER.to_owned(),
        image: Some(order.class.helper.image.clone().unwrap_or_else(|| order.images.helper.clone())),
        image_pull_policy: policy(order.class.helper.pull_policy),
        command: Some(command),
        env: Some(vec![pod_uid()]),
        volume_mounts: Some(mounts),
        ..common(order, HELPER_CONTAINER)
    }
}

fn build_container(order: Order<'_>) -> Container {
    let Order { request, terms, class, .. } = order;
    Container {
        name: BUILD_CONTAINER.to_owned(),
        image: Some(terms.image.clone()),
        image_pull_policy: policy(image::pull_policy(request, &class.image)),
        command: Some(wait_and_serve(BUILD_CONTAINER, terms.timeouts.orphan_seconds)),
        env: Some(vec![pod_uid()]),
        security_context: as_user(order),
        volume_mounts: Some(working(order, BUILD_CONTAINER, Access::Read)),
        ..common(order, BUILD_CONTAINER)
    }
}

fn common(order: Order<'_>, name: &str) -> Container {
    Container {
        resources: order.terms.resources.get(name).and_then(resources::requirements),
        security_context: order.class.pod.container_security_context.clone(),
        ..Container::default()
    }
}

/// Waits for the agent with the shell that the image has, then becomes it. The shell is PID 1,
/// for which a signal without a trap does nothing. Not every `sleep` knows fractions.
fn wait_and_serve(container: &str, orphan_seconds: i64) -> Vec<String> {
    let script = format!(
        "trap 'exit 143' TERM INT; \
         until [ -x {AGENT_PATH} ]; do sleep 0.02 2>/dev/null || sleep 1; done; \
         exec {AGENT_PATH} serve --container {container} --orphan-seconds {orphan_seconds}"
    );
    vec!["/bin/sh".to_owned(), "-c".to_owned(), script]
}

/// The class's security context with the user that the job asks for, unless the class says which
/// one it is: what an administrator fixes, a job does not change.
fn as_user(order: Order<'_>) -> Option<SecurityContext> {
    let class = order.class.pod.container_security_context.clone();
    let asked = order.request.image.as_ref().and_then(|image| image.user.as_deref());
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

#[derive(Clone, Copy)]
enum Access {
    Read,
    Write,
}

fn mount(volume: &str, path: &str, access: Access) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: match access {
            Access::Read => Some(true),
            Access::Write => None,
        },
        ..VolumeMount::default()
    }
}

fn run(container: &str) -> String {
    format!("roadstead-run-{container}")
}

fn spool(container: &str) -> String {
    format!("roadstead-spool-{container}")
}

fn working(order: Order<'_>, container: &str, agent: Access) -> Vec<VolumeMount> {
    let config = &order.terms.config;
    vec![
        mount(AGENT_VOLUME, AGENT_DIR, agent),
        mount(&run(container), RUN_DIR, Access::Write),
        mount(&spool(container), SPOOL_DIR, Access::Write),
        mount(BUILDS_VOLUME, &config.builds_dir, Access::Write),
        mount(CACHE_VOLUME, &config.cache_dir, Access::Write),
    ]
}

/// All on disk: a spool in memory would count against the job's limit.
fn volumes() -> Vec<Volume> {
    let names = [
        AGENT_VOLUME.to_owned(),
        run(HELPER_CONTAINER),
        run(BUILD_CONTAINER),
        spool(HELPER_CONTAINER),
        spool(BUILD_CONTAINER),
        BUILDS_VOLUME.to_owned(),
        CACHE_VOLUME.to_owned(),
    ];
    let empty = |name| Volume { name, empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() };
    names.map(empty).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use crate::policy::class::place;
    use k8s_openapi::api::core::v1::{
        Capabilities, LocalObjectReference, PodSecurityContext, SeccompProfile,
    };
    use roadstead_crds::jobclass::{BuildImage, ContainerResources, Helper, PodSettings, Resources};
    use roadstead_crds::request::ImageRequest;
    use serde_json::json;

    fn built(request: &JobRequest, class: &JobClassSpec) -> Pod {
        let identity = Identity::of(&fixture::job()).unwrap();
        let terms = Terms::grant(request, "default", class).unwrap();
        let placement = place(request, "default", class).unwrap();
        let (images, placement) = (fixture::images(), &placement);
        let order = Order { identity: &identity, request, terms: &terms, placement, class, images: &images };
        build(order, "cij-4711-0123456789-3f2a91bc-1").unwrap()
    }

    fn hardened() -> JobClassSpec {
        JobClassSpec {
            resources: ContainerResources {
                build: Resources {
                    requests: BTreeMap::from([("cpu".to_owned(), "500m".to_owned())]),
                    limits: BTreeMap::from([("memory".to_owned(), "2Gi".to_owned())]),
                    ..Resources::default()
                },
                helper: Resources {
                    requests: BTreeMap::new(),
                    limits: BTreeMap::from([("memory".to_owned(), "256Mi".to_owned())]),
                    ..Resources::default()
                },
            },
            pod: PodSettings {
                image_pull_secrets: vec![LocalObjectReference { name: "registry".to_owned() }],
                security_context: Some(PodSecurityContext {
                    run_as_non_root: Some(true),
                    run_as_user: Some(1000),
                    fs_group: Some(1000),
                    seccomp_profile: Some(SeccompProfile {
                        type_: "RuntimeDefault".to_owned(),
                        ..SeccompProfile::default()
                    }),
                    ..PodSecurityContext::default()
                }),
                container_security_context: Some(SecurityContext {
                    allow_privilege_escalation: Some(false),
                    capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
                    ..SecurityContext::default()
                }),
                ..PodSettings::default()
            },
            ..JobClassSpec::default()
        }
    }

    #[test]
    fn default_class() {
        insta::assert_yaml_snapshot!(built(&fixture::request(), &JobClassSpec::default()));
    }

    #[test]
    fn hardened_class() {
        insta::assert_yaml_snapshot!(built(&fixture::request(), &hardened()));
    }

    #[test]
    fn agent_in_the_helper_image() {
        let class = JobClassSpec {
            image: BuildImage { default: None, pull_policy: Some(PullPolicy::IfNotPresent) },
            helper: Helper {
                agent: AgentSource::HelperImage,
                pull_policy: Some(PullPolicy::IfNotPresent),
                image: None,
            },
            ..JobClassSpec::default()
        };
        insta::assert_yaml_snapshot!(built(&fixture::request(), &class));
    }

    #[test]
    fn with_an_overlay() {
        let overlay = json!({
            "metadata": {"annotations": {"example/note": "x"}},
            "spec": {
                "runtimeClassName": "gvisor",
                "containers": [{"name": "build", "env": [{"name": "HTTP_PROXY", "value": "http://proxy.example"}]}],
                "volumes": [{"name": "cache", "emptyDir": null, "persistentVolumeClaim": {"claimName": "cache"}}],
            },
        });
        let Some(overlay) = overlay.as_object().cloned() else { panic!("not an object") };
        let class = JobClassSpec {
            pod: PodSettings { overlay: Some(overlay), ..PodSettings::default() },
            ..JobClassSpec::default()
        };
        insta::assert_yaml_snapshot!(built(&fixture::request(), &class));
    }

    #[test]
    fn placed_by_tags_and_variables() {
        let class: JobClassSpec = serde_json::from_value(json!({
            "pod": {"nodeSelector": {"pool": "ci"}},
            "placement": {"rules": [{"tags": ["gpu"], "nodeSelector": {"gpu": "a100"}, "runtimeClassName": "nvidia",
                "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]}]},
            "allow": {"podLabels": ["team=.*"], "podAnnotations": [".*"], "serviceAccount": ["ci-.*"]},
        }))
        .unwrap();
        let overrides = [
            ("KUBERNETES_POD_LABELS_1", "team=ship"),
            ("KUBERNETES_POD_ANNOTATIONS_1", "note=x"),
            ("KUBERNETES_SERVICE_ACCOUNT_OVERWRITE", "ci-deploy"),
        ];
        let request = JobRequest {
            tags: vec!["gpu".to_owned()],
            tag_source: Some(roadstead_crds::request::TagSource::Job),
            overrides: overrides.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            ..fixture::request()
        };
        let Pod { metadata, spec, .. } = built(&request, &class);
        let spec = spec.unwrap();
        assert_eq!(metadata.labels.as_ref().unwrap()["team"], "ship");
        assert_eq!(metadata.labels.as_ref().unwrap()[labels::CIJOB], fixture::JOB);
        assert_eq!(metadata.annotations.unwrap()["note"], "x");
        assert_eq!(spec.node_selector.unwrap().len(), 2);
        assert_eq!(spec.runtime_class_name.as_deref(), Some("nvidia"));
        assert_eq!(spec.tolerations.unwrap().len(), 1);
        assert_eq!(spec.service_account_name.as_deref(), Some("ci-deploy"));
        assert_eq!(spec.automount_service_account_token, Some(false));
    }

    #[test]
    fn the_agent_is_in_its_folder() {
        assert_eq!(AGENT_PATH.rsplit_once('/').unwrap().0, AGENT_DIR);
    }

    #[test]
    fn a_job_chooses_its_user_only_where_the_class_does_not() {
        let asking = |user: &str| {
            let image =
                ImageRequest { name: "img".to_owned(), pull_policy: vec![], user: Some(user.to_owned()) };
            JobRequest { image: Some(image), ..fixture::request() }
        };
        let context = |request: &JobRequest, class: &JobClassSpec, name: &str| {
            let pod = built(request, class);
            let container = pod.spec.unwrap().containers.into_iter().find(|container| container.name == name);
            container.unwrap().security_context
        };
        let free = context(&asking("1001:2002"), &JobClassSpec::default(), "build").unwrap();
        assert_eq!((free.run_as_user, free.run_as_group), (Some(1001), Some(2002)));
        assert_eq!(context(&asking("1001"), &JobClassSpec::default(), "helper"), None);
        let fixed = context(&asking("0:0"), &hardened(), "build").unwrap();
        assert_eq!((fixed.run_as_user, fixed.run_as_group), (None, None));
    }

    #[test]
    fn nothing_of_the_job_is_in_the_pod_but_what_has_to_be() {
        let request = JobRequest {
            job: roadstead_crds::request::JobIdentity {
                name: "canary-name".to_owned(),
                ..fixture::request().job
            },
            ..fixture::request()
        };
        let text = serde_json::to_string(&built(&request, &JobClassSpec::default())).unwrap();
        for private in ["canary-name", "group/project", "gitlab.example", "0123456789abcdef", "main"] {
            assert!(!text.contains(private), "{private} is in the pod");
        }
    }
}
