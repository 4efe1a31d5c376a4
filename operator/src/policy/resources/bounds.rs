//! One container's amounts within its class's bounds.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use roadstead_crds::jobclass::{OnExceed, OnForbidden, Resources};
use roadstead_crds::overrides::Bound;
use roadstead_crds::quantity::Quantity;
use roadstead_crds::status::{EffectiveResources, OverrideOutcome, OverrideReport};

use crate::policy::resources::{Granted, of};

/// An amount that a variable asks for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Name of the variable.
    pub variable: &'a str,
    /// Name of the resource.
    pub resource: &'a str,
    /// Whether it is the request, the limit or both.
    pub bounds: &'a [Bound],
    /// The amount as the job wrote it.
    pub text: &'a str,
    /// The amount.
    pub amount: &'a Quantity,
}

/// A container and what its class says of it.
#[derive(Clone, Copy, Debug)]
pub struct Container<'a> {
    /// Name of the class.
    pub class: &'a str,
    /// Name of the container, or [`POD`].
    pub name: &'a str,
    /// The field of the class that says it.
    pub field: &'static str,
    /// What the class says.
    pub resources: &'a Resources,
}

/// Name of the pod as a whole among its containers.
pub const POD: &str = "pod";

/// An amount with its text.
type Amount<'a> = (&'a str, Quantity);

fn amount<'a>(amounts: &'a BTreeMap<String, String>, resource: &str) -> Option<Amount<'a>> {
    let text = amounts.get(resource)?;
    // A class with something else is told of by `problems`.
    Some((text.as_str(), Quantity::parse(text).ok()?))
}

impl<'a> Container<'a> {
    fn whole_name(self) -> String {
        if self.name == POD { "the pod".to_owned() } else { format!("the {} container", self.name) }
    }

