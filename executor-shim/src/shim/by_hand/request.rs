//! What is asked for by hand: one JSON object on standard input, or in a file.
//!
//! It is read field by field instead of by derive: a sentence names the field that is wrong, and
//! none quotes a value, which may be a secret.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use roadstead_crds::names::is_dns_subdomain;
use roadstead_crds::overrides::Variable;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::shim::exit::Failure;
use crate::shim::redact::Secrets;
use crate::shim::stage::Container;
use crate::shim::{job_response, overrides};

/// Longest input in bytes; a script goes through the agent's memory.
const LIMIT: u64 = 64 * 1024 * 1024;

/// Longest name that is repeated in a sentence, in characters.
const LONGEST_WORD: usize = 64;

/// Seconds that a job may be kept without a client: what the API takes.
const KEEP_SECONDS: std::ops::RangeInclusive<i64> = 10..=86_400;

/// Seconds for which a job is kept where the request does not say it.
const KEPT_BY_DEFAULT: i64 = 600;

/// What every sentence on an unusable input ends with.
const EXAMPLE: &str = r#"expected is one JSON object such as {"command":"run","script":["echo hello"]}; `executor-shim --help` says more"#;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Start a job and keep it.
    Initialize(Wishes),
    /// Run a script.
    Run {
        /// In which job.
        job: Job,
        /// The script's lines.
        script: Vec<String>,
        /// In which container of its pod.
        container: Container,
    },
    /// Let go of a job.
    Cleanup {
        /// Which one.
        job: JobName,
        /// Where it is, for a job that was started elsewhere; the runner's namespace where it is not said.
        namespace: Option<String>,
    },
}

/// The job that a script runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// One that lives as long as the call.
    New(Wishes),
    /// One that an earlier call has started.
    Known(JobName),
}

/// What a new job shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Image of the container `build`; the class's where absent.
    pub image: Option<String>,
    /// Variables that its scripts find in their environment. Secret.
    pub variables: Variables,
    /// Tags that choose its class and its node.
    pub tags: Vec<String>,
    /// Services that run beside it.
    pub services: Vec<ServiceWish>,
    /// For how many seconds it is kept without a client; the class decides where absent.
    pub keep_seconds: Option<i64>,
}

/// A service of a new job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceWish {
    /// Its image.
    pub name: String,
    /// Names, separated by spaces or commas.
    pub alias: String,
    /// What takes the place of the image's entrypoint.
    pub entrypoint: Vec<String>,
    /// What takes the place of the image's command.
    pub command: Vec<String>,
    /// Its own variables, besides the job's. Secret.
    pub variables: Variables,
    /// When to pull its image, in the order to try.
    pub pull_policy: Vec<String>,
    /// User to run it as.
    pub user: Option<String>,
}

impl ServiceWish {
    /// The same as one of GitLab's. Nothing in its variables is replaced.
    pub fn as_of_gitlab(&self) -> job_response::Image {
        let kubernetes = job_response::KubernetesOptions {
            user: job_response::Text(self.user.clone().unwrap_or_default()),
        };
        job_response::Image {
            name: self.name.clone(),
            pull_policy: self.pull_policy.clone(),
            executor_opts: job_response::ExecutorOptions { kubernetes },
            alias: self.alias.clone(),
            entrypoint: self.entrypoint.clone(),
            command: self.command.clone(),
            variables: self.variables.as_of_gitlab(),
        }
    }
}

/// Variables by name. Their values are secret, so they are not printed.
#[derive(Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Variables(pub BTreeMap<String, String>);

impl std::fmt::Debug for Variables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Variables {
    /// The values, to be kept out of what others can read, but for those that ask for something.
    pub fn secrets(&self) -> Secrets {
        let secret = self.0.iter().filter(|(name, _)| Variable::named(name).is_none());
        Secrets::new(secret.map(|(_, value)| value.as_str()))
    }

