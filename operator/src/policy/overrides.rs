//! What a job asks for with its variables, read from its request, and what is said about it.

use std::collections::BTreeMap;

use roadstead_crds::Reason;
use roadstead_crds::overrides::{Target, Variable, Wish};
use roadstead_crds::request::{JobRequest, ServiceRequest};
use roadstead_crds::status::{OverrideOutcome, OverrideReport};

use crate::policy::verdict::Verdict;

/// How many refusals one verdict names.
const MOST_REFUSALS: usize = 5;

/// One variable that asks for something.
#[derive(Clone, Debug, PartialEq)]
pub struct Wished<'a> {
    /// Its name.
    pub variable: &'a str,
    /// Its value.
    pub value: &'a str,
    /// What the value asks for.
    pub wish: Wish,
}

/// What the job asks for, in the order of the variables' names. The shim sends nothing that cannot
/// be read; somebody else who creates CiJobs might.
///
/// # Errors
/// The variables that cannot be read, a sentence each.
pub fn read(request: &JobRequest) -> Result<Vec<Wished<'_>>, Vec<String>> {
    wished(&request.overrides)
}

/// What the variables of a service ask for, which is about that service's container only.
///
/// # Errors
/// The variables that cannot be read, a sentence each.
pub fn of_service(service: &ServiceRequest) -> Result<Vec<Wished<'_>>, Vec<String>> {
    let foreign = |name: &&String| {
        !matches!(Variable::named(name), Some(Variable::Amount { target: Target::Service, .. }))
    };
    match service.overrides.keys().find(foreign) {
        Some(name) => {
            Err(vec![format!("`{name}` is not a variable with which a service asks for something")])
        }
        None => wished(&service.overrides),
    }
}

fn wished(overrides: &BTreeMap<String, String>) -> Result<Vec<Wished<'_>>, Vec<String>> {
    let (mut wishes, mut refusals) = (Vec::new(), Vec::new());
    for (name, value) in overrides {
        let Some(variable) = Variable::named(name) else {
            refusals.push(format!("`{name}` is not a variable that Roadstead knows"));
            continue;
        };
        match Wish::parse(variable, value) {
            Ok(wish) => wishes.push(Wished { variable: name, value, wish }),
            Err(malformed) => refusals.push(format!("{name} {malformed}")),
        }
    }
    if refusals.is_empty() { Ok(wishes) } else { Err(refusals) }
}

/// The verdict on a job that asks for what it cannot have.
pub fn refused(refusals: &[String]) -> Verdict {
    let mut words = refusals.iter().take(MOST_REFUSALS).map(String::as_str).collect::<Vec<_>>().join("; ");
    if refusals.len() > MOST_REFUSALS {
        words.push_str(&format!("; and {} more of the kind", refusals.len() - MOST_REFUSALS));
    }
    Verdict::new(Reason::OverrideRefused, words)
}

/// A line of the report on something that a job asked for.
pub fn reported(what: impl Into<String>, wished: &Wished<'_>, outcome: OverrideOutcome) -> OverrideReport {
    OverrideReport {
        what: what.into(),
        asked: Some(wished.value.to_owned()),
        allowed: None,
        applied: (outcome == OverrideOutcome::Applied).then(|| wished.value.to_owned()),
        source: wished.variable.to_owned(),
        outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use roadstead_crds::reason::Blame;

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        let mut request = fixture::request();
        request.overrides =
            [("KUBERNETES_CPU_LIMIT", "2"), ("KUBERNETES_MEMORY_LIMIT", "much"), ("PATH", "/bin")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
        let refusals = read(&request).unwrap_err();
        let verdict = refused(&refusals);
        assert_eq!(
            verdict.message,
            "KUBERNETES_MEMORY_LIMIT must be a Kubernetes quantity such as 500m, 2 or 4Gi; \
             `PATH` is not a variable that Roadstead knows."
        );
        assert_eq!(verdict.reason.blame(), Blame::User);
        request.overrides.retain(|name, _| name == "KUBERNETES_CPU_LIMIT");
        assert_eq!(read(&request).unwrap().len(), 1);
    }

    #[test]
    fn many_refusals_are_one_sentence() {
        let refusals: Vec<String> = (0..8).map(|number| format!("no {number}")).collect();
        assert_eq!(refused(&refusals).message, "No 0; no 1; no 2; no 3; no 4; and 3 more of the kind.");
    }
}
