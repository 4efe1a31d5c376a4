//! Requests to the API server by job, from its audit log.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::try_join_all;

use super::count;
use crate::audit::{AuditLog, Request};
use crate::bench::options::Topic;
use crate::bench::report::{Row, Unit};
use crate::bench::{Bench, DEADLINE, SOON, succeeded};
use crate::gitlab_executor::NAMESPACE;
use crate::release::Release;

/// Most requests of a trivial job.
const TRIVIAL: f64 = 35.0;

/// By how much a job that waits may differ from one that is over at once: that one ends before the kubelet reports its
/// containers, and changes that fall together are one write. Asking every three seconds would be 20 in a minute.
const SAME: f64 = 4.0;

/// How long the log has to stay as it is before it counts as complete, and how often it is looked at.
const SETTLED: Duration = Duration::from_millis(500);

/// What one job has cost.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Cost {
    shim: usize,
    operator: usize,
    /// Of all, those that start or attach to a process in the pod. Their number depends on when the pod is ready.
    streams: usize,
}

impl Cost {
    fn all(self) -> usize {
        self.shim + self.operator
    }

    fn of(requests: &[Request], release: &Release, cijob: &str) -> Self {
        let mut cost = Self::default();
        for request in requests.iter().filter(|request| request.concerns(cijob)) {
            if request.is_by(&release.namespace, &release.shim_account()) {
                cost.shim += 1;
            } else if request.is_by(&release.namespace, &release.operator()) {
                cost.operator += 1;
            } else {
                continue;
            }
            cost.streams += usize::from(is_stream(request));
        }
        cost
    }

    /// A job of GitLab's executor, which has an account of its own. It counts as the runner's.
    fn of_account(requests: &[Request], account: &str) -> Self {
        let own: Vec<_> = requests.iter().filter(|request| request.is_by(NAMESPACE, account)).collect();
        let streams = own.iter().filter(|request| is_stream(request)).count();
        Self { shim: own.len(), operator: 0, streams }
    }
}

fn is_stream(request: &Request) -> bool {
    matches!(request.resource.as_str(), "pods/exec" | "pods/attach")
}

pub(in crate::bench) async fn requests(bench: &Bench<'_>) -> Result<Vec<Row>> {
    bench.progress.say("bench: requests of a trivial job");
    let trivial = [
        ours(bench, Duration::ZERO).await?,
        if bench.theirs.is_some() { theirs(bench, Duration::ZERO).await? } else { Cost::default() },
    ];
    let mut rows = rows(bench, "a trivial job", trivial);
    let [.., all] = rows.as_mut_slice() else { return Ok(rows) };
    *all = all.clone().target(TRIVIAL);
    let durations = &bench.plan.long_jobs;
    if durations.is_empty() {
        return Ok(rows);
    }
    let seconds: Vec<String> = durations.iter().map(|long| long.as_secs().to_string()).collect();
    bench.progress.say(format_args!("bench: requests of jobs of {} s, side by side", seconds.join(" and ")));
    let (ours, theirs) =
        tokio::try_join!(try_join_all(durations.iter().map(|long| ours(bench, *long))), async {
            match bench.theirs {
                Some(_) => try_join_all(durations.iter().map(|long| theirs(bench, *long))).await,
                None => Ok(vec![Cost::default(); durations.len()]),
            }
        })?;
    let costs: Vec<[Cost; 2]> = ours.into_iter().zip(theirs).map(|(ours, theirs)| [ours, theirs]).collect();
    for (seconds, costs) in seconds.iter().zip(&costs) {
        rows.extend(self::rows(bench, &format!("a job of {seconds} s"), *costs));
    }
    if let (Some(seconds), Some(longest)) = (seconds.last(), costs.last()) {
        let more = |which: usize| {
            let settled = |cost: Cost| count(cost.all() - cost.streams);
            settled(longest[which]) - settled(trivial[which])
        };
        let name = format!("{seconds} s of waiting cost (without exec and attach)");
        let row = Row::new(Topic::Requests, Unit::Requests, name, Some(more(0)));
        rows.push(row.against(bench.theirs.as_ref().map(|_| more(1))).target(SAME));
    }
    Ok(rows)
}

fn rows(bench: &Bench<'_>, what: &str, [ours, theirs]: [Cost; 2]) -> Vec<Row> {
    let row = |who: &str, cost: usize| {
        Row::new(Topic::Requests, Unit::Requests, format!("{what}: {who}"), Some(count(cost)))
    };
    let theirs = bench.theirs.as_ref().map(|_| count(theirs.all()));
    vec![row("shim", ours.shim), row("operator", ours.operator), row("all", ours.all()).against(theirs)]
}

fn command(duration: Duration) -> String {
    format!("sleep {}", duration.as_secs())
}

async fn ours(bench: &Bench<'_>, duration: Duration) -> Result<Cost> {
    let log = AuditLog::from_now(&bench.installation.cluster)?;
    let spec = bench.job(command(duration))?;
    succeeded(bench.ours.run(&spec, DEADLINE + duration).await?)?;
    bench.installation.wait_no_pods(spec.id, SOON).await?;
    let cijob =
        bench.installation.cijob_of(spec.id).await?.metadata.name.context("a CiJob without a name")?;
    settled(&log, |requests| Cost::of(requests, bench.installation.release(), &cijob)).await
}

async fn theirs(bench: &Bench<'_>, duration: Duration) -> Result<Cost> {
    let theirs = bench.theirs.as_ref().context("there is no other executor")?;
    let log = AuditLog::from_now(&bench.installation.cluster)?;
    let (job, account) = theirs.start(&bench.job(command(duration))?).await?;
    succeeded(job.finish(DEADLINE + duration).await?)?;
    settled(&log, |requests| Cost::of_account(requests, &account)).await
}

/// What the log tells once nothing is added any more: the last writes come after the job's end.
async fn settled(log: &AuditLog, cost: impl Fn(&[Request]) -> Cost) -> Result<Cost> {
    let mut last = cost(&log.requests()?);
    loop {
        tokio::time::sleep(SETTLED).await;
        let now = cost(&log.requests()?);
        if now == last {
            return Ok(now);
        }
        last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(account: &str, resource: &str, name: &str) -> Request {
        Request {
            user: format!("system:serviceaccount:{account}"),
            verb: "get".into(),
            resource: resource.into(),
            name: name.into(),
            uri: String::new(),
        }
    }

    #[test]
    fn requests_are_told_apart_by_account_and_job() {
        let shim = "roadstead-system:roadstead-shim";
        let operator = "roadstead-system:roadstead-operator";
        let log = [
            request(shim, "cijobs", "cij-1-a"),
            request(shim, "pods/exec", "cij-1-a-pod-1"),
            request(shim, "cijobs", "cij-2-b"),
            request(operator, "pods", "cij-1-a-pod-1"),
            request("kube-system:generic-garbage-collector", "pods", "cij-1-a-pod-1"),
            request("gitlab-executor:runner-1", "pods/attach", "runner-x"),
            request("gitlab-executor:runner-1", "pods", "runner-x"),
            request("gitlab-executor:runner-10", "pods", "runner-y"),
        ];
        let cost = Cost::of(&log, &Release::default(), "cij-1-a");
        assert_eq!((cost.shim, cost.operator, cost.streams, cost.all()), (2, 1, 1, 3));
        let cost = Cost::of_account(&log, "runner-1");
        assert_eq!((cost.all(), cost.streams), (2, 1));
    }
}
