//! `run SCRIPT STAGE`: runs one stage of the job and passes its output on.

pub mod attempts;
mod explain;
mod limit;
mod oversight;
mod services;
pub mod supervise;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use roadstead_crds::report::StageReport;

use crate::shim::cli::Options;
use crate::shim::cluster::Cluster;
use crate::shim::env::RunnerEnv;
use crate::shim::exec::connect::Exec;
use crate::shim::exec::conversation::{Attempt, Progress, Stopping};
use crate::shim::exit::{self, End, Failure};
use crate::shim::joblog::{JobLog, Output};
use crate::shim::prepare;
use crate::shim::random;
use crate::shim::signals::Interrupt;
use crate::shim::stage::Stage;
use crate::shim::state::{PodState, StageEnd, StageRecord, State, StateFile};
use tokio_tungstenite::tungstenite::Bytes;

use attempts::{Attempts, Next};
use explain::explain;
use limit::Limit;
use oversight::CiJobOversight;
use supervise::{Verdict, supervise};

/// Timeouts in seconds where the operator's are not known.
const DEFAULT_GRACE: i64 = 10;
const DEFAULT_ORPHAN: i64 = 120;

/// Before a section is tried again.
const BEFORE_ANOTHER: Duration = Duration::from_secs(2);

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Section<'a> {
    /// Which stage it is.
    pub stage: &'a Stage,
    /// Its script.
    pub script: Bytes,
    /// How often it may be begun.
    pub attempts: Attempts,
}

/// Runs the stage.
pub async fn run(
    options: &Options,
    env: &RunnerEnv,
    log: &mut JobLog,
    interrupt: Interrupt,
    (path, stage): (&Path, &Stage),
) -> Result<End, Failure> {
    let tmpdir = env.tmpdir().map_err(|error| Failure::system(error.to_string()))?;
    let file = StateFile::in_dir(&tmpdir);
    // Before anything is touched that another call may need.
    let _lock = lock(&file, stage)?;
    // The code of an earlier stage would be read as this one's.
    if let Some(file) = env.exit_code_file() {
        exit::forget_code(&file)
            .map_err(|error| Failure::system(format!("cannot remove {}: {error}", file.display())))?;
    }
    let mut known = file.read().map_err(|error| Failure::system(error.to_string()))?;
    // Said before the script is looked at: without it there is nothing to run it in.
    pod_of(&known)?;
    let script = std::fs::read(path)
        .map_err(|error| Failure::system(format!("cannot read the script {}: {error}", path.display())))?;
    let wished = env.job_variable(attempts::VARIABLE);
    // Once in a job.
    if stage.is_first()
        && let Some(complaint) = attempts::complaint(wished)
    {
        log.line(&complaint).await;
    }
    let cluster = Cluster::find(options).await.map_err(|error| Failure::system(error.to_string()))?;
    let section = Section { stage, script: script.into(), attempts: Attempts::of(stage, wished) };
    run_section(&cluster, &file, &mut known, section, log, interrupt).await
}

/// Keeps a second call from running a script of the same job meanwhile: the agent would end the first
/// one's, and neither would know how the job stands.
fn lock(file: &StateFile, stage: &Stage) -> Result<File, Failure> {
    let lock =
        file.lock().map_err(|error| Failure::system(format!("cannot lock the job's state: {error}")))?;
    lock.ok_or_else(|| {
        let running = file.read().ok().and_then(|known| known.running);
        let running = running.map_or_else(|| "a stage".to_owned(), |stage| format!("the stage {stage}"));
        let stage = stage.name();
        Failure::system(format!(
            "the stage {stage} was not started: another call of executor-shim runs {running} of this job at the moment"
        ))
    })
}

fn pod_of(known: &State) -> Result<PodState, Failure> {
    known.pod.clone().ok_or_else(|| Failure::system("no prepare call has found the job's pod ready"))
}