    /// The same as GitLab has them: for services too, and nothing in them is replaced.
    pub fn as_of_gitlab(&self) -> Vec<job_response::Variable> {
        let variable = |(key, value): (&String, &String)| job_response::Variable {
            key: key.clone(),
            value: value.clone(),
            public: true,
            raw: true,
            ..job_response::Variable::default()
        };
        self.0.iter().map(variable).collect()
    }

    /// What the job asks for with them, as one of GitLab's would. Nothing in them is replaced.
    ///
    /// # Errors
    /// When a value cannot be what its variable is for, or must not be seen.
    pub fn overrides(&self) -> Result<BTreeMap<String, String>, Failure> {
        let secrets = self.secrets();
        let overrides = overrides::of(&self.as_of_gitlab(), &secrets)?;
        match overrides.iter().find(|(_, value)| secrets.occur_in(value)) {
            Some((name, _)) => Err(Failure::user(format!(
                "{name} contains the value of another variable; it would become visible in the cluster, so the job is refused"
            ))),
            None => Ok(overrides),
        }
    }
}

/// Name of the CiJob of a job by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobName(String);

impl JobName {
    /// The name, if it is one: GitLab's jobs are not for hands.
    pub fn new(text: &str) -> Option<Self> {
        let hash = text.strip_prefix("cij-0-")?;
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (hash.len() == 10 && hash.bytes().all(digit)).then(|| Self(text.to_owned()))
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is wrong with the input.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{sentence}")]
pub struct Mistake {
    /// The command, where it was one.
    pub command: Option<&'static str>,
    /// One sentence.
    pub sentence: String,
}

fn mistake<T>(sentence: impl Into<String>) -> Result<T, Mistake> {
    Err(Mistake { command: None, sentence: sentence.into() })
}

/// Reads the request from where it comes from.
pub fn read(input: impl Read) -> Result<Request, Mistake> {
    parse(&all_of(input)?)
}

/// Reads a request from a file.
pub fn read_file(path: &Path) -> Result<Request, Mistake> {
    parse(&bytes(Some(path))?)
}

/// What is in a file, or comes from standard input where none is named.
pub fn bytes(path: Option<&Path>) -> Result<Vec<u8>, Mistake> {
    let Some(path) = path else { return all_of(io::stdin().lock()) };
    match File::open(path) {
        Ok(file) => all_of(file),
        Err(error) => mistake(format!("cannot read the request in {}: {error}", path.display())),
    }
}

fn all_of(input: impl Read) -> Result<Vec<u8>, Mistake> {
    let mut bytes = Vec::new();
    match input.take(LIMIT + 1).read_to_end(&mut bytes) {
        Ok(_) => {}
        // There is none where nobody has opened it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return mistake(format!("cannot read standard input: {error}")),
    }
    if bytes.len() as u64 > LIMIT {
        return mistake(format!("standard input is longer than {} MiB", LIMIT / 1024 / 1024));
    }
    Ok(bytes)
}

/// Reads a request.
pub fn parse(input: &[u8]) -> Result<Request, Mistake> {
    if input.iter().all(u8::is_ascii_whitespace) {
        return mistake(format!("standard input is empty: {EXAMPLE}"));
    }
    let value: Value = match serde_json::from_slice(input) {
        Ok(value) => value,
        // Errors of syntax say where, and quote nothing.
        Err(error) => return mistake(format!("standard input is not JSON: {error}; {EXAMPLE}")),
    };
    let Value::Object(map) = value else {
        return mistake(format!("standard input is JSON, but no object: {EXAMPLE}"));
    };
    let mut fields = Fields { map, known: Vec::new() };
    let Some(command) = fields.text("command")? else {
        return mistake(format!("the field \"command\" is missing: {EXAMPLE}"));
    };
    let (command, request) = match command.as_str() {
        "initialize" => ("initialize", initialize(&mut fields)),
        "run" => ("run", run(&mut fields)),
        "cleanup" => ("cleanup", cleanup(&mut fields)),
        other => {
            let other = word(other);
            return mistake(format!("{other} is no command: it must be initialize, run or cleanup"));
        }
    };
    // An unknown field explains best what else is wrong: it may be another one misspelt.
    fields
        .end(&format!("the command {command}"))
        .and(request)
        .map_err(|mistake| Mistake { command: Some(command), ..mistake })
}

fn initialize(fields: &mut Fields) -> Result<Request, Mistake> {
    let wishes = fields.wishes()?;
    let keep = fields.take("keepSeconds").map_or(Some(KEPT_BY_DEFAULT), |value| value.as_i64());
    let Some(keep) = keep.filter(|seconds| KEEP_SECONDS.contains(seconds)) else {
        let (least, most) = (KEEP_SECONDS.start(), KEEP_SECONDS.end());
        return mistake(format!(
            "the field \"keepSeconds\" must be a whole number of seconds from {least} to {most}"
        ));
    };
    Ok(Request::Initialize(Wishes { keep_seconds: Some(keep), ..wishes }))
}

fn run(fields: &mut Fields) -> Result<Request, Mistake> {
    let job = fields.job();
    let script = fields.texts("script");
    let container = fields.text("container");
    let new = fields.wishes();
    let job = match job? {
        None => Job::New(new?),
        Some(job) if new? == Wishes::default() => Job::Known(job),
        Some(_) => {
            return mistake(
                "image, variables, tags and services belong to the command initialize: a job that is there has them already",
            );
        }
    };
    let Some(script) = script? else {
        return mistake("the field \"script\" is missing: it is the list of the lines to run");
    };
    if script.iter().all(|line| line.trim().is_empty()) {
        return mistake("the field \"script\" is empty: it is the list of the lines to run");
    }
    if script.iter().any(|line| line.contains('\0')) {
        return mistake("the field \"script\" has a NUL character in it, which no shell can read");
    }
    let container = match container?.as_deref() {
        None | Some("build") => Container::Build,
        Some("helper") => Container::Helper,
        Some(other) => {
            return mistake(format!("{} is no container: it must be build or helper", word(other)));
        }
    };
    Ok(Request::Run { job, script, container })
}

fn cleanup(fields: &mut Fields) -> Result<Request, Mistake> {
    // Both first, so that they are known.
    let (job, namespace) = (fields.job(), fields.text("namespace"));
    let Some(job) = job? else { return no_job() };
    let namespace = namespace?;
    match &namespace {
        Some(name) if !is_dns_subdomain(name) => {
            mistake(format!("{} in the field \"namespace\" is not the name of a namespace", word(name)))
        }
        _ => Ok(Request::Cleanup { job, namespace }),
    }
}

fn no_job<T>() -> Result<T, Mistake> {
    mistake("the field \"job\" is missing: it is the name that the command initialize has answered")
}

/// The fields of the object that nobody has asked for yet.
struct Fields {
    map: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    /// Takes a field. One that is null is as good as none.
    fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.map.remove(name).filter(|value| !value.is_null())
    }

    fn text(&mut self, name: &'static str) -> Result<Option<String>, Mistake> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => mistake(format!("the field \"{name}\" must be a string")),
        }
    }

