//! Several placement rules as one. The order of the rules changes nothing: what rules list adds up,
//! and what each can say only once they must agree on.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorTerm, PodAffinity, PodAntiAffinity,
    TopologySpreadConstraint,
};
use roadstead_crds::jobclass::PlacementRule;
use serde::Serialize;

use crate::policy::placement::Placement;

/// Most alternatives of required node affinity. Those of several rules multiply.
const MOST_ALTERNATIVES: usize = 64;

/// The rules as one.
///
/// # Errors
/// What two of them disagree on.
pub fn together(rules: &[&PlacementRule]) -> Result<Placement, String> {
    if let Some(problem) = disagreements(rules).into_iter().next() {
        return Err(problem);
    }
    let mut merged = Placement::default();
    for rule in rules {
        merged.node_selector.extend(rule.node_selector.clone());
        merged.tolerations.extend(rule.tolerations.iter().cloned());
        merged.topology_spread_constraints.extend(rule.topology_spread_constraints.iter().cloned());
        let keep = |into: &mut Option<String>, from: &Option<String>| {
            if into.is_none() {
                into.clone_from(from);
            }
        };
        keep(&mut merged.runtime_class_name, &rule.runtime_class_name);
        keep(&mut merged.priority_class_name, &rule.priority_class_name);
        keep(&mut merged.scheduler_name, &rule.scheduler_name);
    }
    merged.tolerations = sorted(merged.tolerations);
    merged.topology_spread_constraints = sorted(merged.topology_spread_constraints);
    let affinities: Vec<&Affinity> = rules.iter().filter_map(|rule| rule.affinity.as_ref()).collect();
    merged.affinity = affinity(&affinities);
    Ok(merged)
}

/// What is wrong with the rules of a class, a sentence each. Any two rules can apply to one job,
/// which then has the tags of both, if `can_have` says of all of them that a job of the class can.
pub fn problems(rules: &[PlacementRule], can_have: impl Fn(&String) -> bool) -> Vec<String> {
    disagreements(&rules.iter().filter(|rule| rule.tags.iter().all(&can_have)).collect::<Vec<_>>())
}

fn disagreements(rules: &[&PlacementRule]) -> Vec<String> {
    let mut problems = Vec::new();
    for (index, one) in rules.iter().enumerate() {
        for other in &rules[index + 1..] {
            let between = format!("the rules for {} and for {}", tags(one), tags(other));
            problems.extend(
                disagreement(one, other).into_iter().map(|what| format!("{between} disagree on {what}")),
            );
        }
    }
    let alternatives = rules
        .iter()
        .filter_map(|rule| rule.affinity.as_ref())
        .map(|affinity| required(affinity).len().max(1));
    let product = alternatives.fold(1, usize::saturating_mul);
    if product > MOST_ALTERNATIVES {
        problems.push(format!(
            "the rules' required node affinity has {product} alternatives where all apply, more than {MOST_ALTERNATIVES}"
        ));
    }
    problems
}

fn tags(rule: &PlacementRule) -> String {
    match rule.tags.as_slice() {
        [] => "all jobs".to_owned(),
        [tag] => format!("tag {tag}"),
        tags => format!("tags {}", tags.join(" and ")),
    }
}

/// What two rules cannot both have.
fn disagreement(one: &PlacementRule, other: &PlacementRule) -> Vec<String> {
    let mut found = Vec::new();
    for (key, value) in &one.node_selector {
        if let Some(other) = other.node_selector.get(key).filter(|other| *other != value) {
            found.push(format!("`nodeSelector` {key}, which is {value} or {other}"));
        }
    }
    for (field, one, other) in [
        ("runtimeClassName", &one.runtime_class_name, &other.runtime_class_name),
        ("priorityClassName", &one.priority_class_name, &other.priority_class_name),
        ("schedulerName", &one.scheduler_name, &other.scheduler_name),
    ] {
        if let (Some(one), Some(other)) = (one, other)
            && one != other
        {
            found.push(format!("`{field}`, which is {one} or {other}"));
        }
    }
    let key = |constraint: &TopologySpreadConstraint| {
        (constraint.topology_key.clone(), constraint.when_unsatisfiable.clone())
    };
    for constraint in &one.topology_spread_constraints {
        let same = |other: &&TopologySpreadConstraint| key(other) == key(constraint) && *other != constraint;
        if other.topology_spread_constraints.iter().find(same).is_some() {
            found.push(format!("`topologySpreadConstraints` for {}", constraint.topology_key));
        }
    }
    found
}

/// What is required and preferred by any of them.
fn affinity(all: &[&Affinity]) -> Option<Affinity> {
    let merged = Affinity { node_affinity: node(all), pod_affinity: pod(all), pod_anti_affinity: anti(all) };
    (merged != Affinity::default()).then_some(merged)
}

