//! `stage-agent`: what runs inside a job's pod.
//!
//! `serve` is PID 1 of the containers `build` and `helper`. It starts the stages' scripts, keeps
//! their output and exit records until the shim has them, and reaps. `attach` is exec'd into the
//! container and relays one conversation between the exec stream and PID 1. `install` copies the
//! binary to where both containers find it; `start` is a step on the way to a script's shell.
//!
//! Deciding is pure and has no input or output of its own: [`book`] (which attempts are known),
//! [`lifecycle`] (a stage from its start to its end), [`orphan`] (when the pod is nobody's),
//! [`positions`] (what of the output is where), [`peer`] (who may speak), [`signals`]. The loop in
//! [`serve`] asks them and acts.
//!
//! PID 1 must neither panic nor block: a panic ends the job, and what blocks it stops the stage.

mod attach;
mod book;
mod cgroup;
mod cli;
mod client;
mod clock;
mod collect;
mod conversation;
mod delivery;
mod environment;
mod hub;
mod install;
mod lifecycle;
mod log;
mod orphan;
mod peer;
mod pipes;
mod positions;
mod presence;
mod process;
mod reap;
mod script;
mod serve;
mod signals;
mod spool;
mod stage;
mod start;
mod tools;

use std::ffi::OsString;
use std::process::ExitCode;

use cli::Invocation;

/// Exit code after a command line that makes no sense.
const USAGE: u8 = 2;

/// Runs the agent with the arguments that follow the program's name.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    // Before anything else: a process of the same user could otherwise trace this one and write its
    // memory. Without it only CAP_SYS_PTRACE can.
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        log::say(format_args!("cannot protect the process from being traced: {error}"));
        return ExitCode::FAILURE;
    }
    match cli::parse(args) {
        Ok(Invocation::Serve(options)) => serve::serve(options),
        Ok(Invocation::Attach(options)) => attach::attach(&options),
        Ok(Invocation::Start { shell, script }) => start::start(&shell, &script),
        Ok(Invocation::Install(dir)) => match install::install(&dir) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                log::say(format_args!("cannot install the agent in {}: {error}", dir.display()));
                ExitCode::FAILURE
            }
        },
        Ok(Invocation::Version) => {
            log::answer(format_args!("stage-agent {}", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
        Err(error) => {
            log::say(format_args!("{error}; usage: {}", cli::USAGE));
            ExitCode::from(USAGE)
        }
    }
}
