//! Where a job's pod may run, and what else of the pod its tags and variables choose.
//!
//! From below: `pod.nodeSelector` and `pod.tolerations` of the class, the platform tags, the
//! class's rules for the job's tags, the job's variables. Tags count only where GitLab told them of
//! this very job: a runner's tags say what jobs may come, not what this one wants.

mod merge;
mod patterns;
mod summary;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, Toleration, TopologySpreadConstraint};
use roadstead_crds::Reason;
use roadstead_crds::jobclass::{JobClassSpec, Mode, PlacementRule};
use roadstead_crds::overrides::Wish;
use roadstead_crds::request::{JobRequest, TagSource};
use roadstead_crds::status::{OverrideOutcome, OverrideReport};

use crate::policy::overrides::{self, Wished, reported};
use crate::policy::verdict::Verdict;

/// Where a pod may run, and its other parts that jobs may choose.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Placement {
    /// Labels that the node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pod tolerates.
    pub tolerations: Vec<Toleration>,
    /// Affinity to nodes and pods.
    pub affinity: Option<Affinity>,
    /// How pods spread.
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// RuntimeClass.
    pub runtime_class_name: Option<String>,
    /// PriorityClass.
    pub priority_class_name: Option<String>,
    /// Scheduler.
    pub scheduler_name: Option<String>,
    /// ServiceAccount.
    pub service_account_name: Option<String>,
    /// Labels besides Roadstead's own.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// A decision and what is said about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Placed {
    /// The decision.
    pub placement: Placement,
    /// What the job asked for and what became of it.
    pub report: Vec<OverrideReport>,
}

/// Tags that stand for a label of nodes.
const PLATFORMS: [(&str, &str, &str); 3] = [
    ("linux", "kubernetes.io/os", "linux"),
    ("amd64", "kubernetes.io/arch", "amd64"),
    ("arm64", "kubernetes.io/arch", "arm64"),
];

/// Tags of platforms that have no agent, with their names.
const FOREIGN: [(&str, &str); 3] = [("osx", "macOS"), ("macos", "macOS"), ("windows", "Windows")];

