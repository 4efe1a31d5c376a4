//! What holds for whatever a class says and a job asks for.

use super::*;
use crate::fixture;
use crate::policy::overrides;
use proptest::prelude::*;
use roadstead_crds::jobclass::{ContainerResources, OnExceed, OnForbidden};
use roadstead_crds::quantity;
use roadstead_crds::request::JobRequest;

fn amount() -> impl Strategy<Value = String> {
    prop_oneof![
        (0..5000_u32).prop_map(|number| format!("{number}m")),
        (0..9_u32).prop_map(|number| number.to_string()),
        (0..9_u32).prop_map(|number| format!("{number}Gi")),
        (0..9_u32, 0..99_u32).prop_map(|(whole, part)| format!("{whole}.{part}Mi")),
    ]
}

fn amounts() -> impl Strategy<Value = BTreeMap<String, String>> {
    let names = prop::sample::select(vec!["cpu", "memory", "ephemeral-storage"]);
    prop::collection::btree_map(names.prop_map(str::to_owned), amount(), 0..4)
}

fn resources() -> impl Strategy<Value = Resources> {
    (amounts(), amounts(), amounts(), amounts(), any::<bool>(), any::<bool>()).prop_map(
        |(requests, limits, max, min, clamp, reject)| Resources {
            requests,
            limits,
            max,
            min,
            on_exceed: if clamp { OnExceed::Clamp } else { OnExceed::Reject },
            on_forbidden: if reject { OnForbidden::Reject } else { OnForbidden::Ignore },
        },
    )
}

/// A class that is valid: what contradicts a bound is left out.
fn valid(mut resources: Resources) -> Resources {
    let parse = |text: &String| quantity::Quantity::parse(text).unwrap();
    let max = resources.max.clone();
    resources.max.retain(|_, most| !parse(most).is_zero());
    resources.min.retain(|name, least| max.get(name).is_some_and(|most| parse(least) <= parse(most)));
    let (min, max) = (resources.min.clone(), resources.max.clone());
    let fits = |name: &String, amount: &String| {
        max.get(name).is_none_or(|most| parse(amount) <= parse(most))
            && min.get(name).is_none_or(|least| parse(amount) >= parse(least))
    };
    resources.limits.retain(|name, limit| fits(name, limit) && !parse(limit).is_zero());
    let limits = resources.limits.clone();
    resources.requests.retain(|name, request| {
        fits(name, request) && limits.get(name).is_none_or(|limit| parse(request) <= parse(limit))
    });
    resources
}

fn asked() -> impl Strategy<Value = BTreeMap<String, String>> {
    let names = ["CPU", "MEMORY", "EPHEMERAL_STORAGE"]
        .into_iter()
        .flat_map(|resource| ["REQUEST", "LIMIT"].map(|bound| format!("KUBERNETES_{resource}_{bound}")));
    let names: Vec<String> = names.collect();
    prop::collection::btree_map(prop::sample::select(names), amount(), 0..7)
}

fn granted(resources: Resources, overrides: BTreeMap<String, String>) -> Option<Granted> {
    let class = JobClassSpec {
        resources: ContainerResources { build: resources, ..ContainerResources::default() },
        ..JobClassSpec::default()
    };
    let request = JobRequest { overrides, ..fixture::request() };
    Some(effective("c", &class, &overrides::read(&request).ok()?, &[]))
}

proptest! {
    #[test]
    fn what_is_granted_is_within_the_bounds(resources in resources().prop_map(valid), asked in asked()) {
        prop_assert_eq!(bounds::problems("f", &resources), Vec::<String>::new());
        let Some(granted) = granted(resources.clone(), asked) else { return Ok(()) };
        if !granted.refusals.is_empty() {
            return Ok(());
        }
        let parse = |text: &String| quantity::Quantity::parse(text).unwrap();
        let build = &granted.containers["build"];
        for (name, amount) in build.requests.iter().chain(&build.limits) {
            if let Some(most) = resources.max.get(name) {
                prop_assert!(parse(amount) <= parse(most), "{name} {amount} > {most}");
            }
            if let Some(least) = resources.min.get(name) {
                prop_assert!(parse(amount) >= parse(least), "{name} {amount} < {least}");
            }
        }
        for (name, request) in &build.requests {
            if let Some(limit) = build.limits.get(name) {
                prop_assert!(parse(request) <= parse(limit), "{name}: request {request} > limit {limit}");
            }
        }
    }

    #[test]
    fn what_was_asked_is_applied_or_told_of(resources in resources().prop_map(valid), asked in asked()) {
        let Some(granted) = granted(resources, asked.clone()) else { return Ok(()) };
        for (name, value) in &asked {
            let row = granted.report.iter().find(|row| row.source == *name);
            let refused = granted.refusals.iter().any(|refusal| refusal.contains(name.as_str()));
            prop_assert!(row.is_some() || refused || !granted.refusals.is_empty(), "{name} vanished");
            if let Some(row) = row {
                prop_assert_eq!(row.asked.as_ref(), Some(value));
            }
        }
    }

    #[test]
    fn no_class_and_no_request_is_a_panic(resources in resources(), words in prop::collection::btree_map(
        prop::sample::select(vec!["KUBERNETES_CPU_LIMIT", "ROADSTEAD_RESOURCE_X", "KUBERNETES_NODE_SELECTOR_A", "X"]).prop_map(str::to_owned),
        "\\PC{0,30}", 0..5)) {
        bounds::problems("f", &resources);
        granted(resources, words);
    }
}
