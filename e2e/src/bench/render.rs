//! The report as a table, for people and for the documentation.

use std::fmt::Write as _;

use super::options::Topic;
use super::report::{About, Report, Row, Unit};

/// Around the block in `docs/performance.md` that a run replaces.
const BEGIN: &str = "<!-- bench:begin -->";
/// The block's last line.
const END: &str = "<!-- bench:end -->";

/// The block for `docs/performance.md`, with the comments around it.
pub(super) fn markdown(report: &Report) -> String {
    let mut text = format!("{BEGIN}\n{}\n\n", about(&report.about));
    let compared = report.about.compared;
    let columns: Vec<&str> = ["", "Roadstead"]
        .into_iter()
        .chain(["GitLab's Kubernetes executor", "ratio"].into_iter().filter(|_| compared))
        .chain(["target", "reached"])
        .collect();
    line(&mut text, &columns);
    let mut rule = vec!["---"; columns.len()];
    rule[1..].fill("---:");
    line(&mut text, &rule);
    let mut topic = None;
    for row in &report.rows {
        if topic != Some(row.topic) {
            topic = Some(row.topic);
            let mut heading = vec![String::new(); columns.len()];
            heading[0] = format!("**{}**", title(row.topic));
            line(&mut text, &heading);
        }
        line(&mut text, &cells(row, compared));
    }
    for note in &report.notes {
        let _ = write!(text, "\n{note}\n");
    }
    text.push_str(END);
    text.push('\n');
    text
}

/// The table for a terminal.
pub(super) fn plain(report: &Report) -> String {
    let compared = report.about.compared;
    let rows: Vec<Vec<String>> = report.rows.iter().map(|row| cells(row, compared)).collect();
    let mut head = vec!["", "Roadstead"];
    if compared {
        head.extend(["GitLab's", "ratio"]);
    }
    head.extend(["target", "reached"]);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|cell| cell.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = format!("{}\n\n", about(&report.about));
    let mut print = |cells: Vec<&str>| {
        let mut line = String::new();
        for (column, (cell, width)) in cells.into_iter().zip(&widths).enumerate() {
            // Writing to a String cannot fail, here and below.
            let _ =
                if column == 0 { write!(line, "  {cell:<width$}") } else { write!(line, "  {cell:>width$}") };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    };
    print(head.clone());
    let mut topic = None;
    for (row, cells) in report.rows.iter().zip(&rows) {
        if topic != Some(row.topic) {
            topic = Some(row.topic);
            print(vec![title(row.topic)]);
        }
        print(cells.iter().map(String::as_str).collect());
    }
    for note in &report.notes {
        let _ = writeln!(text, "\n{note}");
    }
    text
}

fn line<S: AsRef<str>>(text: &mut String, cells: &[S]) {
    for cell in cells {
        let _ = write!(text, "| {} ", cell.as_ref());
    }
    text.push_str("|\n");
}

fn cells(row: &Row, compared: bool) -> Vec<String> {
    let value = |value: Option<f64>| value.map(|value| format_value(row.unit, value)).unwrap_or_default();
    let mut cells = vec![row.name.clone(), value(row.roadstead)];
    if compared {
        cells.push(value(row.gitlab));
        cells.push(row.ratio.map(|ratio| format!("{ratio:.1}")).unwrap_or_default());
    }
    cells.push(row.target.map(|target| format!("≤ {}", format_target(row.unit, target))).unwrap_or_default());
    let reached = row.reached.map(|reached| if reached { "yes" } else { "**no**" });
    cells.push(reached.unwrap_or_default().to_owned());
    cells
}

fn format_value(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Seconds => format!("{value:.2} s"),
        Unit::Milliseconds => format!("{value:.0} ms"),
        Unit::Requests => format!("{value:.0}"),
        Unit::Mebibytes => format!("{value:.1} MiB"),
    }
}

/// Targets are round.
fn format_target(unit: Unit, target: f64) -> String {
    match unit {
        Unit::Seconds => format!("{target:.1} s"),
        Unit::Milliseconds => format!("{target:.0} ms"),
        Unit::Requests => format!("{target:.0}"),
        Unit::Mebibytes => format!("{target:.0} MiB"),
    }
}

