//! What some tests need of a cluster and not every provider gives. Such tests are left out by name, and said to be.

use crate::provider::Name;

/// Something that a provider gives or does not give.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Need {
    /// The API server's audit log.
    AuditLog,
    /// The components: their processes, to be killed, stopped and paused, and the files of etcd and of the node.
    Components,
    /// A cluster that nobody else uses: its definitions and classes are changed.
    OwnCluster,
    /// Images in which no job can run.
    UnusableImages,
    /// A node of known speed that has the images already.
    QuietNode,
}

/// Tests that need more than a cluster, by their names for libtest.
const NEEDS: &[(&str, Need)] = &[
    ("bench::the_benchmark_measures_every_row", Need::AuditLog),
    ("chart::an_upgrade_renews_the_definitions_and_keeps_a_changed_class", Need::OwnCluster),
    ("chart::helm_test_runs_a_job_or_says_why_it_cannot", Need::OwnCluster),
    ("class::where_one_pull_policy_brings_no_image_the_next_one_is_tried", Need::QuietNode),
    ("existing::a_second_release_beside_the_first_takes_nothing_and_leaves_nothing", Need::OwnCluster),
    ("images::an_image_in_which_nothing_can_run_is_the_jobs_mistake", Need::UnusableImages),
    ("matching::a_class_for_protected_refs_takes_neither_others_nor_forks", Need::OwnCluster),
    ("matching::a_class_that_audits_says_what_it_would_have_refused", Need::OwnCluster),
    ("matching::a_class_that_cannot_be_used_says_why_and_takes_no_job", Need::OwnCluster),
    ("matching::a_gitlab_that_does_not_tell_the_tags_is_a_system_failure", Need::OwnCluster),
    ("matching::a_job_that_no_class_takes_fails_with_a_line_for_each_class", Need::OwnCluster),
    (
        "matching::an_expression_that_fails_is_the_administrators_mistake_and_marks_the_class",
        Need::OwnCluster,
    ),
    ("matching::tags_are_gitlabs_and_no_variables", Need::OwnCluster),
    ("matching::tags_travel_from_gitlabs_api_to_the_pods_node_selector", Need::OwnCluster),
    ("matching::tags_work_as_gitlabs_page_on_runners_says", Need::OwnCluster),
    ("matching::the_higher_priority_takes_the_job", Need::OwnCluster),
    ("namespace::a_namespace_that_is_deleted_takes_its_jobs_with_it_and_waits_for_nobody", Need::OwnCluster),
    ("registries::nodes_pull_with_the_credentials_of_the_job", Need::Components),
    ("requests::the_requests_of_a_job_do_not_grow_with_its_duration", Need::AuditLog),
    ("secrets::a_masked_value_is_nowhere_but_in_the_job", Need::Components),
    ("secrets::only_the_scripts_own_processes_show_a_masked_value", Need::Components),
    ("start::the_first_script_line_comes_within_a_second_and_a_half", Need::QuietNode),
    ("takeover::a_killed_leader_is_followed_within_the_lease", Need::Components),
    ("takeover::a_rollout_is_not_noticed_by_jobs", Need::OwnCluster),
    ("takeover::a_timeout_and_a_queue_survive_the_operator_that_kept_them", Need::Components),
    ("takeover::a_stopped_leader_is_followed_and_writes_nothing_when_it_goes_on", Need::Components),
    ("takeover::two_operators_that_both_work_give_a_job_one_pod", Need::Components),
];

impl Need {
    /// Whether clusters of that provider have it.
    fn is_given_by(self, provider: Name) -> bool {
        match provider {
            Name::Host => true,
            Name::Kind => matches!(self, Self::OwnCluster | Self::UnusableImages),
            Name::Existing => false,
        }
    }

    /// Why a test that needs it is left out.
    fn lacking(self) -> &'static str {
        match self {
            Self::AuditLog => "it reads the API server's audit log",
            Self::Components => "it looks into the cluster's components or disturbs them",
            Self::OwnCluster => "it changes what all of the cluster shares",
            Self::UnusableImages => "it wants images that nobody else wants",
            Self::QuietNode => "it measures time, which means nothing on a node of unknown speed",
        }
    }
}

