//! `roadstead-operator explain --server`, in the operator's own pod, with its account.

use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use kube::api::ListParams;
use roadstead_crds::labels;
use roadstead_e2e::installation::Installation;
use serde_json::{Value, json};

use crate::SOON;

/// The exit code and what it printed.
fn explain(bench: &Installation, job: &Value) -> Result<(Option<i32>, String)> {
    let release = bench.release();
    let operator = format!("deployment/{}", release.operator());
    let exec = ["exec", "--stdin", "--namespace", &release.namespace, &operator, "--"];
    let mut kubectl = bench.cluster.kubectl(exec);
    kubectl.args(["roadstead-operator", "explain", "--server"]);
    let mut child = kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(job.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
}

fn job(bench: &Installation, class: &str) -> Value {
    json!({"apiVersion": "roadstead.dev/v1alpha1", "kind": "CiJob",
        "metadata": {"namespace": bench.job_namespace()},
        "spec": {"request": {"className": class, "image": {"name": "debian:12"}}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_is_asked_whether_it_would_take_the_pod() -> Result<()> {
    let bench = Installation::join().await?;
    let class = bench.class("e2e-explain", |_| {}).await?;
    let (code, text) = explain(&bench, &job(&bench, &class))?;
    assert_eq!(code, Some(0), "{text}");
    for words in
        [format!("JobClass \"{class}\" admits the job"), "schedulerName: default-scheduler".to_owned()]
    {
        assert!(text.contains(&words), "no {words:?} in\n{text}");
    }
    let overlay = json!({"spec": {"hostNetwork": true}});
    let forbidden = bench
        .class("e2e-explain-host", |class| class.spec.pod.overlay = overlay.as_object().cloned())
        .await?;
    bench.class_judged(&forbidden, SOON).await?;
    let (code, text) = explain(&bench, &job(&bench, &forbidden))?;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("violates PodSecurity") && text.contains("hostNetwork"), "{text}");
    for class in [class, forbidden] {
        let of_class = ListParams::default().labels(&format!("{}={class}", labels::CLASS));
        assert!(bench.pods().list(&of_class).await?.items.is_empty(), "it is a dry run");
    }
    Ok(())
}
