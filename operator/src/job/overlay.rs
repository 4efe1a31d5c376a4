//! Lays what a JobClass says of pods as such over a job's pod, and refuses what would break a boundary.
//!
//! First the overlay: objects merge by key, `null` removes. Lists merge by what names their items: `mountPath` for
//! `volumeMounts`, `name` where every item has one (containers, volumes, env). Every other value
//! replaces what was there. Then the JSON Patch.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume, VolumeMount};
use roadstead_crds::jobclass::PodSettings;
use roadstead_crds::labels::{AGENT_CONTAINER, BUILD_CONTAINER, HELPER_CONTAINER};
use serde_json::{Map, Value};
use thiserror::Error;

/// What the names of volumes begin with that only Roadstead uses.
const PREFIX: &str = "roadstead-";

/// Largest pod in bytes of JSON that operations may make, which is what the API server takes at most. Copies of copies
/// double.
const LARGEST: usize = 1 << 20;

/// Why a class gives no pod.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OverlayError {
    /// A part that a class cannot have a say in.
    #[error("`{0}` cannot be set by a class")]
    Unexpected(String),
    /// The merged object is no pod.
    #[error("the result is not a pod: {0}")]
    NotAPod(String),
    /// An operation is malformed, or cannot be done with this pod.
    #[error("`pod.jsonPatch` cannot be applied: {0}")]
    Patch(String),
    /// Kubernetes has no such field: most likely a misspelt one.
    #[error("there is no field `{0}` in a pod")]
    UnknownField(String),
    /// A boundary between the job and what is around it.
    #[error("`{0}` would void the separation of the job's containers")]
    Boundary(&'static str),
    /// The job's scripts could do anything to what runs them.
    #[error(
        "container \"{container}\" {what}, and the class does not say that it accepts that (`pod.acceptPrivileged`)"
    )]
    Privileged {
        /// Its name.
        container: String,
        /// What it would have.
        what: &'static str,
    },
    /// A part that Roadstead relies on.
    #[error("{0} must stay as it is")]
    Changed(String),
}

/// The pod as the class wants it in the end.
///
/// # Errors
/// What is wrong with the class.
pub fn lay(pod: Pod, settings: &PodSettings) -> Result<Pod, OverlayError> {
    let laid = match changed(&pod, settings)? {
        None => pod,
        Some(laid) => {
            check(&pod, &laid)?;
            laid
        }
    };
    if !settings.accept_privileged {
        unprivileged(&laid)?;
    }
    Ok(laid)
}

/// The pod after the overlay and the patch, if there is either.
fn changed(pod: &Pod, settings: &PodSettings) -> Result<Option<Pod>, OverlayError> {
    let overlay = settings.overlay.as_ref().filter(|overlay| !overlay.is_empty());
    if overlay.is_none() && settings.json_patch.is_empty() {
        return Ok(None);
    }
    let not_a_pod = |error: serde_json::Error| OverlayError::NotAPod(error.to_string());
    let before = serde_json::to_value(pod).map_err(not_a_pod)?;
    let mut after = before.clone();
    if let Some(overlay) = overlay {
        merge(&mut after, &Value::Object(overlay.clone()), "");
    }
    patch(&mut after, settings)?;
    permitted(&before, &after)?;
    let laid: Pod = serde_json::from_value(after.clone()).map_err(not_a_pod)?;
    let understood = serde_json::to_value(&laid).map_err(not_a_pod)?;
    match lost(&after, &understood, "") {
        Some(path) => Err(OverlayError::UnknownField(path)),
        None => Ok(Some(laid)),
    }
}

fn patch(pod: &mut Value, settings: &PodSettings) -> Result<(), OverlayError> {
    for (index, operation) in settings.json_patch.iter().enumerate() {
        let refused = |error: String| OverlayError::Patch(format!("operation {}: {error}", index + 1));
        let operation = serde_json::to_value(operation).and_then(serde_json::from_value);
        let operation = operation.map_err(|error| refused(error.to_string()))?;
        json_patch::patch(pod, &[operation]).map_err(|error| refused(error.kind.to_string()))?;
        if pod.to_string().len() > LARGEST {
            return Err(refused(format!("the pod becomes larger than {LARGEST} bytes")));
        }
    }
    Ok(())
}

/// Whether nothing changed but the labels, the annotations and the spec. A finalizer would keep the pod, an owner or
/// another name would lose it.
fn permitted(before: &Value, after: &Value) -> Result<(), OverlayError> {
    let differs = |before: &Value, after: &Value, key: &str| before.get(key) != after.get(key);
    let keys = |value: &Value| value.as_object().into_iter().flat_map(Map::keys).cloned().collect::<Vec<_>>();
    let all = |before: &Value, after: &Value| [keys(before), keys(after)].concat();
    for key in all(before, after) {
        if !matches!(key.as_str(), "metadata" | "spec") && differs(before, after, &key) {
            return Err(OverlayError::Unexpected(key));
        }
    }
    let (before, after) = (&before["metadata"], after.get("metadata").unwrap_or(&Value::Null));
    for key in all(before, after) {
        if !matches!(key.as_str(), "labels" | "annotations") && differs(before, after, &key) {
            return Err(OverlayError::Unexpected(format!("metadata.{key}")));
        }
    }
    Ok(())
}

fn merge(base: &mut Value, overlay: &Value, key: &str) {
    match (base, overlay) {
        (Value::Object(base), Value::Object(overlay)) => {
            for (key, value) in overlay {
                if value.is_null() {
                    base.remove(key);
                } else if let Some(old) = base.get_mut(key) {
                    merge(old, value, key);
                } else {
                    base.insert(key.clone(), value.clone());
                }
            }
        }
        (Value::Array(base), Value::Array(overlay)) if names(base, overlay, key).is_some() => {
            let by = names(base, overlay, key).unwrap_or_default();
            for item in overlay {
                match base.iter_mut().find(|old| old.get(by) == item.get(by)) {
                    Some(old) => merge(old, item, ""),
                    None => base.push(item.clone()),
                }
            }
        }
        (base, overlay) => *base = overlay.clone(),
    }
}

