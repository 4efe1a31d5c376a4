//! Where a test cluster comes from.

pub mod existing;
pub mod host;
pub mod kind;

use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::images::{Archive, Builder};
use crate::progress::Progress;
use crate::state::{ClusterDir, State, replace};
use crate::tools::Tools;

/// The providers' names on the command line.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Name {
    /// Kubernetes' own programs as processes of this machine, in namespaces of their own.
    Host,
    /// A cluster in a Docker container, made with kind.
    Kind,
    /// A cluster that is there already: a kubeconfig's.
    Existing,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Kind => "kind",
            Self::Existing => "existing",
        })
    }
}

/// What the command line says about a cluster that is not the host provider's.
#[derive(Args, Clone, Debug, Default, Eq, PartialEq)]
pub struct Target {
    /// existing: the kubeconfig; otherwise the one that kubectl takes
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// existing: the context in it; otherwise the current one
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// existing: a file with a line `NAME REPOSITORY:TAG` for each image that `cargo e2e images` prints
    #[arg(long, global = true, value_name = "FILE")]
    pub images: Option<PathBuf>,
    /// existing, kind: the address of this machine at which the cluster's pods reach it
    #[arg(long, global = true)]
    pub address: Option<Ipv4Addr>,
}

impl Target {
    /// Refuses what the provider has no use for.
    fn check(&self, name: Name) -> Result<()> {
        let cluster = self.kubeconfig.is_some() || self.context.is_some() || self.images.is_some();
        ensure!(
            name == Name::Existing || !cluster,
            "--kubeconfig, --context and --images are for --provider existing, and this is {name}"
        );
        ensure!(
            name != Name::Host || self.address.is_none(),
            "--address is for --provider kind and existing: the host provider knows its address"
        );
        Ok(())
    }
}

/// How the images come into the cluster.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Supply {
    /// They are built here and loaded into it.
    Built(Builder),
    /// It pulls them; [`Cluster::images`] names them.
    Registry,
}

impl Supply {
    /// The pull policy of the product's images.
    #[must_use]
    pub fn pull_policy(self) -> &'static str {
        match self {
            // There is nowhere to pull one from.
            Self::Built(_) => "Never",
            Self::Registry => "IfNotPresent",
        }
    }
}

/// A way to get a cluster. All of it can be repeated: what is there already stays.
pub trait Provider {
    /// What the machine lacks and this provider can install.
    ///
    /// # Errors
    /// When it cannot be installed.
    fn prepare(&self, progress: &Progress) -> Result<()>;

    /// kubectl, helm and what the provider itself needs.
    ///
    /// # Errors
    /// When they cannot be built.
    fn tools(&self, progress: &Progress) -> Result<Tools>;

    /// Starts the cluster if it does not run in the wanted form. Returns before the node is ready.
    ///
    /// # Errors
    /// When it cannot be started.
    fn start(&self, progress: &Progress, tools: &Tools) -> Result<Cluster>;

    /// Waits until the API server answers and pods can run.
    ///
    /// # Errors
    /// When that takes too long; the message quotes the log of what is at fault.
    fn wait_ready(&self, progress: &Progress, cluster: &Cluster) -> Result<()>;

    /// How the images come into the cluster.
    fn supply(&self) -> Supply;

    /// Values of the chart that this provider's clusters need beside the names of the images.
    ///
    /// # Errors
    /// When the cluster cannot be asked.
    fn overlay(&self, cluster: &Cluster) -> Result<Value> {
        let _ = cluster;
        Ok(json!({}))
    }

    /// Puts images into the cluster, those that it does not have yet.
    ///
    /// # Errors
    /// When an import fails.
    fn load_images(&self, progress: &Progress, cluster: &Cluster, images: &[Archive]) -> Result<()>;

    /// Takes away other versions of these images; to be called when nothing is started from them any more.
    ///
    /// # Errors
    /// When the cluster's images cannot be listed.
    fn remove_old_images(&self, cluster: &Cluster, images: &[Archive]) -> Result<()>;

    /// Ends the cluster, or the installation in it. With `purge`, what makes the next start quick goes as well.
    ///
    /// # Errors
    /// When something of it stays behind.
    fn stop(&self, progress: &Progress, purge: bool) -> Result<()>;
}

/// The provider of that name for one cluster.
///
/// # Errors
/// When the target has options that the provider does not know.
pub fn provider(name: Name, target: Target, state: &State, dir: &ClusterDir) -> Result<Box<dyn Provider>> {
    target.check(name)?;
    Ok(match name {
        Name::Host => Box::new(host::Host::new(state.clone(), dir.clone())),
        Name::Kind => Box::new(kind::Kind::new(dir.clone(), target)),
        Name::Existing => Box::new(existing::Existing::new(dir.clone(), target)),
    })
}

/// The file in a cluster's folder that names its provider.
const RECORD: &str = "provider";

/// Writes down whose the cluster in a folder is.
///
/// # Errors
/// When the file cannot be written.
pub fn record(name: Name, dir: &ClusterDir) -> Result<()> {
    replace(&dir.file(RECORD), name.to_string())
}

/// The provider of the cluster in a folder. The host provider's have not always said so.
#[must_use]
pub fn recorded(dir: &ClusterDir) -> Name {
    let text = fs::read_to_string(dir.file(RECORD)).unwrap_or_default();
    let all = Name::value_variants();
    all.iter().copied().find(|name| name.to_string() == text).unwrap_or(Name::Host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_to_the_providers_that_know_them() {
        let images = Target { images: Some("f".into()), ..Target::default() };
        let address = Target { address: Some(Ipv4Addr::LOCALHOST), ..Target::default() };
        for (target, name, accepted) in [
            (&images, Name::Existing, true),
            (&images, Name::Kind, false),
            (&images, Name::Host, false),
            (&address, Name::Existing, true),
            (&address, Name::Kind, true),
            (&address, Name::Host, false),
            (&Target::default(), Name::Host, true),
        ] {
            assert_eq!(target.check(name).is_ok(), accepted, "{target:?} {name}");
        }
    }

    #[test]
    fn a_folder_remembers_its_provider() {
        let home = tempfile::tempdir().unwrap();
        let state = State::at(home.path().to_owned());
        let dir = state.cluster(std::path::Path::new("/clone"), Name::Kind).unwrap();
        fs::create_dir_all(dir.dir()).unwrap();
        assert_eq!(recorded(&dir), Name::Host);
        record(Name::Kind, &dir).unwrap();
        assert_eq!(recorded(&dir), Name::Kind);
    }
}
