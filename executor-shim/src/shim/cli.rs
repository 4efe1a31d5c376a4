//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::shim::tags::Source;

/// How jobs are run by hand.
const BY_HAND: &str = r#"Jobs by hand:
  echo '{"command":"run","script":["echo hello"]}' | executor-shim
  echo '{"command":"initialize","image":"debian:12","keepSeconds":600}' | executor-shim
  echo '{"command":"run","job":"NAME","script":["ls"],"container":"helper"}' | executor-shim
  echo '{"command":"cleanup","job":"NAME"}' | executor-shim

The exit code is the script's. Without one it is 2 where the request is wrong, 3 where Roadstead or the
cluster failed, and 130 where a signal ended the call; "kind" in the answer says so too."#;

/// The driver that gitlab-runner's custom executor calls: it runs each GitLab CI job in a pod of
/// its own, through the Roadstead operator.
///
/// gitlab-runner calls it with one of the commands below, and appends its own arguments. Options
/// may stand before or after the command, so `config_args`, `prepare_args`, `run_args` and
/// `cleanup_args` of config.toml can all carry them.
///
/// Without a command it reads one JSON object from standard input and answers with one on standard
/// output: that is how jobs are run by hand.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "executor-shim",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = BY_HAND,
    override_usage = "executor-shim [OPTIONS] <COMMAND>\n       executor-shim [OPTIONS] < REQUEST"
)]
pub struct Cli {
    /// What gitlab-runner wants done. Absent where a job is run by hand.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// File with the request of a job by hand, in place of standard input: for a pod, which has none.
    #[arg(long, value_name = "FILE")]
    pub request: Option<PathBuf>,

    /// What holds for every command.
    #[command(flatten)]
    pub options: Options,
}

/// What is wanted: the four calls of gitlab-runner's custom executor, and what a person may want to see.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Ask for the job's pod and print the settings of the job as JSON (`config_exec`).
    Config,
    /// Wait until the job's pod is ready (`prepare_exec`).
    Prepare,
    /// Run one stage of the job (`run_exec`).
    Run {
        /// File with the script of the stage.
        script: PathBuf,
        /// Name of the stage, such as `get_sources` or `build_script`.
        stage: OsString,
    },
    /// Report how the job ended and let go of its pod (`cleanup_exec`).
    Cleanup,
    /// Print the CiJob that a job would be asked for with, and ask for nothing. It reads a job response, as
    /// gitlab-runner has it in JOB_RESPONSE_FILE, or a request by hand.
    Cijob {
        /// File to read. Where absent, standard input.
        file: Option<PathBuf>,
        /// The job's tags, with commas, which a job response does not say; '' for an untagged job.
        #[arg(long, value_name = "TAGS", value_delimiter = ',')]
        tags: Option<Vec<String>>,
    },
}

impl Command {
    /// The word of the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Prepare => "prepare",
            Self::Run { .. } => "run",
            Self::Cleanup => "cleanup",
            Self::Cijob { .. } => "cijob",
        }
    }
}

/// What holds for every command.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Namespace of the job's objects. Where absent, the namespace of the kubeconfig's context or
    /// of the pod that gitlab-runner runs in.
    #[arg(long, env = "ROADSTEAD_NAMESPACE", global = true, value_name = "NAME")]
    pub namespace: Option<String>,

    /// JobClass that the jobs ask for. Where absent, the operator chooses one that takes the job.
    #[arg(long, env = "ROADSTEAD_CLASS", global = true, value_name = "NAME")]
    pub class: Option<String>,

    /// Where the tags of jobs come from, by which classes are chosen.
    #[arg(long, env = "ROADSTEAD_TAG_SOURCE", global = true, value_name = "SOURCE", default_value = "job")]
    pub tag_source: Source,

    /// GitLab's API, such as `https://gitlab.example.com/api/v4`. Where absent, what GitLab says
    /// (CI_API_V4_URL), if it is the server of the job's repository.
    #[arg(long, env = "ROADSTEAD_GITLAB_API_URL", global = true, value_name = "URL")]
    pub gitlab_api_url: Option<String>,

    /// File with the certificates of GitLab's authority. Where absent, those that gitlab-runner knows
    /// (`tls-ca-file`) and the system's.
    #[arg(long, env = "ROADSTEAD_GITLAB_CA_FILE", global = true, value_name = "PATH")]
    pub gitlab_ca_file: Option<PathBuf>,

    /// Diagnostics to write: a level (error, warn, info, debug, trace) or a list such as
    /// `info,executor_shim=debug`. Where absent, info with --log-file and warn without.
    #[arg(long, env = "ROADSTEAD_LOG", global = true, value_name = "FILTER")]
    pub log: Option<String>,

    /// File that diagnostics are appended to. Where absent, they go to standard error, which
    /// gitlab-runner copies to the job log.
    #[arg(long, env = "ROADSTEAD_LOG_FILE", global = true, value_name = "PATH")]
    pub log_file: Option<PathBuf>,

    /// Form of the diagnostics.
    #[arg(long, env = "ROADSTEAD_LOG_FORMAT", global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Kubeconfig file. Where absent, $KUBECONFIG, then ~/.kube/config, then the service account
    /// of the pod that gitlab-runner runs in.
    #[arg(long, env = "ROADSTEAD_KUBECONFIG", global = true, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig. Where absent, its current one.
    #[arg(long, env = "ROADSTEAD_CONTEXT", global = true, value_name = "NAME")]
    pub context: Option<String>,

    /// Directory that remembers jobs by hand, with their variables, between calls. Where absent, a
    /// folder in $XDG_RUNTIME_DIR, $XDG_STATE_HOME or ~/.local/state.
    #[arg(long, env = "ROADSTEAD_STATE_DIR", global = true, value_name = "PATH")]
    pub state_dir: Option<PathBuf>,
}

/// Form of the diagnostics.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Cli {
        Cli::try_parse_from(std::iter::once("executor-shim").chain(args.iter().copied())).unwrap()
    }

    #[test]
    fn options_stand_before_or_after_the_command() {
        for args in [
            &["--namespace", "jobs", "run", "/t/script", "build_script"][..],
            &["run", "--namespace", "jobs", "/t/script", "build_script"],
            &["run", "/t/script", "build_script", "--namespace=jobs"],
        ] {
            let cli = parse(args);
            assert_eq!(cli.options.namespace.as_deref(), Some("jobs"), "{args:?}");
            let Some(Command::Run { script, stage }) = cli.command else { panic!("{:?}", cli.command) };
            assert_eq!((script.to_str(), stage.to_str()), (Some("/t/script"), Some("build_script")));
        }
    }

    #[cfg(unix)]
    #[test]
    fn arguments_that_are_not_text_are_no_panic() {
        use std::os::unix::ffi::OsStringExt;
        let odd = OsString::from_vec(vec![b'/', 0xff]);
        let args = ["executor-shim".into(), "run".into(), odd.clone(), "build_script".into()];
        let Some(Command::Run { script, .. }) = Cli::try_parse_from(args).unwrap().command else { panic!() };
        assert_eq!(script, PathBuf::from(odd));
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
