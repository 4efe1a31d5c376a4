//! The variables of a job's services, as GitLab gives them. Pure.
//!
//! A service gets the job's public variables and its own, expanded: its own may refer to all of the job's, so that a
//! secret gets there only where the author of the job has written it down.
//! <https://docs.gitlab.com/ci/services/#passing-cicd-variables-to-services>

use std::borrow::Cow;
use std::collections::BTreeMap;

use roadstead_crds::status::JobConfig;

use crate::shim::env::RunnerEnv;
use crate::shim::job_response::{JobResponse, Variable};
use crate::shim::overrides::{expand, last};
use crate::shim::{registries, services};

/// Variables by their names. Secret.
pub type Variables = BTreeMap<String, String>;

/// What the runner itself says of places, before it knows them.
const PLACES: [&str; 3] = ["CI_BUILDS_DIR", "CI_PROJECT_DIR", "RUNNER_TEMP_PROJECT_DIR"];

/// Names of files that only scripts find, so no service gets them.
const FILES_OF_RUNNER: &str = "CI_SERVER_TLS_";

/// What is for the executor: all services with their variables, and credentials for their images.
const FOR_EXECUTOR: [&str; 3] = ["CI_JOB_SERVICES", "CI_JOB_IMAGE", registries::VARIABLE];

/// What the variables of services are made from. Secret.
#[derive(Clone, Default)]
pub struct Sources {
    /// The job's, in GitLab's order.
    pub job: Vec<Variable>,
    /// What gitlab-runner adds: its own names, and the variables of its configuration.
    pub runner: Variables,
    /// What it fetched for `secrets:`. A service gets of it what its own variables refer to.
    pub fetched: Variables,
    /// Of each service its own.
    pub services: Vec<Vec<Variable>>,
    /// Path of the job's project, which is that of its checkout.
    pub project: String,
}

impl Sources {
    /// Those of a job of GitLab's.
    pub fn of(job: &JobResponse, env: &RunnerEnv) -> Self {
        let of_job = |name: &str| job.variables.iter().any(|variable| variable.key == name);
        let is_secret = |name: &str| job.secrets.0.iter().any(|secret| secret == name);
        let is_runners = |name: &str| {
            let others = PLACES.contains(&name) || FOR_EXECUTOR.contains(&name) || is_secret(name);
            !others && !of_job(name) && !name.starts_with(FILES_OF_RUNNER)
        };
        let of_env = |wanted: &dyn Fn(&str) -> bool| -> Variables {
            let some = env.job_variables().filter(|(name, _)| wanted(name));
            some.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        };
        Self {
            job: job.variables.clone(),
            runner: of_env(&is_runners),
            fetched: of_env(&is_secret),
            services: services::named(job).map(|service| service.variables.clone()).collect(),
            project: match job.job_info.project_full_path.as_str() {
                "" => job.predefined("CI_PROJECT_PATH").unwrap_or_default().to_owned(),
                path => path.to_owned(),
            },
        }
    }

    /// The variables of each service, where jobs work in these places. What a Secret could not hold is left out.
    pub fn variables(&self, config: &JobConfig) -> Vec<Variables> {
        let job = Expansion { sources: self, places: Places::of(self, config) };
        let common: Variables = job.public();
        let service = |own: &Vec<Variable>| {
            let mut variables = common.clone();
            for variable in own {
                variables.insert(variable.key.clone(), job.of_service(own, variable));
            }
            variables.retain(|name, _| is_key(name));
            variables
        };
        self.services.iter().map(service).collect()
    }
}

/// Where a job works.
struct Places {
    builds: String,
    project: String,
}

impl Places {
    fn of(sources: &Sources, config: &JobConfig) -> Self {
        let builds = config.builds_dir.clone();
        let wanted = last(&sources.job, "GIT_CLONE_PATH").map(|variable| variable.value.as_str());
        let project = match wanted.filter(|path| !path.is_empty()) {
            None => format!("{builds}/{}", sources.project),
            Some(path) => expand(path, |name| match name {
                "CI_BUILDS_DIR" => builds.as_str().into(),
                _ => last(&sources.job, name).map_or("", |variable| variable.value.as_str()).into(),
            }),
        };
        Self { builds, project }
    }
}

struct Expansion<'a> {
    sources: &'a Sources,
    places: Places,
}

