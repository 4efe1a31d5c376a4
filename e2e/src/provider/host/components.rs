//! The cluster's programs and their arguments.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::pki::{certificate, key};
use super::plan::{Condition, Service};
use super::slot::SERVICE_RANGE;
use crate::cluster::Component;
use crate::state::ClusterDir;
use crate::tools::Tools;

/// The API server's port.
const API_PORT: u16 = 6443;
/// etcd's port.
pub(super) const ETCD_PORT: u16 = 2379;

/// Where the components' files are.
pub(super) struct Files {
    pub(super) pki: PathBuf,
    pub(super) conf: PathBuf,
    pub(super) audit_log: PathBuf,
    pub(super) containerd_socket: PathBuf,
}

impl Files {
    pub(super) fn of(dir: &ClusterDir) -> Self {
        Self {
            pki: dir.file("pki"),
            conf: dir.file("conf"),
            audit_log: dir.log("audit"),
            containerd_socket: dir.containerd_socket(),
        }
    }

    /// A client's kubeconfig.
    pub(super) fn kubeconfig(&self, client: &str) -> PathBuf {
        self.conf.join(format!("{client}.kubeconfig"))
    }

    pub(super) fn conf(&self, name: &str) -> PathBuf {
        self.conf.join(name)
    }
}

/// All services, in the order of [`Component::ALL`].
pub(super) fn services(
    tools: &Tools,
    files: &Files,
    node: Ipv4Addr,
    node_name: &str,
) -> Result<Vec<Service>> {
    let etcd = Condition::Port(SocketAddr::from((Ipv4Addr::LOCALHOST, ETCD_PORT)));
    let api = Condition::Port(SocketAddr::from((node, API_PORT)));
    let runtime = Condition::Socket(files.containerd_socket.clone());
    let mut services = Vec::new();
    for component in Component::ALL {
        let (args, after) = match component {
            Component::Etcd => (etcd_args(&files.pki, node), vec![]),
            Component::Containerd => (containerd_args(files), vec![]),
            Component::Apiserver => (apiserver_args(files, node), vec![etcd.clone()]),
            Component::ControllerManager => (controller_manager_args(files), vec![api.clone()]),
            Component::Scheduler => (scheduler_args(files), vec![api.clone()]),
            Component::KubeProxy => {
                (vec![flag("config", files.conf("proxy.json").display())], vec![api.clone()])
            }
            Component::Kubelet => (kubelet_args(files, node, node_name), vec![api.clone(), runtime.clone()]),
        };
        let program = match component {
            Component::Containerd => "containerd".to_owned(),
            _ => tools.path(component.name())?.display().to_string(),
        };
        let command = std::iter::once(program).chain(args).collect();
        services.push(Service { name: component.name().to_owned(), argv: command, after });
    }
    Ok(services)
}

fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

fn path(name: &str, value: &Path) -> String {
    flag(name, value.display())
}

fn etcd_args(pki: &Path, node: Ipv4Addr) -> Vec<String> {
    vec![
        flag("name", "default"),
        flag("data-dir", "/var/lib/etcd"),
        flag("listen-client-urls", format_args!("https://0.0.0.0:{ETCD_PORT}")),
        flag("advertise-client-urls", format_args!("https://{node}:{ETCD_PORT}")),
        flag("listen-peer-urls", "http://127.0.0.1:2380"),
        path("cert-file", &certificate(pki, "etcd-server")),
        path("key-file", &key(pki, "etcd-server")),
        flag("client-cert-auth", true),
        path("trusted-ca-file", &certificate(pki, "etcd-ca")),
        // A test cluster does not outlive a power cut.
        flag("unsafe-no-fsync", true),
    ]
}

fn containerd_args(files: &Files) -> Vec<String> {
    vec!["--config".to_owned(), files.conf("containerd.toml").display().to_string()]
}

fn apiserver_args(files: &Files, node: Ipv4Addr) -> Vec<String> {
    let pki = &files.pki;
    vec![
        flag("bind-address", "0.0.0.0"),
        flag("secure-port", API_PORT),
        flag("advertise-address", node),
        flag("service-cluster-ip-range", SERVICE_RANGE),
        flag("etcd-servers", format_args!("https://127.0.0.1:{ETCD_PORT}")),
        path("etcd-cafile", &certificate(pki, "etcd-ca")),
        path("etcd-certfile", &certificate(pki, "etcd-client")),
        path("etcd-keyfile", &key(pki, "etcd-client")),
        path("client-ca-file", &certificate(pki, "ca")),
        path("tls-cert-file", &certificate(pki, "apiserver")),
        path("tls-private-key-file", &key(pki, "apiserver")),
        path("kubelet-certificate-authority", &certificate(pki, "ca")),
        path("kubelet-client-certificate", &certificate(pki, "apiserver-kubelet")),
        path("kubelet-client-key", &key(pki, "apiserver-kubelet")),
        flag("kubelet-preferred-address-types", "InternalIP"),
        flag("authorization-mode", "Node,RBAC"),
        flag("enable-admission-plugins", "NodeRestriction"),
        flag("allow-privileged", true),
        flag("service-account-issuer", "https://kubernetes.default.svc"),
        path("service-account-key-file", &pki.join("service-accounts.pub")),
        path("service-account-signing-key-file", &key(pki, "service-accounts")),
        path("audit-policy-file", &files.conf("audit-policy.json")),
        path("audit-log-path", &files.audit_log),
        // No rotation within a benchmark (MB).
        flag("audit-log-maxsize", 2000),
        flag("audit-log-maxbackup", 1),
    ]
}

fn controller_manager_args(files: &Files) -> Vec<String> {
    vec![
        path("kubeconfig", &files.kubeconfig("controller-manager")),
        flag("bind-address", "127.0.0.1"),
        flag("leader-elect", false),
        flag("use-service-account-credentials", true),
        // Its start makes a few hundred requests; the default rate stretches them over seconds.
        flag("kube-api-qps", 200),
        flag("kube-api-burst", 400),
        flag("flex-volume-plugin-dir", "/var/lib/kubelet/volume-plugins"),
        path("service-account-private-key-file", &key(&files.pki, "service-accounts")),
        path("root-ca-file", &certificate(&files.pki, "ca")),
        path("cluster-signing-cert-file", &certificate(&files.pki, "ca")),
        path("cluster-signing-key-file", &key(&files.pki, "ca")),
    ]
}

fn scheduler_args(files: &Files) -> Vec<String> {
    vec![
        path("kubeconfig", &files.kubeconfig("scheduler")),
        flag("bind-address", "127.0.0.1"),
        flag("leader-elect", false),
    ]
}

fn kubelet_args(files: &Files, node: Ipv4Addr, node_name: &str) -> Vec<String> {
    vec![
        path("config", &files.conf("kubelet.json")),
        path("kubeconfig", &files.kubeconfig("kubelet")),
        flag("hostname-override", node_name),
        flag("node-ip", node),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_server_audits_and_listens_where_pods_reach_it() {
        let files = Files {
            pki: "/c/pki".into(),
            conf: "/c/conf".into(),
            audit_log: "/c/logs/audit.log".into(),
            containerd_socket: "/c/containerd.sock".into(),
        };
        let args = apiserver_args(&files, Ipv4Addr::new(10, 213, 9, 2));
        for wanted in [
            "--audit-log-path=/c/logs/audit.log",
            "--advertise-address=10.213.9.2",
            "--authorization-mode=Node,RBAC",
            "--tls-private-key-file=/c/pki/apiserver.key",
        ] {
            assert!(args.iter().any(|arg| arg == wanted), "{wanted} is not in {args:?}");
        }
    }
}
