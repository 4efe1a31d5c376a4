//! The job as GitLab sent it: the file behind `JOB_RESPONSE_FILE`.
//!
//! gitlab-runner writes it from its own structures: absent lists are `null`, keys come and go with
//! its version. So everything but the ID may be absent or null, and unknown keys are ignored.
//! The file is full of secrets: nothing of it belongs into a log, an error or an object.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};
use thiserror::Error;

/// The job as GitLab sent it, as far as it is used here.
#[derive(Deserialize, Clone, Default)]
pub struct JobResponse {
    /// GitLab's ID of the job.
    pub id: i64,
    /// The job's token. Secret.
    #[serde(default, deserialize_with = "or_default")]
    pub token: String,
    /// Names and IDs.
    #[serde(default, deserialize_with = "or_default")]
    pub job_info: JobInfo,
    /// What is checked out.
    #[serde(default, deserialize_with = "or_default")]
    pub git_info: GitInfo,
    /// Settings of the runner.
    #[serde(default, deserialize_with = "or_default")]
    pub runner_info: RunnerInfo,
    /// Variables, unexpanded. A key may occur more than once: the first is GitLab's own.
    #[serde(default, deserialize_with = "or_default")]
    pub variables: Vec<Variable>,
    /// `image:` of the job.
    #[serde(default, deserialize_with = "or_default")]
    pub image: Image,
    /// `services:` of the job.
    #[serde(default, deserialize_with = "or_default")]
    pub services: Vec<Image>,
    /// Credentials of registries. Secret.
    #[serde(default, deserialize_with = "or_default")]
    pub credentials: Vec<Credentials>,
    /// Variable names of the `secrets:` of the job; the values are in the environment.
    #[serde(default, deserialize_with = "or_default")]
    pub secrets: Keys,
}

/// Names and IDs of a job.
#[derive(Deserialize, Clone, Default)]
pub struct JobInfo {
    /// Name of the job.
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    /// Stage of the pipeline.
    #[serde(default, deserialize_with = "or_default")]
    pub stage: String,
    /// ID of the project.
    #[serde(default, deserialize_with = "or_default")]
    pub project_id: i64,
    /// Path of the project with its groups; absent before GitLab 17.
    #[serde(default, deserialize_with = "or_default")]
    pub project_full_path: String,
    /// ID of the pipeline.
    #[serde(default)]
    pub pipeline_id: Option<i64>,
    /// ID of the user who started the job.
    #[serde(default)]
    pub user_id: Option<i64>,
}

/// What a job checks out.
#[derive(Deserialize, Clone, Default)]
pub struct GitInfo {
    /// URL of the repository, with the job's token in it. Secret.
    #[serde(default, deserialize_with = "or_default")]
    pub repo_url: String,
    /// Name of the branch, tag or merge request ref.
    #[serde(default, rename = "ref", deserialize_with = "or_default")]
    pub git_ref: String,
    /// Commit.
    #[serde(default, deserialize_with = "or_default")]
    pub sha: String,
    /// `branch` or `tag`.
    #[serde(default, deserialize_with = "or_default")]
    pub ref_type: String,
    /// Whether the ref is protected; absent before GitLab 18.3.
    #[serde(default)]
    pub protected: Option<bool>,
}

/// Settings of the runner.
#[derive(Deserialize, Clone, Default)]
pub struct RunnerInfo {
    /// Timeout of the job in seconds.
    #[serde(default, deserialize_with = "or_default")]
    pub timeout: i64,
}

/// A variable of the job.
#[derive(Deserialize, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "GitLab's own fields")]
pub struct Variable {
    /// Name.
    #[serde(default, deserialize_with = "or_default")]
    pub key: String,
    /// Value, unexpanded. Possibly secret.
    #[serde(default, deserialize_with = "or_default")]
    pub value: String,
    /// Whether GitLab gives it to the containers of services too.
    #[serde(default, deserialize_with = "or_default")]
    pub public: bool,
    /// Whether scripts see it as the path of a file with the value in it.
    #[serde(default, deserialize_with = "or_default")]
    pub file: bool,
    /// Whether GitLab hides the value in job logs.
    #[serde(default, deserialize_with = "or_default")]
    pub masked: bool,
    /// Whether references to other variables in the value stay as they are.
    #[serde(default, deserialize_with = "or_default")]
    pub raw: bool,
}

