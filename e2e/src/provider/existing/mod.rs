//! The provider for a cluster that is there already. It pushes no image, makes namespaces of its own, and takes away
//! what it made.

mod access;
mod definitions;
mod images;
mod reach;
mod release;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use kube::Client;
use kube::config::Kubeconfig;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::definitions::Found;
use super::{Provider, Supply, Target};
use crate::cluster::Cluster;
use crate::hash::Key;
use crate::images::Archive;
use crate::installation::{client_of, resolve};
use crate::progress::Progress;
use crate::release::Release;
use crate::state::{ClusterDir, replace, workspace};
use crate::tools::Tools;

/// The oldest minor version of Kubernetes 1 that the chart takes.
const OLDEST_MINOR: u32 = 33;

/// A cluster that somebody else runs.
#[derive(Debug)]
pub struct Existing {
    dir: ClusterDir,
    target: Target,
}

/// What the last `up` was told, for the next one.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Told {
    images: Option<PathBuf>,
    address: Option<Ipv4Addr>,
}

impl Existing {
    /// The installation that this clone has, or will have, in the cluster of a kubeconfig.
    #[must_use]
    pub fn new(dir: ClusterDir, target: Target) -> Self {
        Self { dir, target }
    }

    /// Names that no other clone on any other machine uses in the same cluster.
    fn release(&self) -> Result<Release> {
        let machine = nix::unistd::gethostname().context("this machine has no name")?;
        let mut key = Key::new()
            .part("machine", machine.as_encoded_bytes())
            .part("cluster", self.dir.dir().as_os_str().as_encoded_bytes())
            .finish();
        key.truncate(8);
        let name = format!("roadstead-e2e-{key}");
        Ok(Release {
            namespace: name.clone(),
            job_namespace: format!("{name}-jobs"),
            class_prefix: format!("{name}-"),
            name,
        })
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.file("admin.kubeconfig")
    }

    fn told(&self) -> Told {
        let text = fs::read(self.dir.file("existing.json")).unwrap_or_default();
        let before: Told = serde_json::from_slice(&text).unwrap_or_default();
        let images = self.target.images.clone().or(before.images);
        Told { images, address: self.target.address.or(before.address) }
    }

    /// Copies the wanted context of the user's kubeconfig, so that changing the current one does not move a running
    /// installation to another cluster.
    fn choose(&self) -> Result<()> {
        let file = self.kubeconfig();
        if file.exists() && self.target.kubeconfig.is_none() && self.target.context.is_none() {
            return Ok(());
        }
        let whole = match &self.target.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let whole = whole.context("no kubeconfig to take the cluster from: name one with --kubeconfig")?;
        let chosen = serde_json::to_string(&only(whole, self.target.context.as_deref())?)
            .context("cannot write a kubeconfig")?;
        if let Ok(before) = fs::read_to_string(&file) {
            let (before, now) = (server(&before)?, server(&chosen)?);
            ensure!(
                before == now,
                "this clone has an installation in the cluster {before}: end that first with \
                 `cargo e2e down --provider existing`, then use {now}"
            );
        }
        let logs = self.dir.file("logs");
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        // It holds credentials: nobody else may read it, not even for a moment.
        replace(&file, "")?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))
            .context("cannot protect the kubeconfig")?;
        fs::write(&file, chosen).with_context(|| format!("cannot write {}", file.display()))
    }

    fn address(&self, told: &Told) -> Result<Ipv4Addr> {
        let address = if let Some(address) = told.address {
            address
        } else {
            let text = fs::read_to_string(self.kubeconfig()).context("cannot read the kubeconfig")?;
            reach::towards(resolve(&server(&text)?)?)?
        };
        ensure!(
            reach::is_of_this_machine(address),
            "{address} is no address of this machine; --address names the one at which pods reach it"
        );
        Ok(address)
    }
}

