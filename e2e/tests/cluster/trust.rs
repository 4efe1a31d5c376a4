//! What the accounts may do, and what a script cannot.

use std::process::Output;

use anyhow::{Context as _, Result};
use http::Request;
use roadstead_crds::labels::{AGENT_PATH, BUILD_CONTAINER, HELPER_CONTAINER};
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::installation::{Installation, client_of};

use crate::DEADLINE;

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
