//! The credentials with which the images of a job are pulled. Pure.
//!
//! They come from the variable `DOCKER_AUTH_CONFIG`, then from what GitLab sends with the job (those of its own
//! registry); of two for one registry the first counts, as with gitlab-runner. What no image of the job needs is left
//! out, and most jobs need none.
//! <https://docs.gitlab.com/ci/docker/using_docker_images/#access-an-image-from-a-private-container-registry>

use serde_json::{Map, Value, json};

use crate::shim::env::RunnerEnv;
use crate::shim::job_response::JobResponse;
use crate::shim::overrides;

/// The variable with a Docker configuration.
pub const VARIABLE: &str = "DOCKER_AUTH_CONFIG";

/// What Docker Hub is called in an image's name, and what kubelets look for in a configuration.
const HUB: &str = "docker.io";
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// The fields of an entry that a kubelet reads.
const FIELDS: [&str; 3] = ["auth", "username", "password"];

/// What is known of the registries of a job's images.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Registries {
    /// A Docker configuration with what the job's images need. Secret.
    pub config: Option<String>,
    /// A line for the job log, where something cannot be used.
    pub note: Option<String>,
}

/// Credentials of a registry, or of a part of it.
struct Entry {
    /// Host and path, as images have them.
    path: String,
    /// The same as it was written.
    server: String,
    /// What a kubelet reads. Secret.
    fields: Map<String, Value>,
}

/// The credentials that the images of a job need. The variable is the job's, or else what gitlab-runner has of its
/// configuration or of `secrets:`.
pub fn of(job: &JobResponse, env: &RunnerEnv) -> Registries {
    let images: Vec<String> = [&job.image]
        .into_iter()
        .chain(&job.services)
        .filter(|image| !image.name.is_empty())
        .map(|image| path_of(&image.name))
        .collect();
    let text = match overrides::expanded(&job.variables, VARIABLE) {
        text if text.is_empty() => env.job_variable(VARIABLE).unwrap_or_default().to_owned(),
        text => text,
    };
    let (mut entries, note) = match of_variable(&text) {
        Ok(entries) => (entries, None),
        Err(problem) => (Vec::new(), Some(format!("WARNING: {VARIABLE} is not used: {problem}"))),
    };
    entries.extend(of_gitlab(job));
    let mut auths = Map::new();
    let mut paths = Vec::new();
    for entry in entries {
        let needed = images.iter().any(|image| is_within(image, &entry.path));
        if !needed || paths.contains(&entry.path) {
            continue;
        }
        let key = if entry.path == HUB { HUB_KEY.to_owned() } else { entry.server };
        auths.insert(key, Value::Object(entry.fields));
        paths.push(entry.path);
    }
    Registries { config: (!auths.is_empty()).then(|| json!({"auths": auths}).to_string()), note }
}

/// Reads a Docker configuration. No problem quotes a part of it.
fn of_variable(text: &str) -> Result<Vec<Entry>, &'static str> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let config: Map<String, Value> =
        serde_json::from_str(text).map_err(|_| "it is not a Docker configuration in JSON")?;
    if ["credsStore", "credHelpers"].iter().any(|helper| config.contains_key(*helper))
        && !config.contains_key("auths")
    {
        return Err("credential helpers are not supported, only \"auths\"");
    }
    let auths = match config.get("auths") {
        None => return Ok(Vec::new()),
        Some(Value::Object(auths)) => auths,
        Some(_) => return Err("its \"auths\" is not an object"),
    };
    let entry = |(server, value): (&String, &Value)| {
        let field = |name: &str| {
            let text = value.get(name)?.as_str().filter(|text| !text.is_empty())?;
            Some((name.to_owned(), json!(text)))
        };
        let fields: Map<_, _> = FIELDS.into_iter().filter_map(field).collect();
        (!fields.is_empty()).then(|| Entry { path: registry(server), server: server.clone(), fields })
    };
    Ok(auths.iter().filter_map(entry).collect())
}

/// What GitLab sends with the job.
fn of_gitlab(job: &JobResponse) -> impl Iterator<Item = Entry> {
    let registries = job.credentials.iter().filter(|one| one.kind == "registry" && !one.url.is_empty());
    registries.map(|one| Entry {
        path: registry(&one.url),
        server: one.url.clone(),
        fields: [("username", &one.username), ("password", &one.password)]
            .map(|(name, value)| (name.to_owned(), json!(value)))
            .into_iter()
            .collect(),
    })
}

/// Host and path of an image, without tag and digest.
fn path_of(image: &str) -> String {
    let image = image.split_once('@').map_or(image, |(name, _)| name);
    let start = image.rfind('/').map_or(0, |slash| slash + 1);
    let end = image[start..].find(':').map_or(image.len(), |colon| start + colon);
    let name = &image[..end];
    match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host.eq_ignore_ascii_case("localhost") => {
            format!("{}/{path}", canonical(host))
        }
        // Without a host it is Docker Hub's.
        _ => format!("{HUB}/{name}"),
    }
}

