//! `cargo e2e demo`: one real job, as a user would see it.

use std::fmt::Write as _;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result};
use roadstead_crds::CiJob;

use crate::cluster::Cluster;
use crate::coordinator::JobSpec;
use crate::exec::capture;
use crate::gitrepo::{Commit, GitRepo};
use crate::harness::{JobResult, RunningJob};
use crate::installation::Installation;
use crate::progress::{Progress, output};

const DEADLINE: Duration = Duration::from_mins(5);

const BUILD: &str = "\
#!/bin/sh
set -e
awk -F, -f tides.awk levels.csv > tides.txt
echo \"built tides.txt: $(wc -l < tides.txt) lines\"
";

const LEVELS: &str = "time,metres\n00:00,1.2\n06:00,4.8\n12:00,1.1\n18:00,4.9\n";

const TIDES: &str = "\
NR > 1 { printf \"%s  %-5s %.1f m\\n\", $1, ($2 > 3 ? \"high\" : \"low\"), $2 }
";

const CHECK: &str = "\
#!/bin/sh
set -e
test \"$(grep -c high \"$1\")\" = 2
test \"$(grep -c low \"$1\")\" = 2
echo \"ok: two high and two low waters a day\"
";

/// Runs the job and prints its log, its object and where its time went.
///
/// # Errors
/// When the job does not succeed, or the cluster does not answer.
pub async fn run(progress: Progress, cluster: Cluster) -> Result<()> {
    let installation = Installation::of(cluster).await?;
    let repository = repository(&installation)?;
    let served = installation.coordinator.serve("harbour/tides", &repository);
    let spec = JobSpec::fresh()
        .project("harbour/tides", 7)
        .name("build-and-test")
        .stage("test")
        .image(installation.image("debian-git")?)
        .checkout(&served)
        .script(["./build.sh", "./check.sh tides.txt", "cat tides.txt"]);
    progress.say("demo: a job that clones a repository, builds and tests it; its log:");
    let job = installation.harness()?.start(&spec).await?;
    let result = follow(job).await?;
    result.assert_success();

    let cijob = installation.cijob_of(spec.id).await?;
    let name = cijob.metadata.name.as_deref().context("a CiJob without a name")?;
    let cijob = installation.wait_finished(name, DEADLINE).await?;
    for verb in ["get", "describe"] {
        output(format_args!("\n$ kubectl {verb} cij {name}\n"));
        let namespace = installation.job_namespace();
        let mut kubectl = installation.cluster.kubectl([verb, "cij", name, "--namespace", namespace]);
        output(format_args!("{}\n", capture(&mut kubectl)?.trim_end()));
    }
    output(format_args!("\n{}", breakdown(&cijob, &result)));
    Ok(())
}

fn repository(installation: &Installation) -> Result<GitRepo> {
    let commits = [
        Commit::new("Measure the water").file("levels.csv", LEVELS),
        Commit::new("Tell high from low water").executable("build.sh", BUILD).file("tides.awk", TIDES),
        Commit::new("Test it").executable("check.sh", CHECK),
    ];
    GitRepo::create(installation.dir().join("tides.git"), &commits)
}

/// Prints the job log while it grows.
async fn follow(job: RunningJob) -> Result<JobResult> {
    let mut printed = 0;
    // The log is the harness's own: looking at it asks nobody.
    let mut look = tokio::time::interval(Duration::from_millis(50));
    {
        let mut over = pin!(job.wait_stage("cleanup", DEADLINE));
        loop {
            tokio::select! {
                over = &mut over => break over?,
                _ = look.tick() => printed += print_from(&job.log(), printed),
            }
        }
    }
    let result = job.finish(DEADLINE).await?;
    print_from(&result.log, printed);
    Ok(result)
}

fn print_from(log: &[u8], printed: usize) -> usize {
    let new = log.get(printed..).unwrap_or_default();
    output(String::from_utf8_lossy(new));
    new.len()
}

/// A table of the start, from the object's own status.
fn breakdown(job: &CiJob, result: &JobResult) -> String {
    let start = job.status.as_ref().map(|status| status.start).unwrap_or_default();
    let steps = [
        ("admitted by the operator", start.admitted_ms),
        ("pod created", start.pod_created_ms),
        ("pod bound to a node", start.bound_ms),
        ("helper answers", start.helper_ms),
        ("build answers", start.build_ms),
        ("first byte of a stage", start.first_byte_ms),
    ];
    let mut table = String::from("where the time of the start went      after  step\n");
    let mut last = 0;
    for (what, at) in steps {
        let Some(at) = at else { continue };
        // Writing to a String cannot fail.
        let _ = writeln!(table, "  {what:<32}{:>7} ms {:>+5} ms", at, at - last);
        last = at;
    }
    if let Some(first) = result.first_line() {
        let _ = writeln!(table, "  {:<32}{:>7} ms", "first line of the job's script", first.as_millis());
    }
    table
}
