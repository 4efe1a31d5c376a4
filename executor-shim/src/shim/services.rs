//! The services of a job, as the CiJob's request has them. Pure.

use roadstead_crds::names::is_dns_subdomain;
use roadstead_crds::request::{LONGEST_WORD, MOST_SERVICES, MOST_WORDS, ServiceRequest};

use crate::shim::exit::Failure;
use crate::shim::job_response::{Image, JobResponse, Variable};
use crate::shim::redact::Secrets;
use crate::shim::{overrides, request};

/// The variable of a service that names the port which it is to be asked at.
pub const READINESS_PORT: &str = "HEALTHCHECK_TCP_PORT";

/// Most names of a service that the API takes.
const MOST_ALIASES: usize = 32;

/// The services of the job that have an image. GitLab leaves out the others: a variable may be empty.
pub fn named(job: &JobResponse) -> impl Iterator<Item = &Image> {
    job.services.iter().filter(|service| !service.name.is_empty())
}

/// The requests of a job's services.
///
/// # Errors
/// When the API would not take one, or a part of it is not what it has to be.
pub fn of(job: &JobResponse, secrets: &Secrets) -> Result<Vec<ServiceRequest>, Failure> {
    let services: Vec<_> =
        named(job).map(|service| of_one(service, &job.variables, secrets)).collect::<Result<_, _>>()?;
    if services.len() > MOST_SERVICES {
        let many = services.len();
        return Err(Failure::user(format!(
            "the job has {many} services; at most {MOST_SERVICES} are possible"
        )));
    }
    Ok(services)
}

/// The request of a service.
pub(crate) fn of_one(
    service: &Image,
    of_job: &[Variable],
    secrets: &Secrets,
) -> Result<ServiceRequest, Failure> {
    let name = &service.name;
    let refused = |what: &str| {
        let name = secrets.blacken(name);
        Err(Failure::user(format!("the service \"{}\" of the job {what}", name.escape_debug())))
    };
    if name.chars().count() > 1024 {
        return Err(Failure::user("the image of a service of the job has more than 1024 characters"));
    }
    let words = [&service.entrypoint, &service.command];
    if words.iter().any(|words| words.len() > MOST_WORDS)
        || words.into_iter().flatten().any(|word| word.chars().count() > LONGEST_WORD)
    {
        return refused(&format!(
            "has an entrypoint or a command of more than {MOST_WORDS} words, or with a word of more than {LONGEST_WORD} characters"
        ));
    }
    let own = service.variables.iter().any(|variable| variable.key == READINESS_PORT);
    let port = own.then(|| overrides::expanded(&[of_job, &service.variables].concat(), READINESS_PORT));
    let readiness_port = match port.unwrap_or_default().trim() {
        "" => None,
        port => match port.parse::<u16>() {
            Ok(port) if port > 0 => Some(port),
            Ok(_) | Err(_) => {
                return refused(&format!("has a {READINESS_PORT} that is not a port, from 1 to 65535"));
            }
        },
    };
    let mut aliases: Vec<String> = aliases_of_image(name);
    for alias in service.alias.split([',', ' ', '\t', '\n']).filter(|alias| !alias.is_empty()) {
        if !is_dns_subdomain(alias) {
            let alias = secrets.blacken(alias);
            return refused(&format!(
                "has the alias \"{}\", which is no name of a host: those have lower-case letters, digits, '-' and '.', such as my-db",
                alias.escape_debug()
            ));
        }
        if !aliases.iter().any(|other| other == alias) {
            aliases.push(alias.to_owned());
        }
    }
    if aliases.len() > MOST_ALIASES {
        return refused(&format!("has more than {MOST_ALIASES} aliases"));
    }
    Ok(ServiceRequest {
        name: name.clone(),
        aliases,
        entrypoint: service.entrypoint.clone(),
        command: service.command.clone(),
        pull_policy: request::pull_policy(service, "services:pull_policy")?,
        user: request::user(service, "services:kubernetes:user")?,
        readiness_port,
        overrides: overrides::of_service(of_job, &service.variables, secrets)?,
    })
}

/// What GitLab calls a service by the name of its image, without tag, digest and port: slashes become two underscores,
/// or one hyphen. A host's name has no underscore, so the first one counts only where there is no slash.
/// <https://docs.gitlab.com/ci/services/#accessing-the-services>
fn aliases_of_image(name: &str) -> Vec<String> {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    // A colon in the last part begins the tag, in the first one the port.
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    let end = name[start..].find(':').map_or(name.len(), |colon| start + colon);
    let name = &name[..end];
    let (host, path) = name.find('/').map_or((name, ""), |slash| name.split_at(slash));
    let host = match host.split_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => host,
    };
    let service = format!("{host}{path}");
    let mut aliases = Vec::new();
    for alias in [service.replace('/', "__"), service.replace('/', "-")] {
        if is_dns_subdomain(&alias) && !aliases.contains(&alias) {
            aliases.push(alias);
        }
    }
    aliases
}

/// What the job log says of services that are left out.
pub fn note(job: &JobResponse) -> Option<String> {
    let left_out = job.services.len() - named(job).count();
    (left_out > 0).then(|| {
        let are = if left_out == 1 { "names no image and is" } else { "name no image and are" };
        format!("WARNING: {left_out} of the job's services {are} left out (is a variable in `services:` empty or undefined?)")
    })
}

