//! Cases, and what holds for every queue.

use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
}

fn entry(uid: &'static str, project: i64, created: i64, stand: Stand) -> Entry<'static> {
    Entry {
        uid,
        namespace: "jobs",
        project: ("gitlab", project),
        created: (at(created), at(0)),
        stand,
        served: None,
    }
}

fn waits(uid: &'static str, project: i64, created: i64) -> Entry<'static> {
    entry(uid, project, created, Stand::Waits)
}

fn limits(max: Option<u32>, max_per_project: Option<u32>) -> Concurrency {
    Concurrency { max, max_per_project }
}

fn uids<'a>(line: &[Waiting<'a>]) -> Vec<&'a str> {
    line.iter().map(|waiting| waiting.uid).collect()
}

fn admitted<'a>(line: &[Waiting<'a>]) -> Vec<&'a str> {
    line.iter().filter(|waiting| waiting.obstacle.is_none()).map(|waiting| waiting.uid).collect()
}

#[test]
fn projects_take_turns_and_the_oldest_comes_first() {
    let entries = [
        waits("a1", 1, 1),
        waits("a2", 1, 2),
        waits("a3", 1, 3),
        waits("b1", 2, 10),
        waits("b2", 2, 11),
        entry("c0", 3, 0, Stand::Runs),
        waits("c1", 3, 0),
    ];
    let line = line(&entries, limits(Some(3), None), |_| Quota::Open);
    assert_eq!(uids(&line), ["a1", "b1", "c1", "a2", "b2", "a3"]);
    assert_eq!(admitted(&line), ["a1", "b1"]);
    assert_eq!((line[2].obstacle, line[2].running), (Some(Obstacle::Class), 1));
}

#[test]
fn who_asked_first_comes_first_within_a_second() {
    let mut entries = [waits("a", 1, 1), waits("b", 1, 1), waits("c", 1, 0)];
    entries[0].created.1 = at(7);
    entries[1].created.1 = at(5);
    entries[2].created.1 = at(9);
    assert_eq!(uids(&line(&entries, Concurrency::default(), |_| Quota::Open)), ["c", "b", "a"]);
}

#[test]
fn projects_alternate_where_there_is_one_place_only() {
    let over =
        |uid, project, served| Entry { served: Some(at(served)), ..entry(uid, project, 0, Stand::Over) };
    let entries = [
        over("a0", 1, 50),
        over("b0", 2, 40),
        waits("a1", 1, 1),
        waits("a2", 1, 2),
        waits("b1", 2, 3),
        waits("b2", 2, 4),
        waits("c1", 3, 5),
    ];
    let line = line(&entries, limits(Some(1), None), |_| Quota::Open);
    assert_eq!(uids(&line), ["c1", "b1", "a1", "b2", "a2"]);
    assert_eq!(admitted(&line), ["c1"]);
}

#[test]
fn a_project_that_has_all_it_may_have_lets_the_others_pass() {
    let entries = [entry("a0", 1, 0, Stand::Runs), waits("a1", 1, 1), waits("b1", 2, 5), waits("b2", 2, 6)];
    let line = line(&entries, limits(None, Some(1)), |_| Quota::Open);
    assert_eq!(uids(&line), ["b1", "a1", "b2"]);
    assert_eq!(admitted(&line), ["b1"]);
    assert_eq!((line[1].obstacle, line[1].running), (Some(Obstacle::Project), 1));
}

