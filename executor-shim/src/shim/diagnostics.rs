//! Diagnostics for administrators: tracing events to a file or to standard error.
//!
//! They never hold a script, a variable or the job response. That is also why the libraries that
//! would print what passes through them stay at warnings, whatever the filter says.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;

use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::SetGlobalDefaultError;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::shim::cli::{LogFormat, Options};

/// Target of the shim's own events.
const OWN: &str = "executor_shim";

/// Filter where none was asked for.
const USUAL: &str = "info";

/// Libraries that print what passes through them.
const TALKATIVE: [&str; 4] = ["h2", "hyper", "tungstenite", "tokio_tungstenite"];

/// Why there are no diagnostics.
#[derive(Debug, Error)]
pub enum DiagnosticsError {
    /// The filter cannot be read.
    #[error("the filter of diagnostics {filter:?} is not valid: {source}")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The file cannot be opened.
    #[error("cannot open the file for diagnostics {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// This process already has some.
    #[error("diagnostics are already set up: {0}")]
    Twice(SetGlobalDefaultError),
}

/// Sets up diagnostics for the rest of the process.
pub fn set_up(options: &Options) -> Result<(), DiagnosticsError> {
    let text = options.log.as_deref().unwrap_or(USUAL);
    let filter =
        filter(text).map_err(|source| DiagnosticsError::Filter { filter: text.to_owned(), source })?;
    let installed = if let Some(path) = &options.log_file {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(|source| DiagnosticsError::File { path: path.clone(), source })?;
        let everything = Targets::new().with_default(LevelFilter::TRACE);
        install(filter, everything, options.log_format, Appender(file))
    } else {
        // In the job log, whoever runs jobs reads them too: only the shim's own, and not the
        // libraries' view of what it deals with. What was not asked for has to be worth it.
        let most = if options.log.is_some() { LevelFilter::TRACE } else { LevelFilter::WARN };
        install(filter, Targets::new().with_target(OWN, most), options.log_format, io::stderr)
    };
    installed.map_err(DiagnosticsError::Twice)
}

fn filter(text: &str) -> Result<Targets, tracing_subscriber::filter::ParseError> {
    let targets: Targets = text.parse()?;
    Ok(targets.with_targets(TALKATIVE.map(|target| (target, LevelFilter::WARN))))
}

fn install<W>(
    filter: Targets,
    most: Targets,
    format: LogFormat,
    writer: W,
) -> Result<(), SetGlobalDefaultError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
    let layer = match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(layer.with_filter(filter).with_filter(most));
    // Records of the `log` crate are not bridged: some libraries write payloads there.
    tracing::subscriber::set_global_default(subscriber)
}

/// Appends to a file that other calls append to as well: each event is one write.
struct Appender(File);

impl<'a> MakeWriter<'a> for Appender {
    type Writer = &'a File;

    fn make_writer(&'a self) -> Self::Writer {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn filters() {
        let plain = filter("debug").unwrap();
        assert!(plain.would_enable("executor_shim", &Level::DEBUG));
        assert!(!plain.would_enable("executor_shim", &Level::TRACE));
        assert!(!plain.would_enable("hyper::proto", &Level::DEBUG));
        let list = filter("warn,executor_shim=trace,tungstenite=trace").unwrap();
        assert!(list.would_enable("executor_shim::shim", &Level::TRACE));
        assert!(!list.would_enable("tungstenite", &Level::TRACE), "payloads would be printed");
        assert!(filter("executor_shim=loud").is_err());
    }
}
