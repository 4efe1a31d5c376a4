//! What GitLab itself says of a job: its tags, who started it and what started its pipeline.
//!
//! A job response does not name the job's tags, and of variables an author may add more. So GitLab's
//! API is asked, once for each job, with the job's own token.
//! <https://docs.gitlab.com/api/jobs/#get-job-tokens-job>

use std::time::Duration;

use clap::ValueEnum;
use http::{Request, Uri};
use kube::{Client, Config};
use roadstead_crds::request::TagSource;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use tokio::time::Instant;

use crate::shim::cli::Options;
use crate::shim::cluster::{RequestError, chain, persistently};
use crate::shim::env::RunnerEnv;
use crate::shim::exit::Failure;
use crate::shim::job_response::{JobResponse, or_default};
use crate::shim::proxy::ProxyEnv;
use crate::shim::request::origin;

/// How long GitLab may take to answer, tries included.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// How long it may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Variable in which gitlab-runner hands on the certificates of GitLab's authority.
const CA_VARIABLE: &str = "CI_SERVER_TLS_CA_FILE";

/// Most tags of a job, and the longest, in characters: what a CiJob takes.
const MOST_TAGS: usize = 64;
const LONGEST_TAG: usize = 255;

/// Where the tags of jobs come from.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// GitLab is asked for each job.
    #[default]
    Job,
    /// The runner's tags stand for the job's. They choose the class, never a node.
    Runner,
    /// Nobody is asked, and no class that goes by tags takes a job.
    None,
}

/// What GitLab says of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Tags.
    pub tags: Vec<String>,
    /// Whose they are; `None`: nobody was asked.
    pub source: Option<TagSource>,
    /// Login of the user who started the job.
    pub user_login: Option<String>,
    /// What started the pipeline.
    pub pipeline_source: Option<String>,
}

/// Finds out what GitLab says of the job.
pub async fn ask(options: &Options, env: &RunnerEnv, job: &JobResponse) -> Result<Told, Failure> {
    if is_check(job) {
        return Ok(Told::default());
    }
    match options.tag_source {
        Source::None => Ok(Told::default()),
        Source::Runner => of_runner(job),
        Source::Job => of_job(options, env, job).await,
    }
}

/// Whether it is gitlab-runner's own check of its executor. GitLab knows nothing of such a job.
fn is_check(job: &JobResponse) -> bool {
    job.id == 0 || job.token.is_empty() || job.git_info.repo_url.is_empty()
}

/// A line for the job log, where the tags are not the job's own.
pub fn note(told: &Told) -> Option<String> {
    (told.source == Some(TagSource::Runner)).then(|| {
        format!(
            "The runner's tags ({}) stand for the job's (ROADSTEAD_TAG_SOURCE=runner): they choose the class, but no node",
            if told.tags.is_empty() { "none".to_owned() } else { told.tags.join(", ") }
        )
    })
}

fn of_runner(job: &JobResponse) -> Result<Told, Failure> {
    let tags = job.predefined("CI_RUNNER_TAGS").map(runner_tags).unwrap_or_default();
    Ok(Told { tags: checked(tags)?, source: Some(TagSource::Runner), ..Told::default() })
}

/// Reads `CI_RUNNER_TAGS`: a JSON list, or before GitLab 15.7 words with commas.
fn runner_tags(value: &str) -> Vec<String> {
    serde_json::from_str(value).unwrap_or_else(|_| {
        value.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(str::to_owned).collect()
    })
}

/// Tags that a CiJob takes, without empty ones.
pub fn checked(tags: Vec<String>) -> Result<Vec<String>, Failure> {
    if tags.len() > MOST_TAGS {
        let many = tags.len();
        return Err(Failure::user(format!("the job has {many} tags; at most {MOST_TAGS} are possible")));
    }
    if let Some(long) = tags.iter().find(|tag| tag.chars().count() > LONGEST_TAG) {
        let start: String = long.chars().take(32).collect();
        return Err(Failure::user(format!(
            "the job's tag \"{start}…\" is longer than {LONGEST_TAG} characters"
        )));
    }
    Ok(tags.into_iter().filter(|tag| !tag.is_empty()).collect())
}

