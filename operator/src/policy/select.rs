//! Which class a job gets. The order in which classes are given makes no difference.

use std::cmp::Reverse;
use std::fmt::Write as _;
use std::sync::Arc;

use roadstead_crds::jobclass::{DEFAULT_CLASS, Matching, Mode};
use roadstead_crds::request::JobRequest;
use roadstead_crds::{JobClass, Reason};

use crate::policy::class;
use crate::policy::matching::{Answer, Matcher, Subject, described};
use crate::policy::verdict::Verdict;
use crate::policy::words::shortened;

/// Most classes of which a refusal says why they do not take the job.
const MOST_REASONS: usize = 20;
/// Longest reason, in characters.
const LONGEST_REASON: usize = 300;

/// A class that is ready to be matched with jobs.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The class.
    pub class: Arc<JobClass>,
    /// What is wrong with it. Where anything is, it takes no job.
    pub problems: Vec<String>,
    /// `None`: it is only for those who name it.
    matcher: Option<Matcher>,
    /// Whether the match is written down, and not just that of the default class.
    explicit: bool,
}

impl Candidate {
    /// Makes a class ready.
    pub fn new(class: Arc<JobClass>) -> Self {
        let mut problems = class::problems(&class.spec);
        let explicit = class.spec.matching.is_some();
        let default = Matching::default();
        let implicit = (class.metadata.name.as_deref() == Some(DEFAULT_CLASS)).then_some(&default);
        let matching = class.spec.matching.as_ref().or(implicit);
        let matcher = matching.map(|matching| Matcher::compile(matching, &mut problems));
        Self { class, problems, matcher, explicit }
    }

    /// Name of the class.
    pub fn name(&self) -> &str {
        self.class.metadata.name.as_deref().unwrap_or_default()
    }

    /// Whether jobs can be matched with it at all.
    fn takes_part(&self) -> bool {
        self.matcher.is_some()
    }

    fn audits(&self) -> bool {
        self.class.spec.mode == Mode::Audit
    }

    fn answer(&self, job: &Subject<'_>) -> Answer {
        match &self.matcher {
            None => Answer::Takes,
            Some(matcher) => matcher.answer(job),
        }
    }

    /// Smaller comes first: higher priority, fewer spare tags, the name. A class that does not look
    /// at tags fits a job less than one that does, and the default class without a match least.
    fn rank(&self, job: &Subject<'_>) -> (Reverse<i32>, Fit, &str) {
        let spare = self.matcher.as_ref().and_then(|matcher| matcher.spare_tags(job));
        let fit = match spare {
            Some(spare) => Fit::Spare(spare),
            None if self.explicit => Fit::AnyTags,
            None => Fit::AnyJob,
        };
        (Reverse(self.class.spec.priority), fit, self.name())
    }
}

/// How closely a class fits a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// It has so many tags that the job does not ask for.
    Spare(usize),
    /// It does not look at tags.
    AnyTags,
    /// It looks at nothing.
    AnyJob,
}

/// What was decided.
#[derive(Clone, Debug)]
pub enum Selection {
    /// The job gets this class.
    Chosen(Choice),
    /// There is no class that could be asked; one may still come.
    Missing(Verdict),
    /// The job gets none.
    Refused(Verdict),
}

/// The class that a job gets.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The class.
    pub class: Arc<Candidate>,
    /// Why this one, to follow its name in a sentence.
    pub why: String,
    /// What would have been if the class were enforced, in a sentence.
    pub audit: Option<String>,
}

/// A class whose expression failed for a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Name of the class.
    pub class: String,
    /// Generation of its spec.
    pub generation: Option<i64>,
    /// What went wrong.
    pub message: String,
}

/// Selects a job's class: the one that it names, or the first that takes it. The failed expressions
/// that were met are put into `faults`.
pub fn select(job: &Subject<'_>, candidates: &[Arc<Candidate>], faults: &mut Vec<Fault>) -> Selection {
    match &job.request.class_name {
        Some(name) => match candidates.iter().find(|candidate| candidate.name() == name) {
            Some(candidate) => named(job, candidate, faults),
            None => Selection::Missing(class::not_found(name)),
        },
        None => first_that_takes(job, candidates, faults),
    }
}