#[test]
fn one_job_at_a_time_finds_out_whether_a_quota_has_room() {
    let entries = [waits("a", 1, 1), waits("b", 2, 2), waits("c", 3, 3)];
    let under = |quota| line(&entries, Concurrency::default(), move |_| quota);
    assert_eq!(admitted(&under(Quota::Open)), ["a", "b", "c"]);
    assert_eq!(admitted(&under(Quota::Narrow)), ["a"]);
    assert_eq!(admitted(&under(Quota::Shut)), [""; 0]);
    assert_eq!(under(Quota::Shut)[0].obstacle, Some(Obstacle::Quota));
    let trying = [entry("a", 1, 1, Stand::Starts), waits("b", 2, 2)];
    assert_eq!(admitted(&line(&trying, Concurrency::default(), |_| Quota::Narrow)), [""; 0]);
    // Another namespace has a quota of its own, and no place is kept for a job that may not have it.
    let mut elsewhere = waits("d", 4, 4);
    elsewhere.namespace = "others";
    let entries = [waits("a", 1, 1), elsewhere];
    let quota = |namespace: &str| if namespace == "jobs" { Quota::Shut } else { Quota::Open };
    assert_eq!(admitted(&line(&entries, limits(Some(1), None), quota)), ["d"]);
}

#[test]
fn who_waits_for_a_quota_does_not_wait_for_the_class_while_another_one_tries() {
    let (runs, limits) = (entry("r", 9, 0, Stand::Runs), limits(Some(2), None));
    let under = |first: Entry<'static>, quota| {
        let line = line(&[runs.clone(), first, waits("b", 2, 2), waits("c", 3, 3)], limits, move |_| quota);
        line.iter().filter(|one| one.uid > "a").map(|one| one.obstacle).collect::<Vec<_>>()
    };
    // There is one free place. The first one asks the quota, tries, and is refused: nothing changes for the others.
    let others = [Some(Obstacle::Quota); 2];
    assert_eq!(under(waits("a", 1, 1), Quota::Narrow), others);
    assert_eq!(under(entry("a", 1, 1, Stand::Starts), Quota::Narrow), others);
    assert_eq!(under(waits("a", 1, 1), Quota::Shut), others);
    // It has its pod, and the class is full.
    assert_eq!(under(entry("a", 1, 1, Stand::Runs), Quota::Narrow), [Some(Obstacle::Class); 2]);
}

#[test]
fn positions_that_are_shown() {
    let table = [(1, 1), (5, 5), (6, 10), (10, 10), (11, 20), (21, 50), (51, 100), (101, 200), (999, 1000)];
    for (position, expected) in table {
        assert_eq!(shown(position), expected, "{position}");
    }
    assert!(shown(usize::MAX) == usize::MAX);
    // What a queue of a thousand costs in writes when its first job leaves.
    let changed = (2..=1000).filter(|position| shown(*position) != shown(position - 1)).count();
    assert_eq!(changed, 11);
}

const UIDS: [&str; 40] = {
    let digits = "00010203040506070809101112131415161718192021222324252627282930313233343536373839";
    let mut uids = [""; 40];
    let mut index = 0;
    while index < 40 {
        uids[index] = digits.split_at(index * 2).1.split_at(2).0;
        index += 1;
    }
    uids
};

fn entries() -> impl Strategy<Value = Vec<Entry<'static>>> {
    let stand = prop_oneof![
        2 => Just(Stand::Runs),
        1 => Just(Stand::Starts),
        5 => Just(Stand::Waits),
        1 => Just(Stand::Over),
    ];
    let namespace = prop_oneof![Just("jobs"), Just("others")];
    let one = (0..6_i64, 0..20_i64, stand, namespace, proptest::option::of(0..20_i64));
    proptest::collection::vec(one, 0..UIDS.len()).prop_map(|entries| {
        entries
            .into_iter()
            .zip(UIDS)
            .map(|((project, created, stand, namespace, served), uid)| Entry {
                uid,
                namespace,
                project: ("gitlab", project),
                created: (at(created), at(0)),
                stand,
                served: served.filter(|_| stand != Stand::Waits).map(at),
            })
            .collect()
    })
}

fn quota() -> impl Strategy<Value = Quota> {
    prop_oneof![3 => Just(Quota::Open), 1 => Just(Quota::Narrow), 1 => Just(Quota::Shut)]
}

