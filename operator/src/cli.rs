//! The command line.

use std::net::SocketAddr;

use clap::{ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use crate::explain;
use crate::lead::LeaseName;

/// Runs GitLab CI jobs on Kubernetes: the operator of Roadstead.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "roadstead-operator",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
struct Shape {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    operator: Option<Cli>,
}

/// What the operator's program is started for.
#[derive(Clone, Debug)]
pub enum CommandLine {
    /// To run jobs.
    Operate(Cli),
    /// For something else.
    Other(Command),
}

impl CommandLine {
    /// Reads a command line, with the settings of the environment.
    ///
    /// # Errors
    /// What is wrong with it, or the help or version that it asks for.
    pub fn read(
        args: impl IntoIterator<Item = impl Into<std::ffi::OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let mut shape = Shape::command();
        let matches = shape.try_get_matches_from_mut(args)?;
        Self::of(&matches).map_err(|error| error.format(&mut shape))
    }

    /// What has been read. In the operator's own pod the environment has settings for running jobs, which say
    /// nothing where something else is asked for.
    fn of(matches: &ArgMatches) -> Result<Self, clap::Error> {
        match matches.subcommand_name() {
            Some(_) => Command::from_arg_matches(matches).map(Self::Other),
            None => Cli::from_arg_matches(matches).map(Self::Operate),
        }
    }
}

/// What else the operator's program can do.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Explain what would become of a job: which class, what it gets, and its pod
    Explain(explain::Options),
}

/// How jobs are run.
#[derive(Args, Clone, Debug)]
pub struct Cli {
    /// Namespaces whose CiJobs are run, separated by commas
    #[arg(long, env = "ROADSTEAD_JOB_NAMESPACES", value_delimiter = ',', required = true, value_parser = namespace)]
    pub job_namespaces: Vec<String>,

    /// Image of the helper container where a JobClass names none
    #[arg(long, env = "ROADSTEAD_HELPER_IMAGE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub helper_image: String,

    /// Image that carries the stage-agent
    #[arg(long, env = "ROADSTEAD_AGENT_IMAGE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub agent_image: String,

    /// Address of /livez, /readyz and /metrics
    #[arg(long, env = "ROADSTEAD_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// Lease that decides which of several operators works (NAMESPACE/NAME). Without it this one works always
    #[arg(long, env = "ROADSTEAD_LEASE", requires = "identity")]
    pub lease: Option<LeaseName>,

    /// Name under which this operator holds the Lease; no other may have it at the same time
    #[arg(long, env = "ROADSTEAD_IDENTITY", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub identity: Option<String>,

    /// CiJobs of a namespace that are worked on at the same time
    #[arg(long, env = "ROADSTEAD_CONCURRENCY", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub concurrency: u16,

    /// What is logged: a level, or levels by module (`info,roadstead_operator=debug`)
    #[arg(long, env = "ROADSTEAD_LOG", default_value = "info,kube=warn")]
    pub log: String,

    /// How it is logged
    #[arg(long, env = "ROADSTEAD_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// Format of the log on standard error.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

fn namespace(name: &str) -> Result<String, String> {
    let name = name.trim();
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let valid = (1..=63).contains(&name.len())
        && name.chars().all(|c| edge(c) || c == '-')
        && name.starts_with(edge)
        && name.ends_with(edge);
    if valid { Ok(name.to_owned()) } else { Err(format!("\"{name}\" is not the name of a namespace")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        let images = ["roadstead-operator", "--helper-image=h", "--agent-image=a"];
        match CommandLine::read(images.iter().chain(args))? {
            CommandLine::Operate(cli) => Ok(cli),
            CommandLine::Other(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Shape::command().debug_assert();
    }

    #[test]
    fn to_explain_needs_no_setting_of_the_operators() {
        let line = CommandLine::read(["roadstead-operator", "explain", "--class=a", "--class=b"]);
        let CommandLine::Other(Command::Explain(options)) = line.unwrap() else { panic!("another command") };
        assert_eq!((options.job.to_str(), options.classes.len()), (Some("-"), 2));
        assert!(CommandLine::read(["roadstead-operator"]).is_err());
    }

    #[test]
    fn a_lease_needs_a_holder() {
        let lease = |args: &[&str]| parse(&[&["--job-namespaces=a"], args].concat()).map(|cli| cli.lease);
        assert_eq!(lease(&[]).unwrap(), None);
        assert_eq!(lease(&["--lease=n/l", "--identity=me"]).unwrap().unwrap().to_string(), "n/l");
        for bad in
            [["--lease=n/l"].as_slice(), &["--lease=l", "--identity=me"], &["--lease=a/b/c", "--identity=me"]]
        {
            assert!(lease(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn namespaces_come_as_a_list() {
        assert_eq!(
            parse(&["--job-namespaces", "ci-jobs, other"]).unwrap().job_namespaces,
            ["ci-jobs", "other"]
        );
        for bad in ["", "a,,b", "Upper", "-a", "a_b"] {
            assert!(parse(&["--job-namespaces", bad]).is_err(), "{bad:?}");
        }
        assert!(parse(&[]).is_err());
        assert!(parse(&["--job-namespaces=a", "--concurrency=0"]).is_err());
    }
}
