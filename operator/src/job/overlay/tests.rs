//! What overlays and patches do, and what they may not.

use super::*;
use crate::fixture;
use crate::job::pod::{self, Order};
use crate::policy::class::Terms;
use crate::policy::placement::Placement;
use roadstead_crds::JobClassSpec;
use serde_json::json;

fn bare() -> Pod {
    let (job, class) = (fixture::job(), JobClassSpec::default());
    let terms = Terms::grant(&job.spec.request, "default", &class).unwrap();
    let identity = crate::job::Identity::of(&job).unwrap();
    let order = Order {
        identity: &identity,
        request: &job.spec.request,
        terms: &terms,
        placement: &Placement::default(),
        class: &class,
        images: &fixture::images(),
    };
    pod::build(order, "cij-4711-0123456789-3f2a91bc-1").unwrap()
}

fn with(overlay: &Value) -> Result<Pod, OverlayError> {
    lay(bare(), &PodSettings { overlay: overlay.as_object().cloned(), ..PodSettings::default() })
}

fn patched(operations: &Value) -> Result<Pod, OverlayError> {
    let json_patch = serde_json::from_value(operations.clone()).unwrap();
    lay(bare(), &PodSettings { json_patch, ..PodSettings::default() })
}

fn container<'a>(pod: &'a Pod, name: &str) -> &'a Container {
    pod.spec.as_ref().unwrap().containers.iter().find(|container| container.name == name).unwrap()
}

#[test]
fn lists_merge_by_name_and_the_rest_is_replaced() {
    let pod = with(&json!({
        "metadata": {"labels": {"team": "a"}, "annotations": {"note": "x"}},
        "spec": {
            "priorityClassName": "low",
            "enableServiceLinks": null,
            "dnsConfig": {"searches": ["a.example"]},
            "containers": [
                {"name": "build", "env": [{"name": "A", "value": "1"}],
                 "volumeMounts": [{"name": "builds", "mountPath": "/second"}]},
                {"name": "proxy", "image": "proxy:1"},
            ],
            "volumes": [{"name": "extra", "emptyDir": {}}],
        },
    }))
    .unwrap();
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(spec.priority_class_name.as_deref(), Some("low"));
    assert_eq!(spec.enable_service_links, None);
    assert_eq!(pod.metadata.labels.as_ref().unwrap()["team"], "a");
    let names: Vec<_> = spec.containers.iter().map(|container| container.name.as_str()).collect();
    assert_eq!(names, ["agent", "helper", "build", "proxy"]);
    let before = bare();
    let (old, new) = (container(&before, "build"), container(&pod, "build"));
    assert_eq!(new.image, old.image);
    assert_eq!(new.env.as_ref().unwrap().len(), old.env.as_ref().unwrap().len() + 1);
    assert_eq!(new.volume_mounts.as_ref().unwrap().len(), old.volume_mounts.as_ref().unwrap().len() + 1);
    let volumes = |pod: &Pod| pod.spec.as_ref().unwrap().volumes.as_ref().unwrap().len();
    assert_eq!(volumes(&pod), volumes(&before) + 1);
}

#[test]
fn an_empty_overlay_changes_nothing() {
    assert_eq!(with(&json!({})).unwrap(), bare());
    assert_eq!(with(&json!({"spec": {}, "metadata": {"labels": {}}})).unwrap(), bare());
}

#[test]
fn what_is_refused() {
    let table = [
        (json!({"kind": "Deployment"}), "`kind` cannot be set by a class"),
        (json!({"metadata": {"name": "x"}}), "`metadata.name` cannot be set by a class"),
        (json!({"metadata": {"finalizers": ["x/y"]}}), "`metadata.finalizers` cannot be set by a class"),
        (
            json!({"metadata": {"labels": {"roadstead.dev/cijob": "other"}}}),
            "label `roadstead.dev/cijob` must stay as it is",
        ),
        (json!({"metadata": {"labels": null}}), "label `app.kubernetes.io/managed-by` must stay as it is"),
        (
            json!({"spec": {"hostPID": true}}),
            "`spec.hostPID` would void the separation of the job's containers",
        ),
        (
            json!({"spec": {"shareProcessNamespace": true}}),
            "`spec.shareProcessNamespace` would void the separation of the job's containers",
        ),
        (json!({"spec": {"restartPolicy": "Always"}}), "`spec.restartPolicy` must stay as it is"),
        (
            json!({"spec": {"activeDeadlineSeconds": null}}),
            "`spec.activeDeadlineSeconds`, which follows from `timeouts.jobSeconds`, must stay as it is",
        ),
        (json!({"spec": {"nodeSelektor": {}}}), "there is no field `spec.nodeSelektor` in a pod"),
        (
            json!({"spec": {"containers": [{"name": "build", "imagePolicy": "Never"}]}}),
            "there is no field `spec.containers[2].imagePolicy` in a pod",
        ),
        (
            json!({"spec": {"containers": [{"name": "build", "command": ["sh"]}]}}),
            "the command of container \"build\" must stay as it is",
        ),
        (
            json!({"spec": {"containers": [{"name": "helper", "volumeMounts": [
                {"name": "cache", "mountPath": "/.roadstead/run"}]}]}}),
            "the mount of /.roadstead/run in container \"helper\" must stay as it is",
        ),
        (json!({"spec": {"containers": null}}), "container \"build\" must stay as it is"),
        (
            json!({"spec": {"volumes": [{"name": "roadstead-run-build", "emptyDir": null, "hostPath": {"path": "/x"}}]}}),
            "what a volume of Roadstead's own is must stay as it is",
        ),
        (
            json!({"spec": {"containers": [{"name": "build", "volumeMounts": [
                {"name": "roadstead-spool-helper", "mountPath": "/x"}]}]}}),
            "who mounts a volume of Roadstead's own, or something below /.roadstead, must stay as it is",
        ),
        (
            json!({"spec": {"initContainers": [{"name": "x", "image": "x", "volumeMounts": [
                {"name": "cache", "mountPath": "//.roadstead/agent/"}]}]}}),
            "who mounts a volume of Roadstead's own, or something below /.roadstead, must stay as it is",
        ),
    ];
    for (overlay, message) in table {
        assert_eq!(with(&overlay).unwrap_err().to_string(), message, "{overlay}");
    }
    assert!(matches!(with(&json!({"spec": {"containers": 3}})), Err(OverlayError::NotAPod(_))));
    assert!(matches!(with(&json!({"spec": null})), Err(OverlayError::Changed(_))));
}

