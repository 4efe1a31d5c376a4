//! The host provider: Kubernetes' own programs as processes of this machine.
//!
//! One cluster is one set of Linux namespaces. The supervisor is their first process, so its death, by whatever
//! cause, takes every process, container, mount, interface and packet filter rule of the cluster with it. What is
//! left to clean up are control groups and files.

mod cgroup;
mod components;
mod config;
mod control;
mod launch;
mod node;
mod pki;
mod plan;
mod root;
mod service;
mod slot;
mod supervise;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;

pub use launch::run as launch;
pub use supervise::run as supervise;

use self::cgroup::Cgroups;
use self::components::{ETCD_PORT, Files};
use self::launch::Process;
use self::plan::{Plan, file};
use self::slot::{PREFIX, Slot};
use crate::cluster::{Cluster, Component, Etcd, HostParts, request};
use crate::exec::{capture, command, quote};
use crate::hash::Key;
use crate::images::{Archive, Builder};
use crate::lock::Lock;
use crate::packages;
use crate::progress::Progress;
use crate::provider::{Provider, Supply};
use crate::release::Release;
use crate::state::{ClusterDir, State, replace, workspace};
use crate::tools::Tools;
use crate::wait;

/// The node's name.
const NODE_NAME: &str = "roadstead-e2e";
/// Changes when the supervisor's own work changes, so that clusters of an older one are replaced.
const SUPERVISOR_VERSION: u32 = 2;
/// What the set-up in the namespaces may take on a busy machine.
const LAUNCH_DEADLINE: Duration = Duration::from_secs(20);
/// The kernel ends processes and interfaces of a namespace in the background.
const DEATH_DEADLINE: Duration = Duration::from_secs(60);
/// Polling of things that take milliseconds.
const SHORT: Duration = Duration::from_millis(20);
/// What outlives a cluster in its folder, so that the next start is quick (images) and explainable (logs).
const KEPT: [&str; 6] = ["up.lock", "slot", "clone", "logs", "images.json", "root"];
/// The same inside `root`.
const KEPT_IN_ROOT: &str = "var/lib/containerd";
/// The digest of what the running cluster was started with.
const SPEC: &str = "spec";

/// The host provider's cluster of one clone.
#[derive(Clone, Debug)]
pub struct Host {
    state: State,
    dir: ClusterDir,
}

impl Host {
    /// The cluster in that folder.
    #[must_use]
    pub fn new(state: State, dir: ClusterDir) -> Self {
        Self { state, dir }
    }

    fn alive(&self) -> Result<bool> {
        if !self.dir.dir().exists() {
            return Ok(false);
        }
        Ok(Lock::attempt(&self.dir.file(file::LOCK))?.is_none())
    }

    /// What the cluster is made of, apart from its keys.
    fn plan(&self, tools: &Tools, slot: Slot) -> Result<(Plan, Vec<(PathBuf, String)>)> {
        let files = Files::of(&self.dir);
        let plan = Plan {
            dir: self.dir.dir().to_owned(),
            state: self.state.root().to_owned(),
            node_name: NODE_NAME.to_owned(),
            host: slot.host(),
            node: slot.node(),
            prefix: PREFIX,
            cgroups: Cgroups::of_machine(format!("roadstead-e2e-{}", self.unique()))?,
            services: components::services(tools, &files, slot.node(), NODE_NAME)?,
        };
        let resolv_conf = files.conf("resolv.conf");
        let json = |value: serde_json::Value| format!("{value:#}\n");
        let kubelet = config::kubelet(slot, &files.pki, &files.containerd_socket, &resolv_conf);
        let proxy = config::proxy(&files.kubeconfig("proxy"), NODE_NAME);
        let written = vec![
            (files.conf("containerd.toml"), config::containerd(&files.containerd_socket, &files.conf("cni"))),
            (files.conf("cni/10-roadstead.conflist"), json(config::cni())),
            (files.conf("kubelet.json"), json(kubelet)),
            (files.conf("proxy.json"), json(proxy)),
            (files.conf("audit-policy.json"), json(config::audit_policy())),
            (resolv_conf, format!("nameserver {}\n", slot.host())),
        ];
        Ok((plan, written))
    }

