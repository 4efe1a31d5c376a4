//! Objects that tests start from.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use roadstead_crds::request::{
    GitRef, GitRefType, ImageRequest, JobIdentity, JobRequest, ProjectIdentity, RunnerIdentity,
};
use roadstead_crds::{CiJob, CiJobSpec, JobClass, JobClassSpec};

use crate::job::Identity;
use crate::job::pod::{self, Order};
use crate::policy::Images;
use crate::policy::class::{Terms, place};
use crate::policy::select::Candidate;

pub const JOB: &str = "cij-4711-0123456789";
pub const JOB_UID: &str = "3f2a91bc-0000-4000-8000-000000000000";
pub const NAMESPACE: &str = "ci-jobs";

/// The moment at which the job of [`job`] was created.
pub fn birth() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

/// So many milliseconds after [`birth`].
pub fn at(milliseconds: i64) -> Timestamp {
    birth().checked_add(SignedDuration::from_millis(milliseconds)).unwrap()
}

pub fn request() -> JobRequest {
    JobRequest {
        server: "https://gitlab.example".to_owned(),
        job: JobIdentity { id: 4711, name: "unit tests".to_owned(), stage: "test".to_owned() },
        project: ProjectIdentity { id: 5, path: "group/project".to_owned() },
        git_ref: GitRef {
            name: "main".to_owned(),
            ref_type: GitRefType::Branch,
            sha: "0123456789abcdef".to_owned(),
            protected: Some(true),
        },
        pipeline_id: Some(7),
        user_id: Some(9),
        user_login: None,
        pipeline_source: None,
        runner: RunnerIdentity::default(),
        tags: vec![],
        tag_source: None,
        class_name: None,
        image: Some(ImageRequest { name: "alpine:3.20".to_owned(), pull_policy: vec![], user: None }),
        services: vec![],
        registry_credentials: false,
        overrides: std::collections::BTreeMap::new(),
        timeout_seconds: 3600,
        keep_seconds: None,
        requested_at: MicroTime(birth()),
    }
}

pub fn job() -> CiJob {
    CiJob {
        metadata: ObjectMeta {
            name: Some(JOB.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            uid: Some(JOB_UID.to_owned()),
            resource_version: Some("1".to_owned()),
            generation: Some(1),
            creation_timestamp: Some(Time(birth())),
            ..ObjectMeta::default()
        },
        spec: CiJobSpec { request: request(), hold: false, replace: None, report: None },
        status: None,
    }
}

pub fn class() -> JobClass {
    JobClass::new("default", JobClassSpec::default())
}

/// The classes of a cluster that has only [`class`].
pub fn candidates() -> Vec<Arc<Candidate>> {
    vec![Arc::new(Candidate::new(Arc::new(class())))]
}

pub fn images() -> Images {
    Images { helper: "registry.example/helper:1".to_owned(), agent: "registry.example/agent:1".to_owned() }
}

/// A pod of [`job`] as the API server has it just after its creation.
pub fn pod(name: &str, uid: &str, created: Timestamp) -> Pod {
    let identity = Identity::of(&job()).unwrap();
    let class = JobClassSpec::default();
    let request = request();
    let terms = Terms::grant(&request, "default", &class).unwrap();
    let placement = place(&request, "default", &class).unwrap();
    let order = Order {
        identity: &identity,
        request: &request,
        terms: &terms,
        placement: &placement,
        class: &class,
        images: &images(),
    };
    let mut pod = pod::build(order, name).unwrap();
    pod.metadata.uid = Some(uid.to_owned());
    pod.metadata.creation_timestamp = Some(Time(created));
    pod.status = Some(PodStatus { phase: Some("Pending".to_owned()), ..PodStatus::default() });
    pod
}

/// The pod with a status of this JSON, and bound to a node where `node` names one.
pub fn with_status(mut pod: Pod, node: Option<&str>, status: serde_json::Value) -> Pod {
    pod.status = Some(serde_json::from_value(status).unwrap());
    if let Some(spec) = &mut pod.spec {
        spec.node_name = node.map(str::to_owned);
    }
    pod
}
