//! Why a pod has no node, or is not let in: the words of the scheduler and of quotas, decoded for the job log.
//!
//! The scheduler counts nodes by reason (`0/3 nodes are available: 2 Insufficient cpu, 1 node(s) had untolerated taint
//! {gpu: true}. preemption: …`). A node may be counted for several. What is not known keeps the words that it has.

use std::collections::BTreeMap;

use roadstead_crds::quantity::Quantity;
use roadstead_crds::status::EffectiveResources;

use crate::policy::words::quoted;

/// Most reasons that are told; the ones with most nodes come first.
const MOST_REASONS: usize = 8;

/// What the scheduler's words say. `resources` is what the containers ask for, by name. Words in a form that no
/// scheduler up to Kubernetes 1.35 has are handed on.
pub fn no_node(words: &str, resources: &BTreeMap<String, EffectiveResources>) -> String {
    if words == "no nodes available to schedule pods" {
        return "the cluster has no nodes".to_owned();
    }
    let Some(reasons) = reasons(words) else { return quoted(words) };
    let mut told: Vec<(u64, String)> = Vec::new();
    for (nodes, reason) in reasons {
        let what = decoded(reason, resources);
        match told.iter_mut().find(|(_, known)| *known == what) {
            Some((sum, _)) => *sum = sum.saturating_add(nodes),
            None => told.push((nodes, what)),
        }
    }
    // The scheduler sorts by words, which says nothing.
    told.sort_by(|(a, _), (b, _)| b.cmp(a));
    let more = told.len().saturating_sub(MOST_REASONS);
    let mut parts: Vec<String> = told
        .into_iter()
        .take(MOST_REASONS)
        .map(|(nodes, what)| match nodes {
            0 => what,
            1 => format!("1 node: {what}"),
            _ => format!("{nodes} nodes: {what}"),
        })
        .collect();
    if more > 0 {
        parts.push(format!("and {more} more reasons"));
    }
    parts.join("; ")
}

/// The reasons with the number of nodes that each is about; 0 where it is about the pod, whatever the node.
fn reasons(words: &str) -> Option<Vec<(u64, &str)>> {
    let rest = words.strip_prefix("0/")?;
    let (nodes, rest) = rest.split_once(" nodes are available: ")?;
    let _: u64 = nodes.parse().ok()?;
    // What follows in further sentences, preemption for one, is about other pods.
    let rest = rest.split(". ").next()?.trim_end_matches(['.', ' ']);
    if rest.is_empty() {
        return None;
    }
    let counted = |part: &str| -> Option<u64> { part.split_once(' ')?.0.parse().ok() };
    if counted(rest).is_none() {
        return Some(vec![(0, rest)]);
    }
    let mut found = Vec::new();
    let mut start = 0;
    // A comma may be part of a reason; a number after it begins the next one.
    let ends = rest.match_indices(", ").map(|(at, _)| at).filter(|at| counted(&rest[at + 2..]).is_some());
    for end in ends.chain([rest.len()]) {
        let (nodes, reason) = rest[start..end].split_once(' ')?;
        found.push((nodes.parse().ok()?, reason));
        start = (end + 2).min(rest.len());
    }
    Some(found)
}

