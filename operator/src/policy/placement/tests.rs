use super::*;
use crate::fixture;
use roadstead_crds::reason::Blame;
use serde_json::{Value, json};

fn class(spec: Value) -> JobClassSpec {
    serde_json::from_value(spec).unwrap()
}

fn job(tags: &[&str], variables: &[(&str, &str)]) -> JobRequest {
    JobRequest {
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        tag_source: Some(TagSource::Job),
        overrides: variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..fixture::request()
    }
}

fn place(class: &JobClassSpec, job: &JobRequest) -> Result<Placed, Verdict> {
    decide(job, "c", class, &overrides::read(job).unwrap())
}

fn placed(class: &JobClassSpec, tags: &[&str], variables: &[(&str, &str)]) -> Placement {
    place(class, &job(tags, variables)).unwrap().placement
}

fn refusal(class: &JobClassSpec, tags: &[&str], variables: &[(&str, &str)]) -> String {
    let verdict = place(class, &job(tags, variables)).unwrap_err();
    assert_eq!((verdict.reason, verdict.reason.blame()), (Reason::OverrideRefused, Blame::User));
    verdict.message
}

fn selector(placement: &Placement) -> Vec<String> {
    placement.node_selector.iter().map(|(key, value)| format!("{key}={value}")).collect()
}

