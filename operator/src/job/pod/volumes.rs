//! The volumes of a job's pod, and what its containers see of them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use roadstead_crds::jobclass::{ClassVolumeMount, MountingContainer, PodSettings};
use roadstead_crds::labels::{BUILD_CONTAINER, BUILD_SPOOL_DIR, HELPER_CONTAINER, RUN_DIR, SPOOL_DIR};
use roadstead_crds::quantity;

/// Folder of the stage-agent.
pub(super) const AGENT_DIR: &str = "/.roadstead/agent";

/// Above all that is Roadstead's in a container.
const OURS: &str = "/.roadstead";
const SHARED_MEMORY: &str = "/dev/shm";

const AGENT_VOLUME: &str = "roadstead-agent";
const BUILDS_VOLUME: &str = "builds";
const CACHE_VOLUME: &str = "cache";
/// Bytes that a spool takes at least: some frames, so that output flows.
const SMALLEST_SPOOL: u64 = 1 << 20;
const SHARED_MEMORY_VOLUME: &str = "roadstead-shm";

/// What decides about volumes.
#[derive(Clone, Copy)]
pub(super) struct Space<'a> {
    /// Where repositories are checked out.
    pub builds_dir: &'a str,
    /// Where local caches are.
    pub cache_dir: &'a str,
    /// What the class says of its pods.
    pub pod: &'a PodSettings,
}

/// What a container may do with a volume.
#[derive(Clone, Copy)]
pub(super) enum Access {
    /// Read it.
    Read,
    /// Change it.
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

/// Where the stage-agent's program is.
pub(super) fn agent(access: Access) -> VolumeMount {
    mount(AGENT_VOLUME, AGENT_DIR, access)
}

/// Where `helper` finds what a dead `build` has left.
pub(super) fn spool_of_build() -> VolumeMount {
    mount(&spool(BUILD_CONTAINER), BUILD_SPOOL_DIR, Access::Read)
}

fn run(container: &str) -> String {
    format!("roadstead-run-{container}")
}

fn spool(container: &str) -> String {
    format!("roadstead-spool-{container}")
}

/// What a container sees.
pub(super) fn mounts(space: Space<'_>, container: MountingContainer, access: Access) -> Vec<VolumeMount> {
    let name = name(container);
    let mut mounts = vec![
        agent(access),
        mount(&run(name), RUN_DIR, Access::Write),
        mount(&spool(name), SPOOL_DIR, Access::Write),
    ];
    for (volume, path) in working(space) {
        if !taken(space, path) {
            mounts.push(mount(volume, path, Access::Write));
        }
    }
    if container == MountingContainer::Build && space.pod.shared_memory_size.is_some() {
        mounts.push(mount(SHARED_MEMORY_VOLUME, SHARED_MEMORY, Access::Write));
    }
    mounts.extend(of(space, container).map(wanted));
    mounts
}

/// What the container of a service sees: where repositories are checked out, and what the class gives it.
pub(super) fn mounts_of_service(space: Space<'_>) -> Vec<VolumeMount> {
    let own: Vec<_> = of(space, MountingContainer::Services).collect();
    let builds = space.builds_dir;
    let mut mounts = Vec::new();
    if !own.iter().any(|mount| mount.mount_path == builds) {
        // Where the class has a volume there, it is what the job works in.
        let taken = of(space, MountingContainer::Build).find(|mount| mount.mount_path == builds);
        mounts.push(taken.map_or_else(|| mount(BUILDS_VOLUME, builds, Access::Write), wanted));
    }
    mounts.extend(own.into_iter().map(wanted));
    mounts
}

/// A mount that the class wants.
fn wanted(mount: &ClassVolumeMount) -> VolumeMount {
    let access = if mount.read_only { Access::Read } else { Access::Write };
    VolumeMount { sub_path: mount.sub_path.clone(), ..self::mount(&mount.name, &mount.mount_path, access) }
}

/// All on disk but the shared memory: a spool in memory would count against the job's limit.
pub(super) fn volumes(space: Space<'_>) -> Vec<Volume> {
    let empty =
        |name: String| Volume { name, empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() };
    let mut volumes: Vec<Volume> = private().map(empty).to_vec();
    for (volume, path) in working(space) {
        if !taken(space, path) {
            volumes.push(empty(volume.to_owned()));
        }
    }
    if let Some(size) = &space.pod.shared_memory_size {
        let memory = EmptyDirVolumeSource {
            medium: Some("Memory".to_owned()),
            size_limit: Some(Quantity(size.clone())),
            ..EmptyDirVolumeSource::default()
        };
        let name = SHARED_MEMORY_VOLUME.to_owned();
        volumes.push(Volume { name, empty_dir: Some(memory), ..Volume::default() });
    }
    volumes.extend(space.pod.volumes.iter().cloned());
    volumes
}

fn private() -> [String; 5] {
    [
        AGENT_VOLUME.to_owned(),
        run(HELPER_CONTAINER),
        run(BUILD_CONTAINER),
        spool(HELPER_CONTAINER),
        spool(BUILD_CONTAINER),
    ]
}

/// Where jobs work, and the pod's own volumes there.
fn working(space: Space<'_>) -> [(&'static str, &str); 2] {
    [(BUILDS_VOLUME, space.builds_dir), (CACHE_VOLUME, space.cache_dir)]
}