/// Reasons whose words do not vary.
const KNOWN: [(&str, &str); 21] = [
    ("Too many pods", "it runs as many pods as it may"),
    ("node(s) were unschedulable", "it is cordoned"),
    (
        "node(s) didn't match Pod's node affinity/selector",
        "it does not have the labels that the job's node selector or affinity asks for",
    ),
    (
        "node(s) didn't match Pod's node affinity",
        "it does not have the labels that the job's node affinity asks for",
    ),
    (
        "node(s) didn't satisfy plugin(s) [NodeAffinity]",
        "it does not have the labels that the job's node affinity asks for",
    ),
    ("node(s) had untolerated taint(s)", "its taints are not tolerated"),
    ("node(s) had taints that the pod didn't tolerate", "its taints are not tolerated"),
    ("node(s) didn't match pod affinity rules", "the pods that the job wants to be near are not there"),
    (
        "node(s) didn't match pod affinity/anti-affinity rules",
        "pods that the job wants to be near are not there, or others that it avoids are",
    ),
    ("node(s) didn't match pod anti-affinity rules", "pods are there that the job avoids"),
    ("node(s) didn't satisfy existing pods anti-affinity rules", "pods are there that avoid the job"),
    (
        "node(s) didn't match pod topology spread constraints",
        "the job's topology spread does not allow one more there",
    ),
    (
        "node(s) didn't match pod topology spread constraints (missing required label)",
        "it does not have the label of the job's topology spread",
    ),
    ("node(s) didn't have free ports for the requested pod ports", "a host port of the job is in use"),
    ("node(s) had volume node affinity conflict", "a volume of the job cannot be used there"),
    ("node(s) didn't match PersistentVolume's node affinity", "a volume of the job cannot be used there"),
    ("node(s) exceed max volume count", "it has as many volumes as it may"),
    ("node(s) did not have enough free storage", "not enough storage for the job's volumes"),
    ("node(s) didn't find available persistent volumes to bind", "no volume is left for a claim of the job"),
    (
        "pod has unbound immediate PersistentVolumeClaims",
        "a PersistentVolumeClaim of the job is not bound to a volume",
    ),
    (
        "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",
        "a claim of the job is bound to a volume that is gone",
    ),
];

/// Taints with which Kubernetes marks nodes that are not well.
/// <https://kubernetes.io/docs/reference/labels-annotations-taints/>
const CONDITIONS: [(&str, &str); 8] = [
    ("node.kubernetes.io/not-ready", "it is not ready"),
    ("node.kubernetes.io/unreachable", "it is unreachable"),
    ("node.kubernetes.io/memory-pressure", "it is short of memory"),
    ("node.kubernetes.io/disk-pressure", "it is short of disk space"),
    ("node.kubernetes.io/pid-pressure", "it is short of process IDs"),
    ("node.kubernetes.io/network-unavailable", "its network is not ready"),
    ("node.kubernetes.io/unschedulable", "it is cordoned"),
    ("node.cloudprovider.kubernetes.io/uninitialized", "its cloud has not initialized it yet"),
];

fn decoded(reason: &str, resources: &BTreeMap<String, EffectiveResources>) -> String {
    if let Some((_, meaning)) = KNOWN.iter().find(|(words, _)| *words == reason) {
        return (*meaning).to_owned();
    }
    if let Some(resource) = reason.strip_prefix("Insufficient ") {
        return format!("not enough {resource}{}", asked(resource, resources));
    }
    let taint = reason
        .strip_prefix("node(s) had untolerated taint {")
        .or_else(|| reason.strip_prefix("node(s) had taint {"));
    if let Some((taint, _)) = taint.and_then(|rest| rest.split_once('}')) {
        let (key, value) = taint.split_once(':').unwrap_or((taint, ""));
        if let Some((_, meaning)) = CONDITIONS.iter().find(|(taint, _)| *taint == key) {
            return (*meaning).to_owned();
        }
        let equals = if value.trim().is_empty() { "" } else { "=" };
        return format!("its taint {key}{equals}{} is not tolerated", value.trim());
    }
    if let Some(name) =
        reason.strip_prefix("persistentvolumeclaim ").and_then(|rest| rest.strip_suffix(" not found"))
    {
        return format!("the PersistentVolumeClaim {name} of the job does not exist");
    }
    quoted(reason)
}

/// Which containers ask for how much of a resource. Where only a limit is given, Kubernetes sets as much aside.
fn asked(resource: &str, resources: &BTreeMap<String, EffectiveResources>) -> String {
    let asks: Vec<String> = resources
        .iter()
        .filter_map(|(container, amounts)| {
            let amount = amounts.requests.get(resource).or_else(|| amounts.limits.get(resource))?;
            Some(format!("{container} asks for {amount}"))
        })
        .collect();
    if asks.is_empty() { String::new() } else { format!(" ({})", asks.join(", ")) }
}