/// Host and path of a registry, as a Docker configuration names it: also as a URL with the version of its API.
fn registry(server: &str) -> String {
    let server = server.split_once("://").map_or(server, |(_, rest)| rest).trim_end_matches('/');
    let server = ["/v1", "/v2"].iter().find_map(|version| server.strip_suffix(version)).unwrap_or(server);
    match server.split_once('/') {
        Some((host, path)) => format!("{}/{path}", canonical(host)),
        None => canonical(server),
    }
}

fn canonical(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    if host == "index.docker.io" { HUB.to_owned() } else { host }
}

/// Whether the image is in the registry, or in that part of it.
fn is_within(image: &str, registry: &str) -> bool {
    image.strip_prefix(registry).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(image: &str, variable: &Value, credentials: &Value) -> JobResponse {
        serde_json::from_value(json!({
            "id": 1, "image": {"name": image}, "credentials": credentials,
            "services": [{"name": "redis:7"}, {"name": "service.example/db"}],
            "variables": [{"key": "P", "value": "hunter2"}, {"key": "DOCKER_AUTH_CONFIG", "value": match variable {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            }}],
        }))
        .unwrap()
    }

    fn nothing() -> RunnerEnv {
        RunnerEnv::new([])
    }

    fn config(job: &JobResponse) -> Option<Value> {
        of(job, &nothing()).config.map(|text| serde_json::from_str(&text).unwrap())
    }

    fn gitlabs(url: &str) -> Value {
        json!([{"type": "registry", "url": url, "username": "gitlab-ci-token", "password": "token"}, {"type": "other", "url": url}])
    }

    #[test]
    fn most_jobs_need_none() {
        let other = json!({"auths": {"other.example": {"auth": "eDp5"}}});
        assert!(
            of(&job("debian:12", &other, &gitlabs("registry.example:5050")), &nothing())
                == Registries::default()
        );
        assert!(of(&job("debian:12", &json!(""), &json!(null)), &nothing()) == Registries::default());
        assert!(of(&serde_json::from_value(json!({"id": 1})).unwrap(), &nothing()) == Registries::default());
    }

    #[test]
    fn those_of_the_jobs_images_are_taken_the_variable_first() {
        let variable = json!({"auths": {
            "registry.example:5050": {"auth": "b2Y6dmFyaWFibGU=", "email": "x"},
            "unused.example": {"auth": "eDp5"},
            "https://index.docker.io/v1/": {"username": "u", "password": "$P"},
            "service.example": {},
        }});
        let job =
            job("Registry.example:5050/grp/app@sha256:00", &variable, &gitlabs("registry.example:5050"));
        let expected = json!({"auths": {
            "registry.example:5050": {"auth": "b2Y6dmFyaWFibGU="},
            "https://index.docker.io/v1/": {"username": "u", "password": "hunter2"},
        }});
        assert_eq!(config(&job), Some(expected));
        let of_gitlab =
            json!({"auths": {"service.example": {"username": "gitlab-ci-token", "password": "token"}}});
        assert_eq!(config(&self::job("", &json!(""), &gitlabs("service.example"))), Some(of_gitlab));
    }

    #[test]
    fn gitlab_runner_may_have_the_variable_where_the_job_has_not() {
        let env = RunnerEnv::new([(
            "CUSTOM_ENV_DOCKER_AUTH_CONFIG".into(),
            r#"{"auths": {"service.example": {"auth": "cnVubmVy"}}}"#.into(),
        )]);
        let config = |job: &JobResponse| of(job, &env).config.unwrap();
        assert!(config(&job("debian:12", &json!(""), &json!(null))).contains("cnVubmVy"));
        let own = json!({"auths": {"service.example": {"auth": "am9i"}}});
        assert!(config(&job("debian:12", &own, &json!(null))).contains("am9i"));
    }

    #[test]
    fn a_registry_may_be_a_part_of_one() {
        for (image, registry, within) in [
            ("registry.example/grp/app:1", "registry.example", true),
            ("registry.example/grp/app:1", "https://registry.example/v2/", true),
            ("registry.example/grp/app:1", "registry.example/grp", true),
            ("registry.example/grp/app:1", "registry.example/gr", false),
            ("registry.example/grp/app:1", "registry.example:443", false),
            ("registry.example.com/app", "registry.example", false),
            ("localhost/app", "localhost", true),
            ("debian", "docker.io", true),
            ("library/debian:12", "index.docker.io", true),
            ("docker.io/library/debian", "https://index.docker.io/v1/", true),
            ("grp/app", "grp", false),
        ] {
            assert_eq!(is_within(&path_of(image), &self::registry(registry)), within, "{image} {registry}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_said_without_a_value() {
        for (variable, words) in [
            (json!("{\"auths\": s3cret"), "it is not a Docker configuration in JSON"),
            (json!(["s3cret"]), "it is not a Docker configuration in JSON"),
            (json!({"auths": ["s3cret"]}), "its \"auths\" is not an object"),
            (json!({"credsStore": "s3cret"}), "credential helpers are not supported"),
        ] {
            let registries =
                of(&job("service.example/x", &variable, &gitlabs("service.example")), &nothing());
            let note = registries.note.unwrap();
            assert!(note.contains(words) && !note.contains("s3cret"), "{note}");
            assert!(registries.config.is_some(), "GitLab's own are used all the same");
        }
    }
}