#[test]
fn false_is_allowed_where_true_is_not() {
    assert!(with(&json!({"spec": {"hostPID": false, "shareProcessNamespace": false}})).is_ok());
}
#[test]
fn a_patch_takes_out_what_a_merge_cannot() {
    let operations = json!([
        {"op": "test", "path": "/spec/enableServiceLinks", "value": false},
        {"op": "remove", "path": "/spec/enableServiceLinks"},
        {"op": "add", "path": "/metadata/annotations", "value": {"note": "x"}},
        {"op": "add", "path": "/spec/containers/-", "value": {"name": "proxy", "image": "proxy:1"}},
    ]);
    let pod = patched(&operations).unwrap();
    assert_eq!(pod.spec.as_ref().unwrap().enable_service_links, None);
    assert_eq!(pod.metadata.annotations.as_ref().unwrap()["note"], "x");
    assert_eq!(container(&pod, "proxy").image.as_deref(), Some("proxy:1"));
    let table = [
        (
            json!([{"op": "remove", "path": "/spec/nodeName"}]),
            "`pod.jsonPatch` cannot be applied: operation 1: ",
        ),
        (
            json!([{"op": "test", "path": "/kind", "value": "Pod"}, {"op": "add", "path": "/spec/hostPID"}]),
            "`pod.jsonPatch` cannot be applied: operation 2: missing field `value`",
        ),
        (
            json!([{"op": "add", "path": "/metadata/finalizers", "value": ["a/b"]}]),
            "`metadata.finalizers` cannot be set by a class",
        ),
        (
            json!([{"op": "remove", "path": "/metadata/ownerReferences"}]),
            "`metadata.ownerReferences` cannot be set by a class",
        ),
        (
            json!([{"op": "add", "path": "/spec/hostPID", "value": true}]),
            "`spec.hostPID` would void the separation of the job's containers",
        ),
        (json!([{"op": "remove", "path": "/spec/containers/1"}]), "container \"helper\" must stay as it is"),
    ];
    for (operations, message) in table {
        let error = patched(&operations).unwrap_err().to_string();
        assert!(error.starts_with(message), "{operations}: {error}");
    }
}

#[test]
fn copies_of_copies_end_before_the_memory_does() {
    let doubling: Vec<_> = (0..32)
        .map(|n| json!({"op": "copy", "from": "/metadata", "path": format!("/metadata/a{n}")}))
        .collect();
    let error = patched(&json!(doubling)).unwrap_err().to_string();
    assert!(error.contains("larger than 1048576 bytes"), "{error}");
}

#[test]
fn capabilities_are_known_in_any_case() {
    let lower = json!({"spec": {"containers": [{"name": "dind", "image": "d",
        "securityContext": {"capabilities": {"add": ["cap_sys_admin"]}}}]}});
    assert!(matches!(with(&lower), Err(OverlayError::Privileged { .. })));
}

#[test]
fn privileges_have_to_be_accepted() {
    let sidecar = |context: Value| json!({"spec": {"containers": [{"name": "dind", "image": "d", "securityContext": context}]}});
    let init = json!({"spec": {"initContainers": [
        {"name": "sysctl", "image": "s", "securityContext": {"privileged": true}}]}});
    let table = [
        (sidecar(json!({"privileged": true})), Some("container \"dind\" is privileged")),
        (
            sidecar(json!({"capabilities": {"add": ["NET_ADMIN", "SYS_ADMIN"]}})),
            Some("container \"dind\" has the capability SYS_ADMIN"),
        ),
        (
            sidecar(json!({"capabilities": {"add": ["CAP_SYS_PTRACE"]}})),
            Some("container \"dind\" has the capability SYS_PTRACE"),
        ),
        (sidecar(json!({"capabilities": {"add": ["ALL"]}})), Some("container \"dind\" has all capabilities")),
        (init, Some("container \"sysctl\" is privileged")),
        (
            sidecar(json!({"privileged": false, "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}})),
            None,
        ),
    ];
    for (overlay, refused) in table {
        let error = with(&overlay).err().map(|error| error.to_string());
        let expected = refused.map(|refused| {
            format!("{refused}, and the class does not say that it accepts that (`pod.acceptPrivileged`)")
        });
        assert_eq!(error, expected, "{overlay}");
        let settings = PodSettings {
            overlay: overlay.as_object().cloned(),
            accept_privileged: true,
            ..PodSettings::default()
        };
        assert!(lay(bare(), &settings).is_ok(), "{overlay}");
    }
}
