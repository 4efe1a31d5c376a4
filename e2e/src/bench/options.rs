//! What is measured, and how thoroughly.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

/// A group of rows of the table.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Topic {
    /// From a job's assignment to the first line of its script, and where that time goes
    Start,
    /// Several jobs at once
    Parallel,
    /// What 50 MiB of output cost
    Output,
    /// Requests to the API server, by a job's duration
    Requests,
    /// Peak memory of operator and shim
    Memory,
    /// Sizes of images
    Size,
    /// What the operator costs while nothing happens
    Idle,
}

/// The command line of `cargo e2e bench`.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Fewer repeats, no job of 5 minutes
    #[arg(long)]
    pub quick: bool,
    /// Only these rows; may be given several times
    #[arg(long, value_enum, value_name = "ROW")]
    pub only: Vec<Topic>,
    /// Repeats of each start and each output, instead of 10 and 3
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: Option<u32>,
    /// Folder for bench.json and bench.md; target/bench when absent
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
}

/// How thoroughly is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In words, for the table.
    pub name: String,
    /// What is measured.
    pub topics: Vec<Topic>,
    /// Whether GitLab's Kubernetes executor is measured too, where a real gitlab-runner is at hand.
    pub compare: bool,
    /// Jobs before the first one that counts, for each executor.
    pub warm_up: u32,
    /// Starts, one after the other.
    pub starts: u32,
    /// Jobs at once.
    pub parallel: u32,
    /// Pairs of jobs with and without output.
    pub outputs: u32,
    /// MiB of output.
    pub output_mib: u32,
    /// Durations of the jobs whose requests are compared with those of the trivial one.
    pub long_jobs: Vec<Duration>,
    /// How long the idle operator is watched.
    pub idle: Duration,
}

impl Plan {
    /// What the command line asks for.
    #[must_use]
    pub fn of(options: &Options) -> Self {
        let mut plan = if options.quick { Self::quick() } else { Self::full() };
        if let Some(repeat) = options.repeat {
            (plan.starts, plan.outputs) = (repeat, repeat);
            plan.name = format!("{}, {repeat} repeats", plan.name);
        }
        if !options.only.is_empty() {
            plan.topics.retain(|topic| options.only.contains(topic));
        }
        plan
    }

    fn full() -> Self {
        Self {
            name: "full run".to_owned(),
            topics: Topic::value_variants().to_vec(),
            compare: true,
            warm_up: 1,
            starts: 10,
            parallel: 8,
            outputs: 3,
            output_mib: 50,
            long_jobs: vec![Duration::from_mins(1), Duration::from_mins(5)],
            idle: Duration::from_mins(1),
        }
    }

    fn quick() -> Self {
        Self {
            name: "quick run: fewer repeats, no job of 5 minutes".to_owned(),
            starts: 3,
            outputs: 1,
            long_jobs: vec![Duration::from_mins(1)],
            idle: Duration::from_secs(15),
            ..Self::full()
        }
    }

    /// Every row once, with as little work as it can be measured with: for the test that the benchmark works.
    #[must_use]
    pub fn smallest() -> Self {
        Self {
            name: "smallest run: for the benchmark's own test".to_owned(),
            compare: false,
            warm_up: 0,
            starts: 1,
            parallel: 2,
            outputs: 1,
            output_mib: 1,
            long_jobs: Vec::new(),
            idle: Duration::from_secs(1),
            ..Self::full()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_says_so_and_has_no_long_job() {
        let plan = Plan::of(&Options { quick: true, ..Options::default() });
        assert!(plan.name.contains("quick"));
        assert!(plan.long_jobs.iter().all(|long| *long < Duration::from_mins(5)));
        assert!(plan.starts < Plan::full().starts);
    }

    #[test]
    fn rows_can_be_chosen_and_keep_their_order() {
        let only = vec![Topic::Idle, Topic::Start];
        let plan = Plan::of(&Options { only, repeat: Some(5), ..Options::default() });
        assert_eq!(plan.topics, [Topic::Start, Topic::Idle]);
        assert_eq!((plan.starts, plan.outputs, plan.name.as_str()), (5, 5, "full run, 5 repeats"));
    }
}
