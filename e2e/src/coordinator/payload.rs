//! A job as GitLab sends it: the body of an answer to `POST /api/v4/jobs/request`.

use serde_json::{Map, Value, json};

use super::parts::{Variable, whole_seconds};
use super::spec::JobSpec;

/// What goes before the first commit of a branch.
const NO_COMMIT: &str = "0000000000000000000000000000000000000000";

impl JobSpec {
    /// The JSON that GitLab at `server` (a base URL without a slash at its end) sends for this job.
    pub fn payload(&self, server: &str) -> Value {
        let mut payload = json!({
            "id": self.id,
            "token": self.token,
            "allow_git_fetch": self.allow_git_fetch,
            "job_info": {
                "id": self.id,
                "name": self.name,
                "stage": self.stage,
                "pipeline_id": self.pipeline,
                "project_id": self.project.id,
                "project_name": self.project.name(),
                "project_full_path": self.project.path,
                "namespace_id": 3,
                "root_namespace_id": 3,
                "organization_id": 1,
                "instance_id": "instance",
                "instance_uuid": "00000000-0000-4000-8000-000000000000",
                "user_id": 9,
                "scoped_user_id": null,
                "time_in_queue_seconds": 1.5,
                "project_jobs_running_on_instance_runners_count": "+Inf",
                "queue_size": 1,
                "queue_depth": 1,
            },
            "git_info": self.git_info(server),
            "runner_info": {
                "uuid": "r-test",
                "timeout": whole_seconds(self.timeout),
                "runner_session_url": null,
            },
            "inputs": [],
            "variables": self.all_variables(server),
            "steps": self.steps,
            "image": self.image,
            "services": self.services,
            "artifacts": self.artifacts,
            "cache": self.cache,
            "credentials": self.credentials,
            "dependencies": self.dependencies,
            "features": {
                "trace_sections": true,
                "token_mask_prefixes": ["glpat-"],
                "failure_reasons": [
                    "unknown_failure", "script_failure", "runner_system_failure", "job_execution_timeout",
                    "image_pull_failure", "runner_configuration_error", "runner_interrupted",
                ],
            },
            "hooks": self.hooks,
            "policy_options": {"execution_policy_job": false, "policy_name": ""},
        });
        if !self.secrets.is_empty() {
            let secrets: Map<String, Value> =
                self.secrets.iter().map(|secret| (secret.key.clone(), vault(secret.file))).collect();
            set(&mut payload, "secrets", Value::Object(secrets));
        }
        for (path, value) in &self.patches {
            set(&mut payload, path, value.clone());
        }
        payload
    }

    /// The address of the repository with the job's token in it.
    fn repository_url(&self, server: &str) -> String {
        let (scheme, host) = server.split_once("://").unwrap_or(("http", server));
        format!("{scheme}://gitlab-ci-token:{}@{host}/{}.git", self.token, self.project.path)
    }

    fn git_info(&self, server: &str) -> Value {
        let refspecs = self.refspecs.clone().unwrap_or_else(|| {
            let pipeline = format!("+refs/pipelines/{0}:refs/pipelines/{0}", self.pipeline);
            let own = match self.ref_type.as_str() {
                "tag" => format!("+refs/tags/{0}:refs/tags/{0}", self.git_ref),
                _ => format!("+refs/heads/{0}:refs/remotes/origin/{0}", self.git_ref),
            };
            // A merge request has only the pipeline's reference.
            if self.git_ref.starts_with("refs/") { vec![pipeline] } else { vec![pipeline, own] }
        });
        json!({
            "repo_url": self.repository_url(server),
            "ref": self.git_ref,
            "sha": self.sha,
            "before_sha": NO_COMMIT,
            "ref_type": self.ref_type,
            "refspecs": refspecs,
            "depth": self.depth,
            "repo_object_format": "sha1",
            "protected": self.protected,
        })
    }

