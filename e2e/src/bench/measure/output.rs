//! What much output costs: a job that prints, against the same job that throws its output away.

use anyhow::Result;

use crate::bench::Bench;
use crate::bench::options::Topic;
use crate::bench::report::{Row, Unit};
use crate::bench::stats::median;

/// Bytes of a line with its line feed.
const LINE: u32 = 80;

/// The most that the output of the full size may add.
const TARGET: f64 = 1.5;

pub(in crate::bench) async fn output(bench: &Bench<'_>) -> Result<Vec<Row>> {
    let mebibytes = bench.plan.output_mib;
    let (silent, loud) = (command(mebibytes, " > /dev/null"), command(mebibytes, ""));
    let mut ours = [Vec::new(), Vec::new()];
    let mut theirs = [Vec::new(), Vec::new()];
    for number in 1..=bench.plan.outputs {
        bench
            .progress
            .say(format_args!("bench: {mebibytes} MiB of output, {number} of {}", bench.plan.outputs));
        for (which, command) in [&silent, &loud].into_iter().enumerate() {
            let result = bench.run_ours(&bench.job(command)?).await?;
            ours[which].push(result.duration().as_secs_f64());
            if let Some(result) = bench.run_theirs(&bench.job(command)?).await? {
                theirs[which].push(result.duration().as_secs_f64());
            }
        }
    }
    let difference = |[silent, loud]: &[Vec<f64>; 2]| Some(median(loud)? - median(silent)?);
    let row = |what: &str, which: usize| {
        let name = format!("a job {what} {mebibytes} MiB of output, from assignment to end");
        let row = Row::new(Topic::Output, Unit::Seconds, name, median(&ours[which]));
        row.against(median(&theirs[which])).samples(&ours[which], &theirs[which])
    };
    let name = format!("{mebibytes} MiB of output cost");
    let cost = Row::new(Topic::Output, Unit::Seconds, name, difference(&ours)).against(difference(&theirs));
    Ok(vec![row("without", 0), row("with", 1), cost.target(TARGET)])
}

/// Prints lines that are neither empty nor equal to what a terminal would fold.
pub(super) fn command(mebibytes: u32, to: &str) -> String {
    let lines = mebibytes * ((1 << 20) / LINE);
    let text = "x".repeat((LINE - 1) as usize);
    format!("awk 'BEGIN {{ for (line = 0; line < {lines}; line++) print \"{text}\" }}'{to}")
}

#[cfg(test)]
mod tests {
    use crate::exec::{capture, command as program};

    #[test]
    fn the_command_prints_as_much_as_it_says() {
        let printed = capture(&mut program("sh", ["-c", &super::command(1, "")])).unwrap();
        // 80 does not divide a MiB.
        assert!(((1 << 20) - 80..=1 << 20).contains(&printed.len()), "{}", printed.len());
        let silent = super::command(1, " > /dev/null");
        assert_eq!(capture(&mut program("sh", ["-c", &silent])).unwrap(), "");
    }
}