/// What a quota says against a pod. `None`: the words are about something else.
pub fn over_quota(words: &str) -> Option<String> {
    let refusal = QuotaRefusal::parse(words)?;
    let lines = refusal.amounts.iter().map(|Amount { what, requested, used, limit }| {
        format!("the job asks for {what} {requested}, and {used} of {limit} are in use")
    });
    Some(format!("by \"{}\", {}", refusal.quota, lines.collect::<Vec<_>>().join("; ")))
}

/// What a quota could not give to the pod if nothing else ran, in a sentence's second half. `None`: it may have room one day.
pub fn beyond_quota(words: &str) -> Option<String> {
    let refusal = QuotaRefusal::parse(words)?;
    let too_much = |amount: &&Amount<'_>| {
        let quantities = (Quantity::parse(amount.requested), Quantity::parse(amount.limit));
        matches!(quantities, (Ok(requested), Ok(limit)) if requested > limit)
    };
    let Amount { what, requested, limit, .. } = refusal.amounts.iter().find(too_much)?;
    Some(format!(
        "the job asks for {what} {requested}, and the quota \"{}\" has {limit} in all",
        refusal.quota
    ))
}

/// `exceeded quota: NAME, requested: A=1,B=2, used: A=3,B=4, limited: A=3,B=5`
struct QuotaRefusal<'a> {
    quota: &'a str,
    amounts: Vec<Amount<'a>>,
}

struct Amount<'a> {
    what: &'a str,
    requested: &'a str,
    used: &'a str,
    limit: &'a str,
}