    /// Tells clusters of different state folders apart where the machine has one name space for all.
    fn unique(&self) -> String {
        let mut key = Key::new().part("cluster", self.dir.dir().as_os_str().as_encoded_bytes()).finish();
        key.truncate(8);
        key
    }

    fn describe(&self, tools: &Tools, slot: Slot) -> Cluster {
        let files = Files::of(&self.dir);
        // What an earlier `up` has put into this same cluster.
        let (images, shim) =
            Cluster::load(&self.dir.description()).map(|old| (old.images, old.shim)).unwrap_or_default();
        Cluster {
            provider: "host".to_owned(),
            kubeconfig: files.kubeconfig("admin"),
            node: NODE_NAME.to_owned(),
            host_address: slot.host(),
            bins: tools.bins().to_vec(),
            images,
            release: Release::default(),
            shim,
            host: Some(HostParts {
                control: self.dir.control_socket(),
                containerd: self.dir.containerd_socket(),
                etcd: Etcd {
                    endpoint: format!("https://{}:{ETCD_PORT}", slot.node()),
                    ca: pki::certificate(&files.pki, "etcd-ca"),
                    certificate: pki::certificate(&files.pki, "etcd-client"),
                    key: pki::key(&files.pki, "etcd-client"),
                    data: self.dir.root().join("var/lib/etcd"),
                },
                audit_log: files.audit_log,
                logs: self.dir.file("logs"),
                node_root: self.dir.root(),
                node_address: slot.node(),
            }),
        }
    }

    /// The running cluster, if it is what `tools` and this program would start.
    fn running(&self, progress: &Progress, tools: &Tools) -> Result<Option<Cluster>> {
        if !self.alive()? {
            return Ok(None);
        }
        let Some(slot) = Slot::recorded(&self.dir) else { return Ok(None) };
        let (plan, written) = self.plan(tools, slot)?;
        if fs::read_to_string(self.dir.file(SPEC)).ok().as_deref() != Some(&spec(&plan, &written)?) {
            progress.say("cluster: its settings have changed, it is started anew");
            return Ok(None);
        }
        // A test may have left something stopped or paused.
        for component in Component::ALL {
            for action in ["start", "resume"] {
                if let Err(error) = request(&self.dir.control_socket(), &format!("{action} {component}")) {
                    progress.say(format_args!(
                        "cluster: {component} cannot be revived ({error:#}), starting anew"
                    ));
                    return Ok(None);
                }
            }
        }
        Ok(Some(self.describe(tools, slot)))
    }

    /// Ends the supervisor and with it all of the cluster, then clears what the kernel keeps.
    fn kill(&self) -> Result<()> {
        let recorded: Option<Process> = read_json(&self.dir.file(file::PROCESS)).ok();
        let process = recorded.filter(|process| process.lives());
        if let Some(process) = process {
            let pid = i32::try_from(process.pid).context("a process number out of range")?;
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                .context("cannot end the supervisor")?;
        }
        // Without a recorded process it was never given a network, and ends by itself.
        wait::until("end of the supervisor", DEATH_DEADLINE, SHORT, || {
            let gone = !self.alive()? && !process.is_some_and(Process::lives);
            Ok(gone.then_some(()))
        })?;
        if let Some(slot) = Slot::recorded(&self.dir) {
            wait::until("end of the cluster's network", DEATH_DEADLINE, SHORT, || {
                slot::remove_link(slot).map(Some)
            })?;
        }
        Cgroups::of_machine(format!("roadstead-e2e-{}", self.unique()))?.remove()
    }

    /// The cluster's mounts are its namespace's own. Should one show up here all the same, nothing may be removed:
    /// behind it could be the machine's own files.
    fn refuse_mounts(&self) -> Result<()> {
        let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
        match mounts_below(&text, self.dir.dir()) {
            Some(mount) => bail!("{mount} is a mount point: unmount it first, nothing below it is removed"),
            None => Ok(()),
        }
    }

