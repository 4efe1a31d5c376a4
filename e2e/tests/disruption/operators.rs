//! The operators of the installation: which there are, which one works.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::Api;
use kube::api::ListParams;
use kube::runtime::wait::await_condition;
use roadstead_e2e::installation::Installation;

/// How long a Lease that nobody renews holds.
pub const LEASE: Duration = Duration::from_secs(15);

/// The pods of operators that are not about to end.
pub async fn pods(bench: &Installation) -> Result<Vec<Pod>> {
    let release = &bench.release().name;
    let labels = format!("app.kubernetes.io/component=operator,app.kubernetes.io/instance={release}");
    let params = ListParams::default().labels(&labels);
    let pods = api(bench).list(&params).await.context("cannot list the operators")?;
    Ok(pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect())
}

/// One operator's pod.
pub async fn pod(bench: &Installation, name: &str) -> Result<Pod> {
    api(bench).get(name).await.with_context(|| format!("cannot read pod {name}"))
}

/// The pods of the operators' namespace.
pub fn api(bench: &Installation) -> Api<Pod> {
    Api::namespaced(bench.client.clone(), bench.system_namespace())
}

/// Name of the pod that works.
pub async fn leader(bench: &Installation) -> Result<String> {
    wait_leader(bench, "is any", |_| true, LEASE * 2).await
}

/// Waits until the leader is one that fulfils a condition.
pub async fn wait_leader(
    bench: &Installation,
    what: &str,
    condition: impl Fn(&str) -> bool,
    deadline: Duration,
) -> Result<String> {
    let leases: Api<Lease> = Api::namespaced(bench.client.clone(), bench.system_namespace());
    let holder = |lease: Option<&Lease>| lease?.spec.as_ref()?.holder_identity.clone();
    let fulfilled = |lease: Option<&Lease>| holder(lease).is_some_and(|holder| condition(&holder));
    // The Lease is named as the Deployment is.
    let found =
        tokio::time::timeout(deadline, await_condition(leases, &bench.release().operator(), fulfilled)).await;
    let Ok(found) = found else { bail!("no leader that {what} after {deadline:?}") };
    holder(found.context("the watch failed")?.as_ref()).context("no leader")
}

/// Sends a signal to the operator in a pod, from outside: nothing in the pod can refuse it.
pub fn signal(bench: &Installation, pod: &Pod, signal: &str) -> Result<()> {
    let status = container(pod).context("the operator's pod has no container")?;
    let id = status.container_id.as_deref().and_then(|id| id.split_once("://")).context("no container id")?.1;
    let status = bench.cluster.ctr(["task", "kill", "--signal", signal, id])?.status()?;
    ensure!(status.success(), "cannot send {signal}");
    Ok(())
}

/// The operator's container.
pub fn container(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}

/// An argument of the operators' command line, such as `--agent-image=…`.
pub fn argument(pod: &Pod, name: &str) -> Result<String> {
    let arguments = pod.spec.as_ref().and_then(|spec| spec.containers.first()?.args.as_ref());
    let found = arguments.into_iter().flatten().find(|argument| argument.starts_with(&format!("{name}=")));
    found.cloned().with_context(|| format!("the operator has no argument {name}"))
}

/// `kubectl ARGS…` that has to succeed.
pub fn kubectl<const N: usize>(bench: &Installation, args: [&str; N]) -> Result<String> {
    let output = bench.cluster.kubectl(args).output().context("cannot run kubectl")?;
    ensure!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
