//! The parts of the cluster die, stop or hang under a running job.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::api::{DeleteParams, ListParams};

use super::judge::{BEGIN, Load, longest_silence};
use super::{DEADLINE, EVERY_BYTE, Fault, Finding, Site};
use crate::cluster::{Action, Cluster, Component};

/// Label selector of the operator's pods.
pub const OPERATOR: &str = "app.kubernetes.io/component=operator";

/// The faults.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "operator-killed-at-start",
        what: "the operator is killed while the job's pod is being started",
        right: EVERY_BYTE,
        needs_host: false,
        alone: true,
        not_theirs: Some("it has no operator"),
        run: |site| Box::pin(operator_killed_at_start(site)),
    },
    Fault {
        name: "apiserver-killed",
        what: "the API server is killed and comes back at once",
        right: EVERY_BYTE,
        needs_host: true,
        alone: true,
        not_theirs: None,
        run: |site| Box::pin(disturbed(site, Component::Apiserver, Way::Killed)),
    },
    Fault {
        name: "apiserver-down-10s",
        what: "the API server is away for 10 s",
        right: EVERY_BYTE,
        needs_host: true,
        alone: true,
        not_theirs: None,
        run: |site| Box::pin(disturbed(site, Component::Apiserver, Way::Down(Duration::from_secs(10)))),
    },
    Fault {
        name: "apiserver-down-60s",
        what: "the API server is away for 60 s",
        right: EVERY_BYTE,
        needs_host: true,
        alone: true,
        not_theirs: None,
        run: |site| Box::pin(disturbed(site, Component::Apiserver, Way::Down(Duration::from_secs(60)))),
    },
    Fault {
        name: "apiserver-hangs-20s",
        what: "the API server answers nothing for 20 s, its connections stay open",
        right: EVERY_BYTE,
        needs_host: true,
        alone: true,
        not_theirs: None,
        run: |site| Box::pin(disturbed(site, Component::Apiserver, Way::Hung(Duration::from_secs(20)))),
    },
    Fault {
        name: "etcd-killed",
        what: "etcd is killed and comes back at once",
        right: EVERY_BYTE,
        needs_host: true,
        alone: true,
        not_theirs: None,
        run: |site| Box::pin(disturbed(site, Component::Etcd, Way::Killed)),
    },
    Fault {
        name: "kubelet-killed",
        what: "the kubelet is killed and comes back at once",
        right: EVERY_BYTE,
        needs_host: true,
        alone: true,
        not_theirs: None,
        run: |site| Box::pin(disturbed(site, Component::Kubelet, Way::Killed)),
    },
    Fault {
        name: "kubelet-down-20s",
        what: "the kubelet is away for 20 s",
        right: EVERY_BYTE,
        needs_host: true,
        alone: true,
        not_theirs: None,
        run: |site| Box::pin(disturbed(site, Component::Kubelet, Way::Down(Duration::from_secs(20)))),
    },
    Fault {
        name: "runtime-killed",
        what: "the container runtime is killed and comes back at once",
        right: EVERY_BYTE,
        needs_host: true,
        alone: true,
        not_theirs: None,
        run: |site| Box::pin(disturbed(site, Component::Containerd, Way::Killed)),
    },
];

/// A line of 10 numbers every 0.2 s. Its length is that of the fault and what it takes to come back.
const STEADY: Load = Load { chunks: 0, numbers: 10, pause: 2 };

/// What happens to a component.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// SIGKILL; the supervisor starts it again at once.
    Killed,
    /// It is away for so long.
    Down(Duration),
    /// It is stopped by SIGSTOP for so long.
    Hung(Duration),
}

impl Way {
    fn length(self) -> Duration {
        match self {
            Self::Killed => Duration::ZERO,
            Self::Down(length) | Self::Hung(length) => length,
        }
    }
}

/// Brings the component back, whatever happens to the one who took it away.
pub(super) struct Back<'a>(&'a Cluster, Component);

impl<'a> Back<'a> {
    pub(super) fn of(cluster: &'a Cluster, component: Component) -> Self {
        Self(cluster, component)
    }
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        for action in [Action::Start, Action::Resume] {
            // What runs need not be started: the supervisor says so.
            let _ = self.0.control(action, self.1);
        }
    }
}

async fn disturbed(site: &Site<'_>, component: Component, way: Way) -> Result<Finding> {
    let cluster = &site.bench.cluster;
    // The script lasts longer than the fault, so that it has to be resumed and not only collected.
    let chunks = u32::try_from((way.length().as_secs() + 8) * 4).context("a fault too long")?;
    let load = Load { chunks, ..STEADY };
    let spec = load.script(site.job()?);
    let job = site.start(&spec).await?;
    job.wait_log(&format!("{BEGIN}\n"), DEADLINE).await?;
    {
        let back = Back::of(cluster, component);
        match way {
            Way::Killed => cluster.control(Action::Kill, component)?,
            Way::Down(length) => {
                cluster.control(Action::Stop, component)?;
                tokio::time::sleep(length).await;
            }
            Way::Hung(length) => {
                cluster.control(Action::Pause, component)?;
                tokio::time::sleep(length).await;
            }
        }
        drop(back);
    }
    let recovery = longest_silence(&job).await?;
    Ok(load.judge(spec.id, &job.finish(DEADLINE).await?, Some(recovery)))
}

async fn operator_killed_at_start(site: &Site<'_>) -> Result<Finding> {
    let load = Load { chunks: 5, ..STEADY };
    let spec = load.script(site.job()?);
    let job = site.start(&spec).await?;
    job.wait_stage("config", DEADLINE).await?;
    let now = DeleteParams::default().grace_period(0);
    let operator = ListParams::default().labels(OPERATOR);
    site.bench.system_pods().delete_collection(&now, &operator).await.context("cannot kill the operator")?;
    let recovery = longest_silence(&job).await?;
    Ok(load.judge(spec.id, &job.finish(DEADLINE).await?, Some(recovery)))
}
