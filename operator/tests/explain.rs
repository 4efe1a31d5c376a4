//! `roadstead-operator explain`, the binary itself: what it prints, and how it exits.
// Clippy takes only functions marked as tests for tests.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

struct Explained {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn explain(args: &[&str], job: &str) -> Explained {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roadstead-operator"));
    command.env_clear().env("KUBECONFIG", "/nonexistent/kubeconfig").arg("explain").args(args);
    let mut child = command
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/explain"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A child that does not get to reading is what some tests are about.
    let _ = child.stdin.take().unwrap().write_all(job.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Explained { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// The request of a job, and nothing else of it.
fn job(request: &str) -> String {
    format!("apiVersion: roadstead.dev/v1alpha1\nkind: CiJob\nspec:\n  request: {request}\n")
}

fn explained(request: &str) -> Explained {
    explain(&["--class", "classes.yaml"], &job(request))
}

#[test]
fn a_job_that_is_admitted() {
    let found = explained(
        r#"{tags: [gpu], timeoutSeconds: 600, image: {name: "cuda:13"}, overrides: {KUBERNETES_CPU_REQUEST: "16"}}"#,
    );
    assert_eq!((found.code, found.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(found.stdout);
    // All of it is YAML, the pod is the one document.
    let documents: Vec<serde_json::Value> = serde_yaml::Deserializer::from_str(&found.stdout)
        .map(|document| serde::Deserialize::deserialize(document).unwrap())
        .collect();
    let kinds: Vec<_> = documents.iter().filter_map(|document| document["kind"].as_str()).collect();
    assert_eq!(kinds, ["Pod"]);
}

#[test]
fn a_job_that_is_refused() {
    let found = explained("{tags: [gpu, arm], className: gpu}");
    assert_eq!((found.code, found.stderr.as_str()), (Some(1), ""));
    insta::assert_snapshot!(found.stdout);
    // What the class chosen does not grant is a refusal too.
    let found = explained("{tags: [gpu]}");
    assert_eq!(found.code, Some(1));
    assert!(
        found.stdout.contains("# The job names no image and JobClass \"gpu\" has no default one"),
        "{}",
        found.stdout
    );
}

#[test]
fn the_fitting_class_is_named_whatever_is_left_out_of_the_job() {
    for (request, class) in [
        ("{}", "default"),
        ("{tags: [linux]}", "default"),
        ("{project: {path: shop/web}, ref: {protected: true}, image: {name: x}}", "deploy"),
        ("{project: {path: shop/web}, image: {name: x}}", "default"),
        ("{className: by-name, image: {name: x}}", "by-name"),
    ] {
        let found = explained(request);
        assert_eq!(found.code, Some(0), "{request}: {}{}", found.stdout, found.stderr);
        let words = format!("# JobClass \"{class}\" admits the job: ");
        assert!(found.stdout.contains(&words), "{request}: {}", found.stdout);
    }
}

#[test]
fn the_namespace_can_be_chosen() {
    let found = explain(&["--class=classes.yaml", "--namespace=other"], &job("{}"));
    assert!(
        found.stdout.contains("namespace other: ") && found.stdout.contains("  namespace: other\n"),
        "{}",
        found.stdout
    );
}

#[test]
fn what_was_a_job_of_a_cluster_is_decided_anew() {
    let spent = "{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [{\"apiVersion\": \"roadstead.dev/v1alpha1\", \"kind\": \"CiJob\",
        \"metadata\": {\"name\": \"cij-7-0123456789\", \"namespace\": \"ci-b\", \"uid\": \"3f2a91bc-0000-4000-8000-000000000000\", \"managedFields\": []},
        \"spec\": {\"hold\": true, \"request\": {\"server\": \"https://gitlab.example\", \"job\": {\"id\": 7, \"name\": \"t\", \"stage\": \"test\"},
            \"project\": {\"id\": 5, \"path\": \"g/p\"}, \"ref\": {\"name\": \"main\", \"type\": \"branch\", \"sha\": \"\"},
            \"timeoutSeconds\": 60, \"requestedAt\": \"2026-01-02T03:04:05.000006Z\"},
            \"report\": {\"outcome\": \"Succeeded\"}},
        \"status\": {\"phase\": \"Failed\", \"class\": \"gone\", \"message\": \"long ago\"}}]}";
    let found = explain(&["--class=classes.yaml"], spent);
    assert_eq!(found.code, Some(0), "{}{}", found.stdout, found.stderr);
    for words in [
        "its tags are not known",
        "\"default\" admits the job",
        "name: cij-7-0123456789-00000000-1",
        "namespace: ci-b",
    ] {
        assert!(found.stdout.contains(words), "no {words}: {}", found.stdout);
    }
}

#[test]
fn what_cannot_be_used_is_named() {
    let class = |text: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        let found = explain(&["--class", &path], &job("{}"));
        Explained { stderr: found.stderr.replace(&path, "FILE"), ..found }
    };
    let head = "apiVersion: roadstead.dev/v1alpha1\nkind: JobClass\nmetadata: {name: a}\n";
    let twice = ["--class=classes.yaml", "--class=classes.yaml"];
    for (found, words) in [
        (
            explained("{tags: gpu}"),
            "the job is not a valid CiJob:\n- spec.request.tags must be an array, not a string\n",
        ),
        (explained("{tags: [gpu], tgas: []}"), "- spec.request.tgas is not known; there is className, "),
        (explained("{timeoutSeconds: 0}"), "- spec.request.timeoutSeconds is less than 1\n"),
        (explain(&["--class=classes.yaml"], ""), "the job is empty: it must be a CiJob in YAML or JSON\n"),
        (explain(&["--class=classes.yaml"], "a: ["), "the job is not YAML: "),
        (
            explain(&["--class=classes.yaml"], "- a"),
            "the job is not a CiJob: it needs `apiVersion: roadstead.dev/v1alpha1` and `kind: CiJob`\n",
        ),
        (
            explain(&["--class=classes.yaml"], &[job("{}"), job("{}")].join("---\n")),
            "the job has 2 documents: it must be one CiJob\n",
        ),
        (
            explain(&["--class=classes.yaml"], r#"{"command":"run","script":["x"]}"#),
            ": let `executor-shim cijob` make one of it\n",
        ),
        (
            explain(&["--class=classes.yaml"], r#"{"id":1,"job_info":{}}"#),
            ": let `executor-shim cijob` make one of it\n",
        ),
        (explain(&["--class=classes.yaml", "nowhere.yaml"], ""), "cannot read nowhere.yaml: "),
        (explain(&["--class=nowhere.yaml"], &job("{}")), "cannot read nowhere.yaml: "),
        (
            explain(&[], &job("{}")),
            "there are no classes: name files with --class, or take the cluster's with --server\n",
        ),
        (explain(&twice, &job("{}")), "JobClass \"default\" is given twice\n"),
        (class(""), "FILE has no JobClass in it\n"),
        (class(head), "FILE, JobClass \"a\" is not what a cluster takes:\n- spec is missing\n"),
        (class("kind: Pod"), "FILE, document 1 is a Pod, not a JobClass (roadstead.dev/v1alpha1)\n"),
        (
            class(&format!("{head}spec: {{piority: 1}}")),
            "FILE, JobClass \"a\" is not what a cluster takes:\n- spec.piority is not known; there is ",
        ),
        (
            class(&format!("{head}spec: {{priority: high}}")),
            "- spec.priority must be an integer, not a string\n",
        ),
        (class(&format!("{head}spec: {{mode: Try}}")), "- spec.mode must be one of Enforce, Audit\n"),
        (
            class(&format!("{head}spec: {{timeouts: {{jobSeconds: 60}}}}")),
            "- spec.timeouts.jobSeconds is less than 600\n",
        ),
        (
            class(&format!(
                "{head}spec: {{placement: {{rules: [{{topologySpreadConstraints: [{{maxSkew: 1, whenUnsatisfiable: DoNotSchedule}}]}}]}}}}"
            )),
            "- spec.placement.rules[0].topologySpreadConstraints[0].topologyKey is missing\n",
        ),
        (
            class(&format!("{head}spec: {{match: {{tags: [], runUntagged: false}}}}")),
            "it would take no job at all\n",
        ),
        (
            class(&format!("{head}spec: {{resources: {{build: {{requests: {{cpu: many}}}}}}}}")),
            "must be Kubernetes quantities such as 500m or 2Gi, and not negative\n",
        ),
    ] {
        assert_eq!((found.code, found.stdout.as_str()), (Some(2), ""), "{}", found.stderr);
        assert!(found.stderr.contains(words), "no {words:?} in {}", found.stderr);
    }
}

#[test]
fn a_cluster_that_is_not_there_is_neither_yes_nor_no() {
    let found = explain(&["--server"], &job("{}"));
    assert_eq!((found.code, found.stdout.as_str()), (Some(3), ""));
    assert!(found.stderr.starts_with("cannot find the cluster: "), "{}", found.stderr);
}

/// The classes that the documentation shows: each is what a cluster takes, and does what its first lines say.
#[test]
fn the_classes_of_the_documentation_work() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/classes");
    let protected = "project: {path: shop/web, id: 1}, ref: {name: main, protected: true}";
    let unprotected = "project: {path: shop/web, id: 1}, ref: {name: feature}";
    let image = "image: {name: x}";
    let table = [
        ("gpu.yaml", format!("tags: [gpu], {image}"), Some("nvidia.com/gpu.present: 'true'")),
        ("gpu.yaml", format!("tags: [gpu, arm64], {image}"), None),
        ("gpu.yaml", image.to_owned(), None),
        ("deploy.yaml", format!("tags: [deploy], {protected}"), Some("serviceAccountName: deployer")),
        ("deploy.yaml", format!("tags: [deploy], {unprotected}"), None),
        ("deploy.yaml", format!("tags: [deploy], pipelineSource: merge_request_event, {protected}"), None),
        ("spot.yaml", format!("tags: [spot, arm64], {image}"), Some("kubernetes.io/arch: arm64")),
        (
            "spot.yaml",
            format!("tags: [spot], {image}, overrides: {{KUBERNETES_CPU_REQUEST: '99'}}"),
            Some("cpu: '8'"),
        ),
        (
            "monorepo.yaml",
            "tags: [large], project: {path: group/monorepo, id: 1}".to_owned(),
            Some("node.example.com/pool: large"),
        ),
        ("monorepo.yaml", "tags: [large], project: {path: group/other, id: 1}".to_owned(), None),
        ("hardened.yaml", unprotected.to_owned(), Some("runtimeClassName: gvisor")),
        ("hardened.yaml", protected.to_owned(), None),
    ];
    let reference = std::fs::read_to_string(folder.join("../jobclass.md")).unwrap();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(table.iter().any(|(file, ..)| *file == name), "{name} is not tried");
        assert!(reference.contains(&format!("(classes/{name})")), "jobclass.md does not lead to {name}");
    }
    for (file, request, pod) in table {
        let path = folder.join(file);
        let found = explain(&["--class", path.to_str().unwrap()], &job(&format!("{{{request}}}")));
        assert_eq!(
            found.code,
            Some(i32::from(pod.is_none())),
            "{file} {request}: {}{}",
            found.stdout,
            found.stderr
        );
        let words = pod.unwrap_or("No JobClass takes this job");
        assert!(found.stdout.contains(words), "no {words} by {file}: {}", found.stdout);
    }
}