    fn texts(&mut self, name: &'static str) -> Result<Option<Vec<String>>, Mistake> {
        let wrong = || mistake(format!("the field \"{name}\" must be a list of strings"));
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => {
                let texts = items.into_iter().map(|item| match item {
                    Value::String(text) => Some(text),
                    _ => None,
                });
                texts.collect::<Option<Vec<_>>>().map_or_else(wrong, |texts| Ok(Some(texts)))
            }
            Some(_) => wrong(),
        }
    }

    fn job(&mut self) -> Result<Option<JobName>, Mistake> {
        let Some(text) = self.text("job")? else { return Ok(None) };
        match JobName::new(&text) {
            Some(name) => Ok(Some(name)),
            None => mistake(format!(
                "{} is not the name of a job by hand: those are named cij-0-<10 hexadecimal digits>",
                word(&text)
            )),
        }
    }

    fn wishes(&mut self) -> Result<Wishes, Mistake> {
        // All of them first, so that they are known.
        let (image, variables, tags) = (self.text("image"), self.variables(), self.texts("tags"));
        let (image, services) = (image?, self.services()?);
        if image.as_deref().is_some_and(str::is_empty) {
            return mistake("the field \"image\" is empty: leave it out for the image of the class");
        }
        let tags = tags?.unwrap_or_default();
        Ok(Wishes { image, variables: variables?, tags, services, keep_seconds: None })
    }

    fn services(&mut self) -> Result<Vec<ServiceWish>, Mistake> {
        match self.take("services") {
            None => Ok(Vec::new()),
            Some(Value::Array(services)) => services.into_iter().map(service).collect(),
            Some(_) => mistake("the field \"services\" must be a list"),
        }
    }

    fn variables(&mut self) -> Result<Variables, Mistake> {
        let map = match self.take("variables") {
            None => return Ok(Variables::default()),
            Some(Value::Object(map)) => map,
            Some(_) => return mistake("the field \"variables\" must be an object of strings"),
        };
        let mut variables = BTreeMap::new();
        for (name, value) in map {
            if !is_variable_name(&name) {
                return mistake(format!(
                    "{} cannot be the name of a variable: letters, digits and underscores, no digit first",
                    word(&name)
                ));
            }
            let Value::String(value) = value else {
                return mistake(format!("the variable {} must be a string", word(&name)));
            };
            if value.contains('\0') {
                return mistake(format!(
                    "the variable {} has a NUL character in it, which no environment can hold",
                    word(&name)
                ));
            }
            variables.insert(name, value);
        }
        Ok(Variables(variables))
    }

    /// Nothing else is there.
    fn end(&self, whose: &str) -> Result<(), Mistake> {
        let Some(name) = self.map.keys().next() else { return Ok(()) };
        let known: Vec<&str> = self.known.iter().copied().filter(|name| *name != "command").collect();
        mistake(format!("{} is no field of {whose}, which knows {}", word(name), known.join(", ")))
    }
}