/// GitLab's answer, as far as it is used.
#[derive(Deserialize)]
struct Answer {
    id: i64,
    #[serde(default, deserialize_with = "or_default")]
    tag_list: Option<Vec<String>>,
    #[serde(default, deserialize_with = "or_default")]
    user: User,
    #[serde(default, deserialize_with = "or_default")]
    pipeline: Pipeline,
}

#[derive(Deserialize, Default)]
struct User {
    #[serde(default, deserialize_with = "or_default")]
    username: String,
}

#[derive(Deserialize, Default)]
struct Pipeline {
    #[serde(default, deserialize_with = "or_default")]
    source: String,
}

async fn of_job(options: &Options, env: &RunnerEnv, job: &JobResponse) -> Result<Told, Failure> {
    let api = api(options.gitlab_api_url.as_deref(), job).map_err(Failure::system)?;
    let cannot = |why: String| {
        Failure::system(format!(
            "cannot ask GitLab at {api}/job for the job's tags: {why}; \
             ROADSTEAD_GITLAB_API_URL names another address, ROADSTEAD_TAG_SOURCE another source of tags"
        ))
    };
    let authority = authority(options, env, job).map_err(cannot)?;
    let client = client(&api, authority.as_deref(), &ProxyEnv::of_this_process()).map_err(cannot)?;
    let text = persistently(Instant::now() + ANSWER_WITHIN, || {
        let request = Request::get("/job").header("JOB-TOKEN", &job.token).body(Vec::new());
        let client = client.clone();
        async move { client.request_text(request.map_err(kube::Error::HttpError)?).await }
    });
    let text = text.await.map_err(|error| cannot(words(&error)))?;
    told(&text, job.id).map_err(cannot)?
}

/// Reads GitLab's answer. It must be on this very job.
fn told(text: &str, id: i64) -> Result<Result<Told, Failure>, String> {
    let answer: Answer =
        serde_json::from_str(text).map_err(|_| "the answer is not a job in JSON".to_owned())?;
    if answer.id != id {
        return Err(format!("the answer is on job {}, not {id}", answer.id));
    }
    let tags = answer.tag_list.ok_or("the answer does not name the job's tags")?;
    let short =
        |text: String, most: usize| Some(text).filter(|text| (1..=most).contains(&text.chars().count()));
    Ok(checked(tags).map(|tags| Told {
        tags,
        source: Some(TagSource::Job),
        user_login: short(answer.user.username, 255),
        pipeline_source: short(answer.pipeline.source, 64),
    }))
}

/// Where GitLab's API is, without a slash at its end: as configured, or as GitLab says. What GitLab
/// says counts only where it is the server of the job's repository, whose address nobody else can
/// have written: the job's token goes there.
fn api(configured: Option<&str>, job: &JobResponse) -> Result<String, String> {
    let configured = configured.map(str::trim).filter(|url| !url.is_empty());
    if let Some(url) = configured {
        let plain = origin(url, true).filter(|_| !url.contains('@'));
        let plain =
            plain.ok_or("ROADSTEAD_GITLAB_API_URL is not an http or https URL without credentials")?;
        return Ok(if plain.ends_with("/api/v4") { plain } else { format!("{plain}/api/v4") });
    }
    let said =
        "the job response does not say where GitLab's API is (CI_API_V4_URL): set ROADSTEAD_GITLAB_API_URL";
    let url = job.predefined("CI_API_V4_URL").and_then(|url| origin(url, true)).ok_or(said)?;
    if origin(&url, false) != origin(&job.git_info.repo_url, false) {
        return Err(format!(
            "GitLab's API at {url} is on another server than the job's repository, so the job's token is not sent there: \
             if it is right, set ROADSTEAD_GITLAB_API_URL"
        ));
    }
    Ok(url)
}

/// Certificates of GitLab's authority in PEM: from the configured file, or as gitlab-runner hands
/// them on. A variable or secret of the job under the same name would hide the runner's, so then there
/// are none.
fn authority(options: &Options, env: &RunnerEnv, job: &JobResponse) -> Result<Option<Vec<u8>>, String> {
    if let Some(path) = &options.gitlab_ca_file {
        let read = std::fs::read(path);
        return read.map(Some).map_err(|error| format!("cannot read {}: {error}", path.display()));
    }
    let shadowed = job.variables.iter().any(|variable| variable.key == CA_VARIABLE)
        || job.secrets.0.iter().any(|key| key == CA_VARIABLE);
    let handed_on = env.job_variable(CA_VARIABLE).filter(|_| !shadowed);
    Ok(handed_on.map(|pem| pem.as_bytes().to_vec()))
}