fn title(topic: Topic) -> &'static str {
    match topic {
        Topic::Start => "Start of a job: a new pod, images present, nothing to check out (medians)",
        Topic::Parallel => "Several jobs at once",
        Topic::Output => "Output of a script (medians)",
        Topic::Requests => "Requests to the API server",
        Topic::Memory => "Peak memory",
        Topic::Size => "Images",
        Topic::Idle => "The operator while nothing happens",
    }
}

fn about(about: &About) -> String {
    let driver = match &about.gitlab_runner {
        Some(version) if about.compared => {
            format!("Both executors under gitlab-runner {version} on the same cluster, their jobs in turn.")
        }
        Some(version) => format!("Under gitlab-runner {version}."),
        None => "The test bench plays gitlab-runner.".to_owned(),
    };
    let load = about.load.map(|load| format!(", load average {load:.1} at the start")).unwrap_or_default();
    format!(
        "Roadstead {}, Kubernetes {}, {}{load}; {}. {driver}",
        about.roadstead, about.kubernetes, about.machine, about.run
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(gitlab_runner: Option<&str>) -> Report {
        let gitlab = |value| gitlab_runner.map(|_| value);
        Report {
            about: About {
                roadstead: "0.1.0 (abc)".into(),
                kubernetes: "v1.35.0".into(),
                gitlab_runner: gitlab_runner.map(str::to_owned),
                compared: gitlab_runner.is_some(),
                machine: "2 processors, 24 GiB".into(),
                load: Some(0.21),
                run: "full run".into(),
            },
            rows: vec![
                Row::new(Topic::Start, Unit::Seconds, "first line", Some(1.004))
                    .against(gitlab(4.3))
                    .target(1.3),
                Row::new(Topic::Start, Unit::Milliseconds, "of it: bound", Some(52.0)),
                Row::new(Topic::Memory, Unit::Mebibytes, "operator", Some(34.25)).target(30.0),
                Row::new(Topic::Requests, Unit::Requests, "a job", None).against(gitlab(25.0)),
            ],
            notes: vec!["Not measured: requests.".into()],
        }
    }

    #[test]
    fn the_block_has_a_fixed_form() {
        let expected = "\
<!-- bench:begin -->
Roadstead 0.1.0 (abc), Kubernetes v1.35.0, 2 processors, 24 GiB, load average 0.2 at the start; full run. \
Both executors under gitlab-runner 17.9.3 on the same cluster, their jobs in turn.

|  | Roadstead | GitLab's Kubernetes executor | ratio | target | reached |
| --- | ---: | ---: | ---: | ---: | ---: |
| **Start of a job: a new pod, images present, nothing to check out (medians)** |  |  |  |  |  |
| first line | 1.00 s | 4.30 s | 4.3 | ≤ 1.3 s | yes |
| of it: bound | 52 ms |  |  |  |  |
| **Peak memory** |  |  |  |  |  |
| operator | 34.2 MiB |  |  | ≤ 30 MiB | **no** |
| **Requests to the API server** |  |  |  |  |  |
| a job |  | 25 |  |  |  |

Not measured: requests.
<!-- bench:end -->
";
        assert_eq!(markdown(&report(Some("17.9.3"))), expected);
    }

    #[test]
    fn without_a_real_runner_there_is_nothing_to_compare_with() {
        let text = markdown(&report(None));
        assert!(text.contains("| first line | 1.00 s | ≤ 1.3 s | yes |\n"), "{text}");
        assert!(text.contains("plays gitlab-runner") && !text.contains("ratio"), "{text}");
    }

    #[test]
    fn columns_of_the_plain_table_are_aligned() {
        let text = plain(&report(Some("17.9.3")));
        let line = |begin: &str| text.lines().find(|line| line.trim_start().starts_with(begin)).unwrap();
        let end = |line: &str, cell: &str| line[..line.find(cell).unwrap() + cell.len()].chars().count();
        assert_eq!(end(line("first line"), "1.00 s"), end(line("of it"), "52 ms"));
        assert_eq!(end(line("first line"), "4.30 s"), end(line("a job"), "25"));
    }
}
