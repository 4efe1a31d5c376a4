//! What the status of a class says of it. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use roadstead_crds::jobclass::{JobClassStatus, matching::condition};

use crate::policy::census::Census;
use crate::policy::select::{Candidate, Fault};
use crate::policy::words::{sentence, shortened};

/// Longest message of a condition, in characters; Kubernetes takes 32768 bytes.
const LONGEST_MESSAGE: usize = 8_000;

/// The status that the class should have. It is equal to the one that it has where nothing is new.
pub fn next(
    candidate: &Candidate,
    old: Option<&JobClassStatus>,
    fault: Option<&Fault>,
    census: Option<Census>,
    now: Timestamp,
) -> JobClassStatus {
    let generation = candidate.class.metadata.generation;
    let mut status = old.cloned().unwrap_or_default();
    if let Some(census) = census {
        status.jobs = Some(census.jobs);
        // It is remembered longer than its CiJob is kept.
        status.last_rejection = census.last_rejection.or(status.last_rejection);
    }
    status.observed_generation = generation;
    let (holds, reason, message) = if candidate.problems.is_empty() {
        (true, "Valid", "The class can be applied.".to_owned())
    } else {
        let text = candidate.problems.iter().map(|problem| sentence(problem)).collect::<Vec<_>>().join("\n");
        (false, "Invalid", shortened(&text, LONGEST_MESSAGE))
    };
    put(&mut status.conditions, condition::VALID, holds, reason, message, generation, now);

    // What failed in an earlier generation may be mended.
    let outdated = |condition: &Condition| {
        condition.type_ == condition::EXPRESSION_FAILED && condition.observed_generation != generation
    };
    status.conditions.retain(|condition| !outdated(condition));
    let known = status.conditions.iter().any(|condition| condition.type_ == condition::EXPRESSION_FAILED);
    // The first one is as good as any later one, and stays: jobs must not cause a write each.
    if let Some(fault) = fault.filter(|fault| fault.generation == generation && !known) {
        let message = shortened(&sentence(&fault.message), LONGEST_MESSAGE);
        put(
            &mut status.conditions,
            condition::EXPRESSION_FAILED,
            true,
            "ExpressionFailed",
            message,
            generation,
            now,
        );
    }
    status
}

fn put(
    conditions: &mut Vec<Condition>,
    kind: &str,
    holds: bool,
    reason: &str,
    message: String,
    generation: Option<i64>,
    now: Timestamp,
) {
    let status = if holds { "True" } else { "False" };
    let old = conditions.iter().position(|condition| condition.type_ == kind);
    let turned = match old.and_then(|index| conditions.get(index)) {
        Some(old) if old.status == status => old.last_transition_time.clone(),
        _ => Time(now),
    };
    let next = Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: turned,
        observed_generation: generation,
    };
    match old.and_then(|index| conditions.get_mut(index)) {
        Some(old) => *old = next,
        None => conditions.push(next),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use roadstead_crds::jobclass::{ClassJobs, Matching, Rejection};
    use roadstead_crds::{JobClass, JobClassSpec, Reason};

    use super::*;
    use crate::fixture::at;

    fn candidate(projects: &[&str], generation: i64) -> Candidate {
        let projects = projects.iter().map(|text| (*text).to_owned()).collect();
        let matching = Some(Matching { projects, ..Matching::default() });
        let mut class = JobClass::new("c", JobClassSpec { matching, ..JobClassSpec::default() });
        class.metadata.generation = Some(generation);
        Candidate::new(Arc::new(class))
    }

    fn fault(generation: i64, message: &str) -> Fault {
        Fault { class: "c".to_owned(), generation: Some(generation), message: message.to_owned() }
    }

    fn of<'a>(status: &'a JobClassStatus, kind: &str) -> Option<&'a Condition> {
        status.conditions.iter().find(|condition| condition.type_ == kind)
    }

    #[test]
    fn all_problems_are_listed_and_nothing_is_written_twice() {
        let bad = candidate(&["/a", "b//c"], 1);
        let first = next(&bad, None, None, None, at(0));
        let valid = of(&first, condition::VALID).unwrap();
        assert_eq!((valid.status.as_str(), valid.reason.as_str()), ("False", "Invalid"));
        assert_eq!(valid.message.lines().count(), 2, "{}", valid.message);
        assert_eq!(next(&bad, Some(&first), None, None, at(5_000)), first);

        let good = next(&candidate(&["a/**"], 2), Some(&first), None, None, at(9_000));
        let valid = of(&good, condition::VALID).unwrap();
        assert_eq!(
            (valid.status.as_str(), valid.observed_generation, good.observed_generation),
            ("True", Some(2), Some(2))
        );
        assert_eq!(valid.last_transition_time, Time(at(9_000)));
    }

    #[test]
    fn counts_follow_the_jobs_and_a_rejection_is_remembered() {
        let class = candidate(&[], 1);
        let rejection = Rejection {
            time: MicroTime(at(0)),
            namespace: "ci-jobs".to_owned(),
            name: "cij-1".to_owned(),
            reason: Reason::OverrideRefused,
            message: "Too much.".to_owned(),
        };
        let jobs = ClassJobs { matched: 3, running: 1, queued: 1, rejected: 1 };
        let counted = Census { jobs, last_rejection: Some(rejection.clone()) };
        let first = next(&class, None, None, Some(counted), at(0));
        assert_eq!((first.jobs, first.last_rejection.as_ref()), (Some(jobs), Some(&rejection)));
        assert_eq!(next(&class, Some(&first), None, None, at(1)), first, "it was not counted");
        let later = next(&class, Some(&first), None, Some(Census::default()), at(2));
        assert_eq!((later.jobs, later.last_rejection), (Some(ClassJobs::default()), Some(rejection)));
    }

    #[test]
    fn a_failed_expression_is_noted_until_the_class_changes() {
        let class = candidate(&[], 1);
        let noted = next(&class, None, Some(&fault(1, "job 1: no such key")), None, at(0));
        assert_eq!(of(&noted, condition::EXPRESSION_FAILED).unwrap().message, "Job 1: no such key.");
        assert_eq!(next(&class, Some(&noted), Some(&fault(1, "job 2: another")), None, at(1)), noted);
        assert_eq!(next(&class, Some(&noted), None, None, at(1)), noted, "also after a restart");
        let changed = next(&candidate(&[], 2), Some(&noted), Some(&fault(1, "job 3: late")), None, at(2));
        assert_eq!(of(&changed, condition::EXPRESSION_FAILED), None);
    }
}