fn node(all: &[&Affinity]) -> Option<NodeAffinity> {
    let parts: Vec<&NodeAffinity> =
        all.iter().filter_map(|affinity| affinity.node_affinity.as_ref()).collect();
    let mut alternatives: Option<Vec<NodeSelectorTerm>> = None;
    for terms in all.iter().map(|affinity| required(affinity)).filter(|terms| !terms.is_empty()) {
        alternatives = Some(match alternatives {
            None => terms.into_iter().cloned().collect(),
            Some(before) => {
                before.iter().flat_map(|one| terms.iter().map(|other| both(one, other))).collect()
            }
        });
    }
    let preferred =
        parts.iter().filter_map(|part| part.preferred_during_scheduling_ignored_during_execution.clone());
    let merged = NodeAffinity {
        required_during_scheduling_ignored_during_execution: alternatives.map(|terms| NodeSelector {
            node_selector_terms: sorted(
                terms.iter().map(|term| both(term, &NodeSelectorTerm::default())).collect(),
            ),
        }),
        preferred_during_scheduling_ignored_during_execution: filled(preferred),
    };
    (merged != NodeAffinity::default()).then_some(merged)
}

/// The alternatives that an affinity requires of nodes. An empty one matches no node.
fn required(affinity: &Affinity) -> Vec<&NodeSelectorTerm> {
    let node = affinity.node_affinity.as_ref();
    let required = node.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    let terms = required.map(|required| required.node_selector_terms.iter()).into_iter().flatten();
    terms.filter(|term| **term != NodeSelectorTerm::default()).collect()
}

/// Nodes that fulfil both terms.
fn both(one: &NodeSelectorTerm, other: &NodeSelectorTerm) -> NodeSelectorTerm {
    NodeSelectorTerm {
        match_expressions: filled([one, other].into_iter().filter_map(|term| term.match_expressions.clone())),
        match_fields: filled([one, other].into_iter().filter_map(|term| term.match_fields.clone())),
    }
}

fn pod(all: &[&Affinity]) -> Option<PodAffinity> {
    let parts: Vec<&PodAffinity> = all.iter().filter_map(|affinity| affinity.pod_affinity.as_ref()).collect();
    let required =
        parts.iter().filter_map(|part| part.required_during_scheduling_ignored_during_execution.clone());
    let preferred =
        parts.iter().filter_map(|part| part.preferred_during_scheduling_ignored_during_execution.clone());
    let merged = PodAffinity {
        required_during_scheduling_ignored_during_execution: filled(required),
        preferred_during_scheduling_ignored_during_execution: filled(preferred),
    };
    (merged != PodAffinity::default()).then_some(merged)
}

fn anti(all: &[&Affinity]) -> Option<PodAntiAffinity> {
    let parts: Vec<&PodAntiAffinity> =
        all.iter().filter_map(|affinity| affinity.pod_anti_affinity.as_ref()).collect();
    let required =
        parts.iter().filter_map(|part| part.required_during_scheduling_ignored_during_execution.clone());
    let preferred =
        parts.iter().filter_map(|part| part.preferred_during_scheduling_ignored_during_execution.clone());
    let merged = PodAntiAffinity {
        required_during_scheduling_ignored_during_execution: filled(required),
        preferred_during_scheduling_ignored_during_execution: filled(preferred),
    };
    (merged != PodAntiAffinity::default()).then_some(merged)
}

fn filled<T: Serialize>(lists: impl Iterator<Item = Vec<T>>) -> Option<Vec<T>> {
    let items = sorted(lists.flatten().collect());
    (!items.is_empty()).then_some(items)
}

