//! The provider for a machine with Docker: a cluster that kind makes in a container.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{Provider, Supply, Target};
use crate::cluster::Cluster;
use crate::exec::{self, capture, command};
use crate::images::{Archive, Builder};
use crate::progress::Progress;
use crate::release::Release;
use crate::state::{ClusterDir, replace};
use crate::tools::Tools;
use crate::wait;

/// The network that kind puts its nodes into.
const NETWORK: &str = "kind";
/// From the end of `kind create` to an account in the namespace default.
const DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(500);

/// A kind cluster of one clone.
#[derive(Debug)]
pub struct Kind {
    dir: ClusterDir,
    target: Target,
    /// A folder to look for programs in before PATH.
    programs: Option<PathBuf>,
}

impl Kind {
    /// The cluster in that folder.
    #[must_use]
    pub fn new(dir: ClusterDir, target: Target) -> Self {
        Self { dir, target, programs: None }
    }

    fn name(&self) -> String {
        format!("roadstead-e2e-{}", self.dir.id())
    }

    /// The one node's name, and its container's.
    fn node(&self) -> String {
        format!("{}-control-plane", self.name())
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.file("admin.kubeconfig")
    }

    fn run<const N: usize>(&self, program: &str, args: [&str; N]) -> Command {
        let own = self.programs.as_ref().map(|dir| dir.join(program)).filter(|path| path.exists());
        command(own.unwrap_or_else(|| PathBuf::from(program)), args)
    }

    fn exists(&self) -> Result<bool> {
        let listed = capture(&mut self.run("kind", ["get", "clusters", "--quiet"]))?;
        Ok(listed.lines().any(|name| name == self.name()))
    }

    fn create(&self, progress: &Progress) -> Result<()> {
        fs::create_dir_all(self.dir.file("logs")).context("cannot make the cluster's folder")?;
        // JSON is YAML.
        let config = json!({
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "nodes": [{"role": "control-plane"}],
        });
        let file = self.dir.file("kind.json");
        replace(&file, format!("{config:#}\n"))?;
        // What a cluster of that name had is gone with it.
        forget(&self.dir.file("images.json"))?;
        forget(&self.dir.file("installed"))?;
        let mut create = self.run("kind", ["create", "cluster", "--name", &self.name(), "--wait", "180s"]);
        create.arg("--config").arg(&file).arg("--kubeconfig").arg(self.kubeconfig());
        exec::logged(progress, "cluster: kind create", &mut create, &self.dir.log("kind"))
    }

    /// Where pods reach this machine: the machine's end of the nodes' network.
    fn address(&self) -> Result<Ipv4Addr> {
        if let Some(address) = self.target.address {
            return Ok(address);
        }
        let format = "{{range .IPAM.Config}}{{println .Gateway}}{{end}}";
        let gateways = capture(&mut self.run("docker", ["network", "inspect", NETWORK, "--format", format]))?;
        gateway(&gateways).with_context(|| {
            format!(
                "Docker's network {NETWORK} has no IPv4 gateway: name this machine's address with --address"
            )
        })
    }
}

/// The first IPv4 address among the lines; the other family's stands beside it.
fn gateway(lines: &str) -> Option<Ipv4Addr> {
    lines.lines().find_map(|line| line.trim().parse().ok())
}

fn forget(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}

impl Provider for Kind {
    fn prepare(&self, _: &Progress) -> Result<()> {
        for (program, args) in [
            ("kind", ["version", "--quiet"]),
            ("kubectl", ["version", "--client"]),
            ("helm", ["version", "--short"]),
        ] {
            capture(&mut self.run(program, args))
                .with_context(|| format!("the provider `kind` needs {program} in PATH"))?;
        }
        let server = capture(&mut self.run("docker", ["version", "--format", "{{.Server.Version}}"]));
        server.map(drop).context("the provider `kind` needs Docker, and its daemon does not answer")
    }

    fn tools(&self, _: &Progress) -> Result<Tools> {
        Ok(Tools::of_path())
    }

