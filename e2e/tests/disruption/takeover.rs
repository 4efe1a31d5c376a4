//! One operator works, another stands by.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::wait::await_condition;
use roadstead_crds::{CiJob, JobClass, Phase, Reason};
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::harness::Harness;
use roadstead_e2e::installation::Installation;

use crate::operators::{self, LEASE, kubectl};
use crate::{DEADLINE, SOON, alone};

/// What a loaded machine may add to any bound here.
const LOAD: Duration = Duration::from_secs(10);

/// A job that prints a line each second.
fn ticking(bench: &Installation, seconds: u32) -> Result<JobSpec> {
    let script =
        format!("i=0; while [ $i -lt {seconds} ]; do echo tick $i; sleep 1; i=$((i+1)); done; echo over");
    Ok(JobSpec::fresh().image(bench.image("busybox")?).script([script]))
}

/// How long a job waited to be admitted.
fn admitted_after(job: &CiJob) -> Option<Duration> {
    let milliseconds = job.status.as_ref()?.start.admitted_ms?;
    Some(Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0)))
}

/// Runs a job and returns how long it waited to be admitted. It has one pod, the first.
async fn run_one(bench: &Installation, harness: &Harness) -> Result<Duration> {
    let spec = JobSpec::fresh().image(bench.image("busybox")?).script(["echo made it"]);
    let result = harness.run(&spec, DEADLINE).await?;
    result.assert_success();
    let jobs = bench.cijobs_of(spec.id).await?;
    ensure!(jobs.len() == 1, "{} attempts to prepare", jobs.len());
    let attempt = jobs[0].status.as_ref().and_then(|status| status.pod.as_ref()).map(|pod| pod.attempt);
    ensure!(attempt == Some(1), "the job's pod is number {attempt:?}");
    admitted_after(&jobs[0]).context("the job was never admitted")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_is_not_noticed_by_jobs() -> Result<()> {
    let _alone = alone().await;
    let bench = Installation::join().await?;
    ensure!(operators::pods(&bench).await?.len() == 2, "there are not two operators");
    let before = operators::leader(&bench).await?;
    let long = ticking(&bench, 25)?;
    let job = bench.harness()?.start(&long).await?;
    job.wait_log("tick 0", DEADLINE).await?;
    let pod = bench.cijob_of(long.id).await?.status.and_then(|status| status.pod);

    let (namespace, deployment) =
        (bench.system_namespace(), format!("deploy/{}", bench.release().operator()));
    kubectl(&bench, ["rollout", "restart", "-n", namespace, &deployment])?;
    let rollout = bench
        .cluster
        .kubectl(["rollout", "status", "-n", namespace, &deployment, "--timeout=120s"])
        .stdout(Stdio::null())
        .spawn()?;
    let mut rollout = Ended(rollout);
    let harness = bench.harness()?;
    let mut slowest = Duration::ZERO;
    while !rollout.is_over()? {
        slowest = slowest.max(run_one(&bench, &harness).await?);
    }
    let after = operators::wait_leader(&bench, "is new", |holder| holder != before, SOON).await?;
    slowest = slowest.max(run_one(&bench, &harness).await?);
    // A leader that says goodbye is followed at once, not when its Lease runs out.
    assert!(slowest < LOAD, "a job waited {slowest:?} while {after} followed {before}");

    let result = job.finish(DEADLINE).await?;
    result.assert_success();
    let output = String::from_utf8_lossy(&result.call("build_script").stdout).into_owned();
    for tick in 0..25 {
        assert_eq!(output.lines().filter(|line| *line == format!("tick {tick}")).count(), 1, "{output}");
    }
    let after = bench.cijob_of(long.id).await?;
    assert_eq!(after.status.and_then(|status| status.pod), pod);
    bench.wait_no_pods(long.id, SOON).await
}

/// Waits until the pod has another container than when it was looked at, and that one is ready.
async fn restarted(bench: &Installation, before: &Pod) -> Result<()> {
    let name = before.metadata.name.as_deref().context("a pod without a name")?;
    let restarts = operators::container(before).map(|container| container.restart_count);
    let restarted = |pod: Option<&Pod>| {
        let status = pod.and_then(operators::container);
        status.is_some_and(|status| Some(status.restart_count) > restarts && status.ready)
    };
    tokio::time::timeout(DEADLINE, await_condition(operators::api(bench), name, restarted))
        .await
        .context("it took too long")?
        .context("the watch failed")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_followed_within_the_lease() -> Result<()> {
    let _alone = alone().await;
    let bench = Installation::join().await?;
    let leader = operators::leader(&bench).await?;
    let pod = operators::pod(&bench, &leader).await?;
    operators::signal(&bench, &pod, "SIGKILL")?;
    let waited = run_one(&bench, &bench.harness()?).await?;
    assert!(waited < LEASE + LOAD, "the job waited {waited:?}");
    // The same pod comes back and goes on, or another took over; the dead one's container is a new one.
    restarted(&bench, &pod).await.context("the killed operator did not come back")
}

/// The worst kind of leader: one that is not dead, only stopped, and goes on after another took over.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_leader_is_followed_and_writes_nothing_when_it_goes_on() -> Result<()> {
    let _alone = alone().await;
    let bench = Installation::join().await?;
    let leader = operators::leader(&bench).await?;
    let pod = operators::pod(&bench, &leader).await?;
    operators::signal(&bench, &pod, "SIGSTOP")?;
    let stopped = Instant::now();
    let spec = ticking(&bench, 10)?;
    let job = bench.harness()?.start(&spec).await?;
    let next = operators::wait_leader(&bench, "is another", |holder| holder != leader, LEASE + LOAD).await?;
    let took = stopped.elapsed();
    assert!(took > Duration::from_secs(5), "{next} did not wait for the Lease to run out: {took:?}");
    job.wait_log("tick 0", DEADLINE).await?;
    operators::signal(&bench, &pod, "SIGCONT")?;

    restarted(&bench, &pod).await.context("the stopped operator did not end")?;
    let log = kubectl(&bench, ["logs", "--previous", "-n", bench.system_namespace(), &leader])?;
    assert!(log.contains("this operator does not lead any more"), "{log}");
    assert_eq!(operators::leader(&bench).await?, next);

    job.finish(DEADLINE).await?.assert_success();
    let cijob = bench.cijob_of(spec.id).await?;
    let attempt = cijob.status.as_ref().and_then(|status| status.pod.as_ref()).map(|pod| pod.attempt);
    assert_eq!(attempt, Some(1));
    bench.wait_no_pods(spec.id, SOON).await
}

/// What waits and what runs out goes on where it stood, whoever keeps the clock: nothing of it is in an
/// operator's memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_and_a_queue_survive_the_operator_that_kept_them() -> Result<()> {
    let _alone = alone().await;
    let bench = Installation::join().await?;
    let one_place = |class: &mut JobClass| class.spec.concurrency.max = Some(1);
    let class = bench.class("disruption-queue", one_place).await?;
    let harness = bench.harness_of(class)?;
    let limit = Duration::from_secs(20);
    let holder = JobSpec::fresh().image(bench.image("busybox")?).timeout(limit);
    let holder = holder.script(["echo running", "sleep 300"]);
    let job = harness.start(&holder).await?;
    job.wait_log("running", DEADLINE).await?;
    let name = bench.cijob_of(holder.id).await?.metadata.name.context("no name")?;
    job.kill_runner();

    let next = JobSpec::fresh().image(bench.image("busybox")?).script(["echo made it"]);
    let waiting = harness.start(&next).await?;
    waiting.wait_log("Waiting for room", DEADLINE).await?;
    let leader = operators::leader(&bench).await?;
    let pod = operators::pod(&bench, &leader).await?;
    operators::signal(&bench, &pod, "SIGKILL")?;

    let ended = bench.wait_finished(&name, limit + LEASE + LOAD + SOON).await?;
    let status = ended.status.context("no status")?;
    assert_eq!((status.phase, status.reason), (Some(Phase::TimedOut), Some(Reason::DeadlineExceeded)));
    waiting.finish(DEADLINE).await?.assert_success();
    bench.wait_no_pods(holder.id, SOON).await?;
    restarted(&bench, &pod).await.context("the killed operator did not come back")
}

