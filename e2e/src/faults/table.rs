//! How the faults went, as a table.

use std::fmt;
use std::time::Duration;

use anyhow::Result;

use super::{Finding, describe};

/// How all faults went. Its text is a Markdown table that a terminal shows aligned.
#[derive(Debug, Default)]
pub struct Table {
    /// One row per fault.
    pub rows: Vec<Row>,
}

/// How one fault went.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// It could not be run against this cluster.
    pub skipped: bool,
    /// How Roadstead's jobs went.
    pub ours: Tally,
    /// How those of GitLab's own executor went, where they are compared.
    pub theirs: Option<Theirs>,
}

/// GitLab's own executor in a fault.
#[derive(Debug)]
pub enum Theirs {
    /// It was not put through it, for this reason.
    LeftOut(&'static str),
    /// How its jobs went.
    Ran(Tally),
}

/// How the jobs of one executor went in one fault.
#[derive(Debug, Default)]
pub struct Tally {
    /// How often it was run.
    pub runs: u32,
    /// How often the job came to the right end and left nothing.
    pub right: u32,
    /// Bytes of output that were lost in all runs.
    pub bytes_lost: u64,
    /// Jobs that left a pod.
    pub pods_left: u32,
    /// Jobs that came to no end.
    pub hung: u32,
    /// The longest time that a job took to go on or to end.
    pub slowest: Option<Duration>,
    /// What went wrong, run by run.
    pub wrong: Vec<String>,
}

impl Row {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, skipped: false, ours: Tally::default(), theirs: None }
    }
}

impl Tally {
    pub(super) fn add(&mut self, finding: Result<Finding>) {
        self.runs += 1;
        let line = describe(&finding);
        if let Ok(finding) = finding {
            self.bytes_lost += finding.bytes_lost;
            self.slowest = self.slowest.max(finding.recovery);
            self.pods_left += u32::from(finding.pod_left);
            self.hung += u32::from(finding.hung);
            if finding.is_right() {
                self.right += 1;
                return;
            }
        }
        self.wrong.push(line);
    }

    /// The longest time in words.
    fn slowest(&self) -> String {
        match (self.hung, self.slowest) {
            (1.., _) => "no end".to_owned(),
            (0, None) => "–".to_owned(),
            (0, Some(time)) => format!("{:.1} s", time.as_secs_f64()),
        }
    }

    /// The cells of a comparison, the first one so wide.
    fn cells(&self, width: usize) -> String {
        let right = format!("{} of {}", self.right, self.runs);
        format!("{right:>width$} | {:>10} | {:>9} | {:>16}", self.bytes_lost, self.pods_left, self.slowest())
    }

    /// The same where nothing was run.
    fn none(width: usize, last: &str) -> String {
        format!("{:>width$} | {:>10} | {:>9} | {last:>16}", "–", "–", "–")
    }
}

impl Table {
    /// Whether every job of Roadstead came to the right end.
    pub fn is_right(&self) -> bool {
        self.rows.iter().all(|row| row.ours.right == row.ours.runs)
    }

    fn alone(&self, f: &mut fmt::Formatter<'_>, name: usize) -> fmt::Result {
        writeln!(f, "| {:<name$} | runs | right | bytes lost | pods left | slowest recovery |", "fault")?;
        writeln!(f, "|-{:-<name$}-|-----:|------:|-----------:|----------:|-----------------:|", "")?;
        for row in &self.rows {
            if row.skipped {
                writeln!(
                    f,
                    "| {:<name$} | {:>4} | {:>5} | {:>10} | {:>9} | {:>16} |",
                    row.name, "–", "–", "–", "–", "skipped"
                )?;
                continue;
            }
            let Tally { runs, right, bytes_lost, pods_left, .. } = &row.ours;
            let slowest = row.ours.slowest();
            writeln!(
                f,
                "| {:<name$} | {runs:>4} | {right:>5} | {bytes_lost:>10} | {pods_left:>9} | {slowest:>16} |",
                row.name
            )?;
        }
        Ok(())
    }