fn concurrency() -> impl Strategy<Value = Concurrency> {
    (proptest::option::of(1..12_u32), proptest::option::of(1..5_u32))
        .prop_map(|(max, per_project)| limits(max, per_project))
}

fn has_place(entry: &Entry<'_>) -> bool {
    matches!(entry.stand, Stand::Runs | Stand::Starts)
}

proptest! {
    #[test]
    fn every_queue_keeps_the_laws(
        (entries, shuffled) in entries().prop_flat_map(|entries| (Just(entries.clone()), Just(entries).prop_shuffle())),
        limits in concurrency(),
        (jobs, others) in (quota(), quota()),
    ) {
        let quota = |namespace: &str| if namespace == "jobs" { jobs } else { others };
        let line = line(&entries, limits, quota);
        prop_assert_eq!(&super::line(&shuffled, limits, quota), &line, "the order of the question counts");
        prop_assert_eq!(line.len(), entries.iter().filter(|entry| entry.stand == Stand::Waits).count());

        let of = |uid: &str| entries.iter().find(|entry| entry.uid == uid).unwrap();
        let starts = |uid: &str| line.iter().any(|waiting| waiting.uid == uid && waiting.obstacle.is_none());
        let running = entries.iter().filter(|entry| has_place(entry)).count();
        let started = admitted(&line).len();
        let max = limits.max.map_or(usize::MAX, |max| max as usize);
        prop_assert!(started == 0 || running + started <= max, "more than may");
        let after = |project: Project<'_>| {
            entries.iter().filter(|entry| entry.project == project && (has_place(entry) || starts(entry.uid))).count()
        };
        let per_project = limits.max_per_project.map_or(usize::MAX, |max| max as usize);
        for waiting in &line {
            let entry = of(waiting.uid);
            match waiting.obstacle {
                None => {
                    prop_assert!(after(entry.project) <= per_project, "more than the project may");
                    let narrow = quota(entry.namespace) == Quota::Narrow;
                    prop_assert!(quota(entry.namespace) != Quota::Shut);
                    let same = |other: &&Entry<'_>| other.namespace == entry.namespace;
                    let trying = entries.iter().filter(same)
                        .filter(|other| other.stand == Stand::Starts || starts(other.uid)).count();
                    prop_assert!(!narrow || trying == 1, "a quota is asked by many at once");
                }
                // Nobody waits for what is free.
                Some(Obstacle::Class) => prop_assert!(running + started >= max),
                Some(Obstacle::Project) => prop_assert!(after(entry.project) >= per_project),
                Some(Obstacle::Quota) => prop_assert!(quota(entry.namespace) != Quota::Open),
            }
            // Whoever was passed over by another project had at least as many jobs as that one then.
            if waiting.obstacle == Some(Obstacle::Class) {
                for winner in admitted(&line) {
                    let winner = of(winner);
                    prop_assert!(
                        winner.project == entry.project || after(winner.project) <= after(entry.project) + 1,
                        "an unfair place",
                    );
                    prop_assert!(
                        winner.project != entry.project
                            || (winner.created, winner.uid) < (entry.created, entry.uid),
                        "a younger job came first",
                    );
                }
            }
        }
    }

    /// Where each job that may start does, and some running one ends, everybody has a turn.
    #[test]
    fn nobody_waits_for_ever(mut entries in entries(), limits in concurrency()) {
        for _ in 0..=entries.len() * 2 {
            let line = line(&entries, limits, |_| Quota::Open);
            if line.is_empty() {
                return Ok(());
            }
            let started: Vec<_> = admitted(&line).into_iter().map(str::to_owned).collect();
            for entry in &mut entries {
                if started.iter().any(|uid| uid == entry.uid) {
                    entry.stand = Stand::Runs;
                }
            }
            if let Some(ends) = entries.iter().position(has_place) {
                entries.remove(ends);
            }
        }
        prop_assert!(false, "somebody still waits");
    }
}
