//! Where a test cluster comes from.

pub mod host;

use clap::ValueEnum;

use anyhow::{Result, bail};

use crate::cluster::Cluster;
use crate::images::Archive;
use crate::progress::Progress;
use crate::state::{ClusterDir, State};
use crate::tools::Tools;

/// The providers' names on the command line.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Name {
    /// Kubernetes' own programs as processes of this machine, in namespaces of their own.
    Host,
    /// A cluster in containers (not supported yet).
    Kind,
    /// The cluster of the current kubeconfig (not supported yet).
    Existing,
}

/// A way to get a cluster. All of it can be repeated: what is there already stays.
pub trait Provider {
    /// What the machine lacks and this provider can install.
    ///
    /// # Errors
    /// When it cannot be installed.
    fn prepare(&self, progress: &Progress) -> Result<()>;

    /// Starts the cluster if it does not run in the wanted form. Returns before the node is ready.
    ///
    /// # Errors
    /// When it cannot be started.
    fn start(&self, progress: &Progress, tools: &Tools) -> Result<Cluster>;

    /// Waits until the API server answers and the node is ready.
    ///
    /// # Errors
    /// When that takes too long; the message quotes the log of what is at fault.
    fn wait_ready(&self, progress: &Progress, cluster: &Cluster) -> Result<()>;

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

    /// Ends the cluster. With `purge`, what makes the next start quick goes as well.
    ///
    /// # Errors
    /// When something of it stays behind.
    fn stop(&self, progress: &Progress, purge: bool) -> Result<()>;
}

/// The provider of that name for one cluster.
///
/// # Errors
/// When the provider is not supported yet.
pub fn provider(name: Name, state: &State, dir: &ClusterDir) -> Result<Box<dyn Provider>> {
    match name {
        Name::Host => Ok(Box::new(host::Host::new(state.clone(), dir.clone()))),
        Name::Kind => bail!("the provider `kind` is not supported yet; use `host`"),
        Name::Existing => bail!("the provider `existing` is not supported yet; use `host`"),
    }
}
