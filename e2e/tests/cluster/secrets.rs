//! A masked variable is in the pod's processes and nowhere else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use kube::api::ListParams;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use roadstead_crds::labels::{BUILD_CONTAINER, HELPER_CONTAINER, JOB_ID};
use roadstead_e2e::coordinator::JobSpec;
use roadstead_e2e::installation::Installation;

use crate::DEADLINE;

fn text_of(mut command: Command) -> Result<String> {
    let output = command.output().context("cannot run a command")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

/// Every file below a folder.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_masked_value_is_nowhere_but_in_the_job() -> Result<()> {
    let bench = Installation::join().await?;
    let canary = format!("canary-{}", JobSpec::fresh().id);
    let file_canary = format!("file-{canary}");
    // The control: a value that must be found, so that a search of the wrong place fails the test.
    let witness = format!("witness-{}", JobSpec::fresh().id);
    let spec = JobSpec::fresh()
        .name(&witness)
        .image(bench.image("debian-git")?)
        .masked("DEPLOY_TOKEN", &canary)
        .file("DEPLOY_KEY", &file_canary)
        .script([
            "test -n \"$DEPLOY_TOKEN\" && test ${#DEPLOY_TOKEN} -gt 10 && echo has the token",
            "test -s \"$DEPLOY_KEY\" && echo has the key",
            "exit 7",
        ]);
    let result = bench.harness()?.run(&spec, DEADLINE).await?;
    result.assert_script_failure(7);
    assert!(result.text().contains("has the token") && result.text().contains("has the key"));

    let host = bench.cluster.host_parts()?;
    let mut witnesses = 0;
    for path in files(&host.etcd.data)? {
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        witnesses += usize::from(contains(&content, &witness));
        for secret in [&canary, &file_canary, &spec.token] {
            assert!(!contains(&content, secret), "{secret} is in {}", path.display());
        }
    }
    assert!(witnesses > 0, "the search of etcd did not even find the job's name");

    let operator = format!("deploy/{}", bench.release().operator());
    let places = [
        ("Events", text_of(bench.cluster.kubectl(["get", "events", "-A", "-o", "json"]))?),
        (
            "CiJobs",
            text_of(bench.cluster.kubectl(["get", "cij", "-n", bench.job_namespace(), "-o", "json"]))?,
        ),
        (
            "the operator's log",
            text_of(bench.cluster.kubectl(["logs", "-n", bench.system_namespace(), &operator]))?,
        ),
        ("the shim's log at level debug", fs::read_to_string(bench.shim_log()).context("no shim log")?),
        ("the audit log", fs::read_to_string(&host.audit_log).context("no audit log")?),
    ];
    for (place, text) in places {
        assert!(!text.trim().is_empty(), "{place}: nothing to search");
        for secret in [&canary, &file_canary, &spec.token] {
            assert!(!text.contains(secret.as_str()), "{secret} is in {place}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_masked_value_in_a_field_of_the_object_refuses_the_job_by_the_fields_name() -> Result<()> {
    let bench = Installation::join().await?;
    let spec = JobSpec::fresh()
        .masked("REGISTRY_SECRET", "very-secret-path")
        .image("registry.example/very-secret-path/image:1")
        .script(["echo not reached"]);
    let result = bench.harness()?.run(&spec, DEADLINE).await?;
    result.assert_script_failure(1);
    let log = result.text();
    assert!(log.contains("image"), "{log}");
    assert!(!log.contains("very-secret-path"), "{log}");
    assert!(bench.cijobs_of(spec.id).await?.is_empty());
    Ok(())
}

/// Begins the process that has to be found: it has the token in its environment and in its command line.
const PLANT: &str = r#"mkfifo hold
printf '%s' "$DEPLOY_TOKEN" >needle
sh -c 'read word <hold' planted "$DEPLOY_TOKEN" &
planted=$!
until grep -aqs planted /proc/$planted/cmdline; do sleep 0.05; done"#;

/// Searches what `/proc` shows of every process. The one that searches does not have the token itself.
const SEARCH: &str = r#"for process in /proc/[0-9]*; do
  pid=${process#/proc/}
  if [ "$pid" = "$planted" ]; then who=planted; else who="process $(tr '\0' ' ' <$process/cmdline)"; fi
  for file in environ cmdline; do
    if env -i "PATH=$PATH" grep -aqsFf needle $process/$file; then echo "found in $file of $who"; fi
  done
done"#;

/// Tries to look into every process of the agent that is to be seen, and into itself.
const PRY: &str = r#"for process in /proc/[0-9]*; do
  words=$(tr '\0' ' ' 2>/dev/null <$process/cmdline) || continue
  case $words in *stage-agent*) ;; *) continue ;; esac
  echo "agent $words"
  for file in environ maps mem; do
    if head -c 1 $process/$file >/dev/null 2>&1; then echo "opened $file of an agent"; fi
  done
done
for file in environ maps; do
  if head -c 1 /proc/$$/$file >/dev/null 2>&1; then echo "opened $file of the script"; fi
done"#;

/// Lets a process crash that has the token in its memory: as scripts are started, and where the script wants a core file.
const CRASH: &str = r#"mkdir crash && cd crash
sh -c 'kill -SEGV $$' || true
echo "core files: $(ls | wc -l)"
ulimit -c unlimited
sh -c 'kill -SEGV $$' || true
for core in core*; do if grep -aqsFf ../needle $core; then echo "token in a core file that was wanted"; fi; done
cd .. && rm -r crash"#;

/// The processes of this machine that are in the pod: id, command line and environment.
fn processes_of(pod_uid: &str) -> Result<Vec<(i32, String, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list /proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        // It may be gone by now.
        let Ok(groups) = fs::read_to_string(path.join("cgroup")) else { continue };
        if !groups.contains(pod_uid) && !groups.contains(&pod_uid.replace('-', "_")) {
            continue;
        }
        let read = |file: &str| fs::read(path.join(file));
        let (Ok(words), Ok(environment)) = (read("cmdline"), read("environ")) else { continue };
        found.push((pid, String::from_utf8_lossy(&words).replace('\0', " "), environment));
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_scripts_own_processes_show_a_masked_value() -> Result<()> {
    let bench = Installation::join().await?;
    let canary = format!("canary-{}", JobSpec::fresh().id);
    let spec = JobSpec::fresh().image(bench.image("debian-git")?).masked("DEPLOY_TOKEN", &canary).script([
        PLANT,
        SEARCH,
        PRY,
        CRASH,
        "echo lo''oked; wait $planted || echo planted was ended",
    ]);
    let job = bench.harness()?.start(&spec).await?;
    job.wait_log("looked", DEADLINE).await?;

    // What the script has seen.
    let log = String::from_utf8_lossy(&job.log()).into_owned();
    let said = |start: &str| -> Vec<&str> {
        log.lines().filter_map(|line| line.trim_end().strip_prefix(start)).collect()
    };
    assert_eq!(said("found in "), ["environ of planted", "cmdline of planted"], "{log}");
    assert_eq!(said("opened "), ["environ of the script", "maps of the script"], "{log}");
    let agents = said("agent ");
    let in_container = |name: &str| {
        let option = format!("--container {name} ");
        agents.iter().filter(|words| words.contains(&option)).count()
    };
    assert_eq!((in_container(BUILD_CONTAINER), in_container(HELPER_CONTAINER)), (1, 0), "{log}");
    assert_eq!(said("core files: "), ["0"], "{log}");
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").context("no pattern of core files")?;
    if pattern.trim() == "core" {
        // Anywhere else the node keeps it out of the script's sight.
        assert_eq!(said("token in a core file"), [" that was wanted"], "{log}");
    }

    // What root on the node sees.
    let pods = bench.pods().list(&ListParams::default().labels(&format!("{JOB_ID}={}", spec.id))).await?;
    let uid = pods.items.first().and_then(|pod| pod.metadata.uid.as_deref()).context("no pod of the job")?;
    let processes = processes_of(uid)?;
    for name in [BUILD_CONTAINER, HELPER_CONTAINER] {
        let option = format!(" --container {name} ");
        let agent = processes
            .iter()
            .find(|(_, words, _)| words.split(' ').nth(1) == Some("serve") && words.contains(&option));
        let (_, _, environment) = agent.with_context(|| format!("no agent in {name}"))?;
        assert!(contains(environment, uid), "not the agent's environment");
    }
    let showing: Vec<_> = processes
        .iter()
        .filter(|(_, words, environment)| words.contains(&canary) || contains(environment, &canary))
        .collect();
    let [(planted, words, environment)] = showing.as_slice() else { panic!("{showing:?}") };
    assert!(words.contains("planted") && words.contains(&canary) && contains(environment, &canary));
    kill(Pid::from_raw(*planted), Signal::SIGKILL).context("cannot end what was planted")?;
    let result = job.finish(DEADLINE).await?;
    result.assert_success();
    assert!(result.text().contains("planted was ended"), "{}", result.text());
    Ok(())
}
