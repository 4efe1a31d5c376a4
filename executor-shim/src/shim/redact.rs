//! The values that must not be seen: found in what is asked for, blackened in what is printed.

use crate::shim::env::RunnerEnv;
use crate::shim::job_response::JobResponse;

/// Shorter values are not looked for: as a part of other words they are everywhere. GitLab itself
/// masks nothing below 8 characters.
const SHORTEST: usize = 4;

const BLACK: &str = "[MASKED]";

/// The job's secret values.
#[derive(Clone, Default)]
pub struct Secrets {
    /// Longest first, so that a secret inside another one leaves nothing of it.
    values: Vec<String>,
}

impl Secrets {
    /// Collects the values that GitLab masks in job logs: of masked variables (as they were sent
    /// and as gitlab-runner expanded them), the job's token, passwords of registries, and what
    /// gitlab-runner fetched for `secrets:`.
    pub fn of(job: &JobResponse, env: &RunnerEnv) -> Self {
        let masked = job.variables.iter().filter(|variable| variable.masked);
        let sent = masked.clone().map(|variable| variable.value.as_str());
        let expanded = masked.filter_map(|variable| env.job_variable(&variable.key));
        let fetched = job.secrets.0.iter().filter_map(|key| env.job_variable(key));
        let passwords = job.credentials.iter().map(|credentials| credentials.password.as_str());
        Self::new(sent.chain(expanded).chain(fetched).chain(passwords).chain([job.token.as_str()]))
    }

    /// The same of the job that gitlab-runner calls for. Without a job response no secret is known,
    /// and nothing of the job is either.
    pub fn known(env: &RunnerEnv) -> Self {
        let job = env.job_response_file().ok().and_then(|file| JobResponse::read(&file).ok());
        job.map(|job| Self::of(&job, env)).unwrap_or_default()
    }

    /// These values.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let long = values.into_iter().filter(|value| value.chars().count() >= SHORTEST);
        let mut values: Vec<String> = long.map(str::to_owned).collect();
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        values.dedup();
        Self { values }
    }

    /// Whether a secret value occurs in the text.
    pub fn occur_in(&self, text: &str) -> bool {
        self.values.iter().any(|value| text.contains(value))
    }

    /// The text without the secret values.
    pub fn blacken(&self, text: &str) -> String {
        self.values.iter().fold(text.to_owned(), |text, value| text.replace(value, BLACK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_blackened_the_longer_first() {
        let secrets = Secrets::new(["hunter2", "hunter2-and-more", "", "abc", "hunter2"]);
        assert_eq!(secrets.blacken("x hunter2-and-more hunter2 abc"), "x [MASKED] [MASKED] abc");
        assert!(secrets.occur_in("image/hunter2:1"));
        assert!(!secrets.occur_in("image/abc:1"));
    }

    #[test]
    fn everything_that_gitlab_masks_is_secret() {
        let job: JobResponse = serde_json::from_str(
            r#"{"id":1,"token":"job-token","credentials":[{"password":"registry-password"}],"secrets":{"VAULT":{"vault":{}}},
                "variables":[{"key":"A","value":"pre-$B","masked":true},{"key":"C","value":"visible","masked":false}]}"#,
        )
        .unwrap();
        let vars =
            [("CUSTOM_ENV_A", "pre-fix"), ("CUSTOM_ENV_VAULT", "from-vault"), ("CUSTOM_ENV_C", "visible")];
        let env = RunnerEnv::new(vars.map(|(name, value)| (name.into(), value.into())));
        let secrets = Secrets::of(&job, &env);
        for text in ["job-token", "registry-password", "pre-$B", "pre-fix", "from-vault"] {
            assert!(secrets.occur_in(text), "{text}");
        }
        assert!(!secrets.occur_in("visible"));
    }
}
