//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use roadstead_crds::labels;
use thiserror::Error;

/// What may be typed. Options for tests are left out, and what the agent types itself.
pub(super) const USAGE: &str = "stage-agent install DIR | serve --container NAME --orphan-seconds N \
     [--grace-seconds N] [--install DIR] [--spool-bytes N] | attach | --version";

/// How long a pod may be without a client after a failed stage: gitlab-runner waits up to five
/// minutes before it tries a stage again.
const FAILED_ORPHAN_MS: u64 = 330_000;

/// What a class gives that does not say.
const GRACE_MS: u64 = 10_000;

/// Undelivered output that is kept on disk before the script has to wait.
const SPOOL_BYTES: u64 = 256 * 1024 * 1024;

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Invocation {
    /// Copy the binary into a directory.
    Install(PathBuf),
    /// Be PID 1.
    Serve(ServeOptions),
    /// Relay one conversation.
    Attach(AttachOptions),
    /// Become a script's shell. Only the agent itself asks for that.
    Start {
        /// The shell.
        shell: PathBuf,
        /// The script.
        script: PathBuf,
    },
    /// Say which version this is.
    Version,
}

/// Options of `serve`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServeOptions {
    /// Name of the container.
    pub container: String,
    /// How long the pod may be without a client until one says otherwise.
    pub orphan_ms: u64,
    /// The least of the same after a failed stage.
    pub failed_orphan_ms: u64,
    /// Between SIGTERM and SIGKILL for this process when the container is ended from outside.
    pub grace_ms: u64,
    /// Where to copy the binary to first.
    pub install: Option<PathBuf>,
    /// Bound of undelivered output.
    pub spool_bytes: u64,
    /// Silence after which a heartbeat is sent.
    pub heartbeat_ms: u64,
    /// Where the socket is.
    pub run_dir: PathBuf,
    /// Where output is kept.
    pub spool_dir: PathBuf,
    /// Where `helper` sees the spool of `build`.
    pub build_spool_dir: PathBuf,
    /// Whether any process of the same user may speak to the agent. Only for tests outside a pod; a
    /// job cannot set it, the command line is the pod's.
    pub any_peer: bool,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            container: String::new(),
            orphan_ms: 0,
            failed_orphan_ms: FAILED_ORPHAN_MS,
            grace_ms: GRACE_MS,
            install: None,
            spool_bytes: SPOOL_BYTES,
            heartbeat_ms: u64::try_from(crate::wire::HEARTBEAT.as_millis()).unwrap_or(u64::MAX),
            run_dir: labels::RUN_DIR.into(),
            spool_dir: labels::SPOOL_DIR.into(),
            build_spool_dir: labels::BUILD_SPOOL_DIR.into(),
            any_peer: false,
        }
    }
}

/// Options of `attach`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AttachOptions {
    /// Where the socket is.
    pub run_dir: PathBuf,
    /// Whether the server may be another process than PID 1. Only for tests.
    pub any_server: bool,
}