/// `image:` of a job, or one of its `services:`.
#[derive(Deserialize, Clone, Default)]
pub struct Image {
    /// Reference; empty where the job names no image.
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    /// Pull policies in GitLab's words, in the order to try.
    #[serde(default, deserialize_with = "or_default")]
    pub pull_policy: Vec<String>,
    /// Options per executor.
    #[serde(default, deserialize_with = "or_default")]
    pub executor_opts: ExecutorOptions,
    /// Names of a service, separated by spaces or commas.
    #[serde(default, deserialize_with = "or_default")]
    pub alias: String,
    /// What takes the place of the image's entrypoint.
    #[serde(default, deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// What takes the place of the image's command.
    #[serde(default, deserialize_with = "or_default")]
    pub command: Vec<String>,
    /// A service's own variables, unexpanded.
    #[serde(default, deserialize_with = "or_default")]
    pub variables: Vec<Variable>,
}

/// Options of an image per executor.
#[derive(Deserialize, Clone, Default)]
pub struct ExecutorOptions {
    /// `image:kubernetes` of the job.
    #[serde(default, deserialize_with = "or_default")]
    pub kubernetes: KubernetesOptions,
}

/// `image:kubernetes` of a job.
#[derive(Deserialize, Clone, Default)]
pub struct KubernetesOptions {
    /// User to run as.
    #[serde(default, deserialize_with = "or_default")]
    pub user: Text,
}

/// Text that may also have been written as a number.
#[derive(Clone, Default)]
pub struct Text(pub String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Text(String),
            Number(i64),
        }
        Ok(Self(match Either::deserialize(deserializer)? {
            Either::Text(text) => text,
            Either::Number(number) => number.to_string(),
        }))
    }
}

/// The keys of an object whose values do not matter.
#[derive(Clone, Default)]
pub struct Keys(pub Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Keys;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, _)) = map.next_entry::<String, serde::de::IgnoredAny>()? {
                    keys.push(key);
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// Credentials of a registry.
#[derive(Deserialize, Clone, Default)]
pub struct Credentials {
    /// What they are for: `registry`.
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub kind: String,
    /// Host of the registry, with its port.
    #[serde(default, deserialize_with = "or_default")]
    pub url: String,
    /// User.
    #[serde(default, deserialize_with = "or_default")]
    pub username: String,
    /// Password. Secret.
    #[serde(default, deserialize_with = "or_default")]
    pub password: String,
}

/// `null` is as good as absent.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Why the job is not known. None of the texts quotes the file.
#[derive(Debug, Error)]
pub enum JobResponseError {
    /// There is no such file.
    #[error("the job response file {} does not exist", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("the job response file {} cannot be read: {source}", path.display())]
    Unreadable {
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file ends in the middle.
    #[error("the job response file {} is cut off after {len} bytes", path.display())]
    CutOff {
        /// Where it is.
        path: PathBuf,
        /// Its length.
        len: usize,
    },
    /// The file is something else.
    #[error("the job response file {} is not a job in JSON: {problem}", path.display())]
    Malformed {
        /// Where it is.
        path: PathBuf,
        /// What is wrong and where, without a value.
        problem: String,
    },
    /// A field is there and cannot be what it says.
    #[error("the job response file {} has no {field}", path.display())]
    NoField {
        /// Where it is.
        path: PathBuf,
        /// The field.
        field: &'static str,
    },
}

impl JobResponse {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, JobResponseError> {
        let bytes = fs::read(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => JobResponseError::Missing { path: path.to_owned() },
            _ => JobResponseError::Unreadable { path: path.to_owned(), source },
        })?;
        Self::parse(&bytes, path)
    }

    /// Reads the job from what is in the file.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, JobResponseError> {
        let path = || path.to_owned();
        serde_json::from_slice(bytes).map_err(|error| match error.classify() {
            _ if is_cut_off(bytes, &error) => JobResponseError::CutOff { path: path(), len: bytes.len() },
            serde_json::error::Category::Data if error.to_string().starts_with("missing field `id`") => {
                JobResponseError::NoField { path: path(), field: "id" }
            }
            category => {
                // The text of a type error quotes the value that was found, so it is left out.
                let what = match category {
                    serde_json::error::Category::Data => "a value has the wrong type",
                    _ => "the syntax is wrong",
                };
                let (line, column) = (error.line(), error.column());
                let problem = format!("{what} at line {line}, column {column}");
                JobResponseError::Malformed { path: path(), problem }
            }
        })
    }

