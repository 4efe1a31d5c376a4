//! What a class says of the pods of its jobs, beyond resources and nodes.

use anyhow::{Context as _, Result};
use roadstead_crds::Reason;
use roadstead_crds::request::PullPolicy;
use roadstead_e2e::coordinator::{Image, JobSpec};
use roadstead_e2e::installation::Installation;
use serde_json::json;

use crate::{DEADLINE, SOON};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_finds_what_the_class_gives_its_pod() -> Result<()> {
    let bench = Installation::join().await?;
    let class = bench
        .class("e2e-pod", |class| {
            class.spec.pod = serde_json::from_value(json!({
                "labels": {"example.com/team": "ci"},
                "annotations": {"example.com/note": "from the class"},
                "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["registry.internal"]}],
                "dnsConfig": {"options": [{"name": "attempts", "value": "4"}]},
                "sharedMemorySize": "96Mi",
                "volumes": [
                    // Every namespace has this one.
                    {"name": "ca", "configMap": {"name": "kube-root-ca.crt"}},
                    {"name": "work", "emptyDir": {"sizeLimit": "200Mi"}},
                    {"name": "tools", "emptyDir": {}},
                ],
                "volumeMounts": [
                    {"name": "ca", "mountPath": "/etc/company", "readOnly": true},
                    {"name": "work", "mountPath": "/builds"},
                    {"name": "tools", "mountPath": "/opt/tools", "containers": ["build"]},
                ],
                "overlay": {"spec": {"tolerations": [{"key": "a"}, {"key": "b", "operator": "Exists"}]}},
                "jsonPatch": [{"op": "remove", "path": "/spec/tolerations/0"}],
            }))
            .unwrap_or_default();
        })
        .await?;
    let judged = bench.class_judged(&class, SOON).await?;
    let problems: Vec<_> = judged.status.iter().flat_map(|status| &status.conditions).collect();
    let spec = JobSpec::fresh().image(bench.image("busybox")?).script([
        "grep registry.internal /etc/hosts",
        "grep attempts:4 /etc/resolv.conf",
        "head -n 1 /etc/company/ca.crt",
        "touch /etc/company/x || echo read-only",
        "df -k /dev/shm | awk 'END {print \"shm\", $2}'",
        "touch /opt/tools/x && pwd",
        "grep -c ' /builds ' /proc/mounts",
    ]);
    let harness = bench.harness_of(&class)?;
    let job = harness.start(&spec).await?;
    let result = job.finish(DEADLINE).await?;
    result.assert_success();
    let log = result.text();
    for words in ["192.0.2.7", "options", "-----BEGIN CERTIFICATE-----", "read-only", "shm 98304", "/builds/"]
    {
        assert!(log.contains(words), "no {words:?} in\n{log}\n{problems:#?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn images_users_and_pull_policies_are_the_classs_to_allow() -> Result<()> {
    let bench = Installation::join().await?;
    let busybox = bench.image("busybox")?;
    let class = bench
        .class("e2e-images", |class| {
            class.spec.image.allowed = vec![busybox.to_owned()];
            class.spec.image.allowed_users = vec!["1000".to_owned()];
            class.spec.image.allowed_pull_policies = vec![PullPolicy::IfNotPresent, PullPolicy::Never];
        })
        .await?;
    let harness = bench.harness_of(&class)?;
    let allowed = Image::new(busybox).pull_policy(["always", "if-not-present"]);
    let spec = JobSpec::fresh().image_with(allowed).script(["echo it runs"]);
    harness.run(&spec, DEADLINE).await?.assert_success();
    let refused = [
        (
            Image::new("registry.example/other:1"),
            "does not allow the image \"registry.example/other:1\", only",
        ),
        (
            Image::new(busybox).user("0"),
            "does not allow the user 0, only 1000: change `image:kubernetes:user`",
        ),
        (
            Image::new(busybox).pull_policy(["always"]),
            "does not allow the pull policy Always, only IfNotPresent, Never: change `image:pull_policy`",
        ),
    ];
    for (image, words) in refused {
        let spec = JobSpec::fresh().image_with(image).script(["echo not reached"]);
        let result = harness.run(&spec, DEADLINE).await?;
        result.assert_script_failure(1);
        assert!(result.text().contains(words), "no {words:?} in\n{}", result.text());
        let status = bench.cijob_of(spec.id).await?.status.context("no status")?;
        assert_eq!((status.reason, status.pod), (Some(Reason::OverrideRefused), None));
    }
    Ok(())
}

/// The test images are on the node and in no registry.
#[tokio::test(flavor = "multi_thread")]
async fn where_one_pull_policy_brings_no_image_the_next_one_is_tried() -> Result<()> {
    let bench = Installation::join().await?;
    let class = bench
        .class("e2e-pull", |class| {
            class.spec.image.pull_policies = vec![PullPolicy::Always, PullPolicy::IfNotPresent];
        })
        .await?;
    let spec = JobSpec::fresh().image(bench.image("busybox")?).script(["echo it runs"]);
    let harness = bench.harness_of(&class)?;
    let result = harness.run(&spec, DEADLINE).await?;
    result.assert_success();
    let words = "Another pod tries it with the pull policy IfNotPresent.";
    assert!(result.text().contains(words), "no {words:?} in\n{}", result.text());
    let status = bench.cijob_of(spec.id).await?.status.context("no status")?;
    assert_eq!(
        (status.pod.map(|pod| pod.attempt), status.pull_policies),
        (Some(2), vec![PullPolicy::IfNotPresent])
    );
    bench.wait_no_pods(spec.id, SOON).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_that_gives_no_pod_says_so_before_any_job() -> Result<()> {
    let bench = Installation::join().await?;
    let table = [
        (
            json!({"overlay": {"spec": {"nodeSelektor": {"a": "b"}}}}),
            "there is no field `spec.nodeSelektor` in a pod",
        ),
        (
            json!({"containerSecurityContext": {"privileged": true}}),
            "container \"helper\" is privileged, and the class does not say that it accepts that",
        ),
        (
            json!({"volumeMounts": [{"name": "none", "mountPath": "/x"}]}),
            "pod.volumeMounts: there is no volume \"none\" in pod.volumes",
        ),
    ];
    for (pod, words) in table {
        let class = bench
            .class("e2e-no-pod", |class| class.spec.pod = serde_json::from_value(pod).unwrap_or_default())
            .await?;
        let judged = bench.class_judged(&class, SOON).await?;
        let status = judged.status.context("no status")?;
        let valid = status.conditions.iter().find(|one| one.type_ == "Valid").context("not judged")?;
        assert_eq!(valid.status, "False");
        assert!(valid.message.contains(words), "no {words:?} in {}", valid.message);
        let spec = JobSpec::fresh().image(bench.image("busybox")?).script(["echo not reached"]);
        let harness = bench.harness_of(&class)?;
        let result = harness.run(&spec, DEADLINE).await?;
        result.assert_system_failure();
        assert!(result.text().contains(words), "no {words:?} in\n{}", result.text());
    }
    Ok(())
}
