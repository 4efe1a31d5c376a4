//! Whether a class's match takes a job, and if not, why not.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fmt::Write as _;

use roadstead_crds::jobclass::Matching;
use roadstead_crds::request::{GitRefType, JobRequest, TagSource};

use crate::policy::expression::{Expression, Inputs};
use crate::policy::pattern::Pattern;
use crate::policy::words::listed;

/// A job as classes are matched with it.
pub struct Subject<'a> {
    /// What is known of it.
    pub request: &'a JobRequest,
    /// Namespace of its CiJob.
    pub namespace: &'a str,
    /// What expressions see of it: the same for each class, and made when the first one asks.
    inputs: OnceCell<Inputs>,
}

impl<'a> Subject<'a> {
    /// The job of a CiJob in a namespace.
    pub fn new(request: &'a JobRequest, namespace: &'a str) -> Self {
        Self { request, namespace, inputs: OnceCell::new() }
    }

    fn inputs(&self) -> &Inputs {
        self.inputs.get_or_init(|| Inputs::new(self.request, self.namespace))
    }
}

/// A class's match, ready to be applied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matcher {
    tags: Option<BTreeSet<String>>,
    run_untagged: bool,
    projects: Vec<Pattern>,
    protected_only: bool,
    refs: Vec<Pattern>,
    namespaces: Vec<Pattern>,
    users: Vec<User>,
    expression: Option<Expression>,
}

/// Somebody of GitLab's. What is all digits is an ID: a login of digits must not pass for one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum User {
    Id(i64),
    Login(String),
}

/// What a match makes of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It takes the job.
    Takes,
    /// It does not, for this reason.
    Refuses(String),
    /// Its expression failed in this way.
    Fails(String),
}

impl Matcher {
    /// Makes a match ready, and adds what is wrong with it to `problems`.
    pub fn compile(matching: &Matching, problems: &mut Vec<String>) -> Self {
        let tags = matching.tags.as_ref().map(|tags| tags.iter().cloned().collect::<BTreeSet<_>>());
        let untagged_only = tags.as_ref().is_some_and(BTreeSet::is_empty);
        let run_untagged = matching.run_untagged.unwrap_or(tags.as_ref().is_none_or(BTreeSet::is_empty));
        if untagged_only && !run_untagged {
            problems.push("match takes no job at all: `tags` is empty and `runUntagged` is false".to_owned());
        }
        let mut patterns = |field: &str, texts: &[String]| {
            let mut patterns = Vec::with_capacity(texts.len());
            for (index, text) in texts.iter().enumerate() {
                match Pattern::new(text) {
                    Ok(pattern) => patterns.push(pattern),
                    Err(error) => {
                        problems.push(format!("match.{field}[{index}] {text:?} is not a pattern: {error}"));
                    }
                }
            }
            patterns
        };
        let projects = patterns("projects", &matching.projects);
        let refs = patterns("refs.names", &matching.refs.names);
        let namespaces = patterns("namespaces", &matching.namespaces);
        let mut users = Vec::with_capacity(matching.users.len());
        for (index, user) in matching.users.iter().enumerate() {
            match User::new(user) {
                Some(user) => users.push(user),
                None => problems.push(format!("match.users[{index}] {user:?} is neither an ID nor a login")),
            }
        }
        let expression = matching.expression.as_deref().and_then(|source| {
            let compiled = Expression::compile(source);
            compiled.map_err(|error| problems.push(format!("match.expression cannot be used: {error}"))).ok()
        });
        let protected_only = matching.refs.protected_only;
        Self { tags, run_untagged, projects, protected_only, refs, namespaces, users, expression }
    }

    /// How many of the class's tags the job does not ask for: fewer means closer to what it asks.
    /// `None`: the class does not look at tags.
    pub fn spare_tags(&self, job: &Subject<'_>) -> Option<usize> {
        let tags = self.tags.as_ref()?;
        Some(tags.iter().filter(|tag| !job.request.tags.contains(tag)).count())
    }

    /// Whether the match takes the job, as far as that can be told without its expression.
    pub fn passes(&self, job: &Subject<'_>) -> bool {
        self.reasons(job).is_empty()
    }