/// A client for GitLab's API.
fn client(api: &str, authority: Option<&[u8]>, proxies: &ProxyEnv) -> Result<Client, String> {
    let uri: Uri = api.parse().map_err(|_| "this is not a URL".to_owned())?;
    let (host, secure) = (uri.host().unwrap_or_default(), uri.scheme_str() == Some("https"));
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let proxy = proxies.of(secure, host, port).map(|proxy| {
        proxy
            .parse::<Uri>()
            .map_err(|_| "the proxy in the environment of gitlab-runner is not a URL".to_owned())
    });
    let mut config = Config::new(uri.clone());
    config.proxy_url = proxy.transpose()?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.default_retry = false;
    // Without any the client reads the system's, which plain HTTP does not need.
    config.root_cert = if secure { authority.map(roots) } else { Some(Vec::new()) };
    Client::try_from(config).map_err(|error| chain(&error))
}

/// The system's authorities and these, as for gitlab-runner itself.
fn roots(pem: &[u8]) -> Vec<Vec<u8>> {
    let own = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok);
    let system = rustls_native_certs::load_native_certs().certs;
    // One that cannot be used must not make all the others useless.
    let usable = |certificate: &CertificateDer<'_>| RootCertStore::empty().add(certificate.clone()).is_ok();
    own.chain(system).filter(usable).map(|certificate| certificate.as_ref().to_vec()).collect()
}