    /// GitLab's own variables, then the job's.
    fn all_variables(&self, server: &str) -> Vec<Variable> {
        let host = server.split_once("://").map_or(server, |(_, rest)| rest);
        let host = host.split([':', '/']).next().unwrap_or(host);
        let project_url = format!("{server}/{}", self.project.path);
        let runner_tags =
            serde_json::to_string(&self.runner_tags).unwrap_or_default().replace("\",\"", "\", \"");
        let public = [
            ("CI", "true".to_owned()),
            ("GITLAB_CI", "true".to_owned()),
            ("CI_SERVER_URL", server.to_owned()),
            ("CI_SERVER_HOST", host.to_owned()),
            ("CI_API_V4_URL", format!("{server}/api/v4")),
            ("CI_PIPELINE_ID", self.pipeline.to_string()),
            ("CI_PIPELINE_URL", format!("{project_url}/-/pipelines/{}", self.pipeline)),
            ("CI_PIPELINE_SOURCE", "push".to_owned()),
            ("CI_JOB_ID", self.id.to_string()),
            ("CI_JOB_URL", format!("{project_url}/-/jobs/{}", self.id)),
            ("CI_JOB_NAME", self.name.clone()),
            ("CI_JOB_STAGE", self.stage.clone()),
            ("CI_PROJECT_ID", self.project.id.to_string()),
            ("CI_PROJECT_NAME", self.project.name().to_owned()),
            ("CI_PROJECT_PATH", self.project.path.clone()),
            ("CI_PROJECT_URL", project_url),
            ("CI_COMMIT_SHA", self.sha.clone()),
            ("CI_COMMIT_REF_NAME", self.git_ref.clone()),
            ("CI_COMMIT_REF_PROTECTED", self.protected.unwrap_or(false).to_string()),
            ("CI_RUNNER_ID", "1".to_owned()),
            ("CI_RUNNER_DESCRIPTION", "test runner".to_owned()),
            ("CI_RUNNER_TAGS", runner_tags),
            ("GITLAB_USER_ID", "9".to_owned()),
            ("GITLAB_USER_LOGIN", "tester".to_owned()),
        ];
        let mut variables: Vec<Variable> =
            public.into_iter().map(|(key, value)| Variable::new(key, value)).collect();
        variables.push(Variable::masked("CI_JOB_TOKEN", self.token.clone()));
        variables.push(Variable {
            masked: false,
            ..Variable::masked("CI_REPOSITORY_URL", self.repository_url(server))
        });
        if self.repository.is_none() {
            variables.push(Variable::new("GIT_STRATEGY", "none"));
        }
        variables.extend(self.variables.iter().cloned());
        variables
    }
}

/// A request for a secret, as GitLab writes it for a Vault server.
fn vault(file: bool) -> Value {
    json!({
        "vault": {
            "server": {"url": "https://vault.invalid", "namespace": "",
                       "auth": {"name": "jwt", "path": "jwt", "data": {"jwt": "eyJ.test.jwt", "role": "test"}}},
            "engine": {"name": "kv-v2", "path": "secret"},
            "path": "test",
            "field": "value",
        },
        "file": file,
    })
}

/// Sets the value at a dotted path and makes objects on the way.
fn set(target: &mut Value, path: &str, value: Value) {
    let mut place = target;
    for part in path.split('.') {
        if let (Value::Array(list), Ok(index)) = (&*place, part.parse::<usize>())
            && index < list.len()
        {
            place = &mut place[index];
        } else {
            if !place.is_object() {
                *place = json!({});
            }
            place = &mut place[part];
        }
    }
    *place = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_job_fetches_nothing() {
        let payload = JobSpec::new(42).script(["echo hello"]).payload("http://127.0.0.1:8080");
        assert_eq!(payload["id"], 42);
        assert_eq!(payload["steps"][0]["script"][0], "echo hello");
        assert_eq!(
            payload["git_info"]["repo_url"],
            format!("http://gitlab-ci-token:{}@127.0.0.1:8080/grp/proj.git", JobSpec::new(42).token)
        );
        let variables = payload["variables"].as_array().unwrap();
        assert!(variables.iter().any(|v| v["key"] == "GIT_STRATEGY" && v["value"] == "none"));
        assert!(variables.iter().any(|v| v["key"] == "CI_SERVER_HOST" && v["value"] == "127.0.0.1"));
        assert!(variables.iter().any(|v| v["key"] == "CI_JOB_TOKEN" && v["masked"] == true));
        assert_eq!(payload["image"], Value::Null);
    }

    #[test]
    fn runner_tags_are_written_as_ruby_writes_a_list() {
        let payload = JobSpec::new(1).runner_tags(["k8s", "linux"]).payload("http://h");
        let variables = payload["variables"].as_array().unwrap();
        let tags = variables.iter().find(|v| v["key"] == "CI_RUNNER_TAGS").unwrap();
        assert_eq!(tags["value"], r#"["k8s", "linux"]"#);
    }

    #[test]
    fn the_last_word_is_a_patch() {
        let payload = JobSpec::new(1)
            .script(["true"])
            .set("job_info.queue_size", json!(3))
            .set("steps.0.timeout", json!(9))
            .set("new.deep", json!("x"))
            .payload("http://h");
        assert_eq!(payload["job_info"]["queue_size"], 3);
        assert_eq!(payload["steps"][0]["timeout"], 9);
        assert_eq!(payload["new"]["deep"], "x");
    }

    #[test]
    fn fresh_ids_differ() {
        let ids: std::collections::HashSet<i64> = (0..100).map(|_| JobSpec::fresh().id).collect();
        assert_eq!(ids.len(), 100);
        assert!(ids.iter().all(|id| *id > 0));
    }
}
