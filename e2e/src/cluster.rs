//! A running test cluster, as tests see it.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::exec::command;
use crate::provider::Name;
use crate::release::Release;
use crate::state::{State, workspace};

/// Names the cluster's description file; set by `cargo e2e env` and `cargo e2e test`.
pub const CLUSTER_ENV: &str = "ROADSTEAD_E2E_CLUSTER";
/// The address at which pods reach this machine; set by `cargo e2e env` and `cargo e2e test`.
pub const HOST_ADDRESS_ENV: &str = "ROADSTEAD_E2E_HOST_ADDRESS";

/// Stopping etcd or containerd in good order takes seconds at worst.
const CONTROL_DEADLINE: Duration = Duration::from_secs(30);

/// A program that the cluster consists of. They can be killed, stopped and started one by one.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub enum Component {
    /// The store behind the API server.
    Etcd,
    /// kube-apiserver.
    Apiserver,
    /// kube-controller-manager.
    ControllerManager,
    /// kube-scheduler.
    Scheduler,
    /// The container runtime. Containers survive its death.
    Containerd,
    /// The node's kubelet. Containers survive its death.
    Kubelet,
    /// kube-proxy: ClusterIP services.
    KubeProxy,
}

impl Component {
    /// All of them, in the order of their start.
    pub const ALL: [Self; 7] = [
        Self::Etcd,
        Self::Containerd,
        Self::Apiserver,
        Self::ControllerManager,
        Self::Scheduler,
        Self::KubeProxy,
        Self::Kubelet,
    ];

    /// The program's name, as in the supervisor's commands and in the names of the logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Apiserver => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What can be done to a component.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// SIGKILL. The supervisor starts it again at once. Returns when the old process is gone.
    Kill,
    /// SIGTERM, after 10 s SIGKILL. It stays down until [`Action::Start`]. Returns when it is gone.
    Stop,
    /// Starts a stopped one. Returns when the process runs, which is before it answers requests.
    Start,
    /// SIGSTOP: connections stay open and nothing answers.
    Pause,
    /// SIGCONT.
    Resume,
}

impl Action {
    /// The word in the supervisor's commands.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }
}

/// Where etcd is and how to be let in. Its JSON gateway (`POST /v3/kv/range`) answers there too.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Etcd {
    /// For example `https://10.213.7.2:2379`.
    pub endpoint: String,
    /// The authority's certificate, PEM.
    pub ca: PathBuf,
    /// A client certificate, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The data folder. What is or was in the store is in `member/snap/db` and `member/wal`, uncompressed.
    pub data: PathBuf,
}

/// What only a cluster on this machine (the host provider's) has.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct HostParts {
    /// The supervisor's control socket.
    pub control: PathBuf,
    /// containerd's socket, for `ctr --address … --namespace k8s.io`.
    pub containerd: PathBuf,
    /// etcd.
    pub etcd: Etcd,
    /// The API server's audit log: one JSON event a line, level Metadata.
    pub audit_log: PathBuf,
    /// The components' logs, `NAME.log`.
    pub logs: PathBuf,
    /// The root folder of the node: `hostPath` volumes are below it.
    pub node_root: PathBuf,
    /// The node's address; the API server listens there on port 6443.
    pub node_address: Ipv4Addr,
}

/// A running cluster.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Cluster {
    /// The provider's name: `host`, `kind`, `existing`.
    pub provider: String,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The node's name; empty where that is not the tests' business.
    pub node: String,
    /// The address at which pods reach this machine.
    pub host_address: Ipv4Addr,
    /// Folders with kubectl, helm and the rest, for PATH.
    pub bins: Vec<PathBuf>,
    /// Images in the cluster, by short name (`busybox`, `debian-git`, `agent` …), as a pod names them.
    pub images: BTreeMap<String, String>,
    /// The installed product's names.
    #[serde(default)]
    pub release: Release,
    /// The executor-shim that belongs to the installed product, as gitlab-runner on this machine calls it.
    pub shim: Option<PathBuf>,
    /// What only the host provider's clusters have.
    pub host: Option<HostParts>,
}