    fn reasons(&self, job: &Subject<'_>) -> Vec<String> {
        [self.tags(job), self.project(job), self.git_ref(job), self.namespace(job), self.user(job)]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Whether the match takes the job.
    pub fn answer(&self, job: &Subject<'_>) -> Answer {
        let reasons = self.reasons(job);
        if !reasons.is_empty() {
            return Answer::Refuses(reasons.join("; "));
        }
        let Some(expression) = &self.expression else { return Answer::Takes };
        match expression.holds(job.inputs()) {
            Ok(true) => Answer::Takes,
            Ok(false) => Answer::Refuses("its expression is false for the job".to_owned()),
            Err(error) => Answer::Fails(error.to_string()),
        }
    }

    /// GitLab's rule: (`run_untagged` or the job has tags) and the job's tags are all the runner's.
    fn tags(&self, Subject { request, .. }: &Subject<'_>) -> Option<String> {
        if self.tags.is_none() && self.run_untagged {
            return None;
        }
        if request.tag_source.is_none() {
            return Some("it goes by tags, and the job's are not known".to_owned());
        }
        if request.tags.is_empty() {
            return (!self.run_untagged).then(|| "it does not take jobs without tags".to_owned());
        }
        let tags = self.tags.as_ref()?;
        let missing: Vec<&str> =
            request.tags.iter().filter(|tag| !tags.contains(*tag)).map(String::as_str).collect();
        if missing.is_empty() {
            return None;
        }
        Some(if tags.is_empty() {
            "it takes jobs without tags only".to_owned()
        } else if missing.len() == 1 {
            format!("it does not have the tag {}", listed(&missing))
        } else {
            format!("it does not have the tags {}", listed(&missing))
        })
    }

    fn project(&self, Subject { request, .. }: &Subject<'_>) -> Option<String> {
        let path = &request.project.path;
        refusal(&self.projects, path, || format!("it is not for project {path}"))
    }

    fn git_ref(&self, Subject { request, .. }: &Subject<'_>) -> Option<String> {
        let git_ref = &request.git_ref;
        let mut text =
            refusal(&self.refs, &git_ref.name, || format!("it is not for the ref {}", git_ref.name));
        if self.protected_only && git_ref.protected != Some(true) {
            let why = match git_ref.protected {
                Some(_) => "it takes jobs of protected refs only, and this ref is not protected",
                None => "it takes jobs of protected refs only, and GitLab does not say that this one is",
            };
            match &mut text {
                Some(text) => {
                    // Writing to a String cannot fail.
                    let _ = write!(text, "; {why}");
                }
                None => text = Some(why.to_owned()),
            }
        }
        text
    }

    fn namespace(&self, Subject { namespace, .. }: &Subject<'_>) -> Option<String> {
        refusal(&self.namespaces, namespace, || format!("it is not for namespace {namespace}"))
    }

    fn user(&self, Subject { request, .. }: &Subject<'_>) -> Option<String> {
        if self.users.is_empty() || self.users.iter().any(|user| user.is(request)) {
            return None;
        }
        let logins = self.users.iter().any(|user| matches!(user, User::Login(_)));
        Some(match (&request.user_login, request.user_id) {
            (Some(login), _) => format!("it is not for user {login}"),
            (None, _) if logins => {
                "it is for certain users, and the login of this one is not known".to_owned()
            }
            (None, Some(id)) => format!("it is not for the user with ID {id}"),
            (None, None) => "it is for certain users, and the job's is not known".to_owned(),
        })
    }
}

fn refusal(patterns: &[Pattern], text: &str, why: impl FnOnce() -> String) -> Option<String> {
    (!patterns.is_empty() && !patterns.iter().any(|pattern| pattern.matches(text))).then(why)
}

impl User {
    fn new(text: &str) -> Option<Self> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().ok().filter(|id| *id > 0).map(Self::Id);
        }
        // <https://docs.gitlab.com/user/reserved_names/#limitations-on-usernames-project-and-group-names-and-slugs>
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        text.bytes().all(plain).then(|| Self::Login(text.to_owned()))
    }

    /// GitLab tells no two logins apart by case.
    fn is(&self, request: &JobRequest) -> bool {
        match self {
            Self::Id(id) => request.user_id == Some(*id),
            Self::Login(login) => {
                request.user_login.as_ref().is_some_and(|theirs| theirs.eq_ignore_ascii_case(login))
            }
        }
    }
}

/// What a job is matched by, for people.
pub fn described(Subject { request, .. }: &Subject<'_>) -> String {
    let tags: Vec<&str> = request.tags.iter().map(String::as_str).collect();
    let tags = match (request.tag_source, tags.as_slice()) {
        (None, _) => "its tags are not known".to_owned(),
        (Some(TagSource::Job), []) => "it has no tags".to_owned(),
        (Some(TagSource::Runner), []) => "the runner has no tags".to_owned(),
        (Some(TagSource::Job), tags) => format!("its tags: {}", listed(tags)),
        (Some(TagSource::Runner), tags) => format!("the runner's tags: {}", listed(tags)),
    };
    let git_ref = &request.git_ref;
    let kind = match git_ref.ref_type {
        GitRefType::Branch => "branch",
        GitRefType::Tag => "Git tag",
    };
    let protected = match git_ref.protected {
        Some(true) => "protected",
        Some(false) => "not protected",
        None => "not known to be protected",
    };
    format!("{tags}; {kind} {}, {protected}; project {}", git_ref.name, request.project.path)
}

#[cfg(test)]
mod tests;
