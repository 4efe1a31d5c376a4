//! Whether a class gives pods at all, found when the class is written and not first in a job.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use roadstead_crds::JobClassSpec;
use roadstead_crds::jobclass::{BuildImage, DnsPolicy, Services};
use roadstead_crds::request::{
    GitRef, GitRefType, ImageRequest, JobIdentity, JobRequest, ProjectIdentity, RunnerIdentity,
    ServiceRequest,
};

use crate::job::Identity;
use crate::job::pod::volumes::{self, Space};
use crate::job::pod::{Order, build};
use crate::policy::Images;
use crate::policy::class::{self, Terms};

/// What is wrong with the pods of a class, a sentence each. None: it gives pods, which the cluster may still refuse.
pub fn problems(spec: &JobClassSpec) -> Vec<String> {
    let builds = &spec.builds;
    let space = Space { builds_dir: &builds.builds_dir, cache_dir: &builds.cache_dir, pod: &spec.pod };
    let mut problems = volumes::problems(space);
    let servers = spec.pod.dns_config.as_ref().and_then(|config| config.nameservers.as_ref());
    if spec.pod.dns_policy == Some(DnsPolicy::None) && servers.is_none_or(Vec::is_empty) {
        problems.push("pod.dnsPolicy: None needs at least one of pod.dnsConfig.nameservers".to_owned());
    }
    problems.extend(pod_problem(spec));
    problems
}

/// Why a job like any other would get no pod.
fn pod_problem(spec: &JobClassSpec) -> Option<String> {
    let name = "trial";
    let request = any_job();
    // Any image will do: which ones the class allows is not the question.
    let open = JobClassSpec { image: BuildImage::default(), services: Services::default(), ..spec.clone() };
    // What is wrong with these is found elsewhere, field by field.
    let terms = Terms::grant(&request, name, &open).ok()?;
    let placement = class::place(&request, name, spec).ok()?;
    let identity = Identity { namespace: name.to_owned(), name: name.to_owned(), uid: name.to_owned() };
    let images = Images { helper: name.to_owned(), agent: name.to_owned() };
    let order = Order {
        identity: &identity,
        request: &request,
        terms: &terms,
        placement: &placement,
        class: spec,
        images: &images,
    };
    build(order, name).err().map(|error| format!("it gives no pod: {error}"))
}

/// A job that asks for nothing but a service.
fn any_job() -> JobRequest {
    let word = || "trial".to_owned();
    JobRequest {
        server: word(),
        job: JobIdentity { id: 0, name: word(), stage: word() },
        project: ProjectIdentity { id: 0, path: word() },
        git_ref: GitRef { name: word(), ref_type: GitRefType::Branch, sha: String::new(), protected: None },
        pipeline_id: None,
        user_id: None,
        user_login: None,
        pipeline_source: None,
        runner: RunnerIdentity::default(),
        tags: Vec::new(),
        tag_source: None,
        class_name: None,
        image: Some(ImageRequest { name: word(), pull_policy: Vec::new(), user: None }),
        services: vec![ServiceRequest { name: word(), ..ServiceRequest::default() }],
        registry_credentials: false,
        overrides: BTreeMap::new(),
        timeout_seconds: 3600,
        keep_seconds: None,
        requested_at: MicroTime(Timestamp::UNIX_EPOCH),
    }
}