/// Tests of the agent as the first process of a container, by the name of their module.
const ROOTS: (&str, &str) = ("namespace::", "they make namespaces of processes, which needs root");

/// The tests that cannot run on that provider's clusters, or not by this user, each with the reason.
pub fn left_out(provider: Name, root: bool) -> Vec<(&'static str, &'static str)> {
    let lacking = NEEDS.iter().filter(|(_, need)| !need.is_given_by(provider));
    let lacking = lacking.map(|(test, need)| (*test, need.lacking()));
    lacking.chain((!root).then_some(ROOTS)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;
    use crate::state::workspace;

    /// How tests get at what only the host provider has.
    const HOST_ONLY: [&str; 6] =
        ["AuditLog::", "measure(&plan)", "host_parts(", ".control(", ".ctr(", ".cluster.status("];

    /// The top-level functions of the cluster tests by their paths: (is a test, its text).
    fn functions() -> BTreeMap<String, (bool, String)> {
        let mut found = BTreeMap::new();
        let folders = ["cluster", "disruption"].map(|folder| workspace().join("e2e/tests").join(folder));
        for entry in folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap().flatten()) {
            let text = fs::read_to_string(entry.path()).unwrap();
            let module = entry.path().file_stem().unwrap().to_string_lossy().into_owned();
            let mut attributes = String::new();
            let mut name: Option<String> = None;
            for line in text.lines() {
                if let Some(rest) = ["async fn ", "pub async fn ", "fn ", "pub fn ", "pub(crate) fn "]
                    .iter()
                    .find_map(|start| line.strip_prefix(start))
                {
                    let own = rest.split(['(', '<']).next().unwrap();
                    let path = format!("{module}::{own}");
                    found.insert(path.clone(), (attributes.contains("test"), String::new()));
                    name = Some(path);
                }
                if line.starts_with("#[") {
                    attributes.push_str(line);
                } else if !line.starts_with("//") {
                    attributes.clear();
                }
                if let Some((_, body)) = name.as_ref().and_then(|name| found.get_mut(name)) {
                    body.push_str(line);
                    body.push('\n');
                }
                if line == "}" {
                    name = None;
                }
            }
        }
        found
    }

    #[test]
    fn every_name_is_a_test_and_means_no_other_one() {
        let functions = functions();
        let tests: Vec<&String> =
            functions.iter().filter(|(_, (is_test, _))| *is_test).map(|(name, _)| name).collect();
        assert!(tests.len() > 20, "{tests:?}");
        for (name, _) in NEEDS {
            // `--skip` leaves out every test whose name contains the word.
            let hit: Vec<_> = tests.iter().filter(|test| test.contains(name)).collect();
            assert_eq!(hit, [&name], "{name}");
        }
    }

    #[test]
    fn every_test_that_uses_what_only_the_host_has_is_named() {
        let functions = functions();
        let uses = |text: &str| HOST_ONLY.iter().any(|word| text.contains(word));
        let helpers: Vec<(&str, String)> = functions
            .iter()
            .filter(|(_, (is_test, text))| !is_test && uses(text))
            .filter_map(|(path, _)| path.split_once("::"))
            .map(|(module, name)| (module, format!("{name}(")))
            .collect();
        let mut seen = 0;
        for (path, (is_test, text)) in &functions {
            let module = path.split("::").next().unwrap();
            let through = helpers.iter().any(|(own, call)| {
                let from_elsewhere = text.contains(&format!("{own}::{call}"));
                from_elsewhere || (*own == module && text.contains(call.as_str()))
            });
            if *is_test && (uses(text) || through) {
                seen += 1;
                assert!(NEEDS.iter().any(|(name, _)| name == path), "{path} is not in the table of needs");
            }
        }
        assert!(seen >= 2, "the search finds nothing any more");
    }

    #[test]
    fn the_host_leaves_nothing_out_and_the_others_say_why() {
        assert!(left_out(Name::Host, true).is_empty());
        let names = |provider| left_out(provider, true).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(Name::Existing).len(), NEEDS.len());
        assert!(names(Name::Kind).len() < NEEDS.len());
        assert!(left_out(Name::Kind, true).iter().all(|(_, why)| why.starts_with("it ")));
        assert_eq!(left_out(Name::Host, false), [ROOTS]);
    }
}