    /// Removes what an earlier run left in the folder, but for what is worth keeping.
    fn clear(&self) -> Result<()> {
        self.refuse_mounts()?;
        remove_except(self.dir.dir(), &KEPT)?;
        let kept = self.dir.root().join(KEPT_IN_ROOT);
        let (above, name) = ("var/lib", "containerd");
        if !kept.exists() {
            return remove(&self.dir.root());
        }
        remove_except(&self.dir.root(), &["var"])?;
        remove_except(&self.dir.root().join("var"), &["lib"])?;
        remove_except(&self.dir.root().join(above), &[name])
    }

    fn launch(&self, progress: &Progress, plan: &Plan) -> Result<()> {
        let supervisor = self.dir.file("supervisor");
        let own = std::env::current_exe().context("cannot find this program")?;
        // A copy: a rebuild replaces the original while the cluster runs.
        fs::copy(&own, &supervisor).with_context(|| format!("cannot copy {}", own.display()))?;
        capture(command(&supervisor, ["launch"]).arg(self.dir.file(file::PLAN)))?;
        let process: Process = read_json(&self.dir.file(file::PROCESS))?;
        let slot = Slot::recorded(&self.dir).context("the cluster has no network")?;
        let log = self.dir.log("supervisor");
        let linked = link(slot, process.pid, plan);
        let answers = linked.and_then(|()| {
            wait::until("the supervisor's control socket", LAUNCH_DEADLINE, SHORT, || {
                if !process.lives() {
                    return Ok(Some(false));
                }
                request(&self.dir.control_socket(), "status").map(|_| Some(true))
            })
        });
        match answers {
            Ok(true) => {
                progress.say(format_args!("cluster: supervisor runs as process {}", process.pid));
                Ok(())
            }
            Ok(false) => bail!("the supervisor has ended; {}", quote(&log)),
            Err(error) => Err(error.context(format!("the supervisor did not start; {}", quote(&log)))),
        }
    }
}

/// A link between this machine and the namespace of a process. One command makes both ends, so there is never one
/// without the other, and the end of the namespace is the end of both.
fn link(slot: Slot, pid: u32, plan: &Plan) -> Result<()> {
    let name = slot.link();
    let pid = pid.to_string();
    let ip = |args: &[&str]| capture(&mut command("ip", args)).map(drop);
    ip(&["link", "add", &name, "type", "veth", "peer", "name", supervise::LINK, "netns", &pid])?;
    ip(&["addr", "add", &format!("{}/{}", plan.host, plan.prefix), "dev", &name])?;
    ip(&["link", "set", &name, "up"])
}

impl Provider for Host {
    fn prepare(&self, progress: &Progress) -> Result<()> {
        if !nix::unistd::Uid::effective().is_root() {
            bail!("the host provider makes namespaces, mounts and control groups: it needs root");
        }
        packages::ensure(progress, &self.state.cache("logs")?)
    }

    fn tools(&self, progress: &Progress) -> Result<Tools> {
        Tools::ensure(progress, &self.state, &workspace())
    }

    fn start(&self, progress: &Progress, tools: &Tools) -> Result<Cluster> {
        if let Some(cluster) = self.running(progress, tools)? {
            progress.say("cluster: runs already");
            return Ok(cluster);
        }
        self.kill()?;
        self.clear()?;
        let slot = Slot::obtain(progress, &self.state, &self.dir)?;
        let (plan, written) = self.plan(tools, slot)?;
        let files = Files::of(&self.dir);
        make_dir(&self.dir.file("logs"))?;
        remove_except(&self.dir.file("logs"), &[])?;
        pki::write(&files.pki, slot.node(), NODE_NAME)?;
        for client in ["admin", "controller-manager", "scheduler", "proxy", "kubelet"] {
            let config = config::kubeconfig(slot.node(), &pki::credentials(&files.pki, client)?);
            write(&files.kubeconfig(client), &format!("{config:#}\n"))?;
        }
        for (path, text) in &written {
            write(path, text)?;
        }
        let text = serde_json::to_string_pretty(&plan).context("cannot write the plan")?;
        write(&self.dir.file(file::PLAN), &text)?;
        write(&self.dir.log("supervisor"), "")?;
        self.launch(progress, &plan)?;
        replace(&self.dir.file(SPEC), spec(&plan, &written)?)?;
        Ok(self.describe(tools, slot))
    }