impl Expansion<'_> {
    /// What a reference in a variable of the job's stands for.
    fn referred<'b>(&'b self, name: &str) -> Cow<'b, str> {
        if name == "$" {
            return "$".into();
        }
        if let Some(variable) = last(&self.sources.job, name) {
            return if variable.file { self.file(name).into() } else { variable.value.as_str().into() };
        }
        match name {
            "CI_BUILDS_DIR" => self.places.builds.as_str().into(),
            "CI_PROJECT_DIR" => self.places.project.as_str().into(),
            _ => self.sources.runner.get(name).map_or("", String::as_str).into(),
        }
    }

    /// Where scripts find the value of a file variable.
    fn file(&self, name: &str) -> String {
        format!("{}.tmp/{name}", self.places.project)
    }

    fn of_job(&self, variable: &Variable) -> String {
        if variable.file {
            self.file(&variable.key)
        } else if variable.raw {
            variable.value.clone()
        } else {
            expand(&variable.value, |name| self.referred(name))
        }
    }

    /// What every service gets: of variables with one name the last one that is public.
    fn public(&self) -> Variables {
        let mut variables = self.sources.runner.clone();
        // A job by hand has no project, and no such variables.
        if !self.sources.project.is_empty() {
            variables.insert("CI_BUILDS_DIR".to_owned(), self.places.builds.clone());
            variables.insert("CI_PROJECT_DIR".to_owned(), self.places.project.clone());
        }
        for variable in self.sources.job.iter().filter(|variable| variable.public) {
            variables.insert(variable.key.clone(), self.of_job(variable));
        }
        variables
    }

    fn of_service(&self, own: &[Variable], variable: &Variable) -> String {
        if variable.raw {
            return variable.value.clone();
        }
        expand(&variable.value, |name| {
            if name == "$" {
                return "$".into();
            }
            if let Some(variable) = last(own, name) {
                return variable.value.as_str().into();
            }
            match (last(&self.sources.job, name), self.sources.fetched.get(name)) {
                (Some(variable), _) => self.of_job(variable).into(),
                (None, Some(fetched)) => fetched.as_str().into(),
                (None, None) => self.referred(name),
            }
        })
    }
}

/// Whether a Secret can have the key. <https://kubernetes.io/docs/concepts/configuration/secret/#restriction-names-data>
fn is_key(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=253).contains(&name.len()) && name.bytes().all(plain) && name != "." && !name.starts_with("..")
}

#[cfg(test)]
mod tests {
    use roadstead_crds::jobclass::Shell;
    use serde_json::{Value, json};

    use super::*;

    fn config() -> JobConfig {
        JobConfig { shell: Shell::Sh, builds_dir: "/builds".into(), cache_dir: "/cache".into() }
    }

    fn sources(variables: &Value, own: &Value) -> Sources {
        let job: JobResponse = serde_json::from_value(json!({
            "id": 1, "job_info": {"project_full_path": "grp/proj"}, "variables": variables,
            "secrets": {"VAULT": {}}, "services": [{"name": "redis", "variables": own}, {"name": ""}],
        }))
        .unwrap();
        let env = [
            ("CUSTOM_ENV_VAULT", "vaulted"),
            ("CUSTOM_ENV_OF_RUNNER", "runner"),
            ("CUSTOM_ENV_CI_PROJECT_DIR", "nowhere"),
            ("CUSTOM_ENV_CI_JOB_SERVICES", "[{\"variables\": \"of all services\"}]"),
            ("CUSTOM_ENV_CI_JOB_IMAGE", "debian:12"),
            ("CUSTOM_ENV_DOCKER_AUTH_CONFIG", "{\"auths\": {}}"),
            ("CUSTOM_ENV_A", "from gitlab-runner"),
            ("PATH", "/bin"),
        ];
        Sources::of(&job, &RunnerEnv::new(env.map(|(name, value)| (name.into(), value.into()))))
    }

    fn of(variables: &Value, own: &Value) -> Variables {
        let mut all = sources(variables, own).variables(&config());
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    #[test]
    fn a_service_gets_what_is_public_and_what_is_its_own() {
        let variables = of(
            &json!([
                {"key": "A", "value": "1", "public": true},
                {"key": "A", "value": "hidden"},
                {"key": "B", "value": "$A $PLAIN $CI_PROJECT_DIR", "public": true},
                {"key": "PLAIN", "value": "$A", "public": false},
                {"key": "RAW", "value": "$A", "public": true, "raw": true},
                {"key": "KEY", "value": "-----", "public": true, "file": true},
                {"key": "TOKEN", "value": "s3cret"},
                {"key": "not a key", "value": "x", "public": true},
            ]),
            &json!([
                {"key": "PASSWORD", "value": "$TOKEN-$OWN-$B-$$-$KEY"},
                {"key": "OWN", "value": "o"},
                {"key": "RAW", "value": "$TOKEN", "raw": true},
                {"key": "FETCHED", "value": "<$VAULT>"},
            ]),
        );
        let expected = [
            ("A", "1"),
            ("B", "hidden $A /builds/grp/proj"),
            ("CI_BUILDS_DIR", "/builds"),
            ("CI_PROJECT_DIR", "/builds/grp/proj"),
            ("FETCHED", "<vaulted>"),
            ("KEY", "/builds/grp/proj.tmp/KEY"),
            ("OF_RUNNER", "runner"),
            ("OWN", "o"),
            ("PASSWORD", "s3cret-o-hidden $A /builds/grp/proj-$-/builds/grp/proj.tmp/KEY"),
            ("RAW", "$TOKEN"),
        ];
        assert_eq!(variables, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn a_checkout_may_be_elsewhere() {
        let variables = of(
            &json!([{"key": "GIT_CLONE_PATH", "value": "$CI_BUILDS_DIR/x/$NAME"}, {"key": "NAME", "value": "y"}]),
            &json!([]),
        );
        assert_eq!(variables["CI_PROJECT_DIR"], "/builds/x/y");
    }

    #[test]
    fn keys_are_those_that_secrets_take() {
        for (key, is) in [
            ("A_b.c-9", true),
            ("", false),
            (".", false),
            ("..a", false),
            (".a", true),
            ("a b", false),
            ("ä", false),
        ] {
            assert_eq!(is_key(key), is, "{key}");
        }
        assert!(!is_key(&"a".repeat(254)));
    }
}