/// Why GitLab did not answer, without its words: who knows what they quote.
fn words(error: &RequestError) -> String {
    match error {
        RequestError::Failed(kube::Error::Api(status)) => match status.code {
            401 | 403 => format!("it answers {}, so it does not accept the job's token", status.code),
            404 => "it answers 404, so there is no such API".to_owned(),
            code => format!("it answers {code}"),
        },
        RequestError::Failed(error) => chain(error),
        RequestError::Late => format!("it did not answer within {} s", ANSWER_WITHIN.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use roadstead_crds::reason::Blame;
    use serde_json::{Value, json};

    use super::*;

    fn job(variables: &Value) -> JobResponse {
        serde_json::from_value(json!({
            "id": 7, "token": "glcbt-x", "variables": variables,
            "git_info": {"repo_url": "https://gitlab-ci-token:glcbt-x@gitlab.test/grp/proj.git"},
        }))
        .unwrap()
    }

    fn url(url: &str) -> Value {
        json!([{"key": "CI_API_V4_URL", "value": url}])
    }

    #[test]
    fn the_api_is_where_gitlab_says_if_it_is_the_repositorys_server() {
        let own = url("https://gitlab.test/api/v4");
        assert_eq!(api(None, &job(&own)).as_deref(), Ok("https://gitlab.test/api/v4"));
        assert_eq!(api(Some(" "), &job(&own)).as_deref(), Ok("https://gitlab.test/api/v4"));
        let twice = json!([{"key": "CI_API_V4_URL", "value": "https://gitlab.test/gitlab/api/v4"},
            {"key": "CI_API_V4_URL", "value": "https://evil.test/api/v4"}]);
        assert_eq!(api(None, &job(&twice)).as_deref(), Ok("https://gitlab.test/gitlab/api/v4"));
        for elsewhere in
            ["https://evil.test/api/v4", "http://gitlab.test/api/v4", "https://gitlab.test:8443/api/v4"]
        {
            let error = api(None, &job(&url(elsewhere))).unwrap_err();
            assert!(
                error.contains("another server") && error.contains("ROADSTEAD_GITLAB_API_URL"),
                "{error}"
            );
        }
        for none in [json!([]), url(""), url("gitlab.test"), url("ssh://gitlab.test")] {
            assert!(api(None, &job(&none)).unwrap_err().contains("does not say where"), "{none}");
        }
    }

    #[test]
    fn an_api_that_is_configured_is_believed() {
        let evil = url("https://evil.test/api/v4");
        for (configured, expected) in [
            ("https://other.test/api/v4", "https://other.test/api/v4"),
            ("https://other.test/api/v4/", "https://other.test/api/v4"),
            ("http://other.test:8080", "http://other.test:8080/api/v4"),
            ("https://other.test/gitlab", "https://other.test/gitlab/api/v4"),
        ] {
            assert_eq!(api(Some(configured), &job(&evil)).as_deref(), Ok(expected));
        }
        for bad in ["other.test", "ftp://other.test", "https://user:secret@other.test"] {
            let error = api(Some(bad), &job(&evil)).unwrap_err();
            assert!(error.contains("ROADSTEAD_GITLAB_API_URL") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn an_answer_is_on_this_job_and_names_its_tags() {
        let text = json!({"id": 7, "tag_list": ["a", "b"], "user": {"id": 9, "username": "ada"},
            "pipeline": {"source": "push"}, "other": [1]})
        .to_string();
        let expected = Told {
            tags: vec!["a".into(), "b".into()],
            source: Some(TagSource::Job),
            user_login: Some("ada".into()),
            pipeline_source: Some("push".into()),
        };
        assert_eq!(told(&text, 7), Ok(Ok(expected)));
        assert_eq!(told(&text, 8).unwrap_err(), "the answer is on job 7, not 8");
        let bare = told(r#"{"id":7,"tag_list":[],"user":null,"pipeline":null}"#, 7).unwrap().unwrap();
        assert_eq!(bare, Told { source: Some(TagSource::Job), ..Told::default() });
        for (text, words) in [
            ("<html>", "not a job"),
            ("[]", "not a job"),
            ("", "not a job"),
            (r#"{"id":7,"tag_list":[1]}"#, "not a job"),
            (r#"{"id":7}"#, "does not name the job's tags"),
            (r#"{"id":7,"tag_list":null}"#, "does not name the job's tags"),
        ] {
            let error = told(text, 7).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        let many = json!({"id": 7, "tag_list": vec!["x"; 65]}).to_string();
        let long = json!({"id": 7, "tag_list": ["ä".repeat(256)]}).to_string();
        for text in [many, long] {
            assert_eq!(told(&text, 7).unwrap().unwrap_err().blame, Blame::User);
        }
    }

    #[test]
    fn tags_of_the_runner_come_as_gitlab_ever_wrote_them() {
        for (value, tags) in [
            (r#"["k8s", "linux"]"#, &["k8s", "linux"][..]),
            ("[]", &[]),
            ("", &[]),
            ("a, b", &["a", "b"]),
            ("a,,b ", &["a", "b"]),
        ] {
            assert_eq!(runner_tags(value), tags, "{value}");
        }
        let forged = json!([{"key": "CI_RUNNER_TAGS", "value": "[\"a\"]"}, {"key": "CI_RUNNER_TAGS", "value": "[\"gpu\"]"}]);
        let told = of_runner(&job(&forged)).unwrap();
        assert_eq!((told.tags.as_slice(), told.source), (&["a".to_owned()][..], Some(TagSource::Runner)));
        assert!(note(&told).is_some_and(|line| line.contains("(a)")));
        assert_eq!(note(&Told { source: Some(TagSource::Job), ..told }), None);
    }

    #[test]
    fn gitlab_runners_own_check_asks_nobody() {
        let whole = job(&json!([]));
        assert!(!is_check(&whole));
        assert!(is_check(&JobResponse { id: 0, ..whole.clone() }));
        assert!(is_check(&JobResponse { token: String::new(), ..whole.clone() }));
        assert!(is_check(&JobResponse { git_info: crate::shim::job_response::GitInfo::default(), ..whole }));
    }

    #[test]
    fn a_variable_of_the_job_is_no_authority() {
        let env = RunnerEnv::new([("CUSTOM_ENV_CI_SERVER_TLS_CA_FILE".into(), "PEM".into())]);
        let options = Options::default();
        assert_eq!(authority(&options, &env, &job(&json!([]))), Ok(Some(b"PEM".to_vec())));
        let shadowing = json!([{"key": "CI_SERVER_TLS_CA_FILE", "value": "PEM"}]);
        assert_eq!(authority(&options, &env, &job(&shadowing)), Ok(None));
        let mut secret = job(&json!([]));
        secret.secrets.0.push("CI_SERVER_TLS_CA_FILE".into());
        assert_eq!(authority(&options, &env, &secret), Ok(None));
        let missing = Options { gitlab_ca_file: Some("/nonexistent/ca.pem".into()), ..Options::default() };
        assert!(authority(&missing, &env, &job(&json!([]))).unwrap_err().contains("/nonexistent/ca.pem"));
    }
}
