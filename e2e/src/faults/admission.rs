//! The cluster refuses the job's pod or changes it, or what it asks about the pod does not answer.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use axum::serve::Listener;
use axum::{Json, Router, routing};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use roadstead_crds::Reason;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::judge::{BEGIN, Load, ended};
use super::objects::Applied;
use super::{DEADLINE, EVERY_BYTE, Fault, Finding, SHORT, SOON, Site, system_failure};

/// The faults.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "admission-refuses",
        what: "an admission policy refuses the job's pod",
        right: "fails as the system's failure, with the policy's own words",
        needs_host: false,
        alone: false,
        not_theirs: Some("a LimitRange shows it what a refusal is"),
        run: |site| Box::pin(admission_refuses(site)),
    },
    Fault {
        name: "limit-range-refuses",
        what: "a LimitRange of the namespace has no room for the job's pod",
        right: "fails as the system's failure, with the cluster's own words",
        needs_host: false,
        alone: true,
        not_theirs: None,
        run: |site| Box::pin(limit_range_refuses(site)),
    },
    Fault {
        name: "webhook-down",
        what: "an admission webhook that is asked about the job's pod does not answer for 5 s",
        right: "says so in its log, then succeeds with every byte",
        needs_host: false,
        alone: false,
        not_theirs: Some(NAMELESS),
        run: |site| Box::pin(webhook_down(site)),
    },
    Fault {
        name: "webhook-adds-sidecars",
        what: "an admission webhook adds two sidecars to the job's pod, one of which fails as the script runs",
        right: EVERY_BYTE,
        needs_host: true,
        alone: false,
        not_theirs: Some(NAMELESS),
        run: |site| Box::pin(webhook_adds_sidecars(site)),
    },
];

/// Why GitLab's executor is not asked.
const NAMELESS: &str = "the names of its pods do not tell which job they are of";

/// A line of 10 numbers every 0.2 s, for 5 s.
const LOAD: Load = Load { chunks: 25, numbers: 10, pause: 2 };

/// Waits until the API server refuses such a pod: it learns of new rules a little later.
async fn refused(site: &Site<'_>, pod: Value) -> Result<()> {
    let pod: Pod = serde_json::from_value(pod)?;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let until = Instant::now() + SOON;
    while site.pods().create(&dry, &pod).await.is_ok() {
        if Instant::now() >= until {
            bail!("the API server takes the pod, for {SOON:?}");
        }
        tokio::time::sleep(SHORT).await;
    }
    Ok(())
}

/// A pod with a limit of memory, in a namespace that enforces `baseline`.
fn probe(name: &str) -> Value {
    let resources = json!({"limits": {"memory": "64Mi"}});
    let containers = [json!({"name": "probe", "image": "probe", "resources": resources})];
    json!({"metadata": {"name": name}, "spec": {"containers": containers}})
}

async fn admission_refuses(site: &Site<'_>) -> Result<Finding> {
    let spec = site.job()?.script(["true"]);
    let prefix = format!("cij-{}-", spec.id);
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "roadstead-fault"},
        "spec": {
            "matchConstraints": {"resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]},
            ]},
            "matchConditions": [
                {"name": "job", "expression": format!("object.metadata.name.startsWith('{prefix}')")},
            ],
            "validations": [{"expression": "false", "message": "no ship leaves today"}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "roadstead-fault"},
        "spec": {"policyName": "roadstead-fault", "validationActions": ["Deny"]},
    });
    let _there = Applied::new(site, "admission.json", &[policy, binding])?;
    refused(site, probe(&format!("{prefix}probe"))).await?;
    let since = Instant::now();
    let result = site.bench.harness()?.run(&spec, DEADLINE).await?;
    let words = "no ship leaves today";
    ended(site, &result, system_failure, words, &[Reason::PodRejected], since.elapsed()).await
}

async fn limit_range_refuses(site: &Site<'_>) -> Result<Finding> {
    let range = json!({
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": {"name": "roadstead-fault", "namespace": site.namespace()},
        "spec": {"limits": [{"type": "Pod", "max": {"memory": "32Mi"}}]},
    });
    let _there = Applied::new(site, "limits.json", &[range])?;
    refused(site, probe("roadstead-fault")).await?;
    let spec = site.job()?.script(["true"]);
    let since = Instant::now();
    let result = site.start(&spec).await?.finish(DEADLINE).await?;
    let words = "maximum memory usage per Pod is 32Mi";
    ended(site, &result, system_failure, words, &[Reason::PodRejected], since.elapsed()).await
}