    /// Value of the variable as GitLab itself set it: a variable that the job's author adds under
    /// the same name comes later in the list.
    pub fn predefined(&self, key: &str) -> Option<&str> {
        self.variables.iter().find(|variable| variable.key == key).map(|variable| variable.value.as_str())
    }
}

/// Whether the text ends too early. Within a number (`1.`, `-`) serde calls that a wrong number.
fn is_cut_off(bytes: &[u8], error: &serde_json::Error) -> bool {
    let in_number = || {
        let lines = bytes.split(|byte| *byte == b'\n');
        let (number, last) = lines.fold((0, 0), |(number, _), line| (number + 1, line.len()));
        error.to_string().starts_with("invalid number") && (error.line(), error.column()) == (number, last)
    };
    error.is_eof() || in_number()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn parse(json: &str) -> Result<JobResponse, String> {
        JobResponse::parse(json.as_bytes(), Path::new("/t/response.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn everything_but_the_id_may_be_absent_or_null() {
        assert_eq!(parse(r#"{"id":9223372036854710273}"#).unwrap().id, 9_223_372_036_854_710_273);
        let nulls = r#"{"id":1,"token":null,"job_info":null,"git_info":{"ref":null,"protected":null,"x":[1]},
            "runner_info":null,"variables":null,"image":{"name":null,"pull_policy":null,"executor_opts":null},
            "services":null,"credentials":null,"secrets":null,"unknown":{"a":[1,2,{}]}}"#;
        let job = parse(nulls).unwrap();
        assert_eq!((job.id, job.services.len(), job.git_info.protected), (1, 0, None));
        assert_eq!(parse(r#"{"id":1,"image":null}"#).unwrap().image.name, "");
    }

    #[test]
    fn errors_say_what_is_wrong_and_no_value() {
        for (json, text) in [
            ("", "the job response file /t/response.json is cut off after 0 bytes"),
            (r#"{"id":1,"token":"sec"#, "the job response file /t/response.json is cut off after 20 bytes"),
            ("{\n\"id\":1.", "the job response file /t/response.json is cut off after 9 bytes"),
            (r#"{"id":-"#, "the job response file /t/response.json is cut off after 7 bytes"),
            ("{}", "the job response file /t/response.json has no id"),
            (
                r#"{"id":1,"token":["s3cret"]}"#,
                "the job response file /t/response.json is not a job in JSON: a value has the wrong type at line 1, column 16",
            ),
            (
                "s3cret",
                "the job response file /t/response.json is not a job in JSON: the syntax is wrong at line 1, column 1",
            ),
        ] {
            assert_eq!(parse(json).err().as_deref(), Some(text), "{json}");
        }
        let missing = JobResponse::read(Path::new("/nonexistent/response.json")).err().unwrap();
        assert_eq!(missing.to_string(), "the job response file /nonexistent/response.json does not exist");
    }

    #[test]
    fn the_first_of_variables_with_one_name_is_gitlabs() {
        let job = parse(
            r#"{"id":1,"variables":[{"key":"CI_RUNNER_ID","value":"7"},{"key":"CI_RUNNER_ID","value":"8"},{"key":null,"value":null}]}"#,
        )
        .unwrap();
        assert_eq!(job.predefined("CI_RUNNER_ID"), Some("7"));
        assert_eq!(job.predefined("X"), None);
    }

    #[test]
    fn the_user_of_an_image_may_be_a_number() {
        let job =
            parse(r#"{"id":1,"image":{"name":"a","executor_opts":{"kubernetes":{"user":1000}}}}"#).unwrap();
        assert_eq!(job.image.executor_opts.kubernetes.user.0, "1000");
    }

    /// JSON of any shape, in which every text is a secret.
    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "s3cret.{0,9}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 5, |inner| {
            let key = prop_oneof![known_key(), "s3cret.{0,5}"];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((key, inner), 0..5).prop_map(|fields| fields.into_iter().collect()),
            ]
        })
    }

    /// A key that means something somewhere.
    fn known_key() -> impl Strategy<Value = String> {
        let keys = [
            "id",
            "token",
            "job_info",
            "git_info",
            "runner_info",
            "variables",
            "image",
            "services",
            "credentials",
            "secrets",
            "name",
            "stage",
            "project_id",
            "project_full_path",
            "pipeline_id",
            "user_id",
            "repo_url",
            "ref",
            "sha",
            "ref_type",
            "protected",
            "timeout",
            "key",
            "value",
            "masked",
            "raw",
            "pull_policy",
            "executor_opts",
            "kubernetes",
            "user",
            "password",
            "alias",
            "command",
            "entrypoint",
            "public",
            "file",
            "type",
            "url",
        ];
        prop::sample::select(keys.map(str::to_owned).to_vec())
    }

    fn any_job() -> impl Strategy<Value = Value> {
        prop::collection::vec((known_key(), any_json()), 0..12).prop_map(|fields| {
            let mut job: serde_json::Map<String, Value> = fields.into_iter().collect();
            job.entry("id").or_insert_with(|| 7.into());
            job.into()
        })
    }

    proptest! {
        #[test]
        fn wrong_types_are_refused_in_one_line_without_a_value(job in any_job()) {
            if let Err(error) = parse(&job.to_string()) {
                prop_assert!(error.starts_with("the job response file /t/response.json "), "{error}");
                prop_assert!(!error.contains("s3cret") && !error.contains('\n'), "{error}");
            }
        }

        #[test]
        fn null_is_as_good_as_absent(keys in prop::collection::btree_set(known_key(), 0..20)) {
            let with = |inner: &Value| -> Value {
                keys.iter().filter(|key| *key != "id").map(|key| (key.clone(), inner.clone())).collect()
            };
            let mut job = with(&Value::Null);
            job["id"] = 7.into();
            for place in ["job_info", "git_info", "runner_info"] {
                job[place] = with(&Value::Null);
            }
            job["variables"] = json!([with(&Value::Null), {"key": "A", "value": "b"}]);
            let options = json!({"kubernetes": with(&Value::Null)});
            let mut image = with(&Value::Null);
            image["executor_opts"] = options;
            job["image"] = image;
            let job = parse(&job.to_string());
            prop_assert!(job.is_ok(), "{:?}", job.err());
            let job = job.unwrap();
            prop_assert_eq!((job.id, job.predefined("A"), job.token.as_str()), (7, Some("b"), ""));
        }

        #[test]
        fn a_file_that_is_cut_anywhere_is_said_to_be_cut(job in any_job(), at: prop::sample::Index) {
            // Under a key that is ignored: before the cut nothing can be of the wrong type.
            let text = json!({"id": 7, "unknown": job}).to_string();
            let at = at.index(text.len());
            let error = JobResponse::parse(&text.as_bytes()[..at], Path::new("/t")).err();
            match error {
                Some(JobResponseError::CutOff { len, .. }) => prop_assert_eq!(len, at),
                other => prop_assert!(false, "{other:?}"),
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = JobResponse::parse(&bytes, Path::new("/t"));
        }
    }

    #[test]
    fn ten_megabytes_are_read() {
        const LEN: usize = 10 * 1024 * 1024;
        let long = "ä".repeat(LEN / 2);
        let job = json!({"id": 1, "variables": [{"key": "LONG", "value": long}]}).to_string();
        assert_eq!(parse(&job).unwrap().predefined("LONG").map(str::len), Some(LEN));
        let many: Vec<_> = (0..LEN / 28).map(|n| json!({"key": format!("K{n:07}"), "value": "v"})).collect();
        let job = json!({"id": 1, "variables": many}).to_string();
        assert!(job.len() > LEN);
        assert_eq!(parse(&job).unwrap().predefined("K0000031"), Some("v"));
    }

    #[test]
    fn a_million_levels_are_refused_or_ignored_and_overflow_no_stack() {
        const LEVELS: usize = 1_000_000;
        let deep = format!("{}{}", "[".repeat(LEVELS), "]".repeat(LEVELS));
        let objects = format!("{}1{}", r#"{"a":"#.repeat(LEVELS), "}".repeat(LEVELS));
        for deep in [deep, objects] {
            for place in [
                "X",
                r#"{"id":1,"token":X}"#,
                r#"{"id":1,"image":{"executor_opts":{"kubernetes":{"user":X}}}}"#,
            ] {
                let error = parse(&place.replace('X', &deep)).err().unwrap();
                assert!(error.contains("is not a job in JSON") || error.contains("has no id"), "{error}");
            }
            for place in [
                r#"{"id":1,"unknown":X}"#,
                r#"{"id":1,"secrets":{"A":X}}"#,
                r#"{"id":1,"services":[{"ports":X}]}"#,
            ] {
                assert_eq!(parse(&place.replace('X', &deep)).map(|job| job.id), Ok(1), "{place}");
            }
        }
    }
}
