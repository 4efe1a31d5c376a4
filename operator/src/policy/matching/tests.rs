//! GitLab's page on runners, example by example, and what goes beyond it.

use proptest::prelude::*;
use roadstead_crds::jobclass::RefMatching;

use super::*;
use crate::fixture;

fn tagged(tags: &[&str]) -> JobRequest {
    JobRequest {
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        tag_source: Some(TagSource::Job),
        ..fixture::request()
    }
}

fn runner(tags: &[&str], run_untagged: bool) -> Matching {
    Matching {
        tags: Some(tags.iter().map(|tag| (*tag).to_owned()).collect()),
        run_untagged: Some(run_untagged),
        ..Matching::default()
    }
}

fn answer(matching: &Matching, request: &JobRequest) -> Answer {
    let mut problems = Vec::new();
    let matcher = Matcher::compile(matching, &mut problems);
    assert_eq!(problems, Vec::<String>::new());
    matcher.answer(&Subject::new(request, "ci-jobs"))
}

fn takes(matching: &Matching, request: &JobRequest) -> bool {
    answer(matching, request) == Answer::Takes
}

fn refusal_of(matching: &Matching, request: &JobRequest) -> String {
    match answer(matching, request) {
        Answer::Refuses(why) => why,
        other => panic!("{other:?}"),
    }
}

// "The runner runs only tagged jobs": what is stuck there is refused here.

#[test]
fn the_runner_runs_only_tagged_jobs_example_1() {
    let class = runner(&["docker"], false);
    assert_eq!(refusal_of(&class, &tagged(&["hello"])), "it does not have the tag hello");
}

#[test]
fn the_runner_runs_only_tagged_jobs_example_2() {
    assert!(takes(&runner(&["docker"], false), &tagged(&["docker"])));
}

#[test]
fn the_runner_runs_only_tagged_jobs_example_3() {
    assert_eq!(refusal_of(&runner(&["docker"], false), &tagged(&[])), "it does not take jobs without tags");
}

// "The runner is allowed to run untagged jobs".

#[test]
fn the_runner_is_allowed_to_run_untagged_jobs_example_1() {
    let class = runner(&["docker"], true);
    assert!(takes(&class, &tagged(&[])));
    assert!(takes(&class, &tagged(&["docker"])));
}

#[test]
fn the_runner_is_allowed_to_run_untagged_jobs_example_2() {
    let class = runner(&[], true);
    assert!(takes(&class, &tagged(&[])));
    assert_eq!(refusal_of(&class, &tagged(&["docker"])), "it takes jobs without tags only");
}

// "The runner and the job have multiple tags".

#[test]
fn the_runner_and_the_job_have_multiple_tags_example_1() {
    assert!(takes(&runner(&["docker", "shell", "gpu"], false), &tagged(&["docker", "shell", "gpu"])));
}

#[test]
fn the_runner_and_the_job_have_multiple_tags_example_2() {
    assert!(takes(&runner(&["docker", "shell", "gpu"], false), &tagged(&["docker", "shell"])));
}

#[test]
fn the_runner_and_the_job_have_multiple_tags_example_3() {
    let class = runner(&["docker", "shell"], false);
    assert_eq!(refusal_of(&class, &tagged(&["docker", "shell", "gpu"])), "it does not have the tag gpu");
}

#[test]
fn tags_run_jobs_on_different_platforms() {
    let (windows, osx) = (runner(&["windows"], false), runner(&["osx"], false));
    assert!(takes(&windows, &tagged(&["windows"])) && !takes(&osx, &tagged(&["windows"])));
    assert!(takes(&osx, &tagged(&["osx"])) && !takes(&windows, &tagged(&["osx"])));
}

#[test]
fn variables_in_tags_arrive_expanded() {
    // GitLab expands `$KUBERNETES_RUNNER`; what it names is a tag like any other.
    assert!(takes(&runner(&["docker", "kubernetes"], false), &tagged(&["docker", "kubernetes"])));
    assert!(!takes(&runner(&["docker", "kubernetes"], false), &tagged(&["docker", "$KUBERNETES_RUNNER"])));
}

