//! The CI files do what CONTRIBUTING.md asks of a person, and nothing that is written down nowhere.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_yaml::Value;

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(name: &str) -> Value {
    serde_yaml::from_str(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The commands of CONTRIBUTING.md: what stands behind a prompt, without the remark.
fn documented() -> BTreeSet<String> {
    let text = read("CONTRIBUTING.md");
    let commands = text.lines().filter_map(|line| line.strip_prefix("$ "));
    commands.map(|line| line.split(" #").next().unwrap_or_default().trim().to_owned()).collect()
}

/// The first block of CONTRIBUTING.md: what has to pass before a change goes in.
fn gates() -> Vec<String> {
    let text = read("CONTRIBUTING.md");
    let block = text.split("## Before a change goes in").nth(1).unwrap().split("```").nth(1).unwrap();
    let lines = block.lines().filter_map(|line| line.strip_prefix("$ "));
    lines.map(|line| line.split(" #").next().unwrap().trim().to_owned()).collect()
}

fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => text.lines().map(str::to_owned).collect(),
        Value::Sequence(items) => items.iter().flat_map(strings).collect(),
        _ => panic!("not a command: {value:?}"),
    }
}

/// The steps of all jobs of the workflow.
fn github_steps() -> Vec<Value> {
    let workflow = yaml(".github/workflows/ci.yml");
    let jobs = workflow["jobs"].as_mapping().unwrap();
    jobs.values().flat_map(|job| job["steps"].as_sequence().unwrap().clone()).collect()
}

fn github() -> Vec<String> {
    github_steps()
        .iter()
        .filter(|step| !step["run"].is_null())
        .flat_map(|step| strings(&step["run"]))
        .collect()
}

fn gitlab() -> Vec<String> {
    let file = yaml(".gitlab-ci.yml");
    let jobs = file.as_mapping().unwrap().values();
    jobs.filter(|job| !job["script"].is_null()).flat_map(|job| strings(&job["script"])).collect()
}

#[test]
fn every_command_of_the_ci_files_is_documented() {
    let documented = documented();
    for (file, commands) in [("GitHub", github()), ("GitLab", gitlab())] {
        assert!(commands.len() >= 4, "{file}: {commands:?}");
        for command in commands {
            assert!(documented.contains(&command), "{file}: `{command}` is not in CONTRIBUTING.md");
        }
    }
}

/// Tests on a cluster may run on another provider's, and a dedicated action checks the dependencies.
#[test]
fn every_gate_is_in_the_ci_files() {
    let actions = serde_yaml::to_string(&github_steps()).unwrap();
    for gate in gates() {
        let runs = |commands: &[String]| commands.iter().any(|command| command.starts_with(&gate));
        let by_action = gate == "cargo deny check" && actions.contains("cargo-deny-action");
        assert!(runs(&github()) || by_action, "GitHub does not run `{gate}`");
        // `.ci/run` runs the tests of the cluster, the one of the chart among them.
        let by_script = gate == "cargo e2e test" || gate.starts_with("helm lint");
        assert!(runs(&gitlab()) || by_script && gitlab().contains(&".ci/run".to_owned()), "GitLab: `{gate}`");
    }
}

#[test]
fn the_script_for_a_bare_machine_runs_documented_commands() {
    let documented = documented();
    let script = read(".ci/run");
    let commands: Vec<&str> = script.lines().filter(|line| line.starts_with("cargo ")).collect();
    assert!(commands.len() >= 3, "{commands:?}");
    for command in commands {
        assert!(documented.contains(command), "`{command}` is not in CONTRIBUTING.md");
    }
}

#[test]
fn actions_and_images_have_versions() {
    for step in github_steps() {
        if let Some(action) = step["uses"].as_str() {
            let version = action.rsplit_once('@').map(|(_, version)| version);
            assert!(version.is_some_and(|version| version.starts_with('v')), "{action}");
        }
    }
    let image = yaml(".gitlab-ci.yml")["default"]["image"].as_str().unwrap().to_owned();
    let toolchain = read("rust-toolchain.toml");
    let channel =
        toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
    let minor = channel.rsplit_once('.').unwrap().0;
    assert!(image.starts_with(&format!("rust:{minor}-")), "{image} is not of Rust {channel}");
}

/// The versions that are tested are those that the tools of the host provider have.
#[test]
fn helm_is_the_pinned_one() {
    let go_mod = read("e2e/tools/helm/go.mod");
    let pinned = go_mod.split_whitespace().skip_while(|word| *word != "helm.sh/helm/v3").nth(1).unwrap();
    for step in github_steps() {
        if step["uses"].as_str().is_some_and(|action| action.contains("setup-helm")) {
            assert_eq!(step["with"]["version"].as_str(), Some(pinned));
        }
    }
}
