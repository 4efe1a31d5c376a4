//! Who gets a job, and what is said where nobody does.

use proptest::prelude::*;
use roadstead_crds::JobClassSpec;
use roadstead_crds::jobclass::RefMatching;
use roadstead_crds::reason::Blame;
use roadstead_crds::request::TagSource;

use super::*;
use crate::fixture;

fn class(name: &str, matching: Option<Matching>) -> JobClass {
    JobClass::new(name, JobClassSpec { matching, ..JobClassSpec::default() })
}

fn tagged(name: &str, tags: &[&str]) -> JobClass {
    let tags = Some(tags.iter().map(|tag| (*tag).to_owned()).collect());
    class(name, Some(Matching { tags, ..Matching::default() }))
}

fn with(mut class: JobClass, change: impl FnOnce(&mut JobClassSpec)) -> JobClass {
    change(&mut class.spec);
    class
}

fn job(tags: &[&str]) -> JobRequest {
    JobRequest {
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        tag_source: Some(TagSource::Job),
        ..fixture::request()
    }
}

fn naming(name: &str, request: JobRequest) -> JobRequest {
    JobRequest { class_name: Some(name.to_owned()), ..request }
}

fn run(request: &JobRequest, classes: &[JobClass]) -> (Selection, Vec<Fault>) {
    let candidates: Vec<_> =
        classes.iter().map(|class| Arc::new(Candidate::new(Arc::new(class.clone())))).collect();
    let mut faults = Vec::new();
    let subject = &Subject::new(request, "ci-jobs");
    (select(subject, &candidates, &mut faults), faults)
}

fn chosen(request: &JobRequest, classes: &[JobClass]) -> (String, String) {
    match run(request, classes) {
        (Selection::Chosen(Choice { class, why, audit: None }), _) => (class.name().to_owned(), why),
        other => panic!("{other:?}"),
    }
}