/// Everything that can be asked before something is made. All problems are told at once.
async fn check(client: &Client, release: &Release) -> Result<()> {
    let version = client.apiserver_version().await.context("the cluster does not answer")?;
    let lacking = access::lacking(client, release).await?;
    let mut problems = Vec::new();
    if !new_enough(&version.major, &version.minor) {
        problems.push(format!(
            "it is Kubernetes {}; 1.{OLDEST_MINOR} is the oldest possible",
            version.git_version
        ));
    }
    if lacking.is_empty() {
        if let Found::Different(owner) = definitions::look(client, &workspace(), release).await? {
            problems.push(format!(
                "its definitions of CiJob and JobClass say something else than this clone's, and are those of the \
                 release {owner}: upgrade that one to this version, or use another cluster"
            ));
        }
    } else {
        let rights = lacking.join("\n    ");
        problems.push(format!("the account of the kubeconfig needs these rights too:\n    {rights}"));
    }
    ensure!(problems.is_empty(), "this cluster cannot be used yet:\n  - {}", problems.join("\n  - "));
    Ok(())
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Runtime::new().context("cannot start a runtime")?.block_on(future)
}

/// A kubeconfig with one context and what that names.
fn only(mut config: Kubeconfig, context: Option<&str>) -> Result<Kubeconfig> {
    let name = context.map(str::to_owned).or(config.current_context.take());
    let name = name.context("the kubeconfig has no current context: name one with --context")?;
    config.contexts.retain(|named| named.name == name);
    let context = config.contexts.first().and_then(|named| named.context.clone());
    let context = context.with_context(|| format!("the kubeconfig has no context {name}"))?;
    config.clusters.retain(|named| named.name == context.cluster);
    config.auth_infos.retain(|named| Some(&named.name) == context.user.as_ref());
    config.current_context = Some(name);
    Ok(config)
}

/// Whether a server's own version (`1`, `33+`) is one that the chart takes.
fn new_enough(major: &str, minor: &str) -> bool {
    let number = |text: &str| text.trim_end_matches('+').parse::<u32>().unwrap_or(0);
    (number(major), number(minor)) >= (1, OLDEST_MINOR)
}

/// The API server's address in a kubeconfig with one context.
fn server(kubeconfig: &str) -> Result<String> {
    let config: Value = serde_json::from_str(kubeconfig).context("the kubeconfig is not JSON")?;
    let server = config.pointer("/clusters/0/cluster/server").and_then(Value::as_str);
    Ok(server.context("the kubeconfig names no server")?.to_owned())
}

impl Provider for Existing {
    fn prepare(&self, _: &Progress) -> Result<()> {
        for program in ["kubectl", "helm", "git"] {
            ensure!(reach::is_there(program), "the provider `existing` needs {program} in PATH");
        }
        Ok(())
    }

    fn tools(&self, _: &Progress) -> Result<Tools> {
        Ok(Tools::of_path())
    }

    fn start(&self, progress: &Progress, _: &Tools) -> Result<Cluster> {
        let told = self.told();
        let Some(file) = &told.images else {
            bail!(
                "the cluster has to pull the images from somewhere: push what `cargo e2e images` builds to a \
                 registry and name their references in a file, --images FILE (see CONTRIBUTING.md)"
            )
        };
        // The next call may be made from elsewhere.
        let file = file.canonicalize().with_context(|| format!("there is no file {}", file.display()))?;
        let images = images::read(&file)?;
        self.choose()?;
        let release = self.release()?;
        block_on(async { check(&client_of(&self.kubeconfig()).await?, &release).await })?;
        let host_address = self.address(&told)?;
        let text =
            serde_json::to_vec(&Told { images: Some(file), ..told }).context("cannot keep the options")?;
        replace(&self.dir.file("existing.json"), text)?;
        let shim = Cluster::load(&self.dir.description()).ok().and_then(|old| old.shim);
        let server = server(&fs::read_to_string(self.kubeconfig()).context("cannot read the kubeconfig")?)?;
        progress.say(format_args!("cluster: {server}, release and namespace {}", release.name));
        Ok(Cluster {
            provider: "existing".to_owned(),
            kubeconfig: self.kubeconfig(),
            node: String::new(),
            host_address,
            bins: Vec::new(),
            images,
            release,
            shim,
            host: None,
        })
    }