/// Law: one pod per job, also when two operators take themselves for the leader. The second one is the
/// same program with the same rights, started without a Lease.
#[tokio::test(flavor = "multi_thread")]
async fn two_operators_that_both_work_give_a_job_one_pod() -> Result<()> {
    let _alone = alone().await;
    let bench = Installation::join().await?;
    let log = bench.dir().join("second.log");
    let mut second = second_operator(&bench, &log).await?;
    let harness = bench.harness()?;
    let count = "echo x >> \"$CI_PROJECT_DIR.runs\"; echo runs: $(wc -l < \"$CI_PROJECT_DIR.runs\")";
    let mut jobs = Vec::new();
    for _ in 0..8 {
        let spec = JobSpec::fresh().image(bench.image("busybox")?).script([count]);
        jobs.push((spec.id, harness.start(&spec).await?));
    }
    for (id, job) in jobs {
        let result = job.finish(DEADLINE).await?;
        result.assert_success();
        assert!(result.text().contains("runs: 1"), "{}", result.text());
        let cijobs = bench.cijobs_of(id).await?;
        assert_eq!(cijobs.len(), 1, "attempts to prepare");
        let pod = cijobs[0].status.as_ref().and_then(|status| status.pod.clone()).context("no pod")?;
        assert_eq!(pod.attempt, 1, "{pod:?}");
        bench.wait_no_pods(id, SOON).await?;
    }
    assert!(!second.is_over()?, "the second operator ended: {}", std::fs::read_to_string(&log)?);
    drop(second);
    let log = std::fs::read_to_string(&log).context("the second operator wrote no log")?;
    assert!(log.contains("the job moved on"), "the second operator never did anything:\n{log}");
    Ok(())
}

/// Starts an operator on this machine that knows no Lease.
async fn second_operator(bench: &Installation, log: &Path) -> Result<Ended> {
    let pods = operators::pods(bench).await?;
    let pod = pods.first().context("no operator is installed")?;
    // The product's programs lie side by side.
    let program = bench.shim().with_file_name("roadstead-operator");
    let file = std::fs::File::create(log).context("cannot make a log file")?;
    let child = Command::new(&program)
        .arg(format!("--job-namespaces={}", bench.job_namespace()))
        .arg(operators::argument(pod, "--helper-image")?)
        .arg(operators::argument(pod, "--agent-image")?)
        .arg("--listen=127.0.0.1:0")
        .env_clear()
        .env("KUBECONFIG", &bench.cluster.kubeconfig)
        .stdout(Stdio::null())
        .stderr(file)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    Ok(Ended(child))
}

/// A process that ends with this value.
struct Ended(Child);

impl Ended {
    fn is_over(&mut self) -> Result<bool> {
        let status = self.0.try_wait().context("cannot wait for a process")?;
        if let Some(status) = status {
            ensure!(status.success(), "it ended with {status}");
        }
        Ok(status.is_some())
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
