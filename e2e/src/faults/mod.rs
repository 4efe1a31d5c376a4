//! `cargo e2e faults`: breaks what can break under a running job, and looks whether the job ends as it should, with
//! every byte of its output and with nothing left behind.

mod admission;
mod components;
mod executor;
mod hands;
mod judge;
mod lifecycle;
mod losses;
mod node;
mod objects;
mod streams;
mod table;

use std::fmt::Write as _;
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, stream};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use roadstead_crds::JobClass;

use crate::cluster::Cluster;
use crate::coordinator::JobSpec;
use crate::gitlab_executor::GitLabExecutor;
use crate::harness::Outcome;
use crate::installation::Installation;
use crate::progress::Progress;

use executor::Executor;
pub use table::{Row, Table, Tally, Theirs};

/// What most jobs must come to.
const EVERY_BYTE: &str = "succeeds with every byte, and the script runs once";
/// Longer than any of the jobs takes, its fault included.
const DEADLINE: Duration = Duration::from_mins(4);
/// What the cluster may take to show what has happened.
const SOON: Duration = Duration::from_secs(90);
/// What the cluster may take to come back. kube-proxy and the kubelet wait up to a minute, now and then twice, before they
/// ask an API server again that was away: until then no pod reaches it, or none of the node is started or removed.
const BACK: Duration = Duration::from_secs(180);
/// Looks at things of this process, or at a cluster that cannot be watched because it is coming back.
const SHORT: Duration = Duration::from_millis(50);

/// How many faults that break nothing but their own job are run at once.
const TOGETHER: usize = 4;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of faults; all where there are none.
    pub only: Vec<String>,
    /// How often each one.
    pub repeat: u32,
    /// Where the random choices start from. The same seed makes the same choices.
    pub seed: u64,
    /// Whether GitLab's own Kubernetes executor goes through the same faults.
    pub compare: bool,
}

/// Something that goes wrong, and how to find out whether it is survived.
pub struct Fault {
    /// Its name on the command line.
    pub name: &'static str,
    /// What happens.
    pub what: &'static str,
    /// What the job must come to.
    pub right: &'static str,
    /// Whether it needs the parts of a cluster that only the provider `host` gives access to.
    pub needs_host: bool,
    /// Whether other jobs would notice it.
    alone: bool,
    /// Why GitLab's own executor does not go through it, when it does not.
    not_theirs: Option<&'static str>,
    run: for<'a> fn(&'a Site<'a>) -> Run<'a>,
}

type Run<'a> = Pin<Box<dyn Future<Output = Result<Finding>> + 'a>>;

/// Where faults happen.
struct Site<'a> {
    bench: &'a Installation,
    executor: Executor<'a>,
    /// Name of the fault.
    fault: &'static str,
    random: fastrand::Rng,
}

/// How a job got through a fault.
#[derive(Debug, Default)]
struct Finding {
    /// GitLab's number of the job.
    job: i64,
    /// What is not as it should be; empty where all is well.
    wrong: Vec<String>,
    /// Bytes of the script's output that did not arrive, or arrived changed.
    bytes_lost: u64,
    /// A pod of the job was still there long after its end.
    pod_left: bool,
    /// It came to no end.
    hung: bool,
    /// From the end of the fault until the job went on, or from the fault until the job had ended by it.
    recovery: Option<Duration>,
}

/// All faults, in the order in which they are run.
pub fn catalogue() -> impl Iterator<Item = &'static Fault> {
    let groups = [
        streams::FAULTS,
        lifecycle::FAULTS,
        losses::FAULTS,
        admission::FAULTS,
        objects::FAULTS,
        hands::FAULTS,
        node::FAULTS,
        components::FAULTS,
    ];
    groups.into_iter().flatten()
}

/// The faults by name, with what happens and what a job must come to.
pub fn list() -> String {
    catalogue().fold(String::new(), |mut text, fault| {
        let host = if fault.needs_host { " (needs the provider host)" } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}{host}\n    {}\n    the job {}", fault.name, fault.what, fault.right);
        text
    })
}

