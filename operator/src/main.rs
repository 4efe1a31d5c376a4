//! The process: crypto provider, command line, log, runtime, exit code.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use roadstead_operator::cli::{Cli, Command, CommandLine, LogFormat};
use roadstead_operator::explain::explain;
use roadstead_operator::run::run;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The command line, or what it names, cannot be used.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    // The first use of TLS panics if it has to choose between two providers. An error means that
    // there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match CommandLine::read(std::env::args_os()) {
        Ok(CommandLine::Other(Command::Explain(options))) => {
            in_runtime(explain(&options)).unwrap_or(ExitCode::FAILURE)
        }
        Ok(CommandLine::Operate(cli)) => operate(cli),
        Err(error) => error.exit(),
    }
}

fn operate(cli: Cli) -> ExitCode {
    if let Err(code) = log_to_stderr(&cli) {
        return code;
    }
    match in_runtime(run(cli)) {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            tracing::error!(error = roadstead_operator::chain(&error), "the operator ends");
            ExitCode::FAILURE
        }
        None => ExitCode::FAILURE,
    }
}

/// Runs something to its end; `None` where the system has no runtime to give.
fn in_runtime<T>(work: impl Future<Output = T>) -> Option<T> {
    // It waits for most of its life, and one thread admits several hundred jobs a second. A thread for each of a node's
    // processors would only cost memory, since each allocates from a heap of its own.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return None;
        }
    };
    let result = runtime.block_on(work);
    // What is still under way is bounded by nothing else.
    runtime.shutdown_background();
    Some(result)
}

fn log_to_stderr(cli: &Cli) -> Result<(), ExitCode> {
    let filter = EnvFilter::try_new(&cli.log);
    let (filter, flaw) = match filter {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter);
    let installed = match cli.log_format {
        LogFormat::Text => log.finish().try_init(),
        LogFormat::Json => log.json().flatten_event(true).finish().try_init(),
    };
    if let Some(error) = flaw {
        tracing::error!(%error, log = cli.log, "--log is not a level or a list of them");
        return Err(ExitCode::from(USAGE));
    }
    installed.map_err(|_| ExitCode::FAILURE)
}
