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
    /// How often it was run.
    pub runs: u32,
    /// How often the job came to the right end and left nothing.
    pub right: u32,
    /// Bytes of output that were lost in all runs.
    pub bytes_lost: u64,
    /// Jobs that left a pod.
    pub pods_left: u32,
    /// The longest time that a job took to go on or to end.
    pub slowest: Option<Duration>,
    /// What went wrong, run by run.
    pub wrong: Vec<String>,
}

impl Row {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            skipped: false,
            runs: 0,
            right: 0,
            bytes_lost: 0,
            pods_left: 0,
            slowest: None,
            wrong: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, finding: Result<Finding>) {
        self.runs += 1;
        let line = describe(&finding);
        if let Ok(finding) = finding {
            self.bytes_lost += finding.bytes_lost;
            self.slowest = self.slowest.max(finding.recovery);
            self.pods_left += u32::from(finding.pod_left);
            if finding.is_right() {
                self.right += 1;
                return;
            }
        }
        self.wrong.push(line);
    }
}

impl Table {
    /// Whether every job came to the right end.
    pub fn is_right(&self) -> bool {
        self.rows.iter().all(|row| row.right == row.runs)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.rows.iter().map(|row| row.name.len()).max().unwrap_or_default().max(5);
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
            let slowest = row.slowest.map_or("–".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()));
            writeln!(
                f,
                "| {:<name$} | {:>4} | {:>5} | {:>10} | {:>9} | {slowest:>16} |",
                row.name, row.runs, row.right, row.bytes_lost, row.pods_left
            )?;
        }
        for row in &self.rows {
            for line in &row.wrong {
                writeln!(f, "\n{}: {line}", row.name)?;
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
        good.add(Ok(Finding { recovery: Some(Duration::from_millis(1240)), ..Finding::default() }));
        good.add(Ok(Finding { recovery: Some(Duration::from_millis(840)), ..Finding::default() }));
        let mut bad = Row::new("stall");
        bad.add(Ok(Finding { wrong: vec!["stdout differs".into()], bytes_lost: 7, ..Finding::default() }));
        bad.add(Err(anyhow::anyhow!("no pod")));
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
}