fn refused(request: &JobRequest, classes: &[JobClass]) -> Verdict {
    match run(request, classes).0 {
        Selection::Refused(verdict) => verdict,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_default_class_takes_everything_that_nobody_else_takes() {
    let classes = [class("default", None), class("hardened", None), tagged("gpu", &["gpu"])];
    let only = "no other class takes the job".to_owned();
    assert_eq!(chosen(&job(&[]), &classes), ("default".to_owned(), only.clone()));
    assert_eq!(chosen(&job(&["docker"]), &classes), ("default".to_owned(), only));
    // Also where nothing is known of tags, as before there were matches.
    assert_eq!(chosen(&fixture::request(), &classes).0, "default");
    let (name, why) = chosen(&job(&["gpu"]), &classes);
    assert_eq!(
        (name.as_str(), why.as_str()),
        ("gpu", "its match is closer to the job than that of \"default\"")
    );
}

#[test]
fn a_class_without_a_match_is_for_those_who_name_it() {
    let classes = [class("aaa", None), class("default", None)];
    assert_eq!(chosen(&job(&[]), &classes).0, "default");
    let (name, why) = chosen(&naming("aaa", job(&["any"])), &classes);
    assert_eq!((name.as_str(), why.as_str()), ("aaa", "the runner asks for it"));
}

#[test]
fn priority_then_spare_tags_then_the_name() {
    let priority = |priority: i32, class| with(class, |spec| spec.priority = priority);
    let classes = [
        tagged("b", &["x"]),
        tagged("a", &["x"]),
        tagged("wide", &["x", "y", "z"]),
        priority(-1, tagged("low", &["x"])),
        class("any", Some(Matching::default())),
        class("default", None),
    ];
    let (name, why) = chosen(&job(&["x"]), &classes);
    assert_eq!((name.as_str(), why.as_str()), ("a", "it comes before \"b\" by name"));
    let (name, why) = chosen(&job(&["x", "y"]), &classes);
    assert_eq!(
        (name.as_str(), why.as_str()),
        ("wide", "its match is closer to the job than that of \"any\"")
    );
    assert_eq!(chosen(&job(&["other"]), &classes).0, "any");
    let (name, why) = chosen(&job(&["x"]), &[tagged("a", &["x", "y"]), tagged("b", &["x"])]);
    assert_eq!(name, "b");
    assert_eq!(why, "the job leaves fewer of its tags unused (0) than of those of \"a\" (1)");
    let (name, why) = chosen(&job(&["x"]), &[tagged("a", &["x"]), priority(5, tagged("wide", &["x", "y"]))]);
    assert_eq!((name.as_str(), why.as_str()), ("wide", "its priority 5 is above that of \"a\" (0)"));
}

#[test]
fn a_refusal_has_a_line_for_each_class() {
    let classes = [
        tagged("docker", &["docker"]),
        with(tagged("deploy", &[]), |spec| {
            let matching = spec.matching.as_mut().unwrap();
            matching.refs = RefMatching { protected_only: true, names: vec![] };
            spec.priority = 10;
        }),
        class("broken", Some(Matching { projects: vec!["a//b".to_owned()], ..Matching::default() })),
        class("hardened", None),
    ];
    let mut request = job(&["gpu", "linux"]);
    request.git_ref.protected = Some(false);
    let verdict = refused(&request, &classes);
    assert_eq!((verdict.reason, verdict.reason.blame()), (Reason::NoClassMatches, Blame::User));
    assert_eq!(
        verdict.message,
        "No JobClass takes this job (its tags: gpu, linux; branch main, not protected; project group/project):\n\
         - deploy: it takes jobs without tags only; it takes jobs of protected refs only, and this ref is not protected\n\
         - docker: it does not have the tags gpu, linux\n\
         - broken: it is not valid: match.projects[0] \"a//b\" is not a pattern: it has an empty segment: remove the leading, trailing or doubled slash."
    );
    let many: Vec<_> = (0..30).map(|n| tagged(&format!("class-{n:02}"), &["x"])).collect();
    let verdict = refused(&request, &many);
    assert_eq!(verdict.message.lines().count(), 22, "{}", verdict.message);
    assert!(verdict.message.ends_with("\n- and 10 more."));
    assert_eq!(refused(&request, &many[..20]).message.lines().count(), 21);
}

#[test]
fn a_class_that_is_named_is_the_only_one_asked() {
    let classes = [class("default", None), tagged("gpu", &["gpu"])];
    assert_eq!(chosen(&naming("gpu", job(&["gpu"])), &classes).0, "gpu");
    let verdict = refused(&naming("gpu", job(&["docker"])), &classes);
    assert_eq!(verdict.reason, Reason::NoClassMatches);
    assert_eq!(
        verdict.message,
        "JobClass \"gpu\", which the runner asks for, does not take this job \
         (its tags: docker; branch main, protected; project group/project): it does not have the tag docker."
    );
    let broken =
        with(tagged("gpu", &["gpu"]), |spec| spec.matching.as_mut().unwrap().users = vec!["a b".to_owned()]);
    let verdict = refused(&naming("gpu", job(&["gpu"])), &[class("default", None), broken]);
    assert_eq!((verdict.reason, verdict.reason.blame()), (Reason::ClassInvalid, Blame::System));
}

#[test]
fn a_class_that_may_still_come_is_missing() {
    for (request, classes, words) in [
        (
            naming("big", job(&[])),
            vec![class("default", None)],
            "\"big\", which the runner asks for, does not exist",
        ),
        (job(&[]), vec![], "there is no JobClass"),
        (job(&[]), vec![class("hardened", None)], "of runners that name none"),
    ] {
        let Selection::Missing(verdict) = run(&request, &classes).0 else { panic!("{words}") };
        assert_eq!(verdict.reason, Reason::ClassNotFound);
        assert!(verdict.message.to_lowercase().contains(&words.to_lowercase()), "{}", verdict.message);
    }
}

#[test]
fn an_expression_that_fails_refuses_the_job_unless_another_class_came_first() {
    let failing = |name: &str, priority: i32| {
        let expression = Some("job.pipelineSource == 'push'".to_owned());
        with(class(name, Some(Matching { expression, ..Matching::default() })), |spec| {
            spec.priority = priority;
        })
    };
    let (selection, faults) = run(&job(&[]), &[class("default", None), failing("strict", 0)]);
    let Selection::Refused(verdict) = selection else { panic!("{selection:?}") };
    assert_eq!((verdict.reason, verdict.reason.blame()), (Reason::ClassInvalid, Blame::System));
    assert!(
        verdict.message.contains("\"strict\"") && verdict.message.contains("has()"),
        "{}",
        verdict.message
    );
    assert_eq!(faults.len(), 1);
    assert_eq!((faults[0].class.as_str(), faults[0].generation), ("strict", None));
    assert!(faults[0].message.starts_with("job 4711 of project group/project: "), "{}", faults[0].message);

    let (selection, faults) = run(&job(&[]), &[class("default", None), failing("strict", -1)]);
    assert!(matches!(selection, Selection::Chosen(_)) && faults.is_empty(), "it is not even asked");

    let audited = with(failing("strict", 0), |spec| spec.mode = Mode::Audit);
    let (selection, faults) = run(&job(&[]), &[class("default", None), audited]);
    let Selection::Chosen(choice) = selection else { panic!("{selection:?}") };
    assert_eq!((choice.class.name(), choice.audit, faults.len()), ("default", None, 1));
}

#[test]
fn a_class_that_audits_refuses_nothing() {
    let audit = |class| with(class, |spec: &mut JobClassSpec| spec.mode = Mode::Audit);
    let gpu = audit(tagged("gpu", &["gpu"]));
    // What it takes, it gets; what another class takes, the other gets.
    assert_eq!(chosen(&job(&["gpu"]), std::slice::from_ref(&gpu)).0, "gpu");
    assert_eq!(chosen(&job(&["docker"]), &[gpu.clone(), class("default", None)]).0, "default");
    // Only what nobody takes runs in it all the same.
    let (selection, _) = run(&job(&["docker"]), &[gpu.clone(), tagged("shell", &["shell"])]);
    let Selection::Chosen(choice) = selection else { panic!("{selection:?}") };
    assert_eq!(choice.class.name(), "gpu");
    let audit_text = choice.audit.unwrap();
    assert!(
        audit_text.starts_with("if JobClass \"gpu\" were enforced: no JobClass takes this job"),
        "{audit_text}"
    );
    assert!(audit_text.contains("\n- gpu: it does not have the tag docker"), "{audit_text}");
    // Also where it is named.
    let (selection, _) = run(&naming("gpu", job(&["docker"])), &[gpu]);
    let Selection::Chosen(choice) = selection else { panic!("{selection:?}") };
    assert_eq!(
        choice.audit.as_deref(),
        Some(
            "JobClass \"gpu\", which the runner asks for, would refuse this job: it does not have the tag docker"
        )
    );
    // A class that cannot be applied is no way out.
    let broken =
        audit(class("broken", Some(Matching { projects: vec!["/".to_owned()], ..Matching::default() })));
    assert_eq!(refused(&job(&[]), &[broken]).reason, Reason::NoClassMatches);
}

fn any_class() -> impl Strategy<Value = JobClass> {
    let tags = prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 0..3);
    let name = prop::sample::select(vec!["default", "k", "l", "m", "n", "o", "p"]);
    (name, prop::option::of(prop::option::of(tags)), -1_i32..2, any::<bool>(), any::<bool>(), 0_u8..4)
        .prop_map(|(name, matching, priority, audit, protected_only, expression)| {
            let matching = matching.map(|tags| Matching {
                tags: tags.map(|tags| tags.into_iter().map(str::to_owned).collect()),
                refs: RefMatching { protected_only, names: vec![] },
                expression: match expression {
                    0 => Some("job.pipelineSource == 'push'".to_owned()),
                    1 => Some("job.nme == 'x'".to_owned()),
                    2 => Some("size(job.tags) < 2".to_owned()),
                    _ => None,
                },
                ..Matching::default()
            });
            let mode = if audit { Mode::Audit } else { Mode::Enforce };
            with(class(name, matching), |spec| {
                spec.priority = priority;
                spec.mode = mode;
            })
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_classes_makes_no_difference(
        classes in prop::collection::vec(any_class(), 0..6),
        tags in prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 0..3),
        protected in any::<bool>(),
        turn in 0_usize..6,
    ) {
        // The API server has no two classes of one name.
        let mut classes = classes;
        classes.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        classes.dedup_by(|a, b| a.metadata.name == b.metadata.name);
        let mut request = job(&tags);
        request.git_ref.protected = Some(protected);
        let before = format!("{:?}", run(&request, &classes));
        let turn = turn % classes.len().max(1);
        classes.rotate_left(turn);
        prop_assert_eq!(&before, &format!("{:?}", run(&request, &classes)));
        classes.reverse();
        prop_assert_eq!(&before, &format!("{:?}", run(&request, &classes)));
    }
}

#[test]
fn every_class_says_where_it_stands() {
    let classes = vec![
        class("default", None),
        class("by-name", None),
        tagged("b", &["x"]),
        tagged("a", &["x"]),
        tagged("wide", &["x", "y"]),
        tagged("other", &["y"]),
        with(tagged("first", &["x"]), |spec| spec.priority = 5),
        with(class("broken", Some(Matching::default())), |spec| {
            spec.matching = Some(Matching { projects: vec!["a//b".to_owned()], ..Matching::default() });
        }),
    ];
    let standings = |request: &JobRequest, classes: &[JobClass]| -> Vec<(String, String)> {
        let candidates: Vec<_> =
            classes.iter().map(|class| Arc::new(Candidate::new(Arc::new(class.clone())))).collect();
        super::standings(&Subject::new(request, "ci-jobs"), &candidates)
    };
    let pairs = |standings: &[(String, String)]| -> Vec<String> {
        standings.iter().map(|(name, text)| format!("{name}: {text}")).collect()
    };
    assert_eq!(
        pairs(&standings(&job(&["x"]), &classes)),
        [
            "first: it takes the job",
            "a: it takes the job too, but its priority 0 is below that of \"first\" (5)",
            "b: it takes the job too, but its priority 0 is below that of \"first\" (5)",
            "other: it does not have the tag x",
            "wide: it takes the job too, but its priority 0 is below that of \"first\" (5)",
            "broken: it is not valid: match.projects[0] \"a//b\" is not a pattern: it has an empty segment: remove the leading, trailing or doubled slash",
            "default: it takes the job too, but its priority 0 is below that of \"first\" (5)",
            "by-name: it has no `match`: only runners that name it get it",
        ]
    );
    assert_eq!(
        pairs(&standings(&job(&["x"]), &classes[..5])),
        [
            "a: it takes the job",
            "b: it takes the job too, but \"a\" comes first by name",
            "wide: it takes the job too, but the job leaves more of its tags unused (1) than of those of \"a\" (0)",
            "default: it takes the job too, but the match of \"a\" is closer to the job",
            "by-name: it has no `match`: only runners that name it get it",
        ]
    );
    let named = standings(&naming("other", job(&["x"])), &classes[4..7]);
    assert_eq!(
        pairs(&named),
        [
            "first: the runner asks for JobClass \"other\"",
            "other: it does not have the tag x",
            "wide: the runner asks for JobClass \"other\"",
        ]
    );
    let failing = Matching { expression: Some("job.tags[5] == 'x'".to_owned()), ..Matching::default() };
    let failing = with(class("fails", Some(failing)), |spec| spec.priority = 1);
    let blocked = standings(&job(&["x"]), &[failing, tagged("a", &["x"])]);
    assert!(blocked[0].1.starts_with("its expression fails: "), "{blocked:?}");
    assert_eq!(blocked[1].1, "it takes the job, but \"fails\" comes first, whose expression fails");
}
