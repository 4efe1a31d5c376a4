//! `executor-shim`: the driver that gitlab-runner's custom executor calls.
//!
//! Each call of gitlab-runner is a process of its own: `config` asks for the job's pod, `prepare`
//! waits for it, `run` runs one stage in it, `cleanup` lets go of it. What one call knows and a
//! later one needs is in [`state`]. How every call ends is in [`exit`], what it prints goes through
//! [`joblog`].
//!
//! Without a command it does the same for a person or a program that has no gitlab-runner:
//! [`by_hand`].

pub mod by_hand;
pub mod cleanup;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod deposit;
pub mod diagnostics;
pub mod env;
pub mod exec;
pub mod exit;
pub mod job_response;
pub mod joblog;
pub mod outcome;
pub mod overrides;
pub mod prepare;
pub mod proxy;
pub mod random;
pub mod redact;
pub mod registries;
pub mod request;
pub mod run;
pub mod service_variables;
pub mod services;
pub mod signals;
pub mod stage;
pub mod state;
pub mod tags;
pub mod watch;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use roadstead_crds::reason::Blame;

use cli::{Cli, Command, Options};
use env::RunnerEnv;
use exit::{Answer, End, Failure};
use joblog::{JobLog, Output as _};
use signals::Interrupt;
use stage::Stage;
use state::{StageEnd, StartFailure, StateFile};

/// Threads for what the runtime cannot do without blocking: looking up names.
const BLOCKING_THREADS: usize = 2;

/// Exit code where a person has typed no command: as for any other wrong command line.
const NOTHING_ASKED: u8 = 2;

/// Runs the shim with the arguments, the first of which is the program's name.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let env = RunnerEnv::of_this_process();
    let system_failure = ExitCode::from(env.exit_codes().system_failure);
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output, everything else to standard error.
            let printed = error.print().is_ok();
            return if printed && !error.use_stderr() { ExitCode::SUCCESS } else { system_failure };
        }
    };
    // Both providers of cryptography may be in the tree; without a choice the first use panics.
    // That somebody has chosen before is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Some(command) = &cli.command else { return by_hand_or_help(&cli) };
    let exit = match command {
        Command::Cijob { file, tags } => {
            in_runtime(by_hand::preview(&cli.options, file.as_deref(), tags.as_deref()))
        }
        _ => in_runtime(call(command, &cli.options, env)),
    };
    exit.unwrap_or(system_failure)
}

/// Without a command a person at a terminal gets help; what comes from elsewhere is a request.
fn by_hand_or_help(cli: &Cli) -> ExitCode {
    let stdin = io::stdin();
    if cli.request.is_none() && stdin.is_terminal() {
        // That nobody reads the help does not change that there was nothing to do.
        let _ = write!(io::stderr(), "{}", Cli::command().render_help());
        return ExitCode::from(NOTHING_ASKED);
    }
    // Before signals are listened for: there is nothing yet that one would have to wait for.
    let request = match &cli.request {
        Some(file) => by_hand::read_file(file),
        None => by_hand::read(stdin.lock()),
    };
    in_runtime(by_hand::call(&cli.options, request)).unwrap_or(ExitCode::FAILURE)
}

/// Runs a call to its end; `None` where the system has no runtime to give.
fn in_runtime(call: impl Future<Output = ExitCode>) -> Option<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .ok()?;
    let exit = runtime.block_on(call);
    // A name that is still being looked up must not hold up the end.
    runtime.shutdown_background();
    Some(exit)
}

async fn call(command: &Command, options: &Options, env: RunnerEnv) -> ExitCode {
    let codes = env.exit_codes();
    let system_failure = ExitCode::from(codes.system_failure);
    // From here on no signal ends the process by itself.
    let Ok(interrupt) = signals::listen() else { return system_failure };
    let Ok(mut log) = JobLog::new(env.clone()) else { return system_failure };
    if let Err(error) = diagnostics::set_up(options) {
        log.line(&format!("{error}; there will be none")).await;
    }
    let end = dispatch(command, options, &env, &mut log, interrupt).await;
    if let End::Failed(failure) = &end {
        log.line(&failure.sentence).await;
        let sentence = log.blackened(&failure.sentence);
        tracing::info!(command = command.name(), blame = ?failure.blame, sentence, "the call fails");
    } else {
        tracing::info!(command = command.name(), ?end, "the call ends");
    }
    let file = env.exit_code_file().filter(|_| matches!(command, Command::Run { .. }));
    let (exit, error) = end.answer().give(codes, file.as_deref());
    if let (Some(error), Some(file)) = (error, file) {
        log.line(&format!("cannot write the script's exit code to {}: {error}", file.display())).await;
    }
    exit
}

async fn dispatch(
    command: &Command,
    options: &Options,
    env: &RunnerEnv,
    log: &mut JobLog,
    mut interrupt: Interrupt,
) -> End {
    match command {
        Command::Config => {
            let result = tokio::select! {
                result = config::config(options, env) => result.map_err(End::from),
                _ = interrupt.wait() => Err(End::Interrupted),
            };
            let end = match result {
                Ok((text, notes)) => {
                    for note in notes {
                        log.line(&note).await;
                    }
                    match log.answer(&text).await {
                        Ok(()) => End::Done,
                        Err(error) => Failure::system(format!("cannot answer gitlab-runner: {error}")).into(),
                    }
                }
                Err(end) => end,
            };
            note_start(env, &end);
            end
        }
        Command::Prepare => {
            let end = tokio::select! {
                result = prepare::prepare(options, env, log) => result.map_or_else(End::from, |()| End::Done),
                _ = interrupt.wait() => End::Interrupted,
            };
            note_start(env, &end);
            end
        }
        Command::Run { script, stage } => {
            let stage = Stage::new(stage.to_string_lossy());
            let work = (script.as_path(), &stage);
            run::run(options, env, log, interrupt, work).await.unwrap_or_else(End::from)
        }
        // It is short, and what it does is wanted even where gitlab-runner is in a hurry or gone.
        Command::Cleanup => {
            if let Some(note) = cleanup::cleanup(options, env).await {
                log.line(&note).await;
            }
            End::Done
        }
        // It asks nobody for anything, and has been answered.
        Command::Cijob { .. } => End::Done,
    }
}

/// Leaves word for `cleanup` of a start that came to nothing.
fn note_start(env: &RunnerEnv, end: &End) {
    let (end, message) = match (end, end.answer()) {
        (End::Failed(failure), _) => {
            let end = if failure.blame == Blame::User { StageEnd::Failed } else { StageEnd::Errored };
            (end, Some(failure.sentence.clone()))
        }
        (End::Interrupted, _) => {
            let message = "gitlab-runner ended the job before its pod was ready";
            (StageEnd::Stopped, Some(message.to_owned()))
        }
        (_, Answer::Success) => return,
        (_, Answer::BuildFailure(_) | Answer::SystemFailure) => (StageEnd::Errored, None),
    };
    let Ok(tmpdir) = env.tmpdir() else { return };
    let file = StateFile::in_dir(&tmpdir);
    // Without a state there is no CiJob, and nothing to report.
    if let Ok(mut state) = file.read() {
        state.failure = Some(StartFailure { end, message });
        if let Err(error) = file.write(&state) {
            tracing::warn!(%error, "cannot note why the start failed");
        }
    }
}
