//! The request of a CiJob for a job that no GitLab has sent. Pure.
//!
//! What GitLab would say is either marked as by hand or not there: nothing of it could be one of
//! GitLab's jobs.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use roadstead_crds::names;
use roadstead_crds::request::{
    BY_HAND, GitRef, GitRefType, ImageRequest, JobIdentity, JobRequest, MOST_SERVICES, ProjectIdentity,
    RunnerIdentity, ServiceRequest, TagSource,
};

use super::request::{ServiceWish, Wishes};
use crate::shim::deposit::Deposit;
use crate::shim::exit::Failure;
use crate::shim::request::{LONGEST_TIMEOUT_SECONDS, check_lengths, in_microseconds};
use crate::shim::service_variables::Sources;
use crate::shim::services;

/// GitLab counts its jobs and projects from 1.
const NO_ID: i64 = 0;

/// Most tags of a job, and most characters of one, that the API takes.
const MOST_TAGS: usize = 64;
const LONGEST_TAG: usize = 255;

/// Name of the CiJob. `random` tells it from any other.
pub fn name(random: &str) -> String {
    names::cijob_name(BY_HAND, NO_ID, random)
}

/// The request of a job. `what` tells people what it is for.
pub fn request(
    wishes: &Wishes,
    what: &str,
    class_name: Option<&str>,
    requested_at: Timestamp,
) -> Result<JobRequest, Failure> {
    check_tags(&wishes.tags)?;
    let image = |name: &String| ImageRequest { name: name.clone(), pull_policy: Vec::new(), user: None };
    let request = JobRequest {
        server: BY_HAND.to_owned(),
        job: JobIdentity { id: NO_ID, name: what.to_owned(), stage: String::new() },
        project: ProjectIdentity { id: NO_ID, path: BY_HAND.to_owned() },
        git_ref: GitRef {
            name: String::new(),
            ref_type: GitRefType::Branch,
            sha: String::new(),
            // What is protected, GitLab says; here there is nobody to say it.
            protected: Some(false),
        },
        pipeline_id: None,
        user_id: None,
        user_login: None,
        pipeline_source: None,
        runner: RunnerIdentity::default(),
        tags: wishes.tags.clone(),
        // Who may create CiJobs says what they are, here as well as for GitLab.
        tag_source: Some(TagSource::Job),
        class_name: class_name.map(str::to_owned),
        image: wishes.image.as_ref().map(image),
        services: services(wishes)?,
        registry_credentials: false,
        overrides: wishes.variables.overrides()?,
        // As long as the class allows.
        timeout_seconds: LONGEST_TIMEOUT_SECONDS,
        keep_seconds: wishes.keep_seconds,
        requested_at: MicroTime(in_microseconds(requested_at)),
    };
    check_lengths(&request)?;
    Ok(request)
}

fn services(wishes: &Wishes) -> Result<Vec<ServiceRequest>, Failure> {
    if wishes.services.len() > MOST_SERVICES {
        return Err(Failure::user(format!("there are more than {MOST_SERVICES} services")));
    }
    let (variables, secrets) = (wishes.variables.as_of_gitlab(), wishes.variables.secrets());
    let service = |wish: &ServiceWish| services::of_one(&wish.as_of_gitlab(), &variables, &secrets);
    wishes.services.iter().map(service).collect()
}

/// What has to be stored for the job: its services find the variables of the job, and their own.
pub fn deposit(wishes: &Wishes) -> Deposit {
    let own = wishes.services.iter().map(|wish| wish.variables.as_of_gitlab()).collect();
    let sources = Sources { job: wishes.variables.as_of_gitlab(), services: own, ..Sources::default() };
    Deposit { services: sources, registries: None }
}

/// What the API would not take.
fn check_tags(tags: &[String]) -> Result<(), Failure> {
    if tags.len() > MOST_TAGS {
        return Err(Failure::user(format!("there are more than {MOST_TAGS} tags")));
    }
    if tags.iter().any(|tag| tag.is_empty() || tag.chars().count() > LONGEST_TAG) {
        return Err(Failure::user(format!("a tag has from 1 to {LONGEST_TAG} characters")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use roadstead_crds::reason::Blame;
    use serde_json::json;

    use super::*;
    use crate::shim::by_hand::request::{JobName, Variables};

    #[test]
    fn nothing_of_it_is_gitlabs() {
        let wishes = Wishes {
            image: Some("alpine:3.20".into()),
            keep_seconds: Some(600),
            tags: vec!["gpu".into()],
            services: vec![],
            variables: Variables(
                [("KUBERNETES_CPU_LIMIT".into(), "2".into()), ("PASSWORD".into(), "hunter2hunter2".into())]
                    .into(),
            ),
        };
        let request = request(&wishes, "session", Some("large"), Timestamp::UNIX_EPOCH).unwrap();
        let expected = json!({
            "server": "by-hand",
            "job": {"id": 0, "name": "session", "stage": ""},
            "project": {"id": 0, "path": "by-hand"},
            "ref": {"name": "", "type": "branch", "sha": "", "protected": false},
            "runner": {}, "tags": ["gpu"], "tagSource": "Job",
            "className": "large",
            "image": {"name": "alpine:3.20"},
            "overrides": {"KUBERNETES_CPU_LIMIT": "2"},
            "timeoutSeconds": 31_536_000,
            "keepSeconds": 600,
            "requestedAt": "1970-01-01T00:00:00.000000Z"
        });
        assert_eq!(serde_json::to_value(&request).unwrap(), expected);
        assert!(request.is_by_hand());
    }

    #[test]
    fn a_name_is_that_of_a_job_by_hand() {
        let (one, other) = (name("a"), name("b"));
        assert_ne!(one, other);
        assert!(JobName::new(&one).is_some() && JobName::new(&other).is_some(), "{one} {other}");
        // GitLab's own check of its executor has a large ID, and no server.
        for gitlabs in ["cij-1-0123456789", "cij-9223372036854775807-0123456789", "cij-0-0123456789-1"] {
            assert_eq!(JobName::new(gitlabs), None);
        }
    }

    #[test]
    fn what_a_variable_cannot_ask_for_is_refused_and_no_secret_is_asked_for() {
        let refusal = |variables: [(&str, &str); 2]| {
            let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
            let wishes = Wishes { variables: Variables(variables.into()), ..Wishes::default() };
            request(&wishes, "run", None, Timestamp::UNIX_EPOCH).unwrap_err().sentence
        };
        assert!(
            refusal([("KUBERNETES_CPU_LIMIT", "much"), ("A", "b")])
                .starts_with("KUBERNETES_CPU_LIMIT=\"much\" ")
        );
        let leaked =
            refusal([("KUBERNETES_POD_LABELS_1", "a=hunter2hunter2"), ("PASSWORD", "hunter2hunter2")]);
        assert!(
            leaked.starts_with("KUBERNETES_POD_LABELS_1 contains the value of another variable"),
            "{leaked}"
        );
    }

    #[test]
    fn what_the_api_would_not_take_is_refused() {
        let wishes = Wishes { image: Some("x".repeat(1025)), ..Wishes::default() };
        let failure = request(&wishes, "run", None, Timestamp::UNIX_EPOCH).unwrap_err();
        assert_eq!(failure.blame, Blame::User);
        for tags in [vec![String::new()], vec!["x".repeat(256)], vec!["x".to_owned(); 65]] {
            let wishes = Wishes { tags, ..Wishes::default() };
            let failure = request(&wishes, "run", None, Timestamp::UNIX_EPOCH).unwrap_err();
            assert_eq!(failure.blame, Blame::User);
        }
    }
}
