//! The variables of a job in gitlab-runner's order, expanded its way.

use crate::coordinator::Variable;

use super::config::RunnerConfig;
use super::flags;
use super::job::RunnerJob;

/// Where a job works. Empty until the driver has said what `config` is for.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    /// `CI_BUILDS_DIR`.
    pub(super) root: String,
    /// `CI_PROJECT_DIR`.
    pub(super) project: String,
    /// Where local caches of this project are.
    pub(super) cache: String,
}

impl Place {
    /// `RUNNER_TEMP_PROJECT_DIR`: file variables and Git's settings.
    pub(super) fn temporary(&self) -> String {
        format!("{}.tmp", self.project)
    }
}

/// A list of variables; of several with one name the last counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Variables(pub(super) Vec<Variable>);

impl Variables {
    /// Everything that a job sees, in the order in which gitlab-runner lists it: resolved feature flags, what the
    /// runner sets before the job, the job's own, what the runner sets after it.
    pub(super) fn of_job(
        config: &RunnerConfig,
        job: &RunnerJob,
        secrets: &[Variable],
        place: &Place,
    ) -> Self {
        let before = before_job(config, job, place);
        let after = after_job(config, secrets, place);

        let defaults = flags::ALL.iter().map(|(name, on)| Variable::new(*name, on.to_string()));
        let mut all: Vec<Variable> = defaults.collect();
        all.extend(before.iter().cloned());
        all.extend(job.variables().iter().cloned());
        all.extend(after.iter().cloned());
        let known = Self(all).expand();

        let resolved = flags::ALL.iter().map(|(name, default)| {
            let configured = config.feature_flags.iter().find(|(flag, _)| flag == name).map(|(_, on)| *on);
            let on = configured.or_else(|| parse_bool(&known.path_or_value(name))).unwrap_or(*default);
            Variable::new(*name, on.to_string())
        });
        let mut variables: Vec<Variable> = resolved.collect();
        variables.extend(before);
        variables.extend(job.variables().iter().filter(|one| !flags::is_flag(&one.key)).cloned());
        variables.extend(after);
        Self(variables).expand()
    }

    /// The value; empty when there is no such variable. File variables give their content.
    pub(super) fn value(&self, key: &str) -> &str {
        self.0.iter().rev().find(|one| one.key == key).map_or("", |one| one.value.as_str())
    }

    /// Whether a feature flag, or any other boolean, is on.
    pub(super) fn is_on(&self, key: &str) -> bool {
        parse_bool(self.value(key)).unwrap_or(false)
    }

    /// What a reference to the variable becomes: for a file variable the path of its file.
    fn path_or_value(&self, key: &str) -> String {
        match self.0.iter().rev().find(|one| one.key == key) {
            Some(one) if one.file => {
                let folder = self.value("RUNNER_TEMP_PROJECT_DIR");
                if folder.is_empty() { key.to_owned() } else { format!("{folder}/{key}") }
            }
            Some(one) => one.value.clone(),
            None => String::new(),
        }
    }

    /// Replaces the first variable of this name: that is how the runner sets `CI_JOB_STATUS`, so a job that has its
    /// own keeps that.
    pub(super) fn overwrite_first(&mut self, key: &str, value: &str) {
        if let Some(one) = self.0.iter_mut().find(|one| one.key == key) {
            *one = Variable::new(key, value);
        }
    }

    /// Replaces `$NAME` and `${NAME}` in a text.
    pub(super) fn expand_text(&self, text: &str) -> String {
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(dollar) = rest.find('$') {
            expanded.push_str(&rest[..dollar]);
            rest = &rest[dollar + 1..];
            let (name, length) = reference(rest);
            match name {
                Reference::Name(name) => expanded.push_str(&self.path_or_value(name)),
                Reference::Dollar => expanded.push('$'),
                Reference::Nothing => {}
            }
            rest = &rest[length..];
        }
        expanded.push_str(rest);
        expanded
    }

    /// Expands all values against the unexpanded list, once.
    fn expand(self) -> Self {
        let expanded = self
            .0
            .iter()
            .map(|one| {
                let value = if one.raw { one.value.clone() } else { self.expand_text(&one.value) };
                Variable { value, ..one.clone() }
            })
            .collect();
        Self(expanded)
    }

    /// With more variables at the end, all of them expanded against the whole.
    pub(super) fn extended(&self, more: &[Variable]) -> Self {
        let mut all = self.0.clone();
        all.extend(more.iter().cloned());
        Self(all).expand()
    }
}

enum Reference<'a> {
    Name(&'a str),
    Dollar,
    Nothing,
}