    fn wait_ready(&self, progress: &Progress, cluster: &Cluster) -> Result<()> {
        release::make_namespaces(&self.dir, cluster)?;
        reach::probe(&self.dir, cluster)?;
        progress.say(format_args!("cluster: its pods reach this machine at {}", cluster.host_address));
        Ok(())
    }

    fn supply(&self) -> Supply {
        Supply::Registry
    }

    fn overlay(&self, cluster: &Cluster) -> Result<Value> {
        let found = block_on(async {
            let client = client_of(&cluster.kubeconfig).await?;
            definitions::look(&client, &workspace(), &cluster.release).await
        })?;
        release::values(cluster, &found)
    }

    fn load_images(&self, _: &Progress, _: &Cluster, _: &[Archive]) -> Result<()> {
        Ok(())
    }

    fn remove_old_images(&self, _: &Cluster, _: &[Archive]) -> Result<()> {
        Ok(())
    }

    fn stop(&self, progress: &Progress, _: bool) -> Result<()> {
        let _ = progress;
        if self.kubeconfig().exists() {
            let cluster = Cluster {
                provider: "existing".to_owned(),
                kubeconfig: self.kubeconfig(),
                node: String::new(),
                host_address: Ipv4Addr::UNSPECIFIED,
                bins: Vec::new(),
                images: std::collections::BTreeMap::new(),
                release: self.release()?,
                shim: None,
                host: None,
            };
            release::remove(progress, &cluster)?;
            progress.say(format_args!("cluster: the release {} is gone", cluster.release.name));
        } else {
            progress.say("cluster: nothing was installed");
        }
        if self.dir.dir().exists() {
            fs::remove_dir_all(self.dir.dir())
                .with_context(|| format!("cannot remove {}", self.dir.dir().display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Name;
    use crate::state::State;

    fn existing(home: &std::path::Path, target: Target) -> Existing {
        let dir = State::at(home.to_owned()).cluster(std::path::Path::new("/clone"), Name::Existing).unwrap();
        Existing::new(dir, target)
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (major, minor, fits) in
            [("1", "33", true), ("1", "33+", true), ("1", "32", false), ("1", "9", false), ("2", "0", true)]
        {
            assert_eq!(new_enough(major, minor), fits, "{major}.{minor}");
        }
    }

    #[test]
    fn every_name_of_a_release_is_its_own() {
        let home = tempfile::tempdir().unwrap();
        let release = existing(home.path(), Target::default()).release().unwrap();
        let plain = Release::default();
        assert_ne!(release.namespace, plain.namespace);
        assert_ne!(release.class("default"), plain.class("default"));
        assert!(
            release.job_namespace.starts_with(&release.name) && release.job_namespace != release.namespace
        );
        // The chart cuts longer ones off.
        assert!(release.name.len() <= 45, "{}", release.name);
    }

    #[test]
    fn without_a_list_of_images_nothing_is_tried() {
        let home = tempfile::tempdir().unwrap();
        let error = existing(home.path(), Target::default()).start(&Progress::start(), &Tools::of_path());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("--images") && error.contains("cargo e2e images"), "{error}");
    }

    #[test]
    fn an_installation_does_not_move_to_another_cluster() {
        let home = tempfile::tempdir().unwrap();
        let kubeconfig = |server: &str| {
            let path = home.path().join(server);
            let config = serde_json::json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [{"name": "k", "cluster": {"server": format!("https://{server}.invalid:6443")}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            });
            fs::write(&path, config.to_string()).unwrap();
            Target { kubeconfig: Some(path), ..Target::default() }
        };
        existing(home.path(), kubeconfig("one")).choose().unwrap();
        let chosen = existing(home.path(), Target::default());
        let mode = fs::metadata(chosen.kubeconfig()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        chosen.choose().unwrap();
        existing(home.path(), kubeconfig("one")).choose().unwrap();
        let other = Target { context: Some("d".into()), ..kubeconfig("one") };
        let error = existing(home.path(), other).choose().unwrap_err().to_string();
        assert!(error.contains("no context d"), "{error}");
        let error = existing(home.path(), kubeconfig("two")).choose().unwrap_err().to_string();
        assert!(error.contains("one.invalid") && error.contains("two.invalid"), "{error}");
    }
}
