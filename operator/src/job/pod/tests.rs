//! The pod of a class, as Kubernetes gets it.

use super::*;
use crate::fixture;
use crate::policy::class::place;
use k8s_openapi::api::core::v1::{Capabilities, LocalObjectReference, PodSecurityContext, SeccompProfile};
use roadstead_crds::jobclass::{BuildImage, ContainerResources, Helper, PodSettings, Resources};
use roadstead_crds::request::{ImageRequest, ServiceRequest};
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
            services: Resources::default(),
            pod: Resources {
                limits: BTreeMap::from([("memory".to_owned(), "3Gi".to_owned())]),
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
            container_security_context: Some(Box::new(SecurityContext {
                allow_privilege_escalation: Some(false),
                capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
                ..SecurityContext::default()
            })),
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
        image: BuildImage { pull_policies: vec![PullPolicy::IfNotPresent], ..BuildImage::default() },
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
fn with_services() {
    let service = |name: &str, aliases: &[&str]| ServiceRequest {
        name: name.to_owned(),
        aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        ..ServiceRequest::default()
    };
    let request = JobRequest {
        services: vec![
            ServiceRequest {
                readiness_port: Some(5432),
                user: Some("999:999".to_owned()),
                ..service("postgres:16", &["postgres", "db"])
            },
            ServiceRequest {
                entrypoint: vec!["httpd".to_owned()],
                command: vec!["-f".to_owned(), "-p".to_owned(), "8080".to_owned()],
                pull_policy: vec![PullPolicy::Always],
                ..service("registry.example/tools/web:1", &["registry.example-tools-web", "web", "db"])
            },
        ],
        ..fixture::request()
    };
    let class: JobClassSpec = serde_json::from_value(json!({
        "resources": {"services": {"limits": {"memory": "512Mi"}}},
        "pod": {
            "containerSecurityContext": {"allowPrivilegeEscalation": false},
            "serviceSecurityContext": {"capabilities": {"drop": ["NET_RAW"]}},
            "hostAliases": [{"ip": "10.0.0.7", "hostnames": ["db"]}],
            "volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "data", "emptyDir": {}}],
            "volumeMounts": [
                {"name": "scratch", "mountPath": "/builds"},
                {"name": "data", "mountPath": "/data", "containers": ["services"], "readOnly": true},
            ],
        },
    }))
    .unwrap();
    assert_eq!(problems(&class), [""; 0]);
    insta::assert_yaml_snapshot!(built(&request, &class));
}

#[test]
fn the_jobs_own_credentials_come_before_the_classs() {
    let request = JobRequest { registry_credentials: true, ..fixture::request() };
    let secrets = |request: &JobRequest| {
        let secrets = built(request, &hardened()).spec.unwrap().image_pull_secrets.unwrap();
        secrets.into_iter().map(|secret| secret.name).collect::<Vec<_>>()
    };
    assert_eq!(secrets(&request), ["cij-4711-0123456789-3f2a91bc-pull", "registry"]);
    assert_eq!(secrets(&fixture::request()), ["registry"]);
}

#[test]
fn a_kind_of_container_may_have_a_security_context_of_its_own() {
    let context = |user: i64| json!({"runAsUser": user});
    let class: JobClassSpec = serde_json::from_value(json!({"pod": {
        "containerSecurityContext": context(1), "buildSecurityContext": context(2), "helperSecurityContext": context(3),
    }}))
    .unwrap();
    let service = ServiceRequest { name: "img".to_owned(), ..ServiceRequest::default() };
    let pod = built(&JobRequest { services: vec![service], ..fixture::request() }, &class);
    let users: Vec<_> = pod
        .spec
        .unwrap()
        .containers
        .into_iter()
        .map(|container| (container.name, container.security_context.unwrap().run_as_user.unwrap()))
        .collect();
    let expected = [("agent", 3), ("helper", 3), ("build", 2), ("svc-0", 1)];
    assert_eq!(users, expected.map(|(name, user)| (name.to_owned(), user)));
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
        let image = ImageRequest { name: "img".to_owned(), pull_policy: vec![], user: Some(user.to_owned()) };
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

#[test]
fn with_volumes_and_all_else_that_a_class_may_want() {
    let class: JobClassSpec = serde_json::from_value(json!({
        "pod": {
            "labels": {"team": "ci", "roadstead.dev/cijob": "another"},
            "annotations": {"example.com/cost": "7"},
            "hostUsers": false,
            "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["10.0.0.53"], "options": [{"name": "ndots", "value": "1"}]},
            "hostAliases": [{"ip": "10.0.0.7", "hostnames": ["registry.internal"]}],
            "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
            "sharedMemorySize": "1Gi",
            "spoolSize": "64Mi",
            "volumes": [
                {"name": "ccache", "persistentVolumeClaim": {"claimName": "ccache"}},
                {"name": "certificates", "configMap": {"name": "company-ca"}},
                {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {
                    "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "50Gi"}}}}}},
            ],
            "volumeMounts": [
                {"name": "ccache", "mountPath": "/ccache", "containers": ["build"], "subPath": "main"},
                {"name": "certificates", "mountPath": "/etc/ssl/company", "readOnly": true},
                {"name": "scratch", "mountPath": "/builds"},
            ],
            "jsonPatch": [{"op": "replace", "path": "/spec/enableServiceLinks", "value": true}],
        }
    }))
    .unwrap();
    assert_eq!(problems(&class), [""; 0]);
    insta::assert_yaml_snapshot!(built(&fixture::request(), &class));
}

#[test]
fn a_class_that_gives_no_pod_is_found_without_a_job() {
    let problems = |pod: serde_json::Value| {
        problems(&serde_json::from_value(json!({"image": {"allowed": ["a/*"]}, "pod": pod})).unwrap())
    };
    assert_eq!(problems(json!({})), [""; 0]);
    let table = [
        (
            json!({"overlay": {"spec": {"nodeSelektor": {}}}}),
            "it gives no pod: there is no field `spec.nodeSelektor` in a pod",
        ),
        (
            json!({"jsonPatch": [{"op": "remove", "path": "/spec/containers/0/command"}]}),
            "it gives no pod: the command of container \"agent\" must stay as it is",
        ),
        (
            json!({"containerSecurityContext": {"privileged": true}}),
            "it gives no pod: container \"agent\" is privileged, and the class does not say that it accepts that (`pod.acceptPrivileged`)",
        ),
        (
            json!({"serviceSecurityContext": {"privileged": true}}),
            "it gives no pod: container \"svc-0\" is privileged, and the class does not say that it accepts that (`pod.acceptPrivileged`)",
        ),
        (json!({"dnsPolicy": "None"}), "pod.dnsPolicy: None needs at least one of pod.dnsConfig.nameservers"),
    ];
    for (pod, problem) in table {
        assert_eq!(problems(pod.clone()), [problem], "{pod}");
    }
}
