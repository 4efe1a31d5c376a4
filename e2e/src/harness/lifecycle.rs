//! A job from its assignment to its end: the order of stages, attempts, timeouts and cancels.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::attempt::Attempt;
use super::build::Build;
use super::duration;
use super::error::{JobError, Reason};
use super::process::Task;
use super::scope::{Cause, Scope};
use super::script::Stage;

/// How often the runner tries to prepare.
const PREPARE_TRIES: u32 = 3;

/// The longest pause between two attempts of a stage.
const LONGEST_RETRY: Duration = Duration::from_mins(5);

/// Runs a job to its end, its cleanup included.
pub(super) async fn run_job(build: &Arc<Build>, temporary: &Path) -> Result<(), JobError> {
    let config = &build.config;
    build.log.line(&format!("Running with gitlab-runner {} ({})", config.version, config.revision));
    build.log.line(&format!("  on {} {}, system ID: s_harness", config.name, config.short_token()));
    let warnings = build.settings().errors;
    if !warnings.is_empty() {
        build.log.warning(&warnings.join("\n"));
    }

    let limit = config.prepare_timeout.filter(|limit| *limit < build.job.timeout());
    let prepare = match limit {
        Some(limit) => build.scope.child_with_limit(limit, Cause::PrepareTimeout(limit)),
        None => build.scope.child(),
    };
    if build.job.trace_sections() {
        build.log.section("start", "prepare_executor");
    }
    build.log.heading("Preparing the \"custom\" executor");
    let prepared = prepare_executor(build, &prepare, temporary).await;
    if build.job.trace_sections() {
        build.log.section("end", "prepare_executor");
    }
    let attempt = match prepared {
        Ok(attempt) => Arc::new(attempt),
        Err(error) => return Err(if_prepare_timeout(&prepare, error)),
    };
    let result = run(build, &attempt, prepare).await;
    attempt.cleanup().await;
    result
}

/// Tries to prepare, with a new executor each time.
async fn prepare_executor(build: &Arc<Build>, scope: &Scope, temporary: &Path) -> Result<Attempt, JobError> {
    let mut last = JobError::System("failed to create executor".to_owned());
    for number in 1..=PREPARE_TRIES {
        let mut attempt = Attempt::new(build, number, temporary)?;
        let Err(error) = attempt.prepare(scope).await else { return Ok(attempt) };
        attempt.cleanup().await;
        if matches!(error, JobError::Build { .. }) {
            return Err(error);
        }
        if let Some(cause) = scope.ended() {
            return Err(stopped(build, cause));
        }
        build.log.error(&format!("Preparation failed: {}", error.message()));
        let pause = build.config.prepare_retry_interval;
        build.log.info(&format!("Will be retried in {} ...", duration::format(pause)));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            cause = scope.done() => return Err(stopped(build, cause)),
        }
        last = error;
    }
    Err(last)
}

fn if_prepare_timeout(scope: &Scope, error: JobError) -> JobError {
    match scope.ended() {
        Some(cause @ Cause::PrepareTimeout(_)) => timeout(cause),
        _ => error,
    }
}

fn timeout(cause: Cause) -> JobError {
    let (what, limit) = match cause {
        Cause::PrepareTimeout(limit) => ("prepare timeout", limit),
        Cause::GetSourcesTimeout(limit) => ("get_sources timeout", limit),
        Cause::Canceled | Cause::Deadline => ("timeout", Duration::ZERO),
    };
    let message = format!("{what}: exceeded timeout of {}", duration::format(limit));
    JobError::build(Reason::Timeout, message)
}

/// What a job is called that was stopped as a whole.
fn stopped(build: &Build, cause: Cause) -> JobError {
    match cause {
        Cause::Canceled => JobError::build(Reason::Canceled, "canceled"),
        Cause::Deadline => {
            let limit = duration::format(build.job.timeout());
            JobError::build(Reason::Timeout, format!("execution took longer than {limit} seconds"))
        }
        Cause::PrepareTimeout(_) | Cause::GetSourcesTimeout(_) => timeout(cause),
    }
}

