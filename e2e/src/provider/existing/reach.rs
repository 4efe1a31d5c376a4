//! Whether a pod of the cluster reaches this machine, where the tests' GitLab and git server listen.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::exec::{capture, command, succeeds};
use crate::state::ClusterDir;
use crate::wait;

/// Pulling a small image and running it.
const DEADLINE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(500);
/// The probe's pod.
const POD: &str = "reach";
/// What the listener answers, and the pod has to find.
const ANSWER: &str = "roadstead-was-reached";

/// The address of this machine that lies towards the API server.
///
/// # Errors
/// When there is no way there.
pub(super) fn towards(server: SocketAddr) -> Result<Ipv4Addr> {
    // Connecting a datagram socket sends nothing: it only chooses a route.
    let socket = UdpSocket::bind(("0.0.0.0", 0)).context("cannot make a socket")?;
    socket.connect(server).with_context(|| format!("there is no way to {server}"))?;
    match socket.local_addr().context("the socket has no address")?.ip() {
        std::net::IpAddr::V4(address) => Ok(address),
        std::net::IpAddr::V6(address) => {
            bail!("the way to {server} begins at {address}, not at an IPv4 address")
        }
    }
}

/// Whether the tests can listen at an address.
pub(super) fn is_of_this_machine(address: Ipv4Addr) -> bool {
    TcpListener::bind((address, 0)).is_ok()
}

/// Answers every connection until it is dropped.
struct Listener {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Listener {
    fn start(address: Ipv4Addr) -> Result<Self> {
        let listener =
            TcpListener::bind((address, 0)).with_context(|| format!("cannot listen at {address}"))?;
        let address = listener.local_addr().context("the listener has no address")?;
        let over = Arc::new(AtomicBool::new(false));
        let ended = over.clone();
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
                // All of the request first: closing with a part of it unread would be a reset.
                let mut request = Vec::new();
                let mut buffer = [0; 1024];
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut buffer) {
                        Ok(read @ 1..) if request.len() < 1 << 16 => {
                            request.extend_from_slice(&buffer[..read]);
                        }
                        _ => break,
                    }
                }
                let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", ANSWER.len());
                let _ = stream.write_all(format!("{head}{ANSWER}").as_bytes());
            }
        });
        Ok(Self { address, over, thread: Some(thread) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes it out of its wait for a connection.
        let _ = std::net::TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn manifest(image: &str, address: SocketAddr) -> Value {
    // bash connects by itself. busybox could too, but Debian's static one crashes when it looks up a name.
    let (ip, port) = (address.ip(), address.port());
    let ask = format!(
        "exec 3<>/dev/tcp/{ip}/{port}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; grep -q {ANSWER} <&3"
    );
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": POD,
                "image": image,
                "command": ["timeout", "10", "bash", "-c", ask],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    })
}

/// Runs a pod in the operator's namespace that asks this machine for a page.
///
/// # Errors
/// When the pod does not get it; the message tells what the pod says and which option to set.
pub(super) fn probe(dir: &ClusterDir, cluster: &Cluster) -> Result<()> {
    let listener = Listener::start(cluster.host_address)?;
    let namespace = &cluster.release.namespace;
    let remove = || {
        let mut delete = cluster.kubectl(["delete", "pod", POD, "--namespace", namespace]);
        succeeds(delete.args(["--ignore-not-found", "--wait=true", "--timeout=60s"]))
    };
    // One of a run that was interrupted.
    remove();
    let file = dir.file("reach.json");
    fs::write(&file, manifest(cluster.image("debian-git")?, listener.address).to_string())
        .with_context(|| format!("cannot write {}", file.display()))?;
    let mut create = cluster.kubectl(["create", "--namespace", namespace, "--filename"]);
    capture(create.arg(&file)).context("cannot create the pod that tries the way to this machine")?;
    let phase = wait::until("end of the pod that tries the way to this machine", DEADLINE, POLL, || {
        let query = "jsonpath={.status.phase}";
        let phase =
            capture(&mut cluster.kubectl(["get", "pod", POD, "--namespace", namespace, "-o", query]))?;
        Ok(matches!(phase.as_str(), "Succeeded" | "Failed").then_some(phase))
    });
    let result = match phase {
        Ok(phase) if phase == "Succeeded" => Ok(()),
        Ok(_) => {
            let said = capture(&mut cluster.kubectl(["logs", POD, "--namespace", namespace]));
            Err(anyhow::anyhow!(
                "pods of this cluster do not reach this machine at http://{}/, and the tests' GitLab and git \
                 server are here: name an address of this machine that they reach with --address, and let \
                 their connections through its firewall. The pod that tried said: {}",
                listener.address,
                said.unwrap_or_else(|error| format!("{error:#}")).trim_end()
            ))
        }
        Err(error) => {
            let mut state = cluster.kubectl(["describe", "pod", POD, "--namespace", namespace]);
            let state = capture(&mut state).unwrap_or_else(|error| format!("{error:#}"));
            Err(error.context(format!("the pod that tries the way to this machine does not run:\n{state}")))
        }
    };
    remove();
    result
}

/// Whether a program is in PATH.
pub(super) fn is_there(program: &str) -> bool {
    succeeds(&mut command("sh", ["-c", "command -v \"$0\"", program]))
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn the_listener_answers_and_ends() {
        let listener = Listener::start(Ipv4Addr::LOCALHOST).unwrap();
        let mut stream = TcpStream::connect(listener.address).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with(ANSWER), "{answer}");
    }

    #[test]
    fn the_way_to_loopback_begins_there() {
        assert_eq!(towards(([127, 0, 0, 1], 6443).into()).unwrap(), Ipv4Addr::LOCALHOST);
        assert!(is_of_this_machine(Ipv4Addr::LOCALHOST));
        // TEST-NET-1 is nobody's.
        assert!(!is_of_this_machine(Ipv4Addr::new(192, 0, 2, 1)));
    }
}