/// Whether a volume of the class is there.
fn taken(space: Space<'_>, path: &str) -> bool {
    of(space, MountingContainer::Build).any(|mount| mount.mount_path == path)
}

fn of(space: Space<'_>, container: MountingContainer) -> impl Iterator<Item = &ClassVolumeMount> {
    space.pod.volume_mounts.iter().filter(move |mount| mount.containers.contains(&container))
}

fn name(container: MountingContainer) -> &'static str {
    match container {
        MountingContainer::Build => BUILD_CONTAINER,
        MountingContainer::Helper => HELPER_CONTAINER,
        MountingContainer::Services => "services",
    }
}

/// What is wrong with the volumes of a class, a sentence each.
pub(super) fn problems(space: Space<'_>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut names = BTreeSet::new();
    for Volume { name, .. } in &space.pod.volumes {
        if name.starts_with("roadstead-") || [BUILDS_VOLUME, CACHE_VOLUME].contains(&name.as_str()) {
            problems.push(format!("pod.volumes: \"{name}\" is the name of a volume of Roadstead's own"));
        } else if !names.insert(name.as_str()) {
            problems.push(format!("pod.volumes: there are two of the name \"{name}\""));
        }
    }
    for container in [MountingContainer::Build, MountingContainer::Helper, MountingContainer::Services] {
        let mut paths = BTreeMap::new();
        for mount in of(space, container) {
            if let Some(other) = paths.insert(mount.mount_path.as_str(), mount.name.as_str()) {
                problems.push(format!(
                    "pod.volumeMounts: \"{other}\" and \"{}\" are both at {} in the container \"{}\"",
                    mount.name,
                    mount.mount_path,
                    name(container)
                ));
            }
        }
    }
    for mount in &space.pod.volume_mounts {
        let path = mount.mount_path.as_str();
        if !names.contains(mount.name.as_str()) {
            problems.push(format!("pod.volumeMounts: there is no volume \"{}\" in pod.volumes", mount.name));
        }
        if path == OURS || path.starts_with("/.roadstead/") {
            problems.push(format!("pod.volumeMounts: {path} is Roadstead's own"));
        }
        if path == SHARED_MEMORY && space.pod.shared_memory_size.is_some() {
            problems.push(format!("pod.volumeMounts: {path} is already what pod.sharedMemorySize makes"));
        }
    }
    problems.extend(working(space).into_iter().filter_map(|(_, path)| of_both(space, path)));
    let sizes = [
        ("sharedMemorySize", &space.pod.shared_memory_size, "1", 1),
        ("spoolSize", &space.pod.spool_size, "1Mi", SMALLEST_SPOOL),
    ];
    for (field, size, least, bytes) in sizes {
        let Some(size) = size else { continue };
        match quantity::Quantity::parse(size).map(|size| size.to_u64()) {
            Ok(Some(amount)) if amount >= bytes => {}
            Ok(_) => problems.push(format!("pod.{field}: {size} is no size from {least}")),
            Err(error) => problems.push(format!("pod.{field}: {error}")),
        }
    }
    problems
}

/// Bytes of output that wait on the node's disk at most, where the class says how many.
pub(super) fn spool_bytes(pod: &PodSettings) -> Option<u64> {
    quantity::Quantity::parse(pod.spool_size.as_ref()?).ok()?.to_u64()
}

