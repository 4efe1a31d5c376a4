//! `prepare`: waits until the agents in both containers of the job's pod have answered.

pub mod lines;

use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use roadstead_crds::status::ServiceState;
use roadstead_crds::{CiJob, CiJobStatus, Phase};
use serde_json::json;
use tokio::time::Instant;

use crate::shim::cli::Options;
use crate::shim::cluster::{Cluster, persistently};
use crate::shim::env::RunnerEnv;
use crate::shim::exec::connect::{Connector, Exec};
use crate::shim::exec::link::{Link, LinkEvent};
use crate::shim::exec::schedule::Occasion;
use crate::shim::exit::Failure;
use crate::shim::joblog::{JobLog, Output};
use crate::shim::stage::Container;
use crate::shim::state::{PodState, State, StateFile};
use crate::shim::watch::{Seen, Watch};
use crate::wire::PROTOCOL;
use crate::wire::message::{Hello, Open, Refusal, Work};

use lines::Lines;

/// What a start, or the wait for room, may take beyond the class's limit, after which the operator ends the job itself.
const MARGIN: Duration = Duration::from_secs(60);

/// How long the API server may take to hear that another pod is wanted.
const REPLACE_WITHIN: Duration = Duration::from_secs(60);

/// Timeouts in seconds where the operator's are not known.
const DEFAULT_QUEUE: i64 = 3_300;
const DEFAULT_START: i64 = 600;
const DEFAULT_ORPHAN: i64 = 120;
const DEFAULT_READY: i64 = 30;

/// The pod that is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    name: String,
    uid: String,
}

/// Waits until stages can run.
pub async fn prepare(options: &Options, env: &RunnerEnv, log: &mut JobLog) -> Result<(), Failure> {
    let system = |error: &dyn std::error::Error| Failure::system(error.to_string());
    let tmpdir = env.tmpdir().map_err(|error| system(&error))?;
    let file = StateFile::in_dir(&tmpdir);
    let mut state = file.read().map_err(|error| system(&error))?;
    let cluster = Cluster::find(options).await.map_err(|error| system(&error))?;
    wait(&cluster, &file, &mut state, log).await
}

/// Waits until stages can run in the pod of that job, and notes which pod it is.
pub async fn wait<O: Output>(
    cluster: &Cluster,
    file: &StateFile,
    state: &mut State,
    log: &mut O,
) -> Result<(), Failure> {
    wait_saying(Lines::default(), cluster, file, state, log).await
}

/// Does the same for the pod that takes the place of the one that the job has lost, and asks for it.
pub async fn wait_for_another<O: Output>(
    cluster: &Cluster,
    file: &StateFile,
    state: &mut State,
    log: &mut O,
) -> Result<(), Failure> {
    // What the job is has been told before.
    wait_saying(Lines::after(state.class.clone()), cluster, file, state, log).await
}

async fn wait_saying<O: Output>(
    lines: Lines,
    cluster: &Cluster,
    file: &StateFile,
    state: &mut State,
    log: &mut O,
) -> Result<(), Failure> {
    let name = state.cijob.clone();
    let watch = Watch::start(cluster.cijobs(&state.namespace), name, state.cijob_uid.clone(), None);
    let mut start = Start {
        cluster,
        state,
        watch,
        lines,
        log,
        status: None,
        ready_by: None,
        trouble: None,
        queued: None,
        since: Instant::now(),
    };

    let mut target = None;
    loop {
        let found = match target.take() {
            Some(target) => target,
            None => start.on_a_node().await?,
        };
        let deadline = start.deadline();
        let exec = Exec::new(cluster.client.clone(), start.state.namespace.clone(), found.name.clone());
        match start.reach(&exec, &found, deadline).await? {
            Reached::Both(helper, build) => {
                start.finish(found, &helper, &build).await?;
                break;
            }
            Reached::OtherPod => {}
        }
        target = start.target();
    }
    file.write(start.state).map_err(|error| Failure::system(error.to_string()))
}

/// What reaching a pod came to.
enum Reached {
    /// Both agents have answered.
    Both(Box<Hello>, Box<Hello>),
    /// The job has got another pod meanwhile, or is about to.
    OtherPod,
}

struct Start<'a, O> {
    cluster: &'a Cluster,
    state: &'a mut State,
    watch: Watch,
    lines: Lines,
    log: &'a mut O,
    status: Option<CiJobStatus>,
    /// Until when services may become ready whose containers have begun.
    ready_by: Option<Instant>,
    /// Why it does not go on, for the case that it never does.
    trouble: Option<String>,
    /// Whether the job waits for room, if that is known.
    queued: Option<bool>,
    /// Since when it does or does not.
    since: Instant,
}