/// Runs the stages until they end, or until the job or the runner is told to stop.
async fn run(build: &Arc<Build>, attempt: &Arc<Attempt>, prepare: Scope) -> Result<(), JobError> {
    let scope = build.scope.child();
    let mut stages = {
        let (build, attempt, scope) = (Arc::clone(build), Arc::clone(attempt), scope.clone());
        // A task of its own: after a stop it may go on while the runner goes on without it.
        Task::spawn(async move { stages(&build, &attempt, &scope, &prepare).await })
    };
    let error = tokio::select! {
        biased;
        finished = stages.join() => {
            // A stop ends the stages too; the stop is what counts then.
            return match build.scope.ended() {
                Some(cause) => Err(stopped(build, cause)),
                None => finished.unwrap_or_else(|| Err(JobError::System("the harness broke".to_owned()))),
            };
        }
        cause = build.scope.done() => stopped(build, cause),
        () = build.control.interruption() => {
            JobError::build(Reason::Interrupted, "aborted: terminated")
        }
    };
    scope.cancel();
    if tokio::time::timeout(build.config.build_finish_timeout, stages.join()).await.is_err() {
        build.log.warning("Timed out waiting for the build to finish");
        stages.detach();
    }
    Err(error)
}

/// All stages between preparing and cleaning up.
async fn stages(build: &Build, attempt: &Attempt, scope: &Scope, prepare: &Scope) -> Result<(), JobError> {
    if let Err(error) = attempt.run(&Stage::PrepareScript, prepare).await {
        if let Some(cause @ Cause::PrepareTimeout(_)) = prepare.ended() {
            return Err(timeout(cause));
        }
        let more =
            ". Check https://docs.gitlab.com/runner/shells/#shell-profile-loading for more information";
        return Err(error.wrapped("prepare environment: ", more));
    }
    let fetched = fetch(build, attempt, scope).await;
    if let Err(JobError::Build { reason: Reason::Timeout, .. }) = &fetched {
        return fetched;
    }
    let result = match fetched {
        Ok(()) => user_scripts(build, attempt, scope).await,
        failed => failed,
    };
    let success = result.is_ok();
    let cached = attempt.run(&Stage::ArchiveCache { success }, scope).await;
    let uploaded = attempt.run(&Stage::UploadArtifacts { success }, scope).await;
    // The runner only logs how this one ends, and not in the job's log.
    let _ = attempt.run(&Stage::CleanupFileVariables, scope).await;
    result.and(cached).and(uploaded)
}

/// Sources, caches, artifacts of other jobs.
async fn fetch(build: &Build, attempt: &Attempt, scope: &Scope) -> Result<(), JobError> {
    let settings = build.settings();
    let limit = build.config.get_sources_timeout.filter(|limit| *limit < build.job.timeout());
    let sources = match limit {
        Some(limit) => scope.child_with_limit(limit, Cause::GetSourcesTimeout(limit)),
        None => scope.child(),
    };
    let result = attempts(build, attempt, &Stage::GetSources, &sources, settings.get_sources_attempts).await;
    if let (Err(_), Some(cause @ Cause::GetSourcesTimeout(_))) = (&result, sources.ended()) {
        return Err(timeout(cause));
    }
    result?;
    attempts(build, attempt, &Stage::RestoreCache, scope, settings.restore_cache_attempts).await?;
    attempts(build, attempt, &Stage::DownloadArtifacts, scope, settings.artifact_download_attempts).await
}

