//! From the job response to the request of a CiJob. Pure.
//!
//! Identity comes from the job response alone. What a person reads is shortened to what the API
//! takes; what something is decided by is taken whole or refused.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use roadstead_crds::request::{
    GitRef, GitRefType, ImageRequest, JobIdentity, JobRequest, ProjectIdentity, PullPolicy, RunnerIdentity,
};

use crate::shim::exit::Failure;
use crate::shim::job_response::{Image, JobResponse};
use crate::shim::redact::Secrets;
use crate::shim::tags::Told;
use crate::shim::{overrides, services};

/// Timeout that gitlab-runner itself assumes where GitLab sends none, in seconds.
const DEFAULT_TIMEOUT_SECONDS: i64 = 7_200;
/// Longest timeout that the API takes, in seconds.
pub const LONGEST_TIMEOUT_SECONDS: i64 = 31_536_000;
/// Server of jobs that have neither a repository nor variables, such as gitlab-runner's own check
/// of its executor at the start.
const NO_SERVER: &str = "unknown";

/// Builds the request of a job.
///
/// The server is the scheme, host and port of the repository's URL, because the job's author
/// cannot change that; only where a job has no repository is it `CI_SERVER_URL`.
pub fn build(
    job: &JobResponse,
    told: Told,
    secrets: &Secrets,
    class_name: Option<&str>,
    requested_at: Timestamp,
) -> Result<JobRequest, Failure> {
    if job.id < 0 {
        return Err(Failure::system(format!("the job response has the impossible id {}", job.id)));
    }
    let info = &job.job_info;
    let request = JobRequest {
        server: server(job),
        job: JobIdentity { id: job.id, name: shortened(&info.name, 255), stage: shortened(&info.stage, 255) },
        project: ProjectIdentity { id: info.project_id, path: project_path(job) },
        git_ref: git_ref(job),
        pipeline_id: info.pipeline_id.filter(|id| *id > 0),
        user_id: info.user_id.filter(|id| *id > 0),
        user_login: told.user_login,
        pipeline_source: told.pipeline_source.or_else(|| pipeline_source(job)),
        runner: RunnerIdentity {
            id: job.predefined("CI_RUNNER_ID").and_then(|id| id.parse().ok()),
            description: job.predefined("CI_RUNNER_DESCRIPTION").map(|text| shortened(text, 1024)),
        },
        tags: told.tags,
        tag_source: told.source,
        class_name: class_name.map(str::to_owned),
        image: image(&job.image)?,
        services: services::of(job, secrets)?,
        registry_credentials: false,
        overrides: overrides::of(&job.variables, secrets)?,
        timeout_seconds: match job.runner_info.timeout {
            ..=0 => DEFAULT_TIMEOUT_SECONDS,
            seconds => seconds.min(LONGEST_TIMEOUT_SECONDS),
        },
        keep_seconds: None,
        requested_at: MicroTime(in_microseconds(requested_at)),
    };
    check_lengths(&request)?;
    check_secrets(job, &request, secrets)?;
    Ok(request)
}

/// The time as the API stores it, so that what comes back is equal to what was sent.
pub fn in_microseconds(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}

fn server(job: &JobResponse) -> String {
    origin(&job.git_info.repo_url, false)
        .or_else(|| origin(job.predefined("CI_SERVER_URL")?, true))
        .unwrap_or_else(|| NO_SERVER.to_owned())
}

/// Scheme, host and port of an HTTP URL, and its path where wanted; never its credentials.
pub(crate) fn origin(url: &str, with_path: bool) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let default_port = match scheme.as_str() {
        "https" => ":443",
        "http" => ":80",
        _ => return None,
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // The last @ ends the credentials: a password may contain one.
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host).to_ascii_lowercase();
    let host = host.strip_suffix(default_port).unwrap_or(&host);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if host.is_empty() || !host.chars().all(plain) {
        return None;
    }
    let path = path.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    Some(format!("{scheme}://{host}{}", if with_path { path } else { "" }))
}

