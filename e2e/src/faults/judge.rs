//! A script whose output is known byte for byte, and what a job has to come to.

use std::time::{Duration, Instant};

use anyhow::Result;
use roadstead_crds::Reason;

use super::{DEADLINE, Finding, SOON, Site};
use crate::coordinator::{JobSpec, contains};
use crate::harness::{JobResult, Outcome, RunningJob};

/// The first line of the script's output.
pub const BEGIN: &str = "BEGIN";
/// What its last line begins with.
pub const END: &str = "END runs: ";

/// What the numbers on standard error are higher by: a log that mixes the streams still tells them apart.
const STDERR_FROM: u32 = 1_000_000;

/// Numbers on both streams, in chunks with pauses between them.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many chunks.
    pub chunks: u32,
    /// Numbers in a chunk, on each stream.
    pub numbers: u32,
    /// Tenths of a second between chunks.
    pub pause: u32,
}

impl Load {
    /// Adds the script to a job.
    pub fn script(self, spec: JobSpec) -> JobSpec {
        spec.script(self.commands())
    }

    /// The commands of the script. They count how often it is started.
    pub fn commands(self) -> [String; 3] {
        let Self { chunks, numbers, pause } = self;
        let err = STDERR_FROM;
        [
            "echo x >> \"$CI_PROJECT_DIR.runs\"; printf 'BE''GIN\\n'".to_owned(),
            format!(
                "i=0; while [ $i -lt {chunks} ]; do seq $((i*{numbers}+1)) $(((i+1)*{numbers})); \
                 seq $(({err}+i*{numbers}+1)) $(({err}+(i+1)*{numbers})) >&2; i=$((i+1)); sleep {}.{}; done",
                pause / 10,
                pause % 10
            ),
            "printf 'EN''D runs: %s\\n' $(wc -l < \"$CI_PROJECT_DIR.runs\")".to_owned(),
        ]
    }

    /// Judges a job that had to succeed with all of its output.
    pub fn judge(self, job: i64, result: &JobResult, recovery: Option<Duration>) -> Finding {
        let mut finding = Finding { job, recovery, ..Finding::default() };
        if result.outcome != Outcome::Success {
            finding.wrong.push(format!("{:?} instead of success; log: …{}", result.outcome, tail(result)));
            return finding;
        }
        let all = self.chunks * self.numbers;
        let expected = [0, STDERR_FROM].map(|from| lines((1..=all).map(|number| from + number)));
        if result.calls.is_empty() {
            finding.judge_mixed(result, &expected);
            return finding;
        }
        let call = result.call("build_script");
        let stdout = call.stdout_text();
        let between = stdout
            .split_once("BEGIN\n")
            .and_then(|(_, rest)| rest.split_once(END))
            .map(|(numbers, runs)| (numbers.lines().filter(|line| !line.contains('$')), runs));
        match between {
            None => finding.wrong.push("the script's output has no begin or no end".to_owned()),
            Some((numbers, runs)) => {
                let numbers: String = numbers.flat_map(|line| [line, "\n"]).collect();
                finding.compare("stdout", &numbers, &expected[0]);
                if runs.trim() != "1" {
                    finding.wrong.push(format!("the script ran {} times", runs.trim()));
                }
            }
        }
        // The shim's own lines are among the script's, and may stand in the midst of one.
        let digits =
            |text: &str| text.lines().filter(|line| !line.contains("connection")).collect::<String>();
        finding.compare("stderr", &digits(&call.stderr_text()), &digits(&expected[1]));
        finding
    }
}

/// A line for each number.
fn lines(numbers: impl Iterator<Item = u32>) -> String {
    numbers.fold(String::new(), |text, number| text + &number.to_string() + "\n")
}