    fn wait_ready(&self, progress: &Progress, cluster: &Cluster) -> Result<()> {
        node::wait_ready(progress, &self.dir, cluster)
    }

    fn supply(&self) -> Supply {
        Supply::Built(Builder::Buildah)
    }

    fn load_images(&self, progress: &Progress, cluster: &Cluster, images: &[Archive]) -> Result<()> {
        node::load_images(progress, &self.dir, cluster, images)
    }

    fn remove_old_images(&self, cluster: &Cluster, images: &[Archive]) -> Result<()> {
        node::remove_old_versions(cluster, images)
    }

    fn stop(&self, progress: &Progress, purge: bool) -> Result<()> {
        let ran = self.alive()?;
        self.kill()?;
        if purge {
            self.refuse_mounts()?;
            remove(self.dir.dir())?;
        } else if self.dir.dir().exists() {
            self.clear()?;
        }
        let what = if ran { "stopped" } else { "did not run" };
        progress.say(format_args!("cluster {}: {what}", self.dir.id()));
        Ok(())
    }
}

/// A mount point inside a folder.
fn mounts_below<'a>(mountinfo: &'a str, dir: &Path) -> Option<&'a str> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .find(|mount| Path::new(mount).starts_with(dir) && Path::new(mount) != dir)
}

fn spec(plan: &Plan, written: &[(PathBuf, String)]) -> Result<String> {
    let text = serde_json::to_string(plan).context("cannot write the plan")?;
    let mut key = Key::new().part("supervisor", SUPERVISOR_VERSION.to_string()).part("plan", text);
    for (path, text) in written {
        key = key.part(&path.to_string_lossy(), text);
    }
    Ok(key.finish())
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("cannot understand {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        make_dir(dir)?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

fn remove_except(dir: &Path, kept: &[&str]) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        if !kept.iter().any(|name| entry.file_name() == *name) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(root: &Path) -> Host {
        let state = State::at(root.to_owned());
        let dir = state.cluster(Path::new("/clone"), crate::provider::Name::Host).unwrap();
        Host::new(state, dir)
    }

    #[test]
    fn clearing_keeps_images_and_logs_only() {
        let temporary = tempfile::tempdir().unwrap();
        let host = host(temporary.path());
        for file in
            ["logs/x.log", "pki/ca.crt", "root/var/lib/containerd/a", "root/var/lib/etcd/b", "root/tmp/c"]
        {
            write(&host.dir.file(file), "x").unwrap();
        }
        host.clear().unwrap();
        for (file, kept) in [
            ("logs/x.log", true),
            ("root/var/lib/containerd/a", true),
            ("pki", false),
            ("root/var/lib/etcd", false),
            ("root/tmp", false),
        ] {
            assert_eq!(host.dir.file(file).exists(), kept, "{file}");
        }
    }

    #[test]
    fn a_mount_in_the_folder_is_found() {
        let text = "1 0 8:1 / / rw - ext4 x rw\n2 1 8:1 /usr /s/clusters/a/root/usr ro - ext4 x rw\n";
        assert_eq!(mounts_below(text, Path::new("/s/clusters/a")), Some("/s/clusters/a/root/usr"));
        assert_eq!(mounts_below(text, Path::new("/s/clusters/ab")), None);
    }

    #[test]
    fn a_cluster_that_never_ran_is_not_alive_and_leaves_no_folder() {
        let temporary = tempfile::tempdir().unwrap();
        let host = host(temporary.path());
        assert!(!host.alive().unwrap());
        assert!(!host.dir.dir().exists());
    }

    #[test]
    fn clusters_of_other_state_folders_have_other_groups() {
        assert_ne!(host(Path::new("/a")).unique(), host(Path::new("/b")).unique());
    }
}
