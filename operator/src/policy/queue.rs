//! Who of those that wait for room in a class may start. Pure.
//!
//! The next free place goes to the project with the fewest running jobs of the class, among those
//! to the one that was served least recently, and there to the oldest job. Nothing is remembered
//! from one question to the next: the answer follows from the jobs that exist.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use jiff::Timestamp;
use roadstead_crds::jobclass::Concurrency;
use roadstead_crds::{CiJobStatus, Phase, Reason};

/// A job of the class.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// UID of its CiJob.
    pub uid: &'a str,
    /// Namespace of its CiJob.
    pub namespace: &'a str,
    /// Server and number of its project.
    pub project: Project<'a>,
    /// When the CiJob was created, to the second, and when the shim asked for it.
    pub created: (Timestamp, Timestamp),
    /// Whether it has a place.
    pub stand: Stand,
    /// When it got it.
    pub served: Option<Timestamp>,
}

/// A project of a GitLab server.
pub type Project<'a> = (&'a str, i64);

/// How a job stands to the places of its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// It has one, and its pod exists or existed.
    Runs,
    /// It has one, and whether its pod can be created is not known yet.
    Starts,
    /// It waits for one.
    Waits,
    /// It has ended.
    Over,
}

/// Whether a quota of a namespace lets pods of the class be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// Nothing is known against it.
    Open,
    /// It refused a pod: one job at a time finds out whether there is room again.
    Narrow,
    /// It refused a pod a moment ago.
    Shut,
}

/// What holds a job up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// As many jobs of the class run as may.
    Class,
    /// As many jobs of the class run for the project as may.
    Project,
    /// A quota of the namespace.
    Quota,
}

/// A job that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting<'a> {
    /// UID of its CiJob.
    pub uid: &'a str,
    /// Namespace of its CiJob.
    pub namespace: &'a str,
    /// What holds it up. `None`: it may start.
    pub obstacle: Option<Obstacle>,
    /// How many jobs run under the limit that holds it up.
    pub running: usize,
}

/// Whether a job that needs a pod may have one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Room {
    /// It may.
    Free,
    /// It has to wait.
    Taken(Wait),
    /// The operator has just begun and does not know yet which jobs run in these namespaces.
    Unknown(Vec<String>),
}

/// How a job waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// What holds it up.
    pub obstacle: Obstacle,
    /// Its position, from 1.
    pub position: usize,
    /// How many jobs wait.
    pub of: usize,
    /// How many jobs run under the limit that holds it up.
    pub running: usize,
    /// That limit. None for a quota.
    pub max: Option<u32>,
    /// When it is the job's turn to find out whether a quota has room again.
    pub retry: Option<Timestamp>,
}

impl Wait {
    /// How the job at this index of the line waits. `None`: it need not.
    pub fn of(line: &[Waiting<'_>], index: usize, limits: Concurrency) -> Option<Self> {
        let waiting = line.get(index)?;
        let obstacle = waiting.obstacle?;
        let max = match obstacle {
            Obstacle::Class => limits.max,
            Obstacle::Project => limits.max_per_project,
            Obstacle::Quota => None,
        };
        let (position, of, running) = (index.saturating_add(1), line.len(), waiting.running);
        Some(Self { obstacle, position, of, running, max, retry: None })
    }

    /// In one word.
    pub fn reason(&self) -> Reason {
        match self.obstacle {
            Obstacle::Class | Obstacle::Project => Reason::ConcurrencyLimit,
            Obstacle::Quota => Reason::QuotaExceeded,
        }
    }

    /// The position as the status shows it. Before a quota there is none: whoever tries it leaves the line and
    /// comes back, and all the others would be written each time.
    pub fn shown_position(&self) -> Option<usize> {
        (self.obstacle != Obstacle::Quota).then(|| shown(self.position))
    }

    /// Whether the status says all of it.
    pub fn is_told(&self, status: &CiJobStatus) -> bool {
        let number = |number: usize| i32::try_from(number).ok();
        let told = status.queue.as_ref().is_some_and(|queue| {
            queue.position == self.shown_position().and_then(number)
                && queue.max == self.max.and_then(|max| i32::try_from(max).ok())
        });
        told && status.phase == Some(Phase::Queued) && status.reason == Some(self.reason())
    }

    /// In a sentence for the job log.
    pub fn sentence(&self, class: &str, project: &str, namespace: &str) -> String {
        let Self { position, of, running, max, .. } = *self;
        let position = match shown(position) {
            exact if exact == position => exact.to_string(),
            rounded => format!("at most {rounded}"),
        };
        let max = max.unwrap_or_default();
        let place = format!("position {position} of {of} in the queue of JobClass \"{class}\"");
        match self.obstacle {
            Obstacle::Class => {
                format!("{place}: {running} of its jobs run, at most {max} may (`concurrency.max`)")
            }
            Obstacle::Project => format!(
                "{place}: {running} of its jobs run for project {project}, at most {max} may (`concurrency.maxPerProject`)"
            ),
            // Without the position: the words of a quota stand longer than that.
            Obstacle::Quota => format!(
                "a quota of namespace \"{namespace}\" has no room for more jobs of JobClass \"{class}\", and other jobs wait for it too"
            ),
        }
    }
}

/// Those that wait, in the order in which they get a place if nothing else changes. `quota` tells
/// of a namespace.
pub fn line<'a>(
    entries: &[Entry<'a>],
    limits: Concurrency,
    quota: impl Fn(&str) -> Quota,
) -> Vec<Waiting<'a>> {
    let limit =
        |limit: Option<u32>| limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let (most, most_per_project) = (limit(limits.max), limit(limits.max_per_project));