impl<'a> QuotaRefusal<'a> {
    fn parse(words: &'a str) -> Option<Self> {
        let (_, rest) = words.split_once("exceeded quota: ")?;
        let (quota, rest) = rest.split_once(", requested: ")?;
        let (requested, rest) = rest.split_once(", used: ")?;
        let (used, limited) = rest.split_once(", limited: ")?;
        let pairs = |text: &'a str| -> Option<Vec<(&'a str, &'a str)>> {
            text.trim_end_matches(['.', ' ']).split(',').map(|pair| pair.split_once('=')).collect()
        };
        let (requested, used, limited) = (pairs(requested)?, pairs(used)?, pairs(limited)?);
        let find = |pairs: &[(&'a str, &'a str)], what: &str| {
            pairs.iter().find(|(name, _)| *name == what).map(|(_, much)| *much)
        };
        let amounts = requested.into_iter().map(|(what, requested)| {
            Some(Amount { what, requested, used: find(&used, what)?, limit: find(&limited, what)? })
        });
        Some(Self { quota, amounts: amounts.collect::<Option<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources() -> BTreeMap<String, EffectiveResources> {
        let amounts = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, amount)| ((*name).to_owned(), (*amount).to_owned())).collect()
        };
        let build = EffectiveResources {
            requests: amounts(&[("cpu", "4"), ("memory", "2Gi")]),
            limits: amounts(&[("memory", "4Gi"), ("nvidia.com/gpu", "1")]),
            ..EffectiveResources::default()
        };
        let helper =
            EffectiveResources { requests: amounts(&[("cpu", "50m")]), ..EffectiveResources::default() };
        BTreeMap::from([("build".to_owned(), build), ("helper".to_owned(), helper)])
    }

    /// Messages as schedulers of Kubernetes 1.24 to 1.35 write them.
    #[test]
    fn what_schedulers_say() {
        for (words, meaning) in [
            (
                "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {gpu: true}. preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling.",
                "2 nodes: its taint gpu=true is not tolerated; 1 node: not enough cpu (build asks for 4, helper asks for 50m)",
            ),
            (
                "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod..",
                "1 node: not enough cpu (build asks for 4, helper asks for 50m)",
            ),
            (
                "0/4 nodes are available: 1 node(s) had untolerated taint(s), 3 Insufficient nvidia.com/gpu.",
                "3 nodes: not enough nvidia.com/gpu (build asks for 1); 1 node: its taints are not tolerated",
            ),
            (
                "0/3 nodes are available: 1 Insufficient example.com/gpu, 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint(s). preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling.",
                "1 node: not enough example.com/gpu; 1 node: it does not have the labels that the job's node selector or affinity asks for; 1 node: its taints are not tolerated",
            ),
            (
                "0/2 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/master: }, 1 node(s) had untolerated taint {node: node01}. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.",
                "1 node: its taint node-role.kubernetes.io/master is not tolerated; 1 node: its taint node=node01 is not tolerated",
            ),
            (
                "0/5 nodes are available: 3 Insufficient memory, 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }, 1 node(s) were unschedulable.",
                "3 nodes: not enough memory (build asks for 2Gi); 1 node: it is not ready; 1 node: it is cordoned",
            ),
            (
                "0/2 nodes are available: 1 node(s) were unschedulable, 1 node(s) had untolerated taint {node.kubernetes.io/unschedulable: }.",
                "2 nodes: it is cordoned",
            ),
            (
                "0/4 nodes are available: 1 node(s) had volume node affinity conflict, 3 node(s) had taint {eks.amazonaws.com/compute-type: fargate}, that the pod didn't tolerate.",
                "3 nodes: its taint eks.amazonaws.com/compute-type=fargate is not tolerated; 1 node: a volume of the job cannot be used there",
            ),
            (
                "0/3 nodes are available: persistentvolumeclaim \"cache\" not found. preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod..",
                "the PersistentVolumeClaim \"cache\" of the job does not exist",
            ),
            (
                "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
                "a PersistentVolumeClaim of the job is not bound to a volume",
            ),
            (
                "0/2 nodes are available: 2 Too many pods. preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.",
                "2 nodes: it runs as many pods as it may",
            ),
            (
                "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
                "1 node: it does not have the labels that the job's node selector or affinity asks for",
            ),
            ("no nodes available to schedule pods", "the cluster has no nodes"),
        ] {
            assert_eq!(no_node(words, &resources()), meaning, "{words}");
        }
    }

    #[test]
    fn unknown_words_stay_as_they_are() {
        for words in [
            "Scheduling is blocked due to non-empty scheduling gates",
            "0/3 nodes are available",
            "0/x nodes are available: 1 Insufficient cpu",
            "running PreBind plugin \"VolumeBinding\": timed out",
            "",
        ] {
            assert_eq!(no_node(words, &resources()), words, "{words}");
        }
        let partly = "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) are haunted, by 7 ghosts.";
        assert_eq!(
            no_node(partly, &BTreeMap::new()),
            "2 nodes: node(s) are haunted, by 7 ghosts; 1 node: not enough cpu"
        );
    }

    #[test]
    fn reasons_do_not_go_on_for_ever() {
        let many: Vec<String> =
            (1..=20).map(|key| format!("1 node(s) had untolerated taint {{k{key}: v}}")).collect();
        let told = no_node(&format!("0/20 nodes are available: {}.", many.join(", ")), &BTreeMap::new());
        assert!(told.ends_with("; and 12 more reasons"), "{told}");
    }

    #[test]
    fn what_no_quota_can_give_is_not_waited_for() {
        let words = |requested: &str| {
            format!(
                "exceeded quota: compute, requested: cpu={requested},pods=1, used: cpu=1500m,pods=0, limited: cpu=2,pods=9"
            )
        };
        assert_eq!(beyond_quota(&words("2")), None);
        assert_eq!(beyond_quota(&words("2000m")), None);
        assert_eq!(beyond_quota(&words("much")), None);
        assert_eq!(
            beyond_quota(&words("2001m")).as_deref(),
            Some("the job asks for cpu 2001m, and the quota \"compute\" has 2 in all")
        );
    }

    #[test]
    fn what_quotas_say() {
        let words = "pods \"cij-1-0123456789-3f2a91bc-1\" is forbidden: exceeded quota: compute, requested: limits.cpu=2,pods=1, used: limits.cpu=3,pods=9, limited: limits.cpu=4,pods=9";
        assert_eq!(
            over_quota(words).as_deref(),
            Some(
                "by \"compute\", the job asks for limits.cpu 2, and 3 of 4 are in use; the job asks for pods 1, and 9 of 9 are in use"
            )
        );
        for other in [
            "pods \"x\" is forbidden: failed quota: compute: must specify limits.cpu",
            "",
            "exceeded quota: x",
        ] {
            assert_eq!((over_quota(other), beyond_quota(other)), (None, None), "{other}");
        }
    }
}