impl<O: Output> Start<'_, O> {
    /// By when something has to come of it. The time for the start begins when the job has room.
    fn deadline(&self) -> Instant {
        let timeouts = self.state.timeouts.as_ref();
        let seconds = if self.queued == Some(true) {
            timeouts.map_or(DEFAULT_QUEUE, |timeouts| timeouts.queue_seconds)
        } else {
            timeouts.map_or(DEFAULT_START, |timeouts| timeouts.start_seconds)
        };
        self.since + Duration::from_secs(u64::try_from(seconds).unwrap_or_default()) + MARGIN
    }

    /// The pod, as soon as it is known which one it is and it has a node.
    fn target(&self) -> Option<Target> {
        let status = self.status.as_ref().filter(|status| status.loss().is_none())?;
        let pod = status.pod.as_ref()?;
        pod.node.as_ref()?;
        Some(Target { name: pod.name.clone(), uid: pod.uid.clone()? })
    }

    async fn on_a_node(&mut self) -> Result<Target, Failure> {
        loop {
            if let Some(target) = self.target() {
                return Ok(target);
            }
            let seen = tokio::time::timeout_at(self.deadline(), self.watch.next()).await;
            let what = match self.queued {
                Some(true) => "there was no room for the job in time",
                Some(false) | None => "the job's pod got no node in time",
            };
            let seen = seen.map_err(|_| self.late(what))?;
            self.take(seen).await?;
        }
    }

    /// Takes what was seen of the CiJob; an error where the job cannot start any more.
    async fn take(&mut self, seen: Seen) -> Result<(), Failure> {
        match seen {
            Seen::Job(job) => self.take_job(*job).await,
            Seen::Gone => Err(Failure::system("the job's CiJob was deleted while its pod started")),
            Seen::Denied(reason) => Err(Failure::system(reason)),
            Seen::Blind(reason) => {
                self.trouble = Some(reason);
                Ok(())
            }
        }
    }

    async fn take_job(&mut self, job: CiJob) -> Result<(), Failure> {
        let Some(status) = job.status else { return Ok(()) };
        let name = format!("{}/{}", self.state.namespace, self.state.cijob);
        for line in self.lines.on(&name, &status, Timestamp::now()) {
            self.log.line(&line).await;
        }
        let queued = status.queue.is_some();
        let moved = self.queued.replace(queued).is_some_and(|before| before != queued);
        // Each pod has the whole time for its start.
        let pod = |status: &CiJobStatus| status.pod.as_ref().map(|pod| pod.name.clone());
        if moved || self.status.as_ref().is_some_and(|before| pod(before) != pod(&status)) {
            self.since = Instant::now();
        }
        if status.phase.is_some_and(Phase::is_final) {
            return Err(Failure::of_job(status.reason, status.message.as_deref()));
        }
        if let Some(lost) = status.loss()
            && job.spec.replace.as_ref() != Some(&lost.name)
        {
            self.replace(&lost.name.clone()).await?;
        }
        self.status = Some(status);
        Ok(())
    }

    /// Asks for a pod in the place of that one.
    async fn replace(&mut self, lost: &str) -> Result<(), Failure> {
        self.log
            .line(&format!("Pod {lost} is lost; nothing is missing in another one, which takes its place"))
            .await;
        // The time for the start begins anew.
        self.since = Instant::now();
        let api = self.cluster.cijobs(&self.state.namespace);
        let mut patch = json!({ "spec": { "replace": lost } });
        if let Some(uid) = &self.state.cijob_uid {
            // The API server refuses the patch for any other object of the name.
            patch["metadata"] = json!({ "uid": uid });
        }
        let (patch, params) = (Patch::Merge(patch), PatchParams::default());
        let sent =
            persistently(Instant::now() + REPLACE_WITHIN, || api.patch(&self.state.cijob, &params, &patch))
                .await;
        let what = format!("ask for another pod of the CiJob {}", self.state.cijob);
        sent.map(drop).map_err(|error| Failure::system(error.sentence(&what)))
    }

    /// Whether the pod is none of the job's any more.
    fn is_over(&self, target: &Target) -> bool {
        let lost = self.status.as_ref().is_some_and(|status| status.loss().is_some());
        lost || self.target().is_some_and(|now| now != *target)
    }

    fn is_running(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.phase == Some(Phase::Running))
    }

    /// Whether scripts need not wait for the job's services: they are ready, or have ended, or have had their time.
    /// Where they are not even begun, the start as a whole has its deadline.
    fn services_settled(&mut self) -> bool {
        let services = self.status.as_ref().map_or(&[][..], |status| &status.services);
        if services.iter().all(|service| matches!(service.state, ServiceState::Ready | ServiceState::Ended)) {
            return true;
        }
        if services.iter().any(|service| service.state == ServiceState::Waiting) {
            self.ready_by = None;
            return false;
        }
        let seconds = self.state.timeouts.as_ref().map_or(DEFAULT_READY, |timeouts| timeouts.ready_seconds);
        let patience = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        let now = Instant::now();
        now >= *self.ready_by.get_or_insert(now + patience)
    }

    fn late(&self, what: &str) -> Failure {
        let message = self.status.as_ref().and_then(|status| status.message.as_deref());
        Failure::system(match self.trouble.as_deref().or(message) {
            Some(reason) => format!("{what}: {reason}"),
            None => what.to_owned(),
        })
    }

    fn open(&self, target: &Target) -> Open {
        let timeouts = self.state.timeouts.as_ref();
        let orphan = timeouts.map_or(DEFAULT_ORPHAN, |timeouts| timeouts.orphan_seconds);
        let shell = self.state.shell.clone().unwrap_or_else(|| "bash".to_owned());
        Open {
            protocol: PROTOCOL,
            pod_uid: target.uid.clone(),
            boot_id: None,
            work: Work::Probe { shell },
            orphan_ms: u64::try_from(orphan).unwrap_or_default().saturating_mul(1000),
        }
    }

    /// Reaches both agents, and keeps the connection to the one while the other starts: a pod with
    /// a client is no orphan.
    async fn reach<C: Connector>(
        &mut self,
        connector: &C,
        target: &Target,
        deadline: Instant,
    ) -> Result<Reached, Failure> {
        let running = self.is_running();
        self.ready_by = None;
        let link = |container, from_node| {
            let occasion = if running { Occasion::Running } else { from_node };
            Link::new(connector, container, self.open(target), occasion)
        };
        // The kubelet starts them in this order.
        let mut helper = link(Container::Helper, Occasion::FirstOfNode);
        let mut build = link(Container::Build, Occasion::SecondOfNode);
        let (mut helper_hello, mut build_hello): (Option<Hello>, Option<Hello>) = (None, None);
        loop {
            if let (Some(helper), Some(build)) = (&helper_hello, &build_hello)
                && self.services_settled()
            {
                return Ok(Reached::Both(Box::new(helper.clone()), Box::new(build.clone())));
            }
            let deadline = self.ready_by.unwrap_or(deadline);
            let (container, event) = tokio::select! {
                biased;
                seen = self.watch.next() => {
                    self.take(seen).await?;
                    if self.is_over(target) {
                        return Ok(Reached::OtherPod);
                    }
                    let running = self.is_running();
                    helper.status_changed(running);
                    build.status_changed(running);
                    continue;
                }
                event = helper.next() => (Container::Helper, event),
                event = build.next() => (Container::Build, event),
                () = tokio::time::sleep_until(deadline) => {
                    if self.ready_by.is_some() {
                        continue;
                    }
                    let both = helper_hello.is_some() && build_hello.is_some();
                    if both {
                        return Err(self.late("the services of the job did not start in time"));
                    }
                    return Err(self.late("the job's pod did not become ready in time"));
                }
            };
            match event {
                LinkEvent::Up(hello) => {
                    let (slot, tries) = match container {
                        Container::Helper => (&mut helper_hello, helper.tries()),
                        Container::Build => (&mut build_hello, build.tries()),
                    };
                    *slot = Some(hello);
                    self.note(container, tries);
                }
                LinkEvent::Down(reason) => self.trouble = Some(reason),
                LinkEvent::Denied(reason) => return Err(Failure::system(reason)),
                LinkEvent::Refused(refusal) => return Err(refused(container, &refusal)),
            }
        }
    }

    /// Notes when a container's agent answered first.
    fn note(&mut self, container: Container, tries: u32) {
        let ms = self.state.milliseconds(Timestamp::now());
        tracing::info!(%container, ms, tries, "the agent has answered");
        let start = &mut self.state.start;
        let slot = match container {
            Container::Helper => &mut start.helper_ms,
            Container::Build => &mut start.build_ms,
        };
        slot.get_or_insert(ms);
    }

    async fn finish(&mut self, target: Target, helper: &Hello, build: &Hello) -> Result<(), Failure> {
        let (pod, uid) = (target.name, target.uid);
        let (helper_boot, build_boot) = (helper.boot_id.clone(), build.boot_id.clone());
        self.state.pod = Some(PodState { name: pod, uid, helper_boot, build_boot });
        let status = self.status.clone().unwrap_or_default();
        if status.timeouts.is_some() {
            self.state.timeouts.clone_from(&status.timeouts);
            self.state.resources.clone_from(&status.resources);
        }
        let total = self.state.milliseconds(Timestamp::now());
        self.log.line(&lines::ready(total, &status.start, &self.state.start)).await;
        self.state.services.clone_from(&status.services);
        for line in lines::services(&status.services) {
            self.log.line(&line).await;
        }
        let (helper, build) = (helper.tools.clone(), build.tools.clone());
        let tools = (helper.unwrap_or_default(), build.unwrap_or_default());
        for line in lines::tools(status.image.as_deref(), &tools.0, &tools.1)? {
            self.log.line(&line).await;
        }
        Ok(())
    }
}

fn refused(container: Container, refusal: &Refusal) -> Failure {
    Failure::system(format!("the agent in the container {container} refuses to serve: {}", refusal.message))
}