/// Decides where the pod of a job of the class may run.
///
/// # Errors
/// The verdict on a job that asks for what it cannot have, or on a class that contradicts itself.
pub fn decide(
    request: &JobRequest,
    class_name: &str,
    class: &JobClassSpec,
    wishes: &[Wished<'_>],
) -> Result<Placed, Verdict> {
    let tags: &[String] =
        if request.tag_source == Some(TagSource::Job) { request.tags.as_slice() } else { &[] };
    let rules: Vec<&PlacementRule> =
        class.placement.rules.iter().filter(|rule| rule.tags.iter().all(|tag| tags.contains(tag))).collect();
    let placement = merge::together(&rules).map_err(|problem| {
        Verdict::new(
            Reason::ClassInvalid,
            format!("the placement rules of JobClass \"{class_name}\" disagree: {problem}"),
        )
    })?;
    let mut decision = Decision {
        class_name,
        class,
        placed: Placed { placement, report: Vec::new() },
        refusals: Vec::new(),
        chosen: BTreeMap::new(),
    };
    decision.report_rules(request, tags);
    decision.add_class_wide();
    decision.add_platforms(tags);
    for wished in wishes {
        decision.add(wished)?;
    }
    if decision.refusals.is_empty() {
        Ok(decision.placed)
    } else {
        Err(overrides::refused(&decision.refusals))
    }
}

/// What is wrong with the placement of a class, a sentence each.
pub fn problems(class: &JobClassSpec) -> Vec<String> {
    // A class that only audits may get a job that its match does not take.
    let matching = class.matching.as_ref().filter(|_| class.mode == Mode::Enforce);
    let tags = matching.and_then(|matching| matching.tags.as_ref());
    let mut problems =
        merge::problems(&class.placement.rules, |tag| tags.is_none_or(|tags| tags.contains(tag)));
    problems.extend(patterns::problems(&class.allow));
    problems
}

struct Decision<'a> {
    class_name: &'a str,
    class: &'a JobClassSpec,
    placed: Placed,
    refusals: Vec<String>,
    /// The variable that set a key of the node selector, the labels or the annotations.
    chosen: BTreeMap<(&'static str, String), String>,
}

impl Decision<'_> {
    fn report_rules(&mut self, request: &JobRequest, tags: &[String]) {
        for (index, rule) in self.class.placement.rules.iter().enumerate() {
            if !rule.tags.is_empty() && rule.tags.iter().all(|tag| tags.contains(tag)) {
                self.report_tags(&rule.tags.join(", "), format!("rule {}", index + 1), summary::of(rule));
            }
        }
        let by_tag = self.class.placement.rules.iter().any(|rule| !rule.tags.is_empty());
        if by_tag && request.tag_source == Some(TagSource::Runner) && !request.tags.is_empty() {
            self.placed.report.push(OverrideReport {
                what: "nodes".to_owned(),
                asked: Some(request.tags.join(", ")),
                allowed: None,
                applied: None,
                source: "tags".to_owned(),
                outcome: OverrideOutcome::Untrusted,
            });
        }
    }

    fn report_tags(&mut self, asked: &str, allowed: String, applied: String) {
        self.placed.report.push(OverrideReport {
            what: "nodes".to_owned(),
            asked: Some(asked.to_owned()),
            allowed: Some(allowed),
            applied: Some(applied),
            source: "tags".to_owned(),
            outcome: OverrideOutcome::Applied,
        });
    }

    fn add_class_wide(&mut self) {
        let Placement { node_selector, tolerations, service_account_name, .. } = &mut self.placed.placement;
        for (key, value) in &self.class.pod.node_selector {
            node_selector.entry(key.clone()).or_insert_with(|| value.clone());
        }
        let by_rules = std::mem::take(tolerations);
        tolerations.clone_from(&self.class.pod.tolerations);
        tolerations.extend(by_rules.into_iter().filter(|one| !self.class.pod.tolerations.contains(one)));
        service_account_name.clone_from(&self.class.pod.service_account_name);
    }

    fn add_platforms(&mut self, tags: &[String]) {
        let named =
            |tag: &str| self.class.placement.rules.iter().any(|rule| rule.tags.iter().any(|one| one == tag));
        let tags: Vec<&String> = tags.iter().filter(|tag| !named(tag)).collect();
        for tag in tags {
            if let Some((_, system)) = FOREIGN.iter().find(|(name, _)| name == tag) {
                self.refusals.push(format!(
                    "tag \"{tag}\" asks for {system}, and JobClass \"{}\" runs jobs in Linux containers: remove the tag, or use one of a runner on {system}",
                    self.class_name
                ));
            }
            let Some((_, key, value)) = PLATFORMS.iter().find(|(name, ..)| name == tag) else { continue };
            let selected = self
                .placed
                .placement
                .node_selector
                .entry((*key).to_owned())
                .or_insert_with(|| (*value).to_owned());
            if selected == value {
                self.report_tags(tag, "platform tag".to_owned(), format!("{key}={value}"));
            } else {
                let problem = format!(
                    "tag \"{tag}\" asks for nodes with {key}={value}, but the job's other tags or JobClass \"{}\" ask for {key}={selected}",
                    self.class_name
                );
                self.refusals.push(problem);
            }
        }
    }

    /// Adds what one variable asks for, if the class allows it.
    fn add(&mut self, wished: &Wished<'_>) -> Result<(), Verdict> {
        let allow = &self.class.allow;
        let (what, field, patterns) = match &wished.wish {
            Wish::Amount { .. } | Wish::Extended { .. } => return Ok(()),
            Wish::NodeSelector { .. } => ("node selector", "nodeSelector", &allow.node_selector),
            Wish::Toleration(_) => ("toleration", "tolerations", &allow.tolerations),
            Wish::PodLabel { .. } => ("pod label", "podLabels", &allow.pod_labels),
            Wish::PodAnnotation { .. } => ("pod annotation", "podAnnotations", &allow.pod_annotations),
            Wish::ServiceAccount(_) => ("service account", "serviceAccount", &allow.service_account),
            Wish::Namespace(_) => ("namespace", "namespace", &allow.namespace),
        };
        let class_name = self.class_name;
        let allowed = patterns::any_matches(patterns, wished.value).map_err(|problem| {
            Verdict::new(
                Reason::ClassInvalid,
                format!("`allow.{field}` of JobClass \"{class_name}\" is not usable: {problem}"),
            )
        })?;
        if patterns.is_empty() {
            self.refusals.push(format!(
                "JobClass \"{class_name}\" does not let jobs choose a {what}: remove {}, or ask the administrator for `allow.{field}`",
                wished.variable
            ));
            return Ok(());
        }
        let among = patterns.join(" or ");
        if !allowed {
            self.refusals.push(format!(
                "{}=\"{}\" is not a {what} that JobClass \"{class_name}\" allows, which is one that matches {among}",
                wished.variable, wished.value.escape_debug()
            ));
            return Ok(());
        }
        if self.set(what, wished) {
            let row = reported(what, wished, OverrideOutcome::Applied);
            self.placed.report.push(OverrideReport { allowed: Some(among), ..row });
        }
        Ok(())
    }

    /// Whether it was set; if not, a refusal says why.
    fn set(&mut self, what: &'static str, wished: &Wished<'_>) -> bool {
        let placement = &mut self.placed.placement;
        let (values, key, value) = match &wished.wish {
            Wish::NodeSelector { key, value } => (&mut placement.node_selector, key, value),
            Wish::PodLabel { key, value } => (&mut placement.labels, key, value),
            Wish::PodAnnotation { key, value } => (&mut placement.annotations, key, value),
            Wish::Toleration(toleration) => {
                if !placement.tolerations.contains(toleration) {
                    placement.tolerations.push(toleration.clone());
                }
                return true;
            }
            Wish::ServiceAccount(name) => {
                placement.service_account_name = Some(name.clone());
                return true;
            }
            // The CiJob is there already, by the hand of the shim.
            Wish::Namespace(_) => return true,
            Wish::Amount { .. } | Wish::Extended { .. } => return false,
        };
        if let Some(other) = self.chosen.get(&(what, key.clone()))
            && values.get(key) != Some(value)
        {
            self.refusals.push(format!(
                "{other} and {} set the {what} {key} to different values: keep one of them",
                wished.variable
            ));
            return false;
        }
        values.insert(key.clone(), value.clone());
        self.chosen.insert((what, key.clone()), wished.variable.to_owned());
        true
    }
}

#[cfg(test)]
mod tests;