/// Path of the project; older servers name it only as a variable.
fn project_path(job: &JobResponse) -> String {
    match job.job_info.project_full_path.as_str() {
        "" => job.predefined("CI_PROJECT_PATH").unwrap_or_default().to_owned(),
        path => path.to_owned(),
    }
}

fn git_ref(job: &JobResponse) -> GitRef {
    let git = &job.git_info;
    // Older servers say it only as a variable, which gitlab-runner too takes from there.
    let variable = || match job.predefined("CI_COMMIT_REF_PROTECTED") {
        Some("true") => Some(true),
        Some("false") => Some(false),
        _ => None,
    };
    GitRef {
        name: git.git_ref.clone(),
        ref_type: if git.ref_type == "tag" { GitRefType::Tag } else { GitRefType::Branch },
        sha: git.sha.clone(),
        protected: if is_from_fork(job) { Some(false) } else { git.protected.or_else(variable) },
    }
}

/// Whether the job belongs to a merge request from another project. GitLab gives such a pipeline no
/// protected runner; nothing that it might say to the contrary is believed.
/// <https://docs.gitlab.com/ci/pipelines/merge_request_pipelines/#control-access-to-protected-variables-and-runners>
fn is_from_fork(job: &JobResponse) -> bool {
    let source = job.predefined("CI_MERGE_REQUEST_SOURCE_PROJECT_ID");
    source.is_some_and(|source| source.parse() != Ok(job.job_info.project_id))
}

fn pipeline_source(job: &JobResponse) -> Option<String> {
    let source = job.predefined("CI_PIPELINE_SOURCE")?;
    (1..=64).contains(&source.chars().count()).then(|| source.to_owned())
}

fn image(image: &Image) -> Result<Option<ImageRequest>, Failure> {
    if image.name.is_empty() {
        return Ok(None);
    }
    let (pull_policy, user) =
        (pull_policy(image, "image:pull_policy")?, user(image, "image:kubernetes:user")?);
    Ok(Some(ImageRequest { name: image.name.clone(), pull_policy, user }))
}

/// The pull policies of an image, each once. `field` is where the job names them.
pub(crate) fn pull_policy(image: &Image, field: &str) -> Result<Vec<PullPolicy>, Failure> {
    let mut pull_policy = Vec::new();
    for word in &image.pull_policy {
        let policy = match word.as_str() {
            "always" => PullPolicy::Always,
            "if-not-present" => PullPolicy::IfNotPresent,
            "never" => PullPolicy::Never,
            _ => {
                let known = "it must be always, if-not-present or never";
                return Err(Failure::user(format!("{field} of the job is not valid: {known}")));
            }
        };
        if !pull_policy.contains(&policy) {
            pull_policy.push(policy);
        }
    }
    Ok(pull_policy)
}

/// The user to run an image as. `field` is where the job names it.
pub(crate) fn user(image: &Image, field: &str) -> Result<Option<String>, Failure> {
    match image.executor_opts.kubernetes.user.0.as_str() {
        "" => Ok(None),
        user if is_uid_and_gid(user) => Ok(Some(user.to_owned())),
        _ => {
            let form = "it must be a numeric user ID, or a user and a group ID such as 1000:1000";
            Err(Failure::user(format!("{field} of the job is not valid: {form}")))
        }
    }
}

fn is_uid_and_gid(user: &str) -> bool {
    let number =
        |text: &str| (1..=10).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    match user.split_once(':') {
        Some((uid, gid)) => number(uid) && number(gid),
        None => number(user),
    }
}

/// At most `limit` characters, the last of them an ellipsis where something was left out.
fn shortened(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    text.chars().take(limit.saturating_sub(1)).chain(['…']).collect()
}