fn named(job: &Subject<'_>, candidate: &Arc<Candidate>, faults: &mut Vec<Fault>) -> Selection {
    let name = candidate.name();
    if !candidate.problems.is_empty() {
        return Selection::Refused(Verdict::new(Reason::ClassInvalid, invalid(candidate)));
    }
    let chosen = |audit| {
        let why = "the runner asks for it".to_owned();
        Selection::Chosen(Choice { class: Arc::clone(candidate), why, audit })
    };
    match candidate.answer(job) {
        Answer::Takes => chosen(None),
        Answer::Refuses(why) if candidate.audits() => chosen(Some(format!(
            "JobClass \"{name}\", which the runner asks for, would refuse this job: {why}"
        ))),
        Answer::Refuses(why) => Selection::Refused(Verdict::new(
            Reason::NoClassMatches,
            format!(
                "JobClass \"{name}\", which the runner asks for, does not take this job ({}): {why}",
                described(job)
            ),
        )),
        Answer::Fails(why) => {
            faults.push(fault(job, candidate, &why));
            if candidate.audits() {
                return chosen(Some(failed(candidate, &why)));
            }
            Selection::Refused(Verdict::new(Reason::ClassInvalid, failed(candidate, &why)))
        }
    }
}

fn first_that_takes(job: &Subject<'_>, candidates: &[Arc<Candidate>], faults: &mut Vec<Fault>) -> Selection {
    let mut ranked: Vec<_> = candidates.iter().filter(|candidate| candidate.takes_part()).collect();
    if ranked.is_empty() {
        return Selection::Missing(class::none(candidates.len()));
    }
    ranked.sort_by(|a, b| a.rank(job).cmp(&b.rank(job)));
    let mut reasons: Vec<(&Arc<Candidate>, String)> = Vec::with_capacity(ranked.len());
    for (index, candidate) in ranked.iter().enumerate() {
        if !candidate.problems.is_empty() {
            reasons.push((candidate, format!("it is not valid: {}", candidate.problems.join("; "))));
            continue;
        }
        match candidate.answer(job) {
            Answer::Takes => {
                let why = why(job, candidate, &ranked[index + 1..]);
                return Selection::Chosen(Choice { class: Arc::clone(candidate), why, audit: None });
            }
            Answer::Refuses(why) => reasons.push((candidate, why)),
            Answer::Fails(why) => {
                faults.push(fault(job, candidate, &why));
                // Whether it would have taken the job is not known, so nothing below it may.
                if !candidate.audits() {
                    return Selection::Refused(Verdict::new(Reason::ClassInvalid, failed(candidate, &why)));
                }
                reasons.push((candidate, format!("its expression fails: {why}")));
            }
        }
    }
    let refusal = refusal(job, &reasons);
    let audited = ranked.iter().find(|candidate| candidate.audits() && candidate.problems.is_empty());
    match audited {
        Some(candidate) => Selection::Chosen(Choice {
            class: Arc::clone(candidate),
            why: "no class takes the job, and this one only audits".to_owned(),
            audit: Some(format!("if JobClass \"{}\" were enforced: {refusal}", candidate.name())),
        }),
        None => Selection::Refused(Verdict::new(Reason::NoClassMatches, refusal)),
    }
}

/// Why the first class that takes a job is it. Expressions of those that come later are not asked.
fn why(job: &Subject<'_>, candidate: &Candidate, later: &[&Arc<Candidate>]) -> String {
    let rival = later.iter().find(|other| other.problems.is_empty() && other.answer_without_expression(job));
    let Some(rival) = rival else { return "no other class takes the job".to_owned() };
    let other = rival.name();
    match Lead::of(candidate, rival, job) {
        Lead::Priority(mine, theirs) => {
            format!("its priority {mine} is above that of \"{other}\" ({theirs})")
        }
        Lead::Name => format!("it comes before \"{other}\" by name"),
        Lead::Tags(mine, theirs) => format!(
            "the job leaves fewer of its tags unused ({mine}) than of those of \"{other}\" ({theirs})"
        ),
        Lead::Fit => format!("its match is closer to the job than that of \"{other}\""),
    }
}

/// What puts one class before another.
enum Lead {
    /// A higher priority than this one.
    Priority(i32, i32),
    /// Fewer tags that the job does not ask for than this.
    Tags(usize, usize),
    /// It looks closer at the job.
    Fit,
    /// Nothing but its name.
    Name,
}

impl Lead {
    fn of(first: &Candidate, later: &Candidate, job: &Subject<'_>) -> Self {
        let ((Reverse(priority), fit, _), (Reverse(other_priority), other_fit, _)) =
            (first.rank(job), later.rank(job));
        match (fit, other_fit) {
            _ if priority != other_priority => Self::Priority(priority, other_priority),
            _ if fit == other_fit => Self::Name,
            (Fit::Spare(mine), Fit::Spare(theirs)) => Self::Tags(mine, theirs),
            _ => Self::Fit,
        }
    }
}

