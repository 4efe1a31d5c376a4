//! The components' configuration files. JSON is YAML, so all but containerd's are written as JSON.

use std::net::Ipv4Addr;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::slot::{POD_RANGE, Slot};
use crate::images::PAUSE;

/// What identifies a client of the API server, PEM.
pub(super) struct Credentials {
    pub(super) authority: Vec<u8>,
    pub(super) certificate: Vec<u8>,
    pub(super) key: Vec<u8>,
}

/// A kubeconfig that carries its certificates in itself, so that it can be copied.
pub(super) fn kubeconfig(node: Ipv4Addr, credentials: &Credentials) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "roadstead-e2e", "cluster": {
            "server": format!("https://{node}:6443"),
            "certificate-authority-data": STANDARD.encode(&credentials.authority),
        }}],
        "users": [{"name": "user", "user": {
            "client-certificate-data": STANDARD.encode(&credentials.certificate),
            "client-key-data": STANDARD.encode(&credentials.key),
        }}],
        "contexts": [{"name": "roadstead-e2e", "context": {"cluster": "roadstead-e2e", "user": "user"}}],
        "current-context": "roadstead-e2e",
    })
}

/// containerd: everything below the node's own root, images only from imports, pods on the network of [`cni`].
pub(super) fn containerd(socket: &Path, cni_dir: &Path) -> String {
    // A JSON string is a TOML string.
    let (socket, cni_dir) = (json!(socket), json!(cni_dir));
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = {socket}

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # Without CAP_SYS_RESOURCE no process may go below its parent's score.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = {cni_dir}
"#
    )
}

/// The pods' network: one point-to-point link per pod. Unlike on a bridge, every packet is routed, so services work
/// between pods of this node without the kernel's bridge filter.
pub(super) fn cni() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "roadstead-e2e",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni-ipam",
                    "ranges": [[{"subnet": POD_RANGE}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

/// The kubelet.
pub(super) fn kubelet(slot: Slot, pki: &Path, containerd_socket: &Path, resolv_conf: &Path) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": pki.join("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": pki.join("kubelet-server.crt"),
        "tlsPrivateKeyFile": pki.join("kubelet-server.key"),
        "containerRuntimeEndpoint": format!("unix://{}", containerd_socket.display()),
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": [],
        "oomScoreAdj": 0,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        // There is no DNS in the cluster. A closed port answers a look-up at once; nothing at all would make it wait.
        "clusterDNS": [slot.host()],
        "clusterDomain": "cluster.local",
        "resolvConf": resolv_conf,
        "maxPods": 250,
        "serializeImagePulls": false,
        // Images are imported, so one that is collected could not be pulled again.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
            "imagefs.inodesFree": "1%",
        },
    })
}

/// kube-proxy. The connection-tracking limits are the machine's and stay as they are.
pub(super) fn proxy(kubeconfig: &Path, node_name: &str) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": kubeconfig},
        "hostnameOverride": node_name,
        "mode": "iptables",
        "clusterCIDR": POD_RANGE,
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
            "udpTimeout": "0s",
            "udpStreamTimeout": "0s",
        },
    })
}

/// Every request once, without its body: who, what, when, and the answer's code.
pub(super) fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata"}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_needs_no_other_file() {
        let credentials =
            Credentials { authority: b"A".to_vec(), certificate: b"B".to_vec(), key: b"C".to_vec() };
        let config = kubeconfig(Ipv4Addr::new(10, 213, 3, 2), &credentials);
        assert_eq!(config["clusters"][0]["cluster"]["server"], "https://10.213.3.2:6443");
        assert_eq!(config["users"][0]["user"]["client-key-data"], "Qw==");
        assert_eq!(config["contexts"][0]["name"], config["current-context"]);
    }

    #[test]
    fn containerd_uses_the_local_pause_image_and_quotes_paths() {
        let text = containerd(Path::new("/s/a b.sock"), Path::new("/c"));
        assert!(text.contains("address = \"/s/a b.sock\""), "{text}");
        assert!(text.contains(&format!("sandbox_image = \"{PAUSE}\"")), "{text}");
        assert!(text.contains("restrict_oom_score_adj = true"), "{text}");
    }
}
