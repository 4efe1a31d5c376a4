//! The supervisor: the first process of a cluster's namespaces. It sets up root, groups and network, then runs the
//! services and takes commands.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use super::control;
use super::plan::{Plan, file};
use super::root;
use super::service::Services;
use crate::exec::{capture, command};
use crate::lock::Lock;
use crate::progress::Progress;
use crate::wait;

/// `cargo e2e up` has this long to give the network namespace its link. A supervisor whose caller died before that
/// ends by itself.
const LINK_DEADLINE: Duration = Duration::from_secs(10);
/// The link's name in the cluster.
pub(super) const LINK: &str = "eth0";
/// How often services that wait for something are looked at.
const TICK: Duration = Duration::from_millis(20);

/// Runs until it is told to shut down, or killed. Either way the kernel ends everything else.
///
/// # Errors
/// When the cluster's surroundings cannot be set up.
pub fn run(plan_file: &Path) -> Result<()> {
    let progress = Progress::start();
    if std::process::id() != 1 {
        bail!("the supervisor must be the first process of its namespaces: `cargo e2e up` starts it");
    }
    let plan: Plan = super::read_json(plan_file)?;
    let Some(_alive) = Lock::attempt(&plan.dir.join(file::LOCK))? else {
        bail!("another supervisor runs in {}", plan.dir.display());
    };
    nix::unistd::sethostname(&plan.node_name).context("cannot set the host name")?;
    root::enter(&plan)?;
    plan.cgroups.enter_system()?;
    progress.say("supervisor: root and groups are set up");
    network(&plan)?;
    progress.say("supervisor: network is set up");

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the supervisor's runtime")?;
    LocalSet::new().block_on(&runtime, serve(progress, &plan))
}

async fn serve(progress: Progress, plan: &Plan) -> Result<()> {
    let mut children = signal(SignalKind::child()).context("cannot listen for ended children")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let logs = plan.dir.join("logs");
    let services = Rc::new(RefCell::new(Services::new(progress, &plan.services, &logs)));
    let mut shutdown = control::listen(&plan.dir.join("control.sock"), &services)?;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = children.recv() => services.borrow_mut().reap(),
            _ = tick.tick() => services.borrow_mut().advance(),
            _ = terminate.recv() => break,
            _ = shutdown.recv() => break,
        }
    }
    progress.say("supervisor: shutting down");
    Ok(())
}

fn network(plan: &Plan) -> Result<()> {
    let ip = |args: &[&str]| capture(&mut command("ip", args)).map(drop);
    ip(&["link", "set", "lo", "up"])?;
    wait::until("the link to the machine", LINK_DEADLINE, TICK, || {
        Ok(Path::new("/sys/class/net").join(LINK).exists().then_some(()))
    })?;
    ip(&["addr", "add", &format!("{}/{}", plan.node, plan.prefix), "dev", LINK])?;
    ip(&["link", "set", LINK, "up"])?;
    // Services' addresses have no route of their own, and a packet needs one before it is rewritten.
    ip(&["route", "add", "default", "via", &plan.host.to_string()])?;
    let forward = "/proc/sys/net/ipv4/ip_forward";
    fs::write(forward, "1").with_context(|| format!("cannot write {forward}"))
}