/// What is wrong with a volume of the class where jobs work: `helper` puts there what `build` works with.
fn of_both(space: Space<'_>, path: &str) -> Option<String> {
    let at = |container| of(space, container).find(|mount| mount.mount_path == path);
    let wrong = match (at(MountingContainer::Build), at(MountingContainer::Helper)) {
        (Some(build), Some(helper)) if build.name != helper.name || build.sub_path != helper.sub_path => {
            "has to be the same volume in both containers"
        }
        (Some(build), Some(helper)) if build.read_only || helper.read_only => "has to be writable",
        (Some(_), Some(_)) | (None, None) => return None,
        (Some(_), None) | (None, Some(_)) => "has to be mounted in both containers",
    };
    Some(format!("pod.volumeMounts: what is at {path}, where jobs work, {wrong}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn problems(pod: &Value) -> Vec<String> {
        let pod = &serde_json::from_value(pod.clone()).unwrap();
        super::problems(Space { builds_dir: "/builds", cache_dir: "/cache", pod })
    }

    #[test]
    fn what_is_wrong_with_volumes() {
        let disk = |name: &str| json!({"name": name, "emptyDir": {}});
        let at = |name: &str, path: &str| json!({"name": name, "mountPath": path});
        let build =
            |name: &str, path: &str| json!({"name": name, "mountPath": path, "containers": ["build"]});
        let helper =
            |name: &str, path: &str| json!({"name": name, "mountPath": path, "containers": ["helper"]});
        let table: [(Value, Value, &[&str]); 11] = [
            (json!([disk("a")]), json!([at("a", "/a"), build("a", "/b")]), &[]),
            (
                json!([disk("builds")]),
                json!([]),
                &["pod.volumes: \"builds\" is the name of a volume of Roadstead's own"],
            ),
            (
                json!([disk("roadstead-agent")]),
                json!([]),
                &["pod.volumes: \"roadstead-agent\" is the name of a volume of Roadstead's own"],
            ),
            (json!([disk("a"), disk("a")]), json!([]), &["pod.volumes: there are two of the name \"a\""]),
            (
                json!([]),
                json!([at("a", "/a")]),
                &["pod.volumeMounts: there is no volume \"a\" in pod.volumes"],
            ),
            (
                json!([disk("a")]),
                json!([at("a", "/.roadstead/run")]),
                &["pod.volumeMounts: /.roadstead/run is Roadstead's own"],
            ),
            (
                json!([disk("a"), disk("b")]),
                json!([at("a", "/a"), helper("b", "/a")]),
                &["pod.volumeMounts: \"a\" and \"b\" are both at /a in the container \"helper\""],
            ),
            (json!([disk("a")]), json!([at("a", "/cache"), at("a", "/builds")]), &[]),
            (
                json!([disk("a")]),
                json!([build("a", "/cache")]),
                &[
                    "pod.volumeMounts: what is at /cache, where jobs work, has to be mounted in both containers",
                ],
            ),
            (
                json!([disk("a"), disk("b")]),
                json!([build("a", "/cache"), helper("b", "/cache")]),
                &[
                    "pod.volumeMounts: what is at /cache, where jobs work, has to be the same volume in both containers",
                ],
            ),
            (
                json!([disk("a")]),
                json!([{"name": "a", "mountPath": "/builds", "readOnly": true}]),
                &["pod.volumeMounts: what is at /builds, where jobs work, has to be writable"],
            ),
        ];
        for (volumes, mounts, expected) in table {
            let pod = json!({"volumes": volumes, "volumeMounts": mounts});
            assert_eq!(problems(&pod), expected, "{pod}");
        }
    }

    #[test]
    fn a_spool_takes_a_mebibyte_at_least() {
        let of = |size: &str| problems(&json!({"spoolSize": size}));
        for fine in ["1Mi", "1048576", "512Mi", "2G"] {
            assert_eq!(of(fine), [""; 0], "{fine}");
        }
        assert_eq!(of("1048575"), ["pod.spoolSize: 1048575 is no size from 1Mi"]);
        assert_eq!(of("-2Gi"), ["pod.spoolSize: -2Gi is no size from 1Mi"]);
        assert_eq!(of("big").len(), 1);
    }

    #[test]
    fn shared_memory_has_a_size() {
        let of = |size: &str| problems(&json!({"sharedMemorySize": size}));
        assert_eq!(of("1Gi"), [""; 0]);
        assert_eq!(of("0"), ["pod.sharedMemorySize: 0 is no size from 1"]);
        assert!(of("much")[0].starts_with("pod.sharedMemorySize: "), "{:?}", of("much"));
        let pod = json!({"sharedMemorySize": "1Gi", "volumes": [{"name": "a", "emptyDir": {}}],
            "volumeMounts": [{"name": "a", "mountPath": "/dev/shm"}]});
        assert_eq!(problems(&pod).len(), 1);
    }
}