/// Runs the faults and says for each one how it went. With a cluster that gives no access to its parts, the faults
/// that need them are skipped, and the table says so.
///
/// # Errors
/// When a name is unknown, or Roadstead is not in the cluster. A fault that is not survived is in the table.
pub async fn run(progress: Progress, cluster: Cluster, options: &Options) -> Result<Table> {
    let chosen = choose(&options.only)?;
    let bench = Installation::of(cluster).await?;
    let theirs = if options.compare { Some(executor::gitlab(&progress, &bench).await?) } else { None };
    let course = Course { progress, bench: &bench, theirs: theirs.as_ref(), options };
    // In the order in which they are run, as `chosen` has it.
    let (alone, together): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|fault| fault.alone);
    let mut rows: Vec<Row> =
        stream::iter(together).map(|fault| course.row(fault)).buffered(TOGETHER).collect().await;
    for fault in alone {
        rows.push(course.row(fault).await);
    }
    if let Some(theirs) = &theirs {
        theirs.remove().await?;
    }
    Ok(Table { rows })
}

/// One run of the faults.
struct Course<'a> {
    progress: Progress,
    bench: &'a Installation,
    theirs: Option<&'a GitLabExecutor>,
    options: &'a Options,
}

impl Course<'_> {
    /// Runs a fault as often as it is wanted.
    async fn row(&self, fault: &'static Fault) -> Row {
        let mut row = Row::new(fault.name);
        if fault.needs_host && self.bench.cluster.host.is_none() {
            self.progress.say(format_args!("faults: {}: skipped, it needs the provider host", fault.name));
            row.skipped = true;
            return row;
        }
        row.ours = self.tally(fault, Executor::Roadstead).await;
        row.theirs = match (self.theirs, fault.not_theirs) {
            (None, _) => None,
            (Some(_), Some(why)) => Some(Theirs::LeftOut(why)),
            (Some(theirs), None) => Some(Theirs::Ran(self.tally(fault, Executor::GitLab(theirs)).await)),
        };
        row
    }

    async fn tally(&self, fault: &'static Fault, executor: Executor<'_>) -> Tally {
        let mut tally = Tally::default();
        let whose = match executor {
            Executor::Roadstead => "",
            Executor::GitLab(_) => "GitLab's executor: ",
        };
        for round in 0..self.options.repeat {
            let seed = seed_of(self.options.seed, fault.name, round);
            let random = fastrand::Rng::with_seed(seed);
            let site = Site { bench: self.bench, executor, fault: fault.name, random };
            let began = Instant::now();
            let finding = once(fault, &site).await;
            self.progress.say(format_args!(
                "faults: {whose}{} {}/{}: {} in {:.1} s",
                fault.name,
                round + 1,
                self.options.repeat,
                describe(&finding),
                began.elapsed().as_secs_f64()
            ));
            tally.add(finding);
        }
        tally
    }
}

fn choose(only: &[String]) -> Result<Vec<&'static Fault>> {
    for name in only {
        if !catalogue().any(|fault| fault.name == name) {
            let known: Vec<&str> = catalogue().map(|fault| fault.name).collect();
            bail!("there is no fault {name}; there are: {}", known.join(", "));
        }
    }
    let wanted = |fault: &&Fault| only.is_empty() || only.iter().any(|name| name == fault.name);
    Ok(catalogue().filter(wanted).collect())
}