/// Reads a service: an object, or only the name of its image.
fn service(value: Value) -> Result<ServiceWish, Mistake> {
    let map = match value {
        Value::String(name) => Map::from_iter([("name".to_owned(), Value::String(name))]),
        Value::Object(map) => map,
        _ => return mistake("a service in \"services\" must be an object, or the name of an image"),
    };
    let mut fields = Fields { map, known: Vec::new() };
    let (name, alias, user) = (fields.text("name"), fields.text("alias"), fields.text("user"));
    let (entrypoint, command) = (fields.texts("entrypoint"), fields.texts("command"));
    let (variables, pull_policy) = (fields.variables(), fields.texts("pullPolicy"));
    fields.end("a service")?;
    let Some(name) = name?.filter(|name| !name.is_empty()) else {
        return mistake("the field \"name\" of a service is missing: it is the name of its image");
    };
    Ok(ServiceWish {
        name,
        alias: alias?.unwrap_or_default(),
        entrypoint: entrypoint?.unwrap_or_default(),
        command: command?.unwrap_or_default(),
        variables: variables?,
        pull_policy: pull_policy?.unwrap_or_default(),
        user: user?,
    })
}

fn is_variable_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !name.is_empty() && name.bytes().all(plain) && !name.as_bytes().first().is_some_and(u8::is_ascii_digit)
}

/// A word of the input, quoted and not too long.
fn word(text: &str) -> String {
    let short: String = text.chars().take(LONGEST_WORD).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("\"{}{more}\"", short.escape_debug())
}

#[cfg(test)]
mod tests;
