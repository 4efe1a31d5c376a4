//! A placement rule in a few words, for the report.

use k8s_openapi::api::core::v1::Toleration;
use roadstead_crds::jobclass::PlacementRule;

/// What the rule gives.
pub fn of(rule: &PlacementRule) -> String {
    let mut words: Vec<String> =
        rule.node_selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    words.extend(rule.tolerations.iter().map(|toleration| format!("tolerates {}", taint(toleration))));
    if rule.affinity.is_some() {
        words.push("affinity".to_owned());
    }
    if !rule.topology_spread_constraints.is_empty() {
        words.push("topology spread".to_owned());
    }
    for (what, name) in [
        ("runtime class", &rule.runtime_class_name),
        ("priority class", &rule.priority_class_name),
        ("scheduler", &rule.scheduler_name),
    ] {
        words.extend(name.iter().map(|name| format!("{what} {name}")));
    }
    if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
}

/// In GitLab's syntax.
fn taint(toleration: &Toleration) -> String {
    let key = toleration.key.as_deref().unwrap_or("everything");
    let value = toleration.value.as_ref().map(|value| format!("={value}")).unwrap_or_default();
    let effect = toleration.effect.as_ref().map(|effect| format!(":{effect}")).unwrap_or_default();
    format!("{key}{value}{effect}")
}