/// The field by which the items of two lists are the same, if there is one.
fn names(base: &[Value], overlay: &[Value], key: &str) -> Option<&'static str> {
    let by = if key == "volumeMounts" { "mountPath" } else { "name" };
    let named = |item: &Value| item.get(by).is_some_and(Value::is_string);
    base.iter().chain(overlay).all(named).then_some(by)
}

/// Path of the first value that decoding dropped.
fn lost(written: &Value, understood: &Value, path: &str) -> Option<String> {
    match (written, understood) {
        (Value::Object(written), Value::Object(understood)) => written.iter().find_map(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match understood.get(key) {
                Some(other) => lost(value, other, &path),
                None => (!value.is_null()).then_some(path),
            }
        }),
        (Value::Array(written), Value::Array(understood)) => written
            .iter()
            .zip(understood)
            .enumerate()
            .find_map(|(index, (value, other))| lost(value, other, &format!("{path}[{index}]"))),
        _ => None,
    }
}

/// What must hold whatever the class lays over the pod.
fn check(pod: &Pod, laid: &Pod) -> Result<(), OverlayError> {
    let changed = |what: &str| Err(OverlayError::Changed(what.to_owned()));
    let ours = pod.metadata.labels.iter().flatten();
    for (key, value) in ours {
        if laid.metadata.labels.as_ref().and_then(|labels| labels.get(key)) != Some(value) {
            return changed(&format!("label `{key}`"));
        }
    }
    let (Some(before), Some(after)) = (&pod.spec, &laid.spec) else { return changed("`spec`") };
    if after.share_process_namespace == Some(true) {
        return Err(OverlayError::Boundary("spec.shareProcessNamespace"));
    }
    if after.host_pid == Some(true) {
        return Err(OverlayError::Boundary("spec.hostPID"));
    }
    if after.restart_policy != before.restart_policy {
        // A script would run again in a container that has forgotten the first time.
        return changed("`spec.restartPolicy`");
    }
    if after.active_deadline_seconds != before.active_deadline_seconds {
        return changed("`spec.activeDeadlineSeconds`, which follows from `timeouts.jobSeconds`,");
    }
    let ours = |volume: &&Volume| volume.name.starts_with(PREFIX);
    let volumes = |spec: &PodSpec| spec.volumes.iter().flatten().filter(ours).cloned().collect::<Vec<_>>();
    if volumes(after) != volumes(before) {
        return changed("what a volume of Roadstead's own is");
    }
    let private = |spec: &PodSpec| all_containers(spec).map(private_mounts).sum::<usize>();
    if private(after) > private(before) {
        return changed("who mounts a volume of Roadstead's own, or something below /.roadstead,");
    }
    for name in [BUILD_CONTAINER, HELPER_CONTAINER, AGENT_CONTAINER] {
        let find =
            |containers: &[Container]| containers.iter().find(|container| container.name == name).cloned();
        let Some(before) = find(&before.containers) else { continue };
        let Some(after) = find(&after.containers) else { return changed(&format!("container \"{name}\"")) };
        if after.command != before.command || after.args != before.args {
            return changed(&format!("the command of container \"{name}\""));
        }
        if after.restart_policy.is_some() {
            return changed(&format!("the restart policy of container \"{name}\""));
        }
        for mount in before.volume_mounts.iter().flatten() {
            let kept = after.volume_mounts.iter().flatten().find(|kept| kept.mount_path == mount.mount_path);
            if mount.mount_path.starts_with("/.roadstead/") && kept != Some(mount) {
                return changed(&format!("the mount of {} in container \"{name}\"", mount.mount_path));
            }
        }
    }
    Ok(())
}

/// How many mounts of a container are of volumes that are Roadstead's own, or where only those belong.
fn private_mounts(container: &Container) -> usize {
    let private = |mount: &&VolumeMount| {
        let mut parts = mount.mount_path.split('/').filter(|part| !part.is_empty() && *part != ".");
        mount.name.starts_with(PREFIX) || parts.next() == Some(".roadstead") || parts.any(|part| part == "..")
    };
    container.volume_mounts.iter().flatten().filter(private).count()
}

/// Whether no container can get around what separates it from others.
fn unprivileged(pod: &Pod) -> Result<(), OverlayError> {
    const CAPABILITIES: [(&str, &str); 3] = [
        ("ALL", "has all capabilities"),
        ("SYS_ADMIN", "has the capability SYS_ADMIN"),
        ("SYS_PTRACE", "has the capability SYS_PTRACE"),
    ];
    for Container { name, security_context, .. } in pod.spec.iter().flat_map(all_containers) {
        let Some(context) = security_context else { continue };
        let added = context.capabilities.iter().flat_map(|capabilities| capabilities.add.iter().flatten());
        // Runtimes take them in any case, with and without the prefix.
        let mut added = added.map(|capability| capability.to_ascii_uppercase());
        let what = if context.privileged == Some(true) {
            Some("is privileged")
        } else {
            let told = |one: String| {
                let name = one.strip_prefix("CAP_").unwrap_or(&one);
                CAPABILITIES.iter().find(|(known, _)| *known == name).map(|(_, what)| *what)
            };
            added.find_map(told)
        };
        if let Some(what) = what {
            return Err(OverlayError::Privileged { container: name.clone(), what });
        }
    }
    Ok(())
}

fn all_containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

#[cfg(test)]
mod tests;