    let mut places = Places::default();
    let mut projects: HashMap<Project<'a>, VecDeque<&Entry<'a>>> = HashMap::new();
    let mut finding_out: HashSet<&str> = HashSet::new();
    // Places of jobs that only find out whether a narrow quota has room. A class that is full because of them is not
    // what the others of that namespace wait for.
    let mut tries = 0_usize;
    let mut served: HashMap<Project<'a>, Timestamp> = HashMap::new();
    for entry in entries {
        if let Some(time) = entry.served {
            let last = served.entry(entry.project).or_insert(time);
            *last = time.max(*last);
        }
        match entry.stand {
            Stand::Over => {}
            Stand::Waits => projects.entry(entry.project).or_default().push_back(entry),
            Stand::Starts => {
                finding_out.insert(entry.namespace);
                tries = tries.saturating_add((quota(entry.namespace) != Quota::Open).into());
                places.take(entry.project);
            }
            Stand::Runs => places.take(entry.project),
        }
    }
    let running = places.clone();

    // Projects by whose turn it is; each one's jobs by age.
    let mut turns = BTreeSet::new();
    for (project, jobs) in &mut projects {
        jobs.make_contiguous().sort_by_key(|entry| (entry.created, entry.uid));
        let last = served.get(project).copied().unwrap_or(Timestamp::MIN);
        turns.extend(jobs.front().map(|head| Turn::new(places.of(*project), (0, last), head)));
    }
    let (mut order, mut last) = (Vec::with_capacity(entries.len()), vec![]);
    let mut round = 0_usize;
    while let Some(turn) = turns.pop_first() {
        let project = turn.project;
        let Some(jobs) = projects.get_mut(&project) else { continue };
        let Some(entry) = jobs.pop_front() else { continue };
        let quota = quota(entry.namespace);
        let waits_for_a_try = quota != Quota::Open
            && finding_out.contains(entry.namespace)
            && places.all.saturating_sub(tries) < most;
        let obstacle = if places.of(project) >= most_per_project {
            Some(Obstacle::Project)
        } else if places.all >= most && !waits_for_a_try {
            Some(Obstacle::Class)
        } else if quota == Quota::Shut || (quota == Quota::Narrow && !finding_out.insert(entry.namespace)) {
            Some(Obstacle::Quota)
        } else {
            places.take(project);
            tries = tries.saturating_add((quota != Quota::Open).into());
            None
        };
        // A job that a quota holds up costs its project no turn: it takes nobody's place.
        let (running_then, served_then) = if obstacle == Some(Obstacle::Quota) {
            (turn.running, turn.served)
        } else {
            round = round.saturating_add(1);
            (turn.running.saturating_add(1), (round, Timestamp::MIN))
        };
        turns.extend(jobs.front().map(|head| Turn::new(running_then, served_then, head)));
        let of_project = obstacle == Some(Obstacle::Project);
        let waiting = Waiting {
            uid: entry.uid,
            namespace: entry.namespace,
            obstacle,
            running: if of_project { running.of(project) } else { running.all },
        };
        // Others are served before a project that has all it may have.
        if of_project { last.push(waiting) } else { order.push(waiting) }
    }
    order.append(&mut last);
    order
}

/// A project that is to be served; the least one is the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn<'a> {
    running: usize,
    /// The round of this question in which it was served, and when it was before that.
    served: (usize, Timestamp),
    created: (Timestamp, Timestamp),
    uid: &'a str,
    project: Project<'a>,
}

impl<'a> Turn<'a> {
    fn new(running: usize, served: (usize, Timestamp), head: &Entry<'a>) -> Self {
        Self { running, served, created: head.created, uid: head.uid, project: head.project }
    }
}

/// Places that are taken.
#[derive(Clone, Debug, Default)]
struct Places<'a> {
    all: usize,
    by_project: BTreeMap<Project<'a>, usize>,
}

impl<'a> Places<'a> {
    fn take(&mut self, project: Project<'a>) {
        self.all += 1;
        *self.by_project.entry(project).or_default() += 1;
    }

    fn of(&self, project: Project<'_>) -> usize {
        self.by_project.get(&project).copied().unwrap_or_default()
    }
}

/// The position that is shown for a position. The exact one would be a write for each waiting job at
/// each start.
pub fn shown(position: usize) -> usize {
    if position <= 5 {
        return position;
    }
    let mut step = 10_usize;
    loop {
        for rounded in [step, step.saturating_mul(2), step.saturating_mul(5)] {
            if position <= rounded {
                return rounded;
            }
        }
        step = step.saturating_mul(10);
    }
}

#[cfg(test)]
mod tests;