/// A webhook that is asked about the pods of a job.
fn webhook(job: i64, url: &str, authority: Option<&str>) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": format!("roadstead-fault-{job}")},
        "webhooks": [{
            "name": "mesh.roadstead.test",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Fail",
            "timeoutSeconds": 5,
            "clientConfig": {"url": url, "caBundle": authority.map(|pem| STANDARD.encode(pem))},
            "rules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]},
            ],
            "matchConditions": [
                {"name": "job", "expression": format!("object.metadata.name.startsWith('cij-{job}-')")},
            ],
        }],
    })
}

async fn webhook_down(site: &Site<'_>) -> Result<Finding> {
    let spec = LOAD.script(site.job()?);
    // Nobody listens there.
    let there = Applied::new(site, "webhook-down.json", &[webhook(spec.id, "https://127.0.0.1:1/", None)])?;
    refused(site, probe(&format!("cij-{}-probe", spec.id))).await?;
    let job = site.start(&spec).await?;
    job.wait_log("failed calling webhook", SOON).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    drop(there);
    let since = Instant::now();
    job.wait_log(&format!("{BEGIN}\n"), DEADLINE).await?;
    let recovery = since.elapsed();
    Ok(LOAD.judge(spec.id, &job.finish(DEADLINE).await?, Some(recovery)))
}

async fn webhook_adds_sidecars(site: &Site<'_>) -> Result<Finding> {
    let spec = LOAD.script(site.job()?);
    let busybox = site.bench.image("busybox")?;
    let sidecar = |name: &str, script: &str| json!({"name": name, "image": busybox, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]});
    let mut proxy = sidecar("mesh-proxy", "trap exit TERM; sleep 3600 & wait");
    proxy["restartPolicy"] = json!("Always");
    let patch = json!([
        {"op": "add", "path": "/spec/containers/-", "value": sidecar("mesh-agent", "sleep 3; exit 3")},
        {"op": "add", "path": "/spec/initContainers", "value": [proxy]},
    ]);
    let server = Server::start(site.bench.cluster.host_address, &patch).await?;
    let there = [webhook(spec.id, &server.url, Some(&server.certificate))];
    let _there = Applied::new(site, "webhook.json", &there)?;
    changed(site, probe(&format!("cij-{}-probe", spec.id))).await?;
    let job = site.start(&spec).await?;
    job.wait_log(&format!("{BEGIN}\n"), DEADLINE).await?;
    let cijob = site.bench.cijob_of(spec.id).await?;
    let pod = cijob.status.and_then(|status| status.pod).context("the job has no pod")?;
    let pod = site.pods().get(&pod.name).await.context("cannot look at the job's pod")?;
    let mut finding = LOAD.judge(spec.id, &job.finish(DEADLINE).await?, None);
    if !has_agent(&pod) {
        finding.wrong.push("the webhook did not change the job's pod".to_owned());
    }
    Ok(finding)
}

/// Whether the webhook has added its container.
fn has_agent(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|spec| &spec.containers).any(|container| container.name == "mesh-agent")
}

/// Waits until the API server asks the webhook about such a pod.
async fn changed(site: &Site<'_>, pod: Value) -> Result<()> {
    let pod: Pod = serde_json::from_value(pod)?;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let until = Instant::now() + SOON;
    loop {
        let answer = site.pods().create(&dry, &pod).await;
        if answer.as_ref().is_ok_and(has_agent) {
            return Ok(());
        }
        if Instant::now() >= until {
            bail!("the webhook changes no pod, for {SOON:?}: {:?}", answer.map(|pod| pod.metadata.name));
        }
        tokio::time::sleep(SHORT).await;
    }
}

/// A webhook that answers each question with the same patch, until this is dropped.
struct Server {
    url: String,
    /// What its callers have to trust.
    certificate: String,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(address: Ipv4Addr, patch: &Value) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed([address.to_string()])
            .context("cannot make the webhook's certificate")?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .context("cannot use the webhook's certificate")?;
        let tcp = TcpListener::bind((address, 0)).await.context("cannot serve the webhook")?;
        let url = format!("https://{}/", tcp.local_addr()?);
        let patch = STANDARD.encode(patch.to_string());
        let review = async move |Json(review): Json<Value>| {
            let uid = &review["request"]["uid"];
            Json(json!({
                "apiVersion": "admission.k8s.io/v1",
                "kind": "AdmissionReview",
                "response": {"uid": uid, "allowed": true, "patchType": "JSONPatch", "patch": patch},
            }))
        };
        let router = Router::new().route("/", routing::post(review));
        let listener = Tls { tcp, acceptor: TlsAcceptor::from(Arc::new(tls)) };
        let task = tokio::spawn(async move {
            // It ends with its task.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { url, certificate: made.cert.pem(), task })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connections that begin with TLS.
struct Tls {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.tcp).await;
            // Who does not speak TLS is not the API server.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}