/// In an order of their own, each once.
fn sorted<T: Serialize>(items: Vec<T>) -> Vec<T> {
    let text = |item: &T| serde_json::to_string(item).unwrap_or_default();
    items.into_iter().map(|item| (text(&item), item)).collect::<BTreeMap<_, _>>().into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn rule(value: serde_json::Value) -> PlacementRule {
        serde_json::from_value(value).unwrap()
    }

    fn requiring(keys: &[&str]) -> serde_json::Value {
        let term = |key: &&str| json!({"matchExpressions": [{"key": key, "operator": "Exists"}]});
        let terms: Vec<_> = keys.iter().map(term).collect();
        json!({"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
    }

    #[test]
    fn what_rules_list_adds_up() {
        let gpu = rule(json!({"tags": ["gpu"], "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}], "runtimeClassName": "nvidia"}));
        let spot = rule(json!({"tags": ["spot"], "nodeSelector": {"spot": "true"},
            "tolerations": [{"key": "spot", "operator": "Exists"}, {"key": "gpu", "operator": "Exists"}], "priorityClassName": "low"}));
        let merged = together(&[&gpu, &spot]).unwrap();
        assert_eq!(merged.node_selector.len(), 2);
        assert_eq!(merged.tolerations.len(), 2);
        assert_eq!(merged.runtime_class_name.as_deref(), Some("nvidia"));
        assert_eq!(merged.priority_class_name.as_deref(), Some("low"));
        assert_eq!(together(&[]).unwrap(), Placement::default());
    }

    #[test]
    fn what_several_rules_require_is_required_together() {
        let (one, other) = (rule(requiring(&["a", "b"])), rule(requiring(&["c", "d"])));
        let merged = together(&[&one, &other]).unwrap();
        let node = merged.affinity.unwrap().node_affinity.unwrap();
        let terms = node.required_during_scheduling_ignored_during_execution.unwrap().node_selector_terms;
        let keys = |term: &NodeSelectorTerm| -> Vec<String> {
            term.match_expressions.iter().flatten().map(|expression| expression.key.clone()).collect()
        };
        assert_eq!(
            terms.iter().map(keys).collect::<Vec<_>>(),
            [["a", "c"], ["a", "d"], ["b", "c"], ["b", "d"]]
        );
    }

    #[test]
    fn rules_that_disagree_are_a_problem_of_the_class() {
        let table = [
            (
                json!({"nodeSelector": {"pool": "a"}}),
                json!({"nodeSelector": {"pool": "b"}}),
                "`nodeSelector` pool, which is a or b",
            ),
            (
                json!({"runtimeClassName": "a"}),
                json!({"runtimeClassName": "b"}),
                "`runtimeClassName`, which is a or b",
            ),
            (
                json!({"priorityClassName": "a"}),
                json!({"priorityClassName": "b"}),
                "`priorityClassName`, which is a or b",
            ),
            (
                json!({"schedulerName": "a"}),
                json!({"schedulerName": "b"}),
                "`schedulerName`, which is a or b",
            ),
            (
                json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]}),
                json!({"topologySpreadConstraints": [{"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]}),
                "`topologySpreadConstraints` for zone",
            ),
        ];
        for (mut one, mut other, what) in table {
            one["tags"] = json!(["x"]);
            other["tags"] = json!(["y", "z"]);
            let (one, other) = (rule(one), rule(other));
            assert_eq!(
                problems(&[one.clone(), other.clone()], |_| true),
                [format!("the rules for tag x and for tags y and z disagree on {what}")]
            );
            assert_eq!(problems(&[one.clone(), one.clone()], |_| true), [""; 0], "the same twice");
            let no_z = |tag: &String| tag != "z";
            assert_eq!(problems(&[one.clone(), other.clone()], no_z), [""; 0], "no job has both");
            assert!(together(&[&one, &other]).is_err());
        }
        let many = rule(requiring(&["a", "b", "c", "d", "e"]));
        assert_eq!(problems(&[many.clone(), many.clone()], |_| true), [""; 0]);
        assert_eq!(
            problems(&[many.clone(), many.clone(), many], |_| true),
            ["the rules' required node affinity has 125 alternatives where all apply, more than 64"]
        );
    }

    fn any_rule() -> impl Strategy<Value = PlacementRule> {
        let key = || prop::sample::select(vec!["a", "b", "c"]);
        let selector = prop::collection::btree_map(key(), prop::sample::select(vec!["1", "2"]), 0..3);
        let keys = || prop::collection::vec(key(), 0..3);
        let name = || prop::option::of(prop::sample::select(vec!["x", "y"]));
        (selector, keys(), keys(), name()).prop_map(|(selector, tolerated, needed, runtime)| {
            let mut value = if needed.is_empty() { json!({}) } else { requiring(&needed) };
            value["nodeSelector"] = json!(selector);
            value["tolerations"] =
                tolerated.iter().map(|key| json!({"key": key, "operator": "Exists"})).collect();
            value["runtimeClassName"] = json!(runtime);
            rule(value)
        })
    }

    proptest! {
        #[test]
        fn the_order_of_the_rules_changes_nothing(
            (rules, shuffled) in prop::collection::vec(any_rule(), 0..5)
                .prop_flat_map(|rules| (Just(rules.clone()), Just(rules).prop_shuffle()))
        ) {
            let (one, other): (Vec<_>, Vec<_>) = (rules.iter().collect(), shuffled.iter().collect());
            match (together(&one), together(&other)) {
                (Ok(one), Ok(other)) => prop_assert_eq!(one, other),
                (one, other) => prop_assert!(one.is_err() && other.is_err()),
            }
        }

        #[test]
        fn what_each_rule_wants_is_in_the_whole(rules in prop::collection::vec(any_rule(), 0..4)) {
            let Ok(merged) = together(&rules.iter().collect::<Vec<_>>()) else { return Ok(()) };
            for rule in &rules {
                prop_assert!(rule.node_selector.iter().all(|(key, value)| merged.node_selector.get(key) == Some(value)));
                prop_assert!(rule.tolerations.iter().all(|toleration| merged.tolerations.contains(toleration)));
                prop_assert!(rule.runtime_class_name.is_none() || rule.runtime_class_name == merged.runtime_class_name);
            }
        }
    }
}