/// A command line that makes no sense.
#[derive(Debug, PartialEq, Eq, Error)]
pub(super) enum UsageError {
    /// Nothing was asked for.
    #[error("a command is missing")]
    NoCommand,
    /// A word that means nothing here.
    #[error("unexpected argument {0:?}")]
    Unexpected(OsString),
    /// An option without its value.
    #[error("{0} needs a value")]
    NoValue(&'static str),
    /// A value that is not a number of the wanted range.
    #[error("{0} needs a number")]
    NoNumber(&'static str),
    /// An option that must be there.
    #[error("{0} is missing")]
    Missing(&'static str),
}

/// Reads the arguments after the program's name.
pub(super) fn parse(args: impl Iterator<Item = OsString>) -> Result<Invocation, UsageError> {
    let mut args = args;
    let command = args.next().ok_or(UsageError::NoCommand)?;
    match command.to_str() {
        Some("install") => {
            let dir = args.next().ok_or(UsageError::Missing("the directory"))?;
            nothing_more(args).map(|()| Invocation::Install(dir.into()))
        }
        Some("serve") => serve(args).map(Invocation::Serve),
        Some("attach") => attach(args).map(Invocation::Attach),
        Some("start") => {
            let shell = args.next().ok_or(UsageError::Missing("the shell"))?.into();
            let script = args.next().ok_or(UsageError::Missing("the script"))?.into();
            nothing_more(args).map(|()| Invocation::Start { shell, script })
        }
        Some("--version") => nothing_more(args).map(|()| Invocation::Version),
        _ => Err(UsageError::Unexpected(command)),
    }
}

fn serve(mut args: impl Iterator<Item = OsString>) -> Result<ServeOptions, UsageError> {
    let mut options = ServeOptions::default();
    let mut orphan_ms = None;
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--container") => options.container = text("--container", args.next())?,
            Some("--orphan-seconds") => {
                orphan_ms = Some(number("--orphan-seconds", args.next())?.saturating_mul(1000));
            }
            Some("--grace-seconds") => {
                options.grace_ms = number("--grace-seconds", args.next())?.saturating_mul(1000);
            }
            Some("--grace-ms") => options.grace_ms = number("--grace-ms", args.next())?,
            Some("--install") => options.install = Some(path("--install", args.next())?),
            Some("--spool-bytes") => options.spool_bytes = number("--spool-bytes", args.next())?,
            Some("--orphan-ms") => orphan_ms = Some(number("--orphan-ms", args.next())?),
            Some("--failed-orphan-ms") => {
                options.failed_orphan_ms = number("--failed-orphan-ms", args.next())?;
            }
            Some("--heartbeat-ms") => options.heartbeat_ms = number("--heartbeat-ms", args.next())?,
            Some("--run-dir") => options.run_dir = path("--run-dir", args.next())?,
            Some("--spool-dir") => options.spool_dir = path("--spool-dir", args.next())?,
            Some("--build-spool-dir") => options.build_spool_dir = path("--build-spool-dir", args.next())?,
            Some("--any-peer") => options.any_peer = true,
            _ => return Err(UsageError::Unexpected(arg)),
        }
    }
    if options.container.is_empty() {
        return Err(UsageError::Missing("--container"));
    }
    options.orphan_ms = orphan_ms.ok_or(UsageError::Missing("--orphan-seconds"))?;
    Ok(options)
}

fn attach(mut args: impl Iterator<Item = OsString>) -> Result<AttachOptions, UsageError> {
    let mut options = AttachOptions { run_dir: labels::RUN_DIR.into(), any_server: false };
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--run-dir") => options.run_dir = path("--run-dir", args.next())?,
            Some("--any-server") => options.any_server = true,
            _ => return Err(UsageError::Unexpected(arg)),
        }
    }
    Ok(options)
}

fn nothing_more(mut args: impl Iterator<Item = OsString>) -> Result<(), UsageError> {
    args.next().map_or(Ok(()), |arg| Err(UsageError::Unexpected(arg)))
}

fn path(option: &'static str, value: Option<OsString>) -> Result<PathBuf, UsageError> {
    value.map(PathBuf::from).ok_or(UsageError::NoValue(option))
}

fn text(option: &'static str, value: Option<OsString>) -> Result<String, UsageError> {
    let value = value.ok_or(UsageError::NoValue(option))?;
    value.into_string().map_err(UsageError::Unexpected)
}

fn number(option: &'static str, value: Option<OsString>) -> Result<u64, UsageError> {
    text(option, value)?.parse().map_err(|_| UsageError::NoNumber(option))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Invocation, UsageError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn what_the_pod_types_is_understood() {
        let line =
            "serve --container helper --orphan-seconds 120 --grace-seconds 45 --install /.roadstead/agent";
        let Ok(Invocation::Serve(options)) = read(line) else { panic!("not understood") };
        assert_eq!(options.container, "helper");
        assert_eq!(options.orphan_ms, 120_000);
        assert_eq!(options.grace_ms, 45_000);
        assert_eq!(options.install, Some("/.roadstead/agent".into()));
        assert_eq!(options.run_dir, PathBuf::from("/.roadstead/run"));
        assert!(!options.any_peer);
        assert_eq!(read("install /x"), Ok(Invocation::Install("/x".into())));
        assert_eq!(read("--version"), Ok(Invocation::Version));
        let Ok(Invocation::Attach(options)) = read("attach") else { panic!("not understood") };
        assert!(!options.any_server);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (line, error) in [
            ("", UsageError::NoCommand),
            ("run", UsageError::Unexpected("run".into())),
            ("install", UsageError::Missing("the directory")),
            ("start /bin/sh", UsageError::Missing("the script")),
            ("install a b", UsageError::Unexpected("b".into())),
            ("serve --orphan-seconds 1", UsageError::Missing("--container")),
            ("serve --container build", UsageError::Missing("--orphan-seconds")),
            ("serve --container build --grace-seconds x", UsageError::NoNumber("--grace-seconds")),
            ("serve --container", UsageError::NoValue("--container")),
            ("serve --container build --orphan-seconds -1", UsageError::NoNumber("--orphan-seconds")),
            ("attach x", UsageError::Unexpected("x".into())),
        ] {
            assert_eq!(read(line), Err(error), "{line}");
        }
    }
}