impl Cluster {
    /// The cluster that `ROADSTEAD_E2E_CLUSTER` names, or else the one of this clone.
    ///
    /// # Errors
    /// When there is none, or it does not run.
    pub fn find() -> Result<Self> {
        let path = match env::var_os(CLUSTER_ENV) {
            Some(path) => PathBuf::from(path),
            None => State::open()?.cluster(&workspace(), Name::Host)?.description(),
        };
        let cluster = Self::load(&path).context("no test cluster: run `cargo e2e up`")?;
        if let Some(host) = &cluster.host {
            request(&host.control, "status").context("the test cluster does not run: run `cargo e2e up`")?;
        }
        Ok(cluster)
    }

    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("cannot understand {}", path.display()))
    }

    pub(crate) fn store(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).context("cannot describe the cluster")?;
        crate::state::replace(path, &text)
    }

    /// An image's full name, as a pod names it.
    ///
    /// # Errors
    /// When the cluster has no image of that short name.
    pub fn image(&self, name: &str) -> Result<&str> {
        match self.images.get(name) {
            Some(image) => Ok(image),
            None => bail!("the cluster has no image {name}; it has {:?}", self.images.keys()),
        }
    }

    /// A command with the cluster's KUBECONFIG and PATH.
    pub fn command(&self, program: &str) -> Command {
        let path = self
            .bins
            .iter()
            .map(|bin| bin.join(program))
            .find(|path| path.exists())
            .unwrap_or_else(|| PathBuf::from(program));
        let mut command = Command::new(path);
        command.env("KUBECONFIG", &self.kubeconfig);
        // kubectl and helm write their caches into the home folder otherwise.
        command.envs(self.caches());
        command
    }

    fn caches(&self) -> [(&'static str, String); 4] {
        let dir = self.kubeconfig.with_file_name("caches");
        [
            ("KUBECACHEDIR", "kube"),
            ("HELM_CACHE_HOME", "helm-cache"),
            ("HELM_CONFIG_HOME", "helm-config"),
            ("HELM_DATA_HOME", "helm-data"),
        ]
        .map(|(name, folder)| (name, dir.join(folder).display().to_string()))
    }

    /// `kubectl ARGS…` with the cluster's kubeconfig.
    pub fn kubectl<const N: usize>(&self, args: [&str; N]) -> Command {
        let mut kubectl = self.command("kubectl");
        kubectl.args(args);
        kubectl
    }

    /// `ctr ARGS…` in the namespace of Kubernetes' containers and images.
    ///
    /// # Errors
    /// When the cluster is not the host provider's.
    pub fn ctr<const N: usize>(&self, args: [&str; N]) -> Result<Command> {
        let mut ctr = command("ctr", ["--namespace", "k8s.io", "--address"]);
        ctr.arg(&self.host_parts()?.containerd).args(args);
        Ok(ctr)
    }

    /// What only the host provider's clusters have.
    ///
    /// # Errors
    /// When the cluster is another provider's.
    pub fn host_parts(&self) -> Result<&HostParts> {
        self.host.as_ref().with_context(|| {
            format!("a cluster of the provider {} gives no access to its parts", self.provider)
        })
    }

    /// Does something to a component.
    ///
    /// # Errors
    /// When the cluster is not the host provider's, or the supervisor refuses.
    pub fn control(&self, action: Action, component: Component) -> Result<()> {
        let line = format!("{} {component}", action.word());
        request(&self.host_parts()?.control, &line).map(drop).with_context(|| format!("cannot {line}"))
    }

    /// The supervisor's answer to `status`: one line per component, `NAME STATE PID STARTS`.
    ///
    /// # Errors
    /// When the cluster is not the host provider's, or it does not run.
    pub fn status(&self) -> Result<String> {
        request(&self.host_parts()?.control, "status")
    }

    /// The environment for programs that use the cluster: name and value.
    #[must_use]
    pub fn environment(&self, description: &Path) -> Vec<(&'static str, String)> {
        let mut path: Vec<String> = self.bins.iter().map(|bin| bin.display().to_string()).collect();
        path.push(env::var("PATH").unwrap_or_default());
        let mut environment = vec![
            ("KUBECONFIG", self.kubeconfig.display().to_string()),
            ("PATH", path.join(":")),
            (CLUSTER_ENV, description.display().to_string()),
            (HOST_ADDRESS_ENV, self.host_address.to_string()),
        ];
        environment.extend(self.caches());
        if let Some(host) = &self.host {
            environment.push(("CONTAINERD_ADDRESS", host.containerd.display().to_string()));
            environment.push(("CONTAINERD_NAMESPACE", "k8s.io".to_owned()));
        }
        environment
    }
}

/// Says one line to a supervisor and returns its answer. The last line of the answer is `ok` or `error: …`.
pub(crate) fn request(socket: &Path, line: &str) -> Result<String> {
    let context = || format!("the supervisor at {} does not answer", socket.display());
    let mut stream = UnixStream::connect(socket).with_context(context)?;
    stream.set_read_timeout(Some(CONTROL_DEADLINE)).with_context(context)?;
    stream.write_all(format!("{line}\n").as_bytes()).with_context(context)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(context)?;
    let answer = answer.trim_end();
    match answer.rsplit_once('\n').unwrap_or(("", answer)) {
        (text, "ok") => Ok(text.to_owned()),
        (_, last) => {
            bail!("{}", last.strip_prefix("error: ").unwrap_or("the supervisor's answer was cut off"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn answer(text: &'static str) -> Result<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = [0; 7];
            stream.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"status\n");
            stream.write_all(text.as_bytes()).unwrap();
        });
        let result = request(&path, "status");
        server.join().unwrap();
        result
    }

    #[test]
    fn an_answer_ends_with_ok_or_says_why_not() {
        assert_eq!(answer("ok\n").unwrap(), "");
        assert_eq!(answer("etcd running 3 1\nok\n").unwrap(), "etcd running 3 1");
        assert_eq!(answer("error: no such component\n").unwrap_err().to_string(), "no such component");
        assert!(answer("etcd runn").unwrap_err().to_string().contains("cut off"));
    }

    #[test]
    fn a_cluster_elsewhere_has_no_components() {
        let cluster = Cluster {
            provider: "existing".into(),
            kubeconfig: "/k".into(),
            node: "n".into(),
            host_address: Ipv4Addr::LOCALHOST,
            bins: vec![],
            images: BTreeMap::new(),
            release: Release::default(),
            shim: None,
            host: None,
        };
        let error = cluster.control(Action::Kill, Component::Kubelet).unwrap_err();
        assert!(error.to_string().contains("existing"), "{error}");
        assert!(cluster.image("busybox").unwrap_err().to_string().contains("busybox"));
    }
}