#[test]
fn case_counts_as_for_gitlab() {
    assert!(!takes(&runner(&["Docker"], false), &tagged(&["docker"])));
}

#[test]
fn untagged_jobs_are_taken_by_default_where_no_tag_is_listed() {
    let with = |tags: Option<&[&str]>, run_untagged| Matching {
        tags: tags.map(|tags| tags.iter().map(|tag| (*tag).to_owned()).collect()),
        run_untagged,
        ..Matching::default()
    };
    assert!(takes(&with(None, None), &tagged(&[])));
    assert!(takes(&with(None, None), &tagged(&["any", "thing"])));
    assert!(takes(&with(Some(&[]), None), &tagged(&[])));
    assert!(!takes(&with(Some(&["a"]), None), &tagged(&[])));
    assert!(takes(&with(Some(&["a"]), Some(true)), &tagged(&[])));
    // Any tag, but some tag.
    assert!(!takes(&with(None, Some(false)), &tagged(&[])));
    assert!(takes(&with(None, Some(false)), &tagged(&["any"])));
}

#[test]
fn a_class_that_goes_by_tags_wants_to_know_them() {
    let unknown = JobRequest { tag_source: None, ..fixture::request() };
    for class in [
        runner(&["a"], true),
        runner(&[], true),
        Matching { run_untagged: Some(false), ..Matching::default() },
    ] {
        assert_eq!(refusal_of(&class, &unknown), "it goes by tags, and the job's are not known");
    }
    assert!(takes(&Matching::default(), &unknown));
    // The runner's tags are as good as the job's: the class has to have all of them.
    let of_runner = JobRequest { tag_source: Some(TagSource::Runner), ..tagged(&["a", "b"]) };
    assert!(takes(&runner(&["a", "b", "c"], false), &of_runner));
    assert!(!takes(&runner(&["a"], false), &of_runner));
}

#[test]
fn a_protected_class_believes_only_gitlab() {
    let class = Matching { refs: RefMatching { protected_only: true, names: vec![] }, ..Matching::default() };
    let job = |protected| {
        let mut request = tagged(&[]);
        request.git_ref.protected = protected;
        request
    };
    assert!(takes(&class, &job(Some(true))));
    assert!(refusal_of(&class, &job(Some(false))).ends_with("and this ref is not protected"));
    assert!(refusal_of(&class, &job(None)).ends_with("GitLab does not say that this one is"));
}

#[test]
fn paths_refs_and_namespaces_are_matched_whole() {
    let job = tagged(&[]);
    let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    for (projects, refs, namespaces, taken) in [
        (&["group/**"][..], &[][..], &[][..], true),
        (&["group"], &[], &[], false),
        (&["other/**", "*/project"], &["main"], &["ci-*"], true),
        (&[], &["mai"], &[], false),
        (&[], &["release/*"], &[], false),
        (&[], &[], &["jobs"], false),
    ] {
        let class = Matching {
            projects: strings(projects),
            refs: RefMatching { protected_only: false, names: strings(refs) },
            namespaces: strings(namespaces),
            ..Matching::default()
        };
        assert_eq!(takes(&class, &job), taken, "{class:?}");
    }
    let class = Matching {
        projects: strings(&["a/b"]),
        refs: RefMatching { protected_only: false, names: strings(&["next"]) },
        namespaces: strings(&["x"]),
        ..runner(&["gpu"], false)
    };
    assert_eq!(
        refusal_of(&class, &job),
        "it does not take jobs without tags; it is not for project group/project; it is not for the ref main; it is not for namespace ci-jobs"
    );
}

#[test]
fn users_are_ids_or_logins_that_gitlab_named() {
    let class = |users: &[&str]| Matching {
        users: users.iter().map(|user| (*user).to_owned()).collect(),
        ..Matching::default()
    };
    let by = |id, login: Option<&str>| JobRequest {
        user_id: id,
        user_login: login.map(str::to_owned),
        ..tagged(&[])
    };
    assert!(takes(&class(&["9"]), &by(Some(9), None)));
    assert!(takes(&class(&["7", "Ada"]), &by(Some(9), Some("ada"))));
    assert_eq!(refusal_of(&class(&["7"]), &by(Some(9), None)), "it is not for the user with ID 9");
    assert_eq!(refusal_of(&class(&["7"]), &by(Some(9), Some("eve"))), "it is not for user eve");
    // A login of digits is not the ID of somebody else.
    assert!(!takes(&class(&["7"]), &by(Some(9), Some("7"))));
    assert!(refusal_of(&class(&["ada"]), &by(Some(9), None)).contains("login of this one is not known"));
    assert!(refusal_of(&class(&["7"]), &by(None, None)).contains("the job's is not known"));
}