    /// What the container gets.
    pub fn grant(self, asks: &[Ask<'a>], granted: &mut Granted) -> EffectiveResources {
        let mut effective = of(self.resources);
        let resources: BTreeSet<&str> = asks.iter().map(|ask| ask.resource).collect();
        for resource in resources {
            self.grant_one(resource, asks, &mut effective, granted);
        }
        effective
    }

    fn grant_one(
        self,
        resource: &'a str,
        asks: &[Ask<'a>],
        effective: &mut EffectiveResources,
        granted: &mut Granted,
    ) {
        let of_resource = || asks.iter().filter(|ask| ask.resource == resource);
        let find = |bound: Bound| of_resource().find(|ask| ask.bounds.contains(&bound)).copied();
        let (request, limit) = (find(Bound::Request), find(Bound::Limit));
        if let Some(twin) = of_resource().find(|ask| ask.bounds.len() == 2)
            && let Some(other) = of_resource().find(|ask| ask.variable != twin.variable)
        {
            granted.refusals.push(format!(
                "{} and {} both ask for {resource} of {}: keep one of them",
                twin.variable,
                other.variable,
                self.whole_name()
            ));
            return;
        }
        if let (Some(request), Some(limit)) = (request, limit)
            && request.amount > limit.amount
        {
            granted.refusals.push(format!(
                "{}={} asks for more than {}={}, its own limit",
                request.variable, request.text, limit.variable, limit.text
            ));
            return;
        }
        let before = granted.refusals.len();
        let limit_given = limit.and_then(|ask| self.within_bounds(ask, granted).map(|given| (ask, given)));
        let both = limit.is_some_and(|ask| ask.bounds.len() == 2);
        let request_given = if both {
            limit_given.clone()
        } else {
            request.and_then(|ask| self.within_bounds(ask, granted).map(|given| (ask, given)))
        };
        if granted.refusals.len() > before {
            return;
        }
        if let Some((_, (text, _))) = &limit_given {
            effective.limits.insert(resource.to_owned(), (*text).to_owned());
        }
        if let Some((_, (text, _))) = &request_given {
            effective.requests.insert(resource.to_owned(), (*text).to_owned());
        }
        if !both && (limit_given.is_some() || request_given.is_some()) {
            self.fit(resource, request_given.map(|(ask, _)| ask), effective, granted);
        }
    }

    /// What is granted of an amount, by the bounds alone. `None`: nothing, as is reported.
    fn within_bounds(self, ask: Ask<'a>, granted: &mut Granted) -> Option<Amount<'a>> {
        let what = match ask.bounds {
            [bound] => format!("{} {} {bound}", self.name, ask.resource),
            _ => format!("{} {}", self.name, ask.resource),
        };
        let (min, max) =
            (amount(&self.resources.min, ask.resource), amount(&self.resources.max, ask.resource));
        let mut report = OverrideReport {
            what,
            asked: Some(ask.text.to_owned()),
            allowed: max.as_ref().map(|(most, _)| match &min {
                Some((least, _)) => format!("{least} to {most}"),
                None => format!("at most {most}"),
            }),
            applied: None,
            source: ask.variable.to_owned(),
            outcome: OverrideOutcome::Forbidden,
        };
        let class = self.class;
        let Some(max) = max else {
            match self.resources.on_forbidden {
                OnForbidden::Ignore => granted.report.push(report),
                OnForbidden::Reject => granted.refusals.push(format!(
                    "JobClass \"{class}\" does not let jobs set {} of {}: remove {}, or ask the administrator for `{}.max`",
                    ask.resource,
                    self.whole_name(),
                    ask.variable,
                    self.field
                )),
            }
            return None;
        };
        let broken = match &min {
            _ if *ask.amount > max.1 => Some(("more", "at most", max.clone())),
            Some(min) if *ask.amount < min.1 => Some(("less", "at least", min.clone())),
            _ => None,
        };
        let given = match (broken, self.resources.on_exceed) {
            (None, _) => {
                report.outcome = OverrideOutcome::Applied;
                (ask.text, ask.amount.clone())
            }
            (Some((_, _, bound)), OnExceed::Clamp) => {
                report.outcome = OverrideOutcome::Clamped;
                bound
            }
            (Some((than, most, bound)), OnExceed::Reject) => {
                granted.refusals.push(format!(
                    "{}={} asks for {than} {} of {} than JobClass \"{class}\" allows, which is {most} {}",
                    ask.variable,
                    ask.text,
                    ask.resource,
                    self.whole_name(),
                    bound.0
                ));
                return None;
            }
        };
        report.applied = Some(given.0.to_owned());
        granted.report.push(report);
        Some(given)
    }

    /// Makes the request fit the limit, where one of the two is the class's own.
    fn fit(
        self,
        resource: &str,
        requested: Option<Ask<'a>>,
        effective: &mut EffectiveResources,
        granted: &mut Granted,
    ) {
        let (request, limit) = (amount(&effective.requests, resource), amount(&effective.limits, resource));
        let (Some(request), Some(limit)) = (request, limit) else { return };
        if request.1 <= limit.1 {
            return;
        }
        let (name, class) = (self.name, self.class);
        let limit = limit.0.to_owned();
        let what = format!("{name} {resource} {}", Bound::Request);
        match (requested, self.resources.on_exceed) {
            (Some(ask), OnExceed::Reject) => granted.refusals.push(format!(
                "{}={} asks for more than the limit of {limit} that JobClass \"{class}\" gives {resource} of {}: set the limit too, or ask for less",
                ask.variable,
                ask.text,
                self.whole_name()
            )),
            (Some(ask), OnExceed::Clamp) => {
                let mut rows = granted.report.iter_mut();
                let row = rows.find(|row| row.source == ask.variable && row.what == what);
                if let Some(row) = row {
                    row.applied = Some(limit.clone());
                    row.outcome = OverrideOutcome::Clamped;
                }
                effective.requests.insert(resource.to_owned(), limit);
            }
            (None, _) => {
                granted.report.push(OverrideReport {
                    what,
                    asked: None,
                    allowed: Some(format!("at most {limit}")),
                    applied: Some(limit.clone()),
                    source: "JobClass".to_owned(),
                    outcome: OverrideOutcome::Adjusted,
                });
                effective.requests.insert(resource.to_owned(), limit);
            }
        }
    }
}

/// What is wrong with the amounts of a container, a sentence each.
pub fn problems(field: &str, resources: &Resources) -> Vec<String> {
    let mut problems = Vec::new();
    let maps = [
        ("requests", &resources.requests),
        ("limits", &resources.limits),
        ("min", &resources.min),
        ("max", &resources.max),
    ];
    for (map, amounts) in maps {
        for (name, text) in amounts {
            if Quantity::parse(text).map_or(true, |amount| amount.is_negative()) {
                problems.push(format!(
                    "`{field}.{map}.{name}` is \"{}\", which is not a Kubernetes quantity, or a negative one",
                    text.escape_debug()
                ));
            }
        }
    }
    // Each of these must not be above the next.
    for (low, high) in [(0, 1), (0, 3), (1, 3), (2, 0), (2, 1), (2, 3)] {
        let ((low, lesser), (high, greater)) = (maps[low], maps[high]);
        for name in lesser.keys() {
            let (Some(one), Some(other)) = (amount(lesser, name), amount(greater, name)) else { continue };
            if one.1.cmp(&other.1) == Ordering::Greater {
                problems.push(format!(
                    "`{field}.{low}.{name}` ({}) is more than `{field}.{high}.{name}` ({})",
                    one.0, other.0
                ));
            }
        }
    }
    for name in resources.max.keys() {
        if amount(&resources.limits, name).is_some_and(|limit| limit.1.is_zero()) {
            problems.push(format!(
                "`{field}.limits.{name}` is 0, which Kubernetes takes for no limit, beside a `max`"
            ));
        }
        if amount(&resources.max, name).is_some_and(|max| max.1.is_zero()) {
            problems
                .push(format!("`{field}.max.{name}` is 0, which lets jobs ask for nothing: leave it out"));
        }
    }
    problems
}