#[cfg(test)]
mod tests {
    use roadstead_crds::reason::Blame;
    use roadstead_crds::request::PullPolicy;
    use serde_json::{Value, json};

    use super::*;

    fn job(services: &Value) -> JobResponse {
        let variables =
            json!([{"key": "SIZE", "value": "1"}, {"key": "P", "value": "hunter2hunter2", "masked": true}]);
        serde_json::from_value(json!({"id": 1, "variables": variables, "services": services})).unwrap()
    }

    fn read(services: &Value) -> Result<Vec<ServiceRequest>, Failure> {
        of(&job(services), &Secrets::new(["hunter2hunter2"]))
    }

    #[test]
    fn names_by_image_are_gitlabs() {
        for (image, aliases) in [
            ("redis", &["redis"][..]),
            ("postgres:16.2-alpine", &["postgres"]),
            ("tutum/wordpress:latest", &["tutum-wordpress"]),
            ("registry.example.com:5000/grp/sub/redis:7", &["registry.example.com-grp-sub-redis"]),
            ("registry.example.com/redis@sha256:0123", &["registry.example.com-redis"]),
            ("localhost:5000/redis:7@sha256:0123", &["localhost-redis"]),
            // No name of a host: only its aliases count.
            ("grp/my_db:1", &[]),
            ("Redis", &[]),
            ("", &[]),
            (":", &[]),
            ("ä/b:c/d", &[]),
        ] {
            assert_eq!(aliases_of_image(image), aliases, "{image}");
        }
    }

    #[test]
    fn everything_that_gitlab_says_of_a_service() {
        let services = read(&json!([
            {"name": "postgres:16", "alias": "db, database db\tpostgres", "entrypoint": ["sh", "-c"], "command": ["run it"],
             "pull_policy": ["always"], "executor_opts": {"kubernetes": {"user": 999}}, "ports": [],
             "variables": [{"key": "HEALTHCHECK_TCP_PORT", "value": "5${SIZE}32"},
                {"key": "KUBERNETES_SERVICE_MEMORY_LIMIT", "value": "${SIZE}Gi"}, {"key": "POSTGRES_DB", "value": "x"}]},
            {"name": "", "alias": "left-out"},
            {"name": "redis:7", "alias": null, "entrypoint": null, "command": null, "variables": null},
        ]))
        .unwrap();
        let postgres = ServiceRequest {
            name: "postgres:16".to_owned(),
            aliases: ["postgres", "db", "database"].map(str::to_owned).to_vec(),
            entrypoint: ["sh", "-c"].map(str::to_owned).to_vec(),
            command: vec!["run it".to_owned()],
            pull_policy: vec![PullPolicy::Always],
            user: Some("999".to_owned()),
            readiness_port: Some(5132),
            overrides: [("KUBERNETES_SERVICE_MEMORY_LIMIT".to_owned(), "1Gi".to_owned())].into(),
        };
        let redis = ServiceRequest {
            name: "redis:7".to_owned(),
            aliases: vec!["redis".to_owned()],
            ..ServiceRequest::default()
        };
        assert_eq!(services, [postgres, redis]);
    }

    #[test]
    fn what_is_left_out_is_said() {
        assert!(
            note(&job(&json!([{"name": ""}, {"name": "redis"}])))
                .unwrap()
                .contains("1 of the job's services")
        );
        assert_eq!(note(&job(&json!([{"name": "redis"}]))), None);
    }

    #[test]
    fn what_cannot_be_is_the_jobs_mistake() {
        let port = |value: &str| json!([{"name": "a", "variables": [{"key": "HEALTHCHECK_TCP_PORT", "value": value}]}]);
        for (services, words) in [
            (
                json!([{"name": "redis", "alias": "my_db"}]),
                "the service \"redis\" of the job has the alias \"my_db\", which is no name of a host",
            ),
            (
                json!([{"name": "hunter2hunter2", "alias": "A"}]),
                "the service \"[MASKED]\" of the job has the alias \"A\"",
            ),
            (port("http"), "HEALTHCHECK_TCP_PORT that is not a port"),
            (port("0"), "HEALTHCHECK_TCP_PORT that is not a port"),
            (port("65536"), "HEALTHCHECK_TCP_PORT that is not a port"),
            (
                json!([{"name": "a", "pull_policy": ["sometimes"]}]),
                "services:pull_policy of the job is not valid",
            ),
            (
                json!([{"name": "a", "executor_opts": {"kubernetes": {"user": "root"}}}]),
                "services:kubernetes:user of the job is not valid",
            ),
            (json!([{"name": "a", "command": vec!["x"; 65]}]), "more than 64 words"),
            (json!([{"name": "x".repeat(1025)}]), "more than 1024 characters"),
            (json!(vec![json!({"name": "a"}); 33]), "the job has 33 services"),
        ] {
            let failure = read(&services).unwrap_err();
            assert!(failure.sentence.contains(words), "{}", failure.sentence);
            assert_eq!(failure.blame, Blame::User);
        }
    }
}