    fn side_by_side(&self, f: &mut fmt::Formatter<'_>, name: usize) -> fmt::Result {
        let columns = "bytes lost | pods left | slowest recovery";
        writeln!(f, "| {:<name$} | Roadstead: right | {columns} | GitLab's: right | {columns} |", "fault")?;
        let lines = "-----------:|----------:|-----------------:";
        writeln!(f, "|-{:-<name$}-|-----------------:|{lines}|----------------:|{lines}|", "")?;
        for row in &self.rows {
            let ours = if row.skipped { Tally::none(16, "skipped") } else { row.ours.cells(16) };
            let theirs = match &row.theirs {
                Some(Theirs::Ran(tally)) => tally.cells(15),
                Some(Theirs::LeftOut(_)) | None => Tally::none(15, "–"),
            };
            writeln!(f, "| {:<name$} | {ours} | {theirs} |", row.name)?;
        }
        Ok(())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.rows.iter().map(|row| row.name.len()).max().unwrap_or_default().max(5);
        if self.rows.iter().any(|row| row.theirs.is_some()) {
            self.side_by_side(f, name)?;
        } else {
            self.alone(f, name)?;
        }
        for row in &self.rows {
            for line in &row.ours.wrong {
                writeln!(f, "\n{}: {line}", row.name)?;
            }
            match &row.theirs {
                None => {}
                Some(Theirs::LeftOut(why)) => {
                    writeln!(f, "\n{}: GitLab's executor is left out: {why}", row.name)?;
                }
                Some(Theirs::Ran(tally)) => {
                    for line in &tally.wrong {
                        writeln!(f, "\n{}: GitLab's executor: {line}", row.name)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_row_per_fault_and_the_wrongs_below() {
        let mut good = Row::new("pod-deleted");
        good.ours.add(Ok(Finding { recovery: Some(Duration::from_millis(1240)), ..Finding::default() }));
        good.ours.add(Ok(Finding { recovery: Some(Duration::from_millis(840)), ..Finding::default() }));
        let mut bad = Row::new("stall");
        bad.ours.add(Ok(Finding {
            wrong: vec!["stdout differs".into()],
            bytes_lost: 7,
            ..Finding::default()
        }));
        bad.ours.add(Err(anyhow::anyhow!("no pod")));
        let mut skipped = Row::new("etcd-killed");
        skipped.skipped = true;
        let table = Table { rows: vec![good, bad, skipped] };
        assert!(!table.is_right());
        assert_eq!(
            table.to_string(),
            "\
| fault       | runs | right | bytes lost | pods left | slowest recovery |
|-------------|-----:|------:|-----------:|----------:|-----------------:|
| pod-deleted |    2 |     2 |          0 |         0 |            1.2 s |
| stall       |    2 |     0 |          7 |         0 |                – |
| etcd-killed |    – |     – |          – |         – |          skipped |

stall: WRONG: stdout differs

stall: WRONG: no pod
"
        );
    }

    #[test]
    fn a_comparison_counts_only_our_wrongs_and_says_theirs() {
        let mut compared = Row::new("half-open");
        compared.ours.add(Ok(Finding::default()));
        let mut theirs = Tally::default();
        theirs.add(Ok(Finding { hung: true, wrong: vec!["no end".into()], ..Finding::default() }));
        compared.theirs = Some(Theirs::Ran(theirs));
        let mut ours_alone = Row::new("cijob-deleted");
        ours_alone.theirs = Some(Theirs::LeftOut("it has none"));
        let table = Table { rows: vec![compared, ours_alone] };
        assert!(table.is_right());
        let text = table.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("Roadstead: right") && lines[0].contains("GitLab's: right"), "{text}");
        let cells: Vec<&str> = lines[2].split('|').map(str::trim).collect();
        assert_eq!(
            cells,
            ["", "half-open", "1 of 1", "0", "0", "–", "0 of 1", "0", "0", "no end", ""],
            "{text}"
        );
        let widths: Vec<usize> = lines[..4].iter().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{widths:?}\n{text}");
        assert!(text.contains("half-open: GitLab's executor: WRONG: no end"), "{text}");
        assert!(text.contains("cijob-deleted: GitLab's executor is left out: it has none"), "{text}");
    }
}