impl Finding {
    /// Judges the log of a real gitlab-runner, which has both streams in one.
    fn judge_mixed(&mut self, result: &JobResult, expected: &[String; 2]) {
        let text = result.text();
        let between = text.split_once("BEGIN\n").and_then(|(_, rest)| rest.split_once(END));
        let Some((numbers, runs)) = between else {
            self.wrong.push("the script's output has no begin or no end".to_owned());
            return;
        };
        if !runs.starts_with("1\n") {
            self.wrong.push(format!("the script ran {} times", runs.lines().next().unwrap_or_default()));
        }
        let numbers: Vec<u32> = numbers.lines().filter_map(|line| line.parse().ok()).collect();
        let (stdout, stderr): (Vec<_>, Vec<_>) =
            numbers.into_iter().partition(|number| *number <= STDERR_FROM);
        self.compare("stdout", &lines(stdout.into_iter()), &expected[0]);
        self.compare("stderr", &lines(stderr.into_iter()), &expected[1]);
        if self.recovery.is_some() {
            // Its log comes once a second; the stamps of the lines know better.
            self.recovery = result.longest_gap("BEGIN", END);
        }
    }

    fn compare(&mut self, stream: &str, actual: &str, expected: &str) {
        if actual == expected {
            return;
        }
        let same = actual.bytes().zip(expected.bytes()).take_while(|(one, other)| one == other).count();
        let lost = expected.len().abs_diff(actual.len()).max(1) as u64;
        self.bytes_lost += lost;
        self.wrong
            .push(format!("{stream} differs from byte {same} on, by {lost} bytes of {}", expected.len()));
    }
}

/// Judges a job that the fault had to end: how it ended for GitLab, what the job log says and why the CiJob says it ended.
pub async fn ended(
    site: &Site<'_>,
    result: &JobResult,
    right: impl Fn(&Outcome) -> bool,
    words: &str,
    reasons: &[Reason],
    recovery: Duration,
) -> Result<Finding> {
    let mut finding = Finding { job: result.id, recovery: Some(recovery), ..Finding::default() };
    if !right(&result.outcome) {
        finding.wrong.push(format!("it ended as {:?}; log: …{}", result.outcome, tail(result)));
    }
    if !site.is_ours() {
        return Ok(finding);
    }
    if !result.text().contains(words) {
        finding.wrong.push(format!("the job log does not say {words:?}: …{}", tail(result)));
    }
    if reasons.is_empty() {
        return Ok(finding);
    }
    let reason = final_reason(site, result.id).await?;
    if !reason.is_some_and(|reason| reasons.contains(&reason)) {
        finding.wrong.push(format!("the CiJob says {reason:?}"));
    }
    Ok(finding)
}

/// Why the CiJob of a job has ended, once it has.
pub async fn final_reason(site: &Site<'_>, job: i64) -> Result<Option<Reason>> {
    let name = site.bench.cijob_of(job).await?.metadata.name.unwrap_or_default();
    let job = site.bench.wait_finished(&name, SOON).await?;
    Ok(job.status.and_then(|status| status.reason))
}

/// Waits until the job log is longer than this, and says how long that took.
///
/// `log` has to be from before whatever may end the job: after its end nothing grows any more.
pub async fn goes_on(job: &RunningJob, log: &[u8]) -> Result<Duration> {
    let since = Instant::now();
    job.wait_longer(log.len(), DEADLINE).await?;
    Ok(since.elapsed())
}

/// Waits for the end of the load's output, and says for how long the job log was silent at most.
pub async fn longest_silence(job: &RunningJob) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    if job.is_real() {
        // How long is found in its log in the end.
        job.wait_log(END, DEADLINE).await?;
        return Ok(longest);
    }
    loop {
        let log = job.log();
        if contains(&log, END.as_bytes()) {
            return Ok(longest);
        }
        longest = longest.max(goes_on(job, &log).await?);
    }
}

fn tail(result: &JobResult) -> String {
    let text = result.text();
    let lines: Vec<&str> = text.lines().rev().filter(|line| line.parse::<u32>().is_err()).take(6).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}