/// Runs a script in the job's pod, as often as that may be needed, and records how it went.
pub async fn run_section<O: Output>(
    cluster: &Cluster,
    file: &StateFile,
    known: &mut State,
    section: Section<'_>,
    log: &mut O,
    interrupt: Interrupt,
) -> Result<End, Failure> {
    let Section { stage, attempts, .. } = section;
    let mut stopping = Stopping::new(interrupt, grace(known));
    let mut begun = 0;
    loop {
        let Round { verdict, sent, end } =
            run_once(cluster, file, known, &section, log, &mut stopping).await?;
        begun += 1;
        let End::Failed(failure) = &end else { return Ok(end) };
        match attempts.next((begun, sent), stage, known, &verdict) {
            Next::Nowhere => return Ok(end),
            Next::SamePod => {
                let (next, most, name) = (begun + 1, attempts.most, stage.name());
                let sentence = &failure.sentence;
                log.line(&format!("{sentence}; the stage {name} is tried again ({next} of {most})")).await;
                tokio::select! {
                    biased;
                    _ = stopping.next(false) => return Ok(End::Interrupted),
                    () = tokio::time::sleep(BEFORE_ANOTHER) => {}
                }
            }
            Next::OtherPod => {
                begun -= u32::from(!sent);
                // It asks for the other pod, and tells what becomes of that.
                let moved = tokio::select! {
                    biased;
                    _ = stopping.next(false) => return Ok(End::Interrupted),
                    moved = prepare::wait_for_another(cluster, file, known, log) => moved,
                };
                if let Err(failure) = moved {
                    return Ok(failure.into());
                }
            }
        }
    }
}

/// What a script that was begun once came to.
struct Round {
    verdict: Verdict,
    /// Whether it may have been started.
    sent: bool,
    end: End,
}

/// Begins a script once, and records how it went.
async fn run_once<O: Output>(
    cluster: &Cluster,
    file: &StateFile,
    known: &mut State,
    section: &Section<'_>,
    log: &mut O,
    stopping: &mut Stopping,
) -> Result<Round, Failure> {
    let pod = pod_of(known)?;
    let stage = section.stage;
    let limit = Limit::of(known, stage);
    let attempt = attempt(known, &pod, section, limit.as_ref())?;
    let (name, container, bytes) = (stage.name(), stage.container(), attempt.script.len());
    tracing::info!(stage = name, %container, pod = pod.name, script_bytes = bytes, "the stage begins");
    known.running = Some(stage.name().to_owned());
    file.write(known).map_err(|error| Failure::system(error.to_string()))?;
    let started = Timestamp::now();
    let exec = Exec::new(cluster.client.clone(), known.namespace.clone(), pod.name.clone());
    let (cijobs, uid) = (cluster.cijobs(&known.namespace), known.cijob_uid.clone());
    let mut oversight = CiJobOversight::new(cijobs, known.cijob.clone(), uid, pod.name);
    let mut progress = Progress::default();
    let (verdict, reconnects) =
        supervise(&exec, &mut oversight, &attempt, &mut progress, stopping, log).await;

    let stopped = stopping.cause().is_some();
    let (end, note) =
        explain(&verdict, (stage, limit.as_ref(), known), stopped, progress.output_error.as_deref());
    if let Some(note) = &note {
        log.line(note).await;
    }
    if matches!(end, End::ScriptExited(_) | End::ScriptKilled(_)) {
        for line in services::ended_since(cluster, known).await {
            log.line(&line).await;
        }
    }
    let wall = Timestamp::now().as_millisecond().saturating_sub(started.as_millisecond());
    known.reconnects = known.reconnects.saturating_add(i32::try_from(reconnects).unwrap_or(i32::MAX));
    if let (None, Some(first)) = (known.start.first_byte_ms, progress.first_output) {
        known.start.first_byte_ms = Some(known.milliseconds(first));
    }
    let report = report(&verdict, stage, &progress, wall);
    tracing::info!(
        stage = report.name,
        exit_code = report.exit_code,
        signal = report.signal,
        stdout_bytes = report.stdout_bytes,
        stderr_bytes = report.stderr_bytes,
        duration_ms = report.duration_ms,
        reconnects,
        "the stage has ended"
    );
    known.record(StageRecord {
        report,
        end: stage_end(&verdict, &end),
        message: note.or_else(|| match &end {
            End::Failed(failure) => Some(failure.sentence.clone()),
            _ => None,
        }),
    });
    if let Err(error) = file.write(known) {
        // The stage has run; only the report on the job will not know of it.
        tracing::warn!(%error, "cannot note the end of the stage");
    }
    Ok(Round { verdict, sent: progress.sent, end })
}