/// What each class makes of a job: its name, and a sentence without a full stop. Those that come first for this
/// job are first. Unlike [`select`] it asks them all.
pub fn standings(job: &Subject<'_>, candidates: &[Arc<Candidate>]) -> Vec<(String, String)> {
    let mut ranked: Vec<_> = candidates.iter().collect();
    ranked.sort_by(|a, b| (!a.takes_part(), a.rank(job)).cmp(&(!b.takes_part(), b.rank(job))));
    // The first class that takes the job, or may: whether it does.
    let mut ahead: Option<(&Candidate, bool)> = None;
    let mut standings = Vec::with_capacity(ranked.len());
    for candidate in ranked {
        let standing = standing(job, candidate, ahead);
        if ahead.is_none() && standing.leads.is_some() {
            ahead = standing.leads.map(|takes| (candidate.as_ref(), takes));
        }
        standings.push((candidate.name().to_owned(), standing.text));
    }
    standings
}

/// What a class makes of a job, given the class that comes first.
struct Standing {
    text: String,
    /// Whether it takes the job, if it is not known to refuse it.
    leads: Option<bool>,
}

fn standing(job: &Subject<'_>, candidate: &Candidate, ahead: Option<(&Candidate, bool)>) -> Standing {
    let plain = |text| Standing { text, leads: None };
    if !candidate.problems.is_empty() {
        return plain(format!("it is not valid: {}", candidate.problems.join("; ")));
    }
    let wanted = job.request.class_name.as_deref();
    if let Some(wanted) = wanted.filter(|wanted| *wanted != candidate.name()) {
        return plain(format!("the runner asks for JobClass \"{wanted}\""));
    }
    if wanted.is_none() && !candidate.takes_part() {
        return plain("it has no `match`: only runners that name it get it".to_owned());
    }
    match (candidate.answer(job), ahead) {
        (Answer::Takes, None) => Standing { text: "it takes the job".to_owned(), leads: Some(true) },
        (Answer::Takes, Some((first, true))) => {
            let name = first.name();
            let but = match Lead::of(first, candidate, job) {
                Lead::Priority(first, own) => {
                    format!("its priority {own} is below that of \"{name}\" ({first})")
                }
                Lead::Tags(first, own) => format!(
                    "the job leaves more of its tags unused ({own}) than of those of \"{name}\" ({first})"
                ),
                Lead::Fit => format!("the match of \"{name}\" is closer to the job"),
                Lead::Name => format!("\"{name}\" comes first by name"),
            };
            plain(format!("it takes the job too, but {but}"))
        }
        (Answer::Takes, Some((first, false))) => {
            plain(format!("it takes the job, but \"{}\" comes first, whose expression fails", first.name()))
        }
        (Answer::Refuses(why), _) => plain(why),
        (Answer::Fails(why), _) => Standing {
            text: format!("its expression fails: {why}"),
            leads: (!candidate.audits()).then_some(false),
        },
    }
}

impl Candidate {
    fn answer_without_expression(&self, job: &Subject<'_>) -> bool {
        self.matcher.as_ref().is_some_and(|matcher| matcher.passes(job))
    }
}

fn fault(job: &Subject<'_>, candidate: &Candidate, why: &str) -> Fault {
    Fault {
        class: candidate.name().to_owned(),
        generation: candidate.class.metadata.generation,
        message: format!("job {} of project {}: {why}", job.request.job.id, job.request.project.path),
    }
}

fn failed(candidate: &Candidate, why: &str) -> String {
    format!(
        "the expression of JobClass \"{}\" fails for this job, so it is not known whether the class takes it: {}. \
         The administrator has to correct it",
        candidate.name(),
        shortened(why, LONGEST_REASON)
    )
}

fn invalid(candidate: &Candidate) -> String {
    format!(
        "JobClass \"{}\", which the runner asks for, is not valid, and the administrator has to correct it: {}",
        candidate.name(),
        shortened(&candidate.problems.join("; "), LONGEST_REASON)
    )
}

/// One line for the job, and one for each class.
fn refusal(job: &Subject<'_>, reasons: &[(&Arc<Candidate>, String)]) -> String {
    let mut text =
        format!("no JobClass takes this job ({}):", shortened(&described(job), 2 * LONGEST_REASON));
    for (candidate, reason) in reasons.iter().take(MOST_REASONS) {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n- {}: {}", candidate.name(), shortened(reason, LONGEST_REASON));
    }
    if let Some(more @ 1..) = reasons.len().checked_sub(MOST_REASONS) {
        let _ = write!(text, "\n- and {more} more");
    }
    text
}

/// Whether this request waits for a class that has just changed.
pub fn concerns(request: &JobRequest, class: &str) -> bool {
    request.class_name.as_deref().is_none_or(|name| name == class)
}

#[cfg(test)]
mod tests;