#[test]
fn the_expression_is_asked_last() {
    let class =
        |expression: &str| Matching { expression: Some(expression.to_owned()), ..Matching::default() };
    assert!(takes(&class("job.project.path == 'group/project'"), &tagged(&[])));
    assert_eq!(refusal_of(&class("job.id == 1"), &tagged(&[])), "its expression is false for the job");
    assert!(matches!(answer(&class("job.pipelineSource == 'push'"), &tagged(&[])), Answer::Fails(_)));
    // It cannot fail where the job is refused anyway.
    let both =
        Matching { expression: Some("job.pipelineSource == 'push'".to_owned()), ..runner(&["gpu"], false) };
    assert!(matches!(answer(&both, &tagged(&[])), Answer::Refuses(_)));
}

#[test]
fn every_problem_is_told() {
    let class = Matching {
        tags: Some(vec![]),
        run_untagged: Some(false),
        projects: vec!["group/**".to_owned(), "a//b".to_owned()],
        refs: RefMatching { protected_only: false, names: vec!["v**".to_owned()] },
        namespaces: vec!["a b".to_owned()],
        users: vec!["0".to_owned(), "a@b".to_owned(), "99999999999999999999".to_owned()],
        expression: Some("job.nme == 'x'".to_owned()),
    };
    let mut problems = Vec::new();
    Matcher::compile(&class, &mut problems);
    let expected = [
        "match takes no job at all",
        "match.projects[1] \"a//b\" is not a pattern: it has an empty segment",
        "match.refs.names[0] \"v**\" is not a pattern",
        "match.namespaces[0] \"a b\" is not a pattern",
        "match.users[0] \"0\" is neither",
        "match.users[1] \"a@b\" is neither",
        "match.users[2] \"99999999999999999999\" is neither",
        "match.expression cannot be used: `job` has no field `nme`",
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, start) in problems.iter().zip(expected) {
        assert!(problem.starts_with(start), "{problem}");
    }
}

fn tags() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "A", "ä"]).prop_map(str::to_owned), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// GitLab's rule, written as it is there.
    #[test]
    fn matching_is_inclusion_of_sets(class in tags(), job in tags(), run_untagged in any::<bool>()) {
        prop_assume!(run_untagged || !class.is_empty());
        let (runs, has): (BTreeSet<_>, BTreeSet<_>) = (class.iter().collect(), job.iter().collect());
        let expected = (run_untagged || !has.is_empty()) && has.is_subset(&runs);
        let matching = Matching { tags: Some(class.clone()), run_untagged: Some(run_untagged), ..Matching::default() };
        let request = JobRequest { tags: job.clone(), tag_source: Some(TagSource::Job), ..fixture::request() };
        prop_assert_eq!(takes(&matching, &request), expected);
    }

    #[test]
    fn nothing_that_is_written_panics(texts in prop::collection::vec("\\PC{0,12}", 7), protected_only in any::<bool>()) {
        let one = |index: usize| vec![texts[index].clone()];
        let matching = Matching {
            tags: Some(one(0)),
            run_untagged: None,
            projects: one(1),
            refs: RefMatching { protected_only, names: one(2) },
            namespaces: one(3),
            users: one(4),
            expression: Some(texts[5].clone()),
        };
        let request = JobRequest { tags: one(6), tag_source: Some(TagSource::Job), user_login: Some(texts[0].clone()), ..fixture::request() };
        let mut problems = Vec::new();
        let subject = &Subject::new(&request, &texts[6]);
        let matcher = Matcher::compile(&matching, &mut problems);
        matcher.answer(subject);
        matcher.spare_tags(subject);
        described(subject);
    }
}