fn by_tags() -> JobClassSpec {
    class(json!({
        "pod": {"nodeSelector": {"pool": "ci"}, "tolerations": [{"key": "ci", "operator": "Exists"}]},
        "placement": {"rules": [
            {"tags": ["gpu"], "nodeSelector": {"pool": "gpu"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
            {"tags": ["gpu", "big"], "nodeSelector": {"size": "big"}},
            {"tags": [], "priorityClassName": "ci"}]}
    }))
}

#[test]
fn rules_apply_to_jobs_that_have_all_their_tags() {
    let class = by_tags();
    for (tags, expected) in [
        (&[][..], &["pool=ci"][..]),
        (&["big"], &["pool=ci"]),
        (&["gpu"], &["pool=gpu"]),
        (&["big", "other", "gpu"], &["pool=gpu", "size=big"]),
    ] {
        let placement = placed(&class, tags, &[]);
        assert_eq!(selector(&placement), expected, "{tags:?}");
        assert_eq!(
            placement.priority_class_name.as_deref(),
            Some("ci"),
            "a rule without tags is for all jobs"
        );
    }
    assert_eq!(placed(&class, &["gpu"], &[]).tolerations.len(), 2);
    let report = place(&class, &job(&["gpu"], &[])).unwrap().report;
    assert_eq!(report.len(), 1);
    let row = &report[0];
    assert_eq!(
        (row.asked.as_deref(), row.allowed.as_deref(), row.applied.as_deref()),
        (Some("gpu"), Some("rule 1"), Some("pool=gpu, tolerates gpu"))
    );
    assert_eq!(place(&class, &job(&[], &[])).unwrap().report, []);
}

#[test]
fn a_runners_tags_choose_no_nodes() {
    let class = by_tags();
    for source in [None, Some(TagSource::Runner)] {
        let job = JobRequest { tag_source: source, ..job(&["gpu", "osx"], &[]) };
        let placed = place(&class, &job).unwrap();
        assert_eq!(selector(&placed.placement), ["pool=ci"]);
        let outcomes: Vec<_> = placed.report.iter().map(|row| row.outcome).collect();
        let told = source.map(|_| OverrideOutcome::Untrusted);
        assert_eq!(outcomes, told.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn platform_tags_select_nodes_unless_a_rule_names_them() {
    let plain = JobClassSpec::default();
    assert_eq!(
        selector(&placed(&plain, &["linux", "arm64"], &[])),
        ["kubernetes.io/arch=arm64", "kubernetes.io/os=linux"]
    );
    assert_eq!(selector(&placed(&plain, &["docker", "Linux"], &[])), [""; 0]);
    let mapped = class(json!({"placement": {"rules": [
        {"tags": ["arm64"], "nodeSelector": {"pool": "graviton"}},
        {"tags": ["osx"], "nodeSelector": {"pool": "macs"}}]}}));
    assert_eq!(selector(&placed(&mapped, &["arm64"], &[])), ["pool=graviton"]);
    assert_eq!(selector(&placed(&mapped, &["osx"], &[])), ["pool=macs"]);
}

#[test]
fn platforms_that_cannot_be_are_refused() {
    let plain = JobClassSpec::default();
    assert_eq!(
        refusal(&plain, &["osx"], &[]),
        "Tag \"osx\" asks for macOS, and JobClass \"c\" runs jobs in Linux containers: remove the tag, or use one of a runner on macOS."
    );
    assert!(refusal(&plain, &["macos"], &[]).contains("macOS"));
    assert!(refusal(&plain, &["windows"], &[]).contains("Windows"));
    assert_eq!(
        refusal(&plain, &["amd64", "arm64"], &[]),
        "Tag \"arm64\" asks for nodes with kubernetes.io/arch=arm64, but the job's other tags or JobClass \"c\" ask for kubernetes.io/arch=amd64."
    );
    let amd = class(json!({"pod": {"nodeSelector": {"kubernetes.io/arch": "amd64"}}}));
    assert!(refusal(&amd, &["arm64"], &[]).contains("JobClass \"c\" ask for kubernetes.io/arch=amd64"));
    assert_eq!(placed(&amd, &["amd64"], &[]).node_selector.len(), 1);
}

#[test]
fn variables_choose_what_a_pattern_matches_as_a_whole() {
    let class = class(json!({
        "pod": {"nodeSelector": {"pool": "ci"}, "serviceAccountName": "jobs"},
        "allow": {
            "nodeSelector": ["pool=(small|large)", "disk=.*"],
            "tolerations": ["spot(=true)?:NoSchedule"],
            "podLabels": ["team=[a-z]+"],
            "podAnnotations": ["note=.*"],
            "serviceAccount": ["ci-.*"],
        },
    }));
    let placement = placed(
        &class,
        &[],
        &[
            ("KUBERNETES_NODE_SELECTOR_1", "pool=large"),
            ("KUBERNETES_NODE_SELECTOR_2", "disk=ssd"),
            ("KUBERNETES_NODE_TOLERATIONS_1", "spot:NoSchedule"),
            ("KUBERNETES_POD_LABELS_1", "team=ship"),
            ("KUBERNETES_POD_ANNOTATIONS_1", "note=hello"),
            ("KUBERNETES_SERVICE_ACCOUNT_OVERWRITE", "ci-deploy"),
        ],
    );
    assert_eq!(selector(&placement), ["disk=ssd", "pool=large"]);
    assert_eq!(placement.tolerations[0].key.as_deref(), Some("spot"));
    assert_eq!(placement.labels["team"], "ship");
    assert_eq!(placement.annotations["note"], "hello");
    assert_eq!(placement.service_account_name.as_deref(), Some("ci-deploy"));
    assert_eq!(placed(&class, &[], &[]).service_account_name.as_deref(), Some("jobs"));

    for (name, value, words) in [
        (
            "KUBERNETES_SERVICE_ACCOUNT_OVERWRITE",
            "prod-ci-x",
            "KUBERNETES_SERVICE_ACCOUNT_OVERWRITE=\"prod-ci-x\" is not a service account that JobClass \"c\" allows, which is one that matches ci-.*.",
        ),
        (
            "KUBERNETES_NODE_SELECTOR_1",
            "pool=larger",
            "KUBERNETES_NODE_SELECTOR_1=\"pool=larger\" is not a node selector that JobClass \"c\" allows, which is one that matches pool=(small|large) or disk=.*.",
        ),
        (
            "KUBERNETES_NODE_TOLERATIONS_1",
            "",
            "KUBERNETES_NODE_TOLERATIONS_1=\"\" is not a toleration that JobClass \"c\" allows, which is one that matches spot(=true)?:NoSchedule.",
        ),
    ] {
        assert_eq!(refusal(&class, &[], &[(name, value)]), words);
    }
    let twice = [("KUBERNETES_NODE_SELECTOR_1", "pool=small"), ("KUBERNETES_NODE_SELECTOR_2", "pool=large")];
    assert_eq!(
        refusal(&class, &[], &twice),
        "KUBERNETES_NODE_SELECTOR_1 and KUBERNETES_NODE_SELECTOR_2 set the node selector pool to different values: keep one of them."
    );
}

#[test]
fn a_class_that_allows_nothing_says_what_to_ask_for() {
    assert_eq!(
        refusal(&JobClassSpec::default(), &[], &[("KUBERNETES_POD_LABELS_1", "team=a")]),
        "JobClass \"c\" does not let jobs choose a pod label: remove KUBERNETES_POD_LABELS_1, or ask the administrator for `allow.podLabels`."
    );
}

#[test]
fn a_class_that_is_wrong_is_not_the_jobs_mistake() {
    let class = class(json!({"allow": {"podLabels": ["("]}, "placement": {"rules": [
        {"tags": ["a"], "nodeSelector": {"pool": "a"}}, {"tags": ["b"], "nodeSelector": {"pool": "b"}}]}}));
    assert_eq!(
        problems(&class),
        [
            "the rules for tag a and for tag b disagree on `nodeSelector` pool, which is a or b",
            "`allow.podLabels`: \"(\" is not a regular expression (unclosed group)",
        ]
    );
    for job in [job(&["a", "b"], &[]), job(&[], &[("KUBERNETES_POD_LABELS_1", "team=a")])] {
        assert_eq!(place(&class, &job).unwrap_err().reason, Reason::ClassInvalid);
    }
    assert!(place(&class, &job(&["a"], &[])).is_ok());
    assert_eq!(problems(&JobClassSpec::default()), [""; 0]);
}