fn seconds(value: Option<i64>, default: i64) -> Duration {
    Duration::from_secs(u64::try_from(value.unwrap_or(default)).unwrap_or_default())
}

/// How long a script has to end once it is told to.
fn grace(known: &State) -> Duration {
    let timeouts = known.timeouts.as_ref();
    seconds(timeouts.map(|timeouts| timeouts.termination_grace_seconds), DEFAULT_GRACE)
}

fn attempt(
    known: &State,
    pod: &PodState,
    section: &Section<'_>,
    limit: Option<&Limit>,
) -> Result<Attempt, Failure> {
    let stage = section.stage;
    let container = stage.container();
    let timeouts = known.timeouts.as_ref();
    Ok(Attempt {
        name: random::name().map_err(|error| Failure::system(error.to_string()))?,
        stage: stage.name().to_owned(),
        container,
        script: section.script.clone(),
        shell: known.shell.clone().unwrap_or_else(|| "bash".to_owned()),
        reap: stage.reaps(),
        pod_uid: pod.uid.clone(),
        boot_id: pod.boot(container).to_owned(),
        helper_boot_id: pod.helper_boot.clone(),
        orphan: seconds(timeouts.map(|timeouts| timeouts.orphan_seconds), DEFAULT_ORPHAN),
        grace: grace(known),
        limit: limit.map(|limit| limit.left),
    })
}

fn report(verdict: &Verdict, stage: &Stage, progress: &Progress, wall_ms: i64) -> StageReport {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let record = match verdict {
        Verdict::Exited(record) | Verdict::Died(record) => Some(record),
        _ => None,
    };
    StageReport {
        name: stage.name().chars().take(255).collect(),
        container: stage.container().name().to_owned(),
        exit_code: record.and_then(|record| record.code),
        signal: record.and_then(|record| record.signal),
        stdout_bytes: signed(progress.stdout),
        stderr_bytes: signed(progress.stderr),
        duration_ms: record.map(|record| signed(record.wall_ms)).filter(|ms| *ms > 0).unwrap_or(wall_ms),
        oom_kills: record.and_then(|record| record.oom_kills).map(signed),
        cpu_ms: record.and_then(|record| record.cpu_ms).map(signed),
        peak_memory_bytes: record.and_then(|record| record.peak_memory_bytes).map(signed),
    }
}

/// How the stage ended, for the report on the job. A script that ended by itself before it was
/// told to did so, whatever gitlab-runner is told.
fn stage_end(verdict: &Verdict, end: &End) -> StageEnd {
    use roadstead_crds::reason::Blame;
    match (end, verdict) {
        (End::Done, _) => StageEnd::Succeeded,
        (End::Interrupted, Verdict::Exited(record)) if !record.stopped && record.code == Some(0) => {
            StageEnd::Succeeded
        }
        (End::Interrupted, Verdict::Exited(record)) if !record.stopped && record.error.is_none() => {
            StageEnd::Failed
        }
        (End::Interrupted, _) => StageEnd::Stopped,
        (End::ScriptExited(_) | End::ScriptKilled(_), _) => StageEnd::Failed,
        (End::Failed(_), Verdict::Exited(record)) if record.expired => StageEnd::TimedOut,
        (End::Failed(failure), _) => match failure.blame {
            Blame::User => StageEnd::Failed,
            Blame::System => StageEnd::Errored,
        },
    }
}
