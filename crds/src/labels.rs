//! Labels that Roadstead sets on job pods, and the names inside a job's pod that more than one
//! part has to know.

/// Name of the CiJob that the pod belongs to. The operator's watch of pods selects on it.
pub const CIJOB: &str = "roadstead.dev/cijob";
/// GitLab's ID of the job.
pub const JOB_ID: &str = "roadstead.dev/job-id";
/// GitLab's ID of the project.
pub const PROJECT_ID: &str = "roadstead.dev/project-id";
/// Name of the JobClass.
pub const CLASS: &str = "roadstead.dev/class";
/// Kubernetes' recommended label for the tool that manages an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`] on everything that the operator creates.
pub const MANAGER: &str = "roadstead";

/// Container that runs the job's own scripts, from the job's image.
pub const BUILD_CONTAINER: &str = "build";
/// Container that runs checkout, caches and artifacts.
pub const HELPER_CONTAINER: &str = "helper";
/// Container that puts the agent into the pod and exits.
pub const AGENT_CONTAINER: &str = "agent";

/// Name of the container of a job's service, by the service's place from 0.
pub fn service_container(service: usize) -> String {
    format!("svc-{service}")
}

/// Whether a container of that name is one of the job's services.
pub fn is_service_container(name: &str) -> bool {
    name.strip_prefix("svc-").is_some_and(|place| place.parse::<u8>().is_ok())
}

/// The agent's binary inside both containers. The admission policy allows no other command.
pub const AGENT_PATH: &str = "/.roadstead/agent/stage-agent";
/// Where an image that carries the agent has it.
pub const AGENT_IMAGE_PATH: &str = "/usr/local/bin/stage-agent";
/// Private volume of each container: the agent's socket and the stages' helper names.
pub const RUN_DIR: &str = "/.roadstead/run";
/// Volume with the output that is not yet delivered; the other container sees it read-only.
pub const SPOOL_DIR: &str = "/.roadstead/spool";
/// Where `helper` sees the spool of `build`.
pub const BUILD_SPOOL_DIR: &str = "/.roadstead/build-spool";

/// Exit code of the helper's agent when no client came for the orphan time.
pub const ORPHANED_EXIT_CODE: i32 = 86;