    fn start(&self, progress: &Progress, _: &Tools) -> Result<Cluster> {
        if self.exists()? {
            progress.say(format_args!("cluster: kind has {} already", self.name()));
            // The user's own one may have been pointed elsewhere, or the folder may have been lost.
            let text = capture(&mut self.run("kind", ["get", "kubeconfig", "--name", &self.name()]))?;
            fs::create_dir_all(self.dir.file("logs")).context("cannot make the cluster's folder")?;
            replace(&self.kubeconfig(), text)?;
        } else {
            self.create(progress)?;
        }
        let shim = Cluster::load(&self.dir.description()).ok().and_then(|old| old.shim);
        Ok(Cluster {
            provider: "kind".to_owned(),
            kubeconfig: self.kubeconfig(),
            node: self.node(),
            host_address: self.address()?,
            bins: self.programs.clone().into_iter().collect(),
            images: BTreeMap::new(),
            release: Release::default(),
            shim,
            host: None,
        })
    }

    fn wait_ready(&self, _: &Progress, cluster: &Cluster) -> Result<()> {
        // Without its account, a namespace refuses pods.
        wait::until("service account of the namespace default", DEADLINE, POLL, || {
            capture(&mut cluster.kubectl(["get", "serviceaccount", "default", "-o", "name"])).map(Some)
        })
        .map(drop)
    }

    fn supply(&self) -> Supply {
        Supply::Built(Builder::Docker)
    }

    fn load_images(&self, progress: &Progress, _: &Cluster, images: &[Archive]) -> Result<()> {
        let record = self.dir.file("images.json");
        let mut loaded: BTreeMap<String, String> =
            fs::read(&record).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        for image in images {
            if loaded.get(&image.reference) == Some(&image.key) {
                continue;
            }
            let mut load = self.run("kind", ["load", "image-archive", "--name", &self.name()]);
            capture(load.arg(&image.path))
                .with_context(|| format!("cannot load the image {}", image.reference))?;
            loaded.insert(image.reference.clone(), image.key.clone());
            replace(&record, serde_json::to_vec_pretty(&loaded).context("cannot record the images")?)?;
            progress.say(format_args!("images: loaded {}", image.reference));
        }
        Ok(())
    }

    fn remove_old_images(&self, _: &Cluster, _: &[Archive]) -> Result<()> {
        // They go with the cluster, which nobody keeps for long.
        Ok(())
    }