/// What follows a dollar sign, and how many bytes of it belong to the reference: Go's `os.Expand`, with its special
/// names (`$$` is a dollar; `$1`, `$?` and so on are empty).
fn reference(text: &str) -> (Reference<'_>, usize) {
    let Some(first) = text.chars().next() else { return (Reference::Dollar, 0) };
    let special = |c: char| "*#$@!?-0123456789".contains(c);
    let named = |name| match name {
        "$" => Reference::Dollar,
        name if name.len() == 1 && name.starts_with(special) => Reference::Nothing,
        name => Reference::Name(name),
    };
    if first == '{' {
        let inner = &text[1..];
        return match inner.find('}') {
            // `${}` disappears, and so does an open brace with nothing that closes it.
            Some(0) => (Reference::Nothing, 2),
            Some(end) => (named(&inner[..end]), end + 2),
            None => (Reference::Nothing, 1),
        };
    }
    if special(first) {
        return (named(&text[..1]), 1);
    }
    let length = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    if length == 0 { (Reference::Dollar, 0) } else { (Reference::Name(&text[..length]), length) }
}

/// Go's `ParseBool`.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn before_job(config: &RunnerConfig, job: &RunnerJob, place: &Place) -> Vec<Variable> {
    let mut variables = Vec::new();
    if !job.image_name().is_empty() {
        variables.push(Variable::new("CI_JOB_IMAGE", job.image_name()));
    }
    variables.push(Variable::new("CI_RUNNER_SHORT_TOKEN", config.short_token()));
    for line in &config.environment {
        if let Some((key, value)) = line.split_once('=') {
            variables.push(Variable { public: false, ..Variable::new(key, value) });
        }
    }
    variables.extend([
        Variable::new("CI_BUILDS_DIR", place.root.as_str()),
        Variable::new("CI_PROJECT_DIR", place.project.as_str()),
        Variable::new("CI_CONCURRENT_ID", config.concurrent_id.to_string()),
        Variable::new("CI_CONCURRENT_PROJECT_ID", config.concurrent_project_id.to_string()),
        Variable::new("CI_SERVER", "yes"),
        Variable::new("CI_JOB_STATUS", "running"),
        Variable::new("CI_JOB_TIMEOUT", job.timeout().as_secs().to_string()),
    ]);
    if let Some(certificate) = &config.tls_ca {
        variables
            .push(Variable { file: true, ..Variable::new("CI_SERVER_TLS_CA_FILE", certificate.as_str()) });
    }
    variables
}

fn after_job(config: &RunnerConfig, secrets: &[Variable], place: &Place) -> Vec<Variable> {
    let mut variables = vec![
        Variable::new("CI_SHARED_ENVIRONMENT", "true"),
        Variable::new("CI_RUNNER_VERSION", config.version.as_str()),
        Variable::new("CI_RUNNER_REVISION", config.revision.as_str()),
        Variable::new("CI_RUNNER_EXECUTABLE_ARCH", "linux/amd64"),
    ];
    variables.extend(secrets.iter().cloned());
    variables.push(Variable::new("RUNNER_TEMP_PROJECT_DIR", place.temporary()));
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(variables: &[Variable]) -> Variables {
        Variables(variables.to_vec())
    }

    #[test]
    fn references_expand_as_in_go() {
        let variables = list(&[
            Variable::new("RUNNER_TEMP_PROJECT_DIR", "/b/p.tmp"),
            Variable::new("A", "one"),
            Variable::new("A", "two"),
            Variable::file("F", "content"),
        ]);
        let table = [
            ("$A", "two"),
            ("x${A}y", "xtwoy"),
            ("$A_", ""),
            ("$F", "/b/p.tmp/F"),
            ("$$A", "$A"),
            ("$1$?x", "x"),
            ("cost: 5$", "cost: 5$"),
            ("a$ b", "a$ b"),
            ("a${}b", "ab"),
            ("a${A", "aA"),
            ("$ä", "$ä"),
        ];
        for (text, expected) in table {
            assert_eq!(variables.expand_text(text), expected, "{text}");
        }
    }

    #[test]
    fn expansion_is_one_level_deep() {
        let expanded =
            list(&[Variable::new("A", "$B"), Variable::new("B", "$C"), Variable::new("C", "c")]).expand();
        assert_eq!(expanded.value("A"), "$C");
        assert_eq!(expanded.value("B"), "c");
    }

    #[test]
    fn raw_values_stay() {
        let raw = Variable { raw: true, ..Variable::new("A", "$B") };
        assert_eq!(list(&[raw, Variable::new("B", "b")]).expand().value("A"), "$B");
    }

    #[test]
    fn only_the_first_of_a_name_is_overwritten() {
        let mut variables =
            list(&[Variable::new("CI_JOB_STATUS", "running"), Variable::new("CI_JOB_STATUS", "spoofed")]);
        variables.overwrite_first("CI_JOB_STATUS", "failed");
        assert_eq!(variables.0[0].value, "failed");
        assert_eq!(variables.value("CI_JOB_STATUS"), "spoofed");
    }
}
