//! What the supervisor is told: a file, written by `cargo e2e up` and read inside the cluster's namespaces.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::cgroup::Cgroups;

/// Everything about one run of a cluster.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Plan {
    /// The cluster's folder.
    pub(super) dir: PathBuf,
    /// The state folder: the only part of the machine that the cluster may write to.
    pub(super) state: PathBuf,
    /// The node's name.
    pub(super) node_name: String,
    /// This machine's address on the link.
    pub(super) host: Ipv4Addr,
    /// The cluster's address on the link.
    pub(super) node: Ipv4Addr,
    /// The link's prefix length.
    pub(super) prefix: u8,
    /// Its groups.
    pub(super) cgroups: Cgroups,
    /// The programs to run, in the order of their start.
    pub(super) services: Vec<Service>,
}

/// One program.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Service {
    /// The component's name.
    pub(super) name: String,
    /// Program and arguments.
    pub(super) argv: Vec<String>,
    /// What must be there before its first start.
    pub(super) after: Vec<Condition>,
}

/// Something that a program needs of another one.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum Condition {
    /// A port that accepts connections.
    Port(SocketAddr),
    /// A Unix socket that accepts connections.
    Socket(PathBuf),
}

/// Names of the files in a cluster's folder that its parts agree on.
pub(super) mod file {
    /// The plan.
    pub(in super::super) const PLAN: &str = "plan.json";
    /// Locked as long as the supervisor lives.
    pub(in super::super) const LOCK: &str = "supervisor.lock";
    /// The supervisor's process, as this machine sees it.
    pub(in super::super) const PROCESS: &str = "supervisor.json";
}