    fn stop(&self, progress: &Progress, _: bool) -> Result<()> {
        let ran = self.exists()?;
        if ran {
            let mut delete = self.run("kind", ["delete", "cluster", "--name", &self.name()]);
            capture(delete.arg("--kubeconfig").arg(self.kubeconfig()))?;
            ensure!(!self.exists()?, "kind has deleted the cluster {} and still has it", self.name());
        }
        if self.dir.dir().exists() {
            fs::remove_dir_all(self.dir.dir())
                .with_context(|| format!("cannot remove {}", self.dir.dir().display()))?;
        }
        let what = if ran { "deleted" } else { "there was none" };
        progress.say(format_args!("cluster {}: {what}", self.name()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program;
    use crate::provider::Name;
    use crate::state::State;

    /// A machine with programs that write down how they are called and answer as the real ones do.
    struct Machine {
        home: tempfile::TempDir,
        kind: Kind,
    }

    impl Machine {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            let bin = home.path().join("bin");
            fs::create_dir(&bin).unwrap();
            let log = home.path().join("calls");
            let note = format!("#!/bin/sh\necho \"$(basename \"$0\") $*\" >> {}\n", log.display());
            let there = home.path().join("there");
            let kind = format!(
                "{note}case \"$1 $2\" in\n\
                 'get clusters') cat {there} 2>/dev/null; exit 0;;\n\
                 'create cluster') test \"$3\" = --name && echo \"$4\" > {there}; test -s \"$8\";;\n\
                 'get kubeconfig') echo '{{}}';;\n\
                 'delete cluster') rm {there};;\n\
                 esac\n",
                there = there.display()
            );
            program::write(&bin.join("kind"), &kind).unwrap();
            let docker = format!(
                "{note}case \"$1\" in\nnetwork) printf 'fc00:f853:ccd:e793::1\\n172.18.0.1\\n';;\n\
                 version) echo 27.0;;\nesac\n"
            );
            program::write(&bin.join("docker"), &docker).unwrap();
            program::write(&bin.join("helm"), &note).unwrap();
            program::write(&bin.join("kubectl"), &note).unwrap();
            let state = State::at(home.path().join("s"));
            let dir = state.cluster(Path::new("/clone"), Name::Kind).unwrap();
            let kind = Kind { dir, target: Target::default(), programs: Some(bin) };
            Self { home, kind }
        }

        /// The calls since the last look, with the test's own names for what differs each time.
        fn calls(&self) -> String {
            let log = self.home.path().join("calls");
            let text = fs::read_to_string(&log).unwrap_or_default();
            fs::write(&log, "").unwrap();
            text.replace(&self.kind.dir.dir().display().to_string(), "DIR").replace(&self.kind.name(), "NAME")
        }
    }

    fn archive(key: &str) -> Archive {
        Archive {
            name: "agent".into(),
            reference: "docker.io/roadstead/agent:1".into(),
            key: key.into(),
            path: "/cache/agent.tar".into(),
        }
    }

    #[test]
    fn a_cluster_is_made_once_loaded_once_and_deleted() {
        let machine = Machine::new();
        let kind = &machine.kind;
        let progress = Progress::start();
        kind.prepare(&progress).unwrap();
        machine.calls();

        let cluster = kind.start(&progress, &Tools::of_path()).unwrap();
        assert_eq!(
            machine.calls(),
            "kind get clusters --quiet\n\
             kind create cluster --name NAME --wait 180s --config DIR/kind.json --kubeconfig DIR/admin.kubeconfig\n\
             docker network inspect kind --format {{range .IPAM.Config}}{{println .Gateway}}{{end}}\n"
        );
        assert_eq!(cluster.host_address, Ipv4Addr::new(172, 18, 0, 1));
        assert!(cluster.node.ends_with("-control-plane"));

        kind.wait_ready(&progress, &cluster).unwrap();
        assert_eq!(machine.calls(), "kubectl get serviceaccount default -o name\n");

        for key in ["a", "a", "b"] {
            kind.load_images(&progress, &cluster, &[archive(key)]).unwrap();
        }
        assert_eq!(machine.calls(), "kind load image-archive --name NAME /cache/agent.tar\n".repeat(2));

        kind.start(&progress, &Tools::of_path()).unwrap();
        assert!(
            machine.calls().starts_with("kind get clusters --quiet\nkind get kubeconfig --name NAME\ndocker")
        );

        kind.stop(&progress, false).unwrap();
        assert_eq!(
            machine.calls(),
            "kind get clusters --quiet\n\
             kind delete cluster --name NAME --kubeconfig DIR/admin.kubeconfig\n\
             kind get clusters --quiet\n"
        );
        assert!(!kind.dir.dir().exists());
        kind.stop(&progress, false).unwrap();
        assert_eq!(machine.calls(), "kind get clusters --quiet\n");
    }

    #[test]
    fn a_cluster_that_cannot_be_made_is_explained_by_kinds_own_words() {
        let machine = Machine::new();
        let bin = machine.kind.programs.as_ref().unwrap();
        let fails = "#!/bin/sh\ntest \"$1\" = get && exit 0\necho 'no space left' >&2\nexit 1\n";
        program::write(&bin.join("kind"), fails).unwrap();
        let error = machine.kind.start(&Progress::start(), &Tools::of_path()).unwrap_err();
        assert!(format!("{error:#}").contains("no space left"), "{error:#}");
    }

    #[test]
    fn a_daemon_that_does_not_answer_is_named() {
        let machine = Machine::new();
        let bin = machine.kind.programs.as_ref().unwrap();
        program::write(&bin.join("docker"), "#!/bin/sh\necho 'cannot connect' >&2\nexit 1\n").unwrap();
        let error = machine.kind.prepare(&Progress::start()).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("daemon") && text.contains("cannot connect"), "{text}");
    }

    #[test]
    fn the_gateway_is_the_ipv4_one() {
        assert_eq!(gateway("fc00::1\n172.18.0.1\n"), Some(Ipv4Addr::new(172, 18, 0, 1)));
        assert_eq!(gateway("fc00::1\n"), None);
    }
}