/// Runs a stage until it works, whatever is wrong. The pauses go on even when the job is canceled.
async fn attempts(
    build: &Build,
    attempt: &Attempt,
    stage: &Stage,
    scope: &Scope,
    tries: u32,
) -> Result<(), JobError> {
    let exponential = build.variables().is_on("FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY");
    let first = build.config.stage_retry_interval;
    let (mut pause, longest) = if exponential { (first, LONGEST_RETRY) } else { (first / 5, first) };
    let mut number = 1;
    loop {
        let cleared = if *stage == Stage::GetSources && number == 2 {
            attempt.run(&Stage::ClearWorktree, scope).await
        } else {
            Ok(())
        };
        let result = match cleared {
            Ok(()) => attempt.run(stage, scope).await,
            failed => failed,
        };
        if result.is_ok() || number == tries {
            return result;
        }
        build.log.warning("Retrying...");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
        number += 1;
    }
}

/// The user's steps and `after_script`.
async fn user_scripts(build: &Build, attempt: &Attempt, scope: &Scope) -> Result<(), JobError> {
    let script_limit = step_timeout(build, scope, "RUNNER_SCRIPT_TIMEOUT", None);
    let after_limit = step_timeout(build, scope, "RUNNER_AFTER_SCRIPT_TIMEOUT", Some(Duration::from_mins(5)));
    let limited = |limit: Option<Duration>| match limit {
        Some(limit) => scope.child_with_limit(limit, Cause::Deadline),
        None => scope.child(),
    };

    let script = limited(script_limit);
    build.control.narrow(&script);
    let mut result = Ok(());
    for step in build.job.steps().iter().filter(|step| step.name != "after_script") {
        result = attempt.run(&Stage::step(&step.name), &script).await;
        if result.is_err() {
            break;
        }
    }
    match (scope.ended(), script.ended()) {
        (None, Some(Cause::Canceled)) => {
            result = Err(JobError::build(Reason::Canceled, "canceled"));
            build.log.warning("script canceled externally (UI, API)");
        }
        (outer, Some(Cause::Deadline)) if outer != Some(Cause::Deadline) => {
            let message = "script timeout: context deadline exceeded";
            result = Err(JobError::build(Reason::Timeout, message));
        }
        _ => {}
    }

    let after = limited(after_limit);
    build.set_status(status(&result));
    if let Err(error) = attempt.run(&Stage::AfterScript, &after).await
        && scope.ended() != Some(Cause::Deadline)
    {
        if build.settings().after_script_ignore_errors {
            let message = error.message();
            build.log.warning(&format!("after_script failed, but job will continue unaffected: {message}"));
        } else if result.is_ok() {
            result = Err(error);
        }
    }
    result
}

/// `CI_JOB_STATUS` after the user's steps.
fn status(result: &Result<(), JobError>) -> &'static str {
    match result {
        Ok(()) => "success",
        Err(JobError::Build { reason: Reason::Canceled, .. } | JobError::Stopped(Cause::Canceled)) => {
            "canceled"
        }
        Err(JobError::Build { reason: Reason::Timeout, .. } | JobError::Stopped(_)) => "timedout",
        Err(_) => "failed",
    }
}

/// A timeout that a job variable sets; `None` means no limit of its own.
fn step_timeout(build: &Build, scope: &Scope, name: &str, default: Option<Duration>) -> Option<Duration> {
    let variables = build.variables();
    let text = variables.value(name);
    if text.trim().is_empty() {
        return default;
    }
    match duration::parse(text) {
        duration::Parsed::Malformed => {
            build.log.warning(&format!("Ignoring malformed {name} timeout: {text}"));
            default
        }
        duration::Parsed::Negative => {
            build.log.warning(&format!("Ignoring relative {name} timeout: {text}"));
            default
        }
        duration::Parsed::Time(limit) if scope.remaining().is_some_and(|left| limit > left) => {
            build.log.warning(&format!(
                "{name} timeout: {text} is longer than job timeout. Setting to job timeout"
            ));
            default
        }
        duration::Parsed::Time(Duration::ZERO) => default,
        duration::Parsed::Time(limit) => Some(limit),
    }
}