/// Every fault and round has choices of its own, so that running one alone repeats what it did among all.
fn seed_of(seed: u64, name: &str, round: u32) -> u64 {
    // FNV-1a, because it stays what it is.
    let bytes = seed.to_le_bytes().into_iter().chain(round.to_le_bytes()).chain(name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A line about a finding.
fn describe(finding: &Result<Finding>) -> String {
    match finding {
        Ok(finding) if finding.is_right() => {
            let mut line = "right".to_owned();
            if let Some(recovery) = finding.recovery {
                let _ = write!(line, ", recovered after {:.1} s", recovery.as_secs_f64());
            }
            line
        }
        Ok(finding) => format!("WRONG: {}", finding.wrong.join("; ")),
        Err(error) => format!("WRONG: {error:#}"),
    }
}

/// Whether gitlab-runner took it for the system's failure, not the job's.
fn system_failure(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::SystemFailure { .. })
}

/// Whether the kubelet calls the pod ready.
fn is_ready(pod: Option<&Pod>) -> bool {
    let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

async fn once(fault: &Fault, site: &Site<'_>) -> Result<Finding> {
    let began = Instant::now();
    let found = (fault.run)(site).await;
    let was_away = fault.alone && fault.needs_host;
    site.settle(was_away).await?;
    site.remove_class().await?;
    let mut finding = match found {
        // Nothing but a wait for a job takes so long.
        Err(error) if began.elapsed() >= DEADLINE && !site.is_ours() => {
            let why = format!("it did not come to an end within {DEADLINE:?} ({})", first_line(&error));
            return Ok(Finding { hung: true, wrong: vec![why], ..Finding::default() });
        }
        found => found?,
    };
    let gone_by = if was_away { BACK } else { SOON };
    if let Err(error) = site.wait_no_pods(finding.job, gone_by).await {
        finding.pod_left = true;
        finding.wrong.push(format!("{error:#}"));
    }
    Ok(finding)
}

fn first_line(error: &anyhow::Error) -> String {
    error.root_cause().to_string().lines().next().unwrap_or_default().to_owned()
}

impl Finding {
    fn is_right(&self) -> bool {
        self.wrong.is_empty()
    }
}

impl Site<'_> {
    /// A job in the smallest image.
    fn job(&self) -> Result<JobSpec> {
        Ok(JobSpec::fresh().image(self.bench.image("busybox")?))
    }

    /// A class that is `default` but for this change, while the fault lasts.
    async fn class(&self, change: impl FnOnce(&mut JobClass)) -> Result<String> {
        self.bench.class(&self.class_name(), change).await
    }

    async fn remove_class(&self) -> Result<()> {
        let name = self.bench.class_name(&self.class_name());
        match self.bench.classes().delete(&name, &DeleteParams::default()).await {
            Err(error) if !matches!(&error, kube::Error::Api(status) if status.code == 404) => {
                Err(error).context("cannot remove the fault's class")
            }
            _ => Ok(()),
        }
    }

    fn class_name(&self) -> String {
        format!("fault-{}", self.fault)
    }

    /// Waits until the cluster answers and the operator is there again; where the cluster's own parts were away, until
    /// the operator has reached it since.
    async fn settle(&self, was_away: bool) -> Result<()> {
        let until = tokio::time::Instant::now() + BACK;
        let mut before = None;
        loop {
            let why = match self.unsettled(was_away.then_some(&mut before)).await {
                Ok(None) => return Ok(()),
                Ok(Some(why)) => why.to_owned(),
                Err(error) => format!("{error:#}"),
            };
            if tokio::time::Instant::now() >= until {
                bail!("the cluster did not come back within {BACK:?}: {why}");
            }
            tokio::time::sleep(SHORT * 4).await;
        }
    }

    /// Why it has not settled yet. `before` is when the operator's Lease was renewed before anybody looked.
    async fn unsettled(&self, before: Option<&mut Option<MicroTime>>) -> Result<Option<&'static str>> {
        let ready = http::Request::get("/readyz").body(vec![])?;
        self.bench.client.request_text(ready).await.context("the API server is not ready")?;
        let operator = ListParams::default().labels(components::OPERATOR);
        let pods =
            self.bench.system_pods().list(&operator).await.context("cannot list the operator's pods")?;
        if !pods.items.iter().any(|pod| is_ready(Some(pod))) {
            return Ok(Some("no operator is ready"));
        }
        let Some(before) = before else { return Ok(None) };
        let leases: Api<Lease> = Api::namespaced(self.bench.client.clone(), self.bench.system_namespace());
        // It is named as the Deployment is.
        let lease = leases.get(&self.bench.release().operator()).await.context("cannot read the Lease")?;
        let renewed = lease.spec.and_then(|spec| spec.renew_time).context("nobody holds the Lease")?;
        let first = before.get_or_insert_with(|| renewed.clone());
        Ok((*first == renewed).then_some("the operator does not reach it"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_words() {
        let names: Vec<&str> = catalogue().map(|fault| fault.name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert!(names.iter().all(|name| {
            name.bytes().all(|byte| byte.is_ascii_lowercase() || b"-0123456789".contains(&byte))
        }));
    }

    #[test]
    fn an_unknown_name_is_told_the_known_ones() {
        let Err(error) = choose(&["earthquake".to_owned()]) else { panic!("an earthquake") };
        assert!(
            error.to_string().contains("earthquake") && error.to_string().contains("pod-deleted"),
            "{error}"
        );
        assert_eq!(choose(&["pod-deleted".to_owned()]).unwrap().len(), 1);
        assert_eq!(choose(&[]).unwrap().len(), catalogue().count());
    }

    #[test]
    fn seeds_differ_by_fault_and_round_and_stay_the_same() {
        assert_eq!(seed_of(1, "a", 0), seed_of(1, "a", 0));
        let seeds = [seed_of(1, "a", 0), seed_of(1, "a", 1), seed_of(1, "b", 0), seed_of(2, "a", 0)];
        assert_eq!(seeds.iter().collect::<BTreeSet<_>>().len(), 4);
    }
}
