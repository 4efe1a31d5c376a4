//! What the accounts may do, and what a script cannot.

use std::io::Write as _;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use http::Request;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use roadstead_crds::labels::{AGENT_PATH, BUILD_CONTAINER, HELPER_CONTAINER};
use roadstead_crds::{CiJob, CiJobSpec, names};
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::installation::{Installation, client_of, impersonated};
use serde_json::{Value, json};

use crate::{DEADLINE, SOON};

fn as_shim(bench: &Installation, args: &[&str]) -> Result<Output> {
    let mut kubectl = bench.cluster.command("kubectl");
    kubectl.env("KUBECONFIG", &bench.kubeconfig).args(["-n", bench.job_namespace()]).args(args);
    kubectl.stdin(std::process::Stdio::null()).output().context("cannot run kubectl")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shims_account_can_do_what_it_needs_and_nothing_else() -> Result<()> {
    let bench = Installation::join().await?;
    for (verb, resource, subresource, allowed) in [
        ("create", "cijobs.roadstead.dev", "", true),
        ("watch", "cijobs.roadstead.dev", "", true),
        ("patch", "cijobs.roadstead.dev", "", true),
        ("create", "secrets", "", true),
        ("create", "pods", "exec", true),
        ("get", "secrets", "", false),
        ("list", "secrets", "", false),
        ("create", "pods", "", false),
        ("delete", "pods", "", false),
        ("get", "pods", "", false),
        ("update", "cijobs.roadstead.dev", "status", false),
        ("create", "pods", "attach", false),
        ("create", "jobclasses.roadstead.dev", "", false),
    ] {
        let answer = as_shim(&bench, &["auth", "can-i", verb, resource, "--subresource", subresource])?;
        assert_eq!(answer.status.success(), allowed, "{verb} {resource} {subresource}: {answer:?}");
    }
    Ok(())
}

/// A CiJob that is never seen by an operator for longer than it takes to be refused: its class does not exist.
fn cijob(bench: &Installation) -> Result<CiJob> {
    let id = JobSpec::fresh().id;
    let request = json!({
        "server": "https://gitlab.example", "job": {"id": id, "name": "claimed", "stage": "test"},
        "project": {"id": 5, "path": "somebody/elses"},
        "ref": {"name": "main", "type": "branch", "sha": "", "protected": true},
        "className": bench.class_name("no-such-class"), "image": {"name": "x"},
        "timeoutSeconds": 600, "requestedAt": "2026-01-02T03:04:05.000006Z",
    });
    let request = serde_json::from_value(request)?;
    let name = names::cijob_name("https://gitlab.example", id, "e2e");
    Ok(CiJob::new(&name, CiJobSpec { request, hold: false, replace: None, report: None }))
}

/// Somebody else, and the Role of that name.
const STRANGER: &str = "e2e-stranger";

/// A client that is somebody else, whom RBAC lets do everything with CiJobs of the job namespace.
async fn stranger(bench: &Installation) -> Result<Client> {
    let name = STRANGER;
    let rbac = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name},
         "rules": [{"apiGroups": ["roadstead.dev"], "resources": ["cijobs"], "verbs": ["*"]}]},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
         "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}]},
    ]});
    let mut kubectl = bench.cluster.kubectl(["-n", bench.job_namespace(), "apply", "-f", "-"]);
    let mut kubectl = kubectl.stdin(Stdio::piped()).spawn().context("cannot run kubectl")?;
    kubectl.stdin.take().context("no standard input")?.write_all(rbac.to_string().as_bytes())?;
    ensure!(kubectl.wait()?.success(), "cannot give the stranger a Role");
    impersonated(&bench.cluster.kubeconfig, name).await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_shim_and_administrators_ask_for_jobs() -> Result<()> {
    let bench = Installation::join().await?;
    let namespace = bench.job_namespace();
    let of = |client: Client| Api::<CiJob>::namespaced(client, namespace);
    let (shim, admin) = (of(client_of(&bench.kubeconfig).await?), bench.cijobs());
    let stranger = of(stranger(&bench).await?);
    let refused = |error: Option<kube::Error>, words: &str| -> Result<()> {
        let Some(kube::Error::Api(status)) = error else { bail!("not refused by the API server: {error:?}") };
        ensure!(status.message.contains(words), "no {words:?} in {status:?}");
        Ok(())
    };
    let (job, dry) = (cijob(&bench)?, PostParams { dry_run: true, ..PostParams::default() });
    shim.create(&dry, &job).await.context("the shim cannot create a CiJob")?;
    admin.create(&dry, &job).await.context("an administrator cannot create a CiJob")?;
    // A Role that has just been made may not be known to the API server yet; then it is RBAC that refuses.
    let until = tokio::time::Instant::now() + SOON;
    loop {
        let error = stranger.create(&dry, &job).await.err();
        if refused(error, "may create CiJobs").is_ok() {
            break;
        }
        ensure!(tokio::time::Instant::now() < until, "{:?}", stranger.create(&dry, &job).await.err());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // What is there is changed by them only too, and its request by nobody.
    shim.create(&PostParams::default(), &job).await.context("the shim cannot create a CiJob")?;
    let name = job.metadata.name.as_deref().context("no name")?;
    let patch = |change: Value| Patch::Merge(change);
    let (dry, claim) = (
        PatchParams { dry_run: true, ..PatchParams::default() },
        json!({"spec": {"request": {"timeoutSeconds": 1}}}),
    );
    let report = json!({"spec": {"report": {"outcome": "Succeeded"}}});
    refused(
        stranger.patch(name, &dry, &patch(report.clone())).await.err(),
        "may change the spec of a CiJob",
    )?;
    refused(
        shim.patch(name, &dry, &patch(claim.clone())).await.err(),
        "the request of a CiJob never changes",
    )?;
    refused(admin.patch(name, &dry, &patch(claim)).await.err(), "the request of a CiJob never changes")?;
    shim.patch(name, &dry, &patch(report)).await.context("the shim cannot report")?;
    admin.delete(name, &DeleteParams::default()).await.context("cannot delete the CiJob")?;
    let away = ["-n", namespace, "delete", "role,rolebinding", STRANGER];
    ensure!(bench.cluster.kubectl(away).status()?.success(), "cannot take the stranger's Role away");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_reaches_the_agent_of_job_pods_and_nothing_else() -> Result<()> {
    let bench = Installation::join().await?;
    let spec = JobSpec::fresh().image(bench.image("busybox")?).script(["echo running", "sleep 300"]);
    let job = bench.harness()?.start(&spec).await?;
    job.wait_log("running", DEADLINE).await?;
    let pod = bench.cijob_of(spec.id).await?.status.and_then(|status| status.pod).context("no pod")?.name;

    let namespace = bench.job_namespace();
    let client = client_of(&bench.kubeconfig).await?;
    let attach: &[&str] = &[AGENT_PATH, "attach"];
    for (pod, container, command, allowed) in [
        (pod.as_str(), BUILD_CONTAINER, attach, true),
        (pod.as_str(), HELPER_CONTAINER, attach, true),
        (pod.as_str(), BUILD_CONTAINER, &["/bin/sh", "-c", "id"], false),
        (pod.as_str(), BUILD_CONTAINER, &[AGENT_PATH, "serve"], false),
        (pod.as_str(), BUILD_CONTAINER, &[AGENT_PATH, "attach", "more"], false),
        (pod.as_str(), BUILD_CONTAINER, &[AGENT_PATH], false),
        (pod.as_str(), "sidecar", attach, false),
        ("some-other-pod", BUILD_CONTAINER, attach, false),
    ] {
        let command = format!("&command={}", command.join("&command="));
        let url = format!(
            "/api/v1/namespaces/{namespace}/pods/{pod}/exec?container={container}{command}&stdin=true&stdout=true"
        );
        // Admission comes before the upgrade to a stream, which this request does not ask for.
        let request = Request::get(url).body(vec![])?;
        let error =
            client.request_text(request).await.err().context("an exec without an upgrade succeeded")?;
        let kube::Error::Api(status) = error else { anyhow::bail!("not the API server's word: {error:?}") };
        let forbidden = status.code == 403 && status.message.contains("ValidatingAdmissionPolicy");
        assert_eq!(!forbidden, allowed, "{pod} {container} {command}: {status:?}");
    }
    job.abort();
    job.finish(DEADLINE).await?;
    Ok(())
}

/// Law: PID 1 is out of reach for a script of the same user, root included.
#[tokio::test(flavor = "multi_thread")]
async fn a_script_cannot_stop_kill_or_speak_to_the_agent() -> Result<()> {
    let bench = Installation::join().await?;
    let spec = JobSpec::fresh().image(bench.image("debian-git")?).script([
        "test $(id -u) = 0",
        "kill -TERM 1; kill -STOP 1; kill -KILL 1; echo signals sent",
        "if cat /proc/1/mem > /dev/null 2>&1; then echo read memory; exit 9; fi",
        "if ls -l /proc/1/fd 2>/dev/null | grep -q .; then echo read descriptors; exit 9; fi",
        &format!("if echo | {AGENT_PATH} attach > reply 2> error; then grep -q WrongPod reply && exit 9; fi; cat error reply | tr -cd '[:print:]\\n'"),
        &format!("if touch {AGENT_PATH} 2>/dev/null; then echo wrote the agent; exit 9; fi"),
        "echo still here",
    ]);
    let result = bench.harness()?.run(&spec, DEADLINE).await?;
    result.assert_success();
    let log = result.text();
    assert!(log.contains("signals sent") && log.contains("still here"), "{log}");
    assert!(log.contains("peer") || log.contains("not allowed"), "the agent spoke to a script:\n{log}");
    Ok(())
}

/// Variables of the job shadow those that name it; none of them is believed.
#[tokio::test(flavor = "multi_thread")]
async fn variables_change_no_identity() -> Result<()> {
    let bench = Installation::join().await?;
    let spec = JobSpec::fresh()
        .project("group/real", 77)
        .image(bench.image("busybox")?)
        .variable("CI_JOB_ID", "1")
        .variable("CI_PROJECT_PATH", "other/project")
        .variable("CI_JOB_IMAGE", "other-image")
        .variable("CI_JOB_TIMEOUT", "1")
        .script(["echo mine"]);
    let result = bench.harness()?.run(&spec, DEADLINE).await?;
    result.assert_success();
    let request = bench.cijob_of(spec.id).await?.spec.request;
    assert_eq!(
        (request.job.id, request.project.path.as_str(), request.project.id),
        (spec.id, "group/real", 77)
    );
    assert_eq!(request.image.map(|image| image.name).as_deref(), Some(bench.image("busybox")?));
    Ok(())
}