/// Refuses what the API would not take, in words that say whose doing it is.
pub fn check_lengths(request: &JobRequest) -> Result<(), Failure> {
    let sha = &request.git_ref.sha;
    if sha.len() > 64 || !sha.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(Failure::system("the commit in the job response is not a hexadecimal hash"));
    }
    for (field, text, limit) in [
        ("the URL of the GitLab server", &request.server, 512),
        ("the path of the project", &request.project.path, 512),
        ("the name of the Git ref", &request.git_ref.name, 1024),
    ] {
        if text.chars().count() > limit {
            return Err(Failure::system(format!("{field} is longer than {limit} characters")));
        }
    }
    if request.image.as_ref().is_some_and(|image| image.name.chars().count() > 1024) {
        return Err(Failure::user("the name of the job's image is longer than 1024 characters"));
    }
    if let Some(class) = &request.class_name {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let ends = class.starts_with('-') || class.ends_with('-');
        if class.is_empty() || class.len() > 63 || ends || !class.bytes().all(plain) {
            return Err(Failure::system(format!("{class:?} cannot be the name of a JobClass")));
        }
    }
    Ok(())
}

/// Nothing that GitLab masks may reach an object that others can read. Texts are checked as they
/// were sent: what was shortened might end in a part of a secret.
fn check_secrets(job: &JobResponse, request: &JobRequest, secrets: &Secrets) -> Result<(), Failure> {
    let image = request.image.as_ref();
    let overrides = request.overrides.iter().map(|(name, value)| (name.as_str(), Some(value.as_str())));
    let fields = [
        ("the URL of the GitLab server", Some(request.server.as_str())),
        ("the name of the job", Some(job.job_info.name.as_str())),
        ("the stage of the job", Some(job.job_info.stage.as_str())),
        ("the path of the project", Some(request.project.path.as_str())),
        ("the name of the Git ref", Some(request.git_ref.name.as_str())),
        ("the commit", Some(request.git_ref.sha.as_str())),
        ("the description of the runner", job.predefined("CI_RUNNER_DESCRIPTION")),
        ("the login of the user", request.user_login.as_deref()),
        ("the source of the pipeline", request.pipeline_source.as_deref()),
        ("the name of the image", image.map(|image| image.name.as_str())),
        ("image:kubernetes:user", image.and_then(|image| image.user.as_deref())),
    ];
    let tags = request.tags.iter().map(|tag| ("a tag of the job", Some(tag.as_str())));
    let services = request.services.iter().flat_map(|service| {
        let words = service.entrypoint.iter().chain(&service.command);
        let words = words.map(|word| ("the entrypoint or command of a service", Some(word.as_str())));
        let aliases = service.aliases.iter().map(|alias| ("an alias of a service", Some(alias.as_str())));
        let overrides = service.overrides.iter().map(|(name, value)| (name.as_str(), Some(value.as_str())));
        let image = [("the image of a service", Some(service.name.as_str()))];
        image.into_iter().chain(words).chain(aliases).chain(overrides)
    });
    for (field, text) in fields.into_iter().chain(tags).chain(overrides).chain(services) {
        if text.is_some_and(|text| secrets.occur_in(text)) {
            return Err(Failure::user(format!(
                "{field} contains the value of a masked variable or another secret of the job; \
                 it would become visible in the cluster, so the job is refused"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use roadstead_crds::reason::Blame;
    use roadstead_crds::request::TagSource;
    use serde_json::{Value, json};

    use super::*;
    use crate::shim::env::RunnerEnv;

    fn response() -> Value {
        json!({
            "id": 4711, "token": "glcbt-job",
            "job_info": {"name": "test", "stage": "build", "project_id": 5, "project_full_path": "grp/proj",
                "pipeline_id": 7, "user_id": 9},
            "git_info": {"repo_url": "https://gitlab-ci-token:glcbt-job@GitLab.test:443/grp/proj.git", "ref": "main",
                "sha": "0123456789abcdef0123456789abcdef01234567", "ref_type": "branch", "protected": true},
            "runner_info": {"timeout": 3600},
            "variables": [
                {"key": "CI_RUNNER_ID", "value": "12"}, {"key": "CI_RUNNER_ID", "value": "13"},
                {"key": "CI_RUNNER_DESCRIPTION", "value": "on kubernetes"}, {"key": "CI_PIPELINE_SOURCE", "value": "push"},
                {"key": "PASSWORD", "value": "hunter2hunter2", "masked": true}],
            "image": {"name": "alpine:3.20", "executor_opts": {"kubernetes": {"user": "1000:1000"}},
                "pull_policy": ["if-not-present", "always", "always"]}
        })
    }

    fn build_from(response: &Value) -> Result<JobRequest, Failure> {
        let job: JobResponse = serde_json::from_value(response.clone()).unwrap();
        let secrets = Secrets::of(&job, &RunnerEnv::new([]));
        let told = Told {
            tags: vec!["linux".to_owned(), "docker".to_owned()],
            source: Some(TagSource::Job),
            user_login: Some("ada".to_owned()),
            pipeline_source: None,
        };
        build(
            &job,
            told,
            &secrets,
            Some("large"),
            Timestamp::from_nanosecond(1_790_000_000_123_456_789).unwrap(),
        )
    }

    fn with(path: &str, value: Value) -> Value {
        let mut response = response();
        *response.pointer_mut(path).unwrap() = value;
        response
    }

    #[test]
    fn a_whole_request() {
        let request = build_from(&response()).unwrap();
        let expected = json!({
            "server": "https://gitlab.test",
            "job": {"id": 4711, "name": "test", "stage": "build"},
            "project": {"id": 5, "path": "grp/proj"},
            "ref": {"name": "main", "type": "branch", "sha": "0123456789abcdef0123456789abcdef01234567", "protected": true},
            "pipelineId": 7, "userId": 9, "userLogin": "ada", "pipelineSource": "push",
            "tags": ["linux", "docker"], "tagSource": "Job",
            "runner": {"id": 12, "description": "on kubernetes"},
            "className": "large",
            "image": {"name": "alpine:3.20", "pullPolicy": ["IfNotPresent", "Always"], "user": "1000:1000"},
            "timeoutSeconds": 3600,
            "requestedAt": "2026-09-21T14:13:20.123456Z"
        });
        assert_eq!(serde_json::to_value(&request).unwrap(), expected);
        let back: JobRequest = serde_json::from_value(expected).unwrap();
        assert_eq!(back, request, "what the API gives back is equal to what was sent");
    }

    #[test]
    fn the_least_that_a_job_can_be() {
        let request = build_from(&json!({"id": i64::MAX})).unwrap();
        assert_eq!(
            (request.server.as_str(), request.timeout_seconds, request.image),
            ("unknown", 7200, None)
        );
        assert_eq!(request.git_ref.protected, None);
    }

    #[test]
    fn servers() {
        for (url, server) in [
            ("http://gitlab-ci-token:a@b@host:8080/x/y.git", Some("http://host:8080")),
            ("https://host/gitlab/x/y.git", Some("https://host")),
            ("HTTPS://HOST:443", Some("https://host")),
            ("http://[::1]:80/x", Some("http://[::1]")),
            ("https://host?x@y", Some("https://host")),
            ("ssh://git@host/x", None),
            ("https://", None),
            ("https://user@/x", None),
            ("https://ho st/x", None),
            ("", None),
        ] {
            assert_eq!(origin(url, false).as_deref(), server, "{url}");
        }
        let variable = json!([{"key": "CI_SERVER_URL", "value": "https://host/gitlab/"}, {"key": "CI_SERVER_URL", "value": "https://evil"}]);
        let mut response = with("/variables", variable);
        response["git_info"]["repo_url"] = json!("");
        assert_eq!(build_from(&response).unwrap().server, "https://host/gitlab");
    }

    #[test]
    fn protected_comes_from_the_file_then_from_the_first_variable() {
        let variables = json!([{"key": "CI_COMMIT_REF_PROTECTED", "value": "false"}, {"key": "CI_COMMIT_REF_PROTECTED", "value": "true"}]);
        let mut response = with("/variables", variables);
        assert_eq!(build_from(&response).unwrap().git_ref.protected, Some(true));
        response["git_info"]["protected"] = Value::Null;
        assert_eq!(build_from(&response).unwrap().git_ref.protected, Some(false));
    }

    #[test]
    fn a_merge_request_from_a_fork_is_not_protected() {
        let variable = |id: &str| json!([{"key": "CI_MERGE_REQUEST_SOURCE_PROJECT_ID", "value": id}]);
        for (source, protected) in [("5", true), ("6", false), ("", false), ("eyJhbGciOi", false)] {
            let request = build_from(&with("/variables", variable(source))).unwrap();
            assert_eq!(request.git_ref.protected, Some(protected), "{source:?}");
        }
    }

    #[test]
    fn what_people_read_is_shortened() {
        let request = build_from(&with("/job_info/name", json!("ä".repeat(300)))).unwrap();
        assert_eq!(request.job.name, format!("{}…", "ä".repeat(254)));
        assert_eq!(shortened(&"ä".repeat(255), 255), "ä".repeat(255));
    }

    #[test]
    fn a_timeout_is_one_that_the_api_takes() {
        for (sent, seconds) in [(-1, 7200), (0, 7200), (1, 1), (i64::MAX, 31_536_000)] {
            assert_eq!(
                build_from(&with("/runner_info/timeout", json!(sent))).unwrap().timeout_seconds,
                seconds
            );
        }
    }

    #[test]
    fn refusals_name_the_field_and_whose_doing_it_is() {
        let long = |n: usize| json!("x".repeat(n));
        let secret = " contains the value of a masked variable or another secret of the job; it would become visible in the cluster, so the job is refused";
        for (response, blame, sentence) in [
            (with("/image/pull_policy", json!(["sometimes"])), Blame::User, "image:pull_policy of the job is not valid: it must be always, if-not-present or never".to_owned()),
            (with("/image/executor_opts/kubernetes/user", json!("root")), Blame::User, "image:kubernetes:user of the job is not valid: it must be a numeric user ID, or a user and a group ID such as 1000:1000".to_owned()),
            (with("/image/name", long(1025)), Blame::User, "the name of the job's image is longer than 1024 characters".to_owned()),
            (with("/job_info/project_full_path", long(513)), Blame::System, "the path of the project is longer than 512 characters".to_owned()),
            (with("/git_info/ref", long(1025)), Blame::System, "the name of the Git ref is longer than 1024 characters".to_owned()),
            (with("/git_info/sha", json!("HEAD")), Blame::System, "the commit in the job response is not a hexadecimal hash".to_owned()),
            (with("/id", json!(-1)), Blame::System, "the job response has the impossible id -1".to_owned()),
            (with("/image/name", json!("registry/glcbt-job/x")), Blame::User, format!("the name of the image{secret}")),
            (with("/variables/4/value", json!("linux")), Blame::User, format!("a tag of the job{secret}")),
            (with("/git_info/ref", json!("x-hunter2hunter2")), Blame::User, format!("the name of the Git ref{secret}")),
            (with("/job_info/name", json!("hunter2hunter2")), Blame::User, format!("the name of the job{secret}")),
        ] {
            assert_eq!(build_from(&response), Err(Failure { blame, sentence, exit_code: None }));
        }
        for (service, field) in [
            (json!({"name": "registry/hunter2hunter2/redis"}), "the image of a service"),
            (json!({"name": "redis", "alias": "hunter2hunter2"}), "an alias of a service"),
            (
                json!({"name": "redis", "command": ["--requirepass", "hunter2hunter2"]}),
                "the entrypoint or command of a service",
            ),
        ] {
            let mut response = response();
            response["services"] = json!([service]);
            assert_eq!(build_from(&response), Err(Failure::user(format!("{field}{secret}"))));
        }
    }

    #[test]
    fn class_names() {
        let job: JobResponse = serde_json::from_value(response()).unwrap();
        let build = |class| build(&job, Told::default(), &Secrets::default(), class, Timestamp::UNIX_EPOCH);
        assert_eq!(build(None).unwrap().class_name, None);
        for bad in ["", "-a", "a-", "A", "a.b", &"a".repeat(64)] {
            assert_eq!(build(Some(bad)).unwrap_err().blame, Blame::System, "{bad}");
        }
    }
}
