//! `cargo e2e --provider existing`: a second release in a cluster that has one.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use kube::api::ListParams;
use roadstead_e2e::installation::Installation;

/// `cargo e2e` for this clone with a state folder of its own, and the cluster's tools in PATH.
fn e2e(bench: &Installation, state: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roadstead-e2e"));
    for (name, value) in bench.cluster.environment(Path::new("none")) {
        command.env(name, value);
    }
    // Only the options say which cluster is meant.
    command.env_remove("KUBECONFIG").env_remove("ROADSTEAD_E2E_CLUSTER");
    command.env("ROADSTEAD_E2E_STATE", state).args(["--provider", "existing"]).args(args);
    command
}

async fn run(mut command: Command) -> Result<Output> {
    let running = tokio::task::spawn_blocking(move || {
        command.stdin(Stdio::null()).output().context("cannot run cargo e2e")
    });
    running.await.context("the task failed")?
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|part| String::from_utf8_lossy(part).into_owned()).concat()
}

/// A file with the images that the cluster has, for `--images`.
fn image_list(bench: &Installation) -> Result<String> {
    let path = bench.dir().join("images.txt");
    let lines: Vec<String> =
        bench.cluster.images.iter().map(|(name, reference)| format!("{name} {reference}\n")).collect();
    std::fs::write(&path, lines.concat())?;
    Ok(path.display().to_string())
}

/// Every object of the kinds that a release makes, by kind and name, cluster-wide ones and namespaces.
fn shared_objects(bench: &Installation) -> Result<Vec<String>> {
    let kinds = "namespaces,customresourcedefinitions,clusterroles,clusterrolebindings,\
                 validatingadmissionpolicies,validatingadmissionpolicybindings,jobclasses";
    let output =
        bench.cluster.kubectl(["get", kinds, "-o", "name"]).output().context("cannot run kubectl")?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_release_beside_the_first_takes_nothing_and_leaves_nothing() -> Result<()> {
    let bench = Installation::join().await?;
    let state = bench.dir().join("state");
    let (kubeconfig, images) = (bench.cluster.kubeconfig.display().to_string(), image_list(&bench)?);
    let options = ["--kubeconfig", &kubeconfig, "--images", &images];
    let class = bench.classes().get("default").await.context("no class default")?;

    let demo = run(e2e(&bench, &state, &[&["demo"], options.as_slice()].concat())).await?;
    let said = text(&demo);
    let own: Vec<String> =
        shared_objects(&bench)?.into_iter().filter(|name| name.contains("roadstead-e2e-")).collect();
    // Taken down before anything is judged, so that a failure leaves nothing either.
    let down = run(e2e(&bench, &state, &["down"])).await?;
    ensure!(demo.status.success(), "the demo failed:\n{said}");
    assert!(
        said.contains("Job succeeded") && said.contains("ok: two high and two low waters a day"),
        "{said}"
    );
    for kind in ["namespace/", "clusterrole.", "validatingadmissionpolicy.", "jobclass."] {
        assert!(own.iter().any(|name| name.starts_with(kind)), "no {kind} in {own:?}");
    }
    assert!(!own.iter().any(|name| name.starts_with("customresourcedefinition")), "{own:?}");

    ensure!(down.status.success(), "down failed:\n{}", text(&down));
    let left: Vec<String> = shared_objects(&bench)?.into_iter().filter(|name| own.contains(name)).collect();
    assert!(left.is_empty(), "down left {left:?}");
    assert!(!state.join("clusters").read_dir()?.any(|entry| entry.is_ok()), "down left its folder");
    // The first release has what it had.
    let after = bench.classes().get("default").await.context("the class default is gone")?;
    assert_eq!((after.metadata.uid, after.spec), (class.metadata.uid, class.spec));
    bench.cijobs().list(&ListParams::default()).await.context("CiJobs are not served any more")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_account_may_not_do_is_told_before_anything_is_made() -> Result<()> {
    let bench = Installation::join().await?;
    let state = bench.dir().join("state");
    // The shim's account may do next to nothing.
    let (kubeconfig, images) = (bench.kubeconfig.display().to_string(), image_list(&bench)?);
    let up = run(e2e(&bench, &state, &["up", "--kubeconfig", &kubeconfig, "--images", &images])).await?;
    assert!(!up.status.success());
    let said = text(&up);
    assert!(said.contains("namespaces") && said.contains("clusterroles.rbac.authorization.k8s.io"), "{said}");
    assert!(!said.contains("helm upgrade"), "{said}");
    Ok(())
}
