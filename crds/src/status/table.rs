//! The table of what a job asked for and what became of it, as its log shows it. Pure.

use crate::status::{OverrideOutcome, OverrideReport};

/// Longest text of a cell, in characters. Annotations can be long.
const WIDEST: usize = 60;

/// The lines of the table; none where nothing was asked.
pub fn lines(class: &str, report: &[OverrideReport]) -> Vec<String> {
    if report.is_empty() {
        return Vec::new();
    }
    let head = ["", "asked", "allowed", "applied", "from"].map(str::to_owned);
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(report.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; 5] = std::array::from_fn(width);
    let mut lines = vec![format!("What the job asked for, by JobClass {class}:")];
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("  {cell:width$}"));
        }
        lines.push(line.trim_end().to_owned());
    }
    lines
}

fn row(report: &OverrideReport) -> [String; 5] {
    let cell = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), shown);
    [shown(&report.what), cell(&report.asked), cell(&report.allowed), cell(&report.applied), from(report)]
}

/// One line, not too long, and an empty value visible.
fn shown(text: &str) -> String {
    if text.is_empty() {
        return "\"\"".to_owned();
    }
    let text = text.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'");
    if text.chars().count() <= WIDEST {
        return text;
    }
    text.chars().take(WIDEST - 1).chain(['…']).collect()
}

fn from(report: &OverrideReport) -> String {
    let source = &report.source;
    match report.outcome {
        OverrideOutcome::Applied => source.clone(),
        OverrideOutcome::Clamped => format!("{source}, within the class's bounds"),
        OverrideOutcome::Adjusted => format!("{source}, to fit the limit"),
        OverrideOutcome::Forbidden => format!("{source}, ignored: the class does not let jobs choose"),
        OverrideOutcome::Unsupported => format!("{source}, ignored: not supported"),
        OverrideOutcome::Untrusted => format!("{source}, ignored: they are the runner's, not the job's"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(what: &str, values: [&str; 3], source: &str, outcome: OverrideOutcome) -> OverrideReport {
        let [asked, allowed, applied] = values.map(|value| (value != "-").then(|| value.to_owned()));
        OverrideReport { what: what.to_owned(), asked, allowed, applied, source: source.to_owned(), outcome }
    }

    #[test]
    fn columns_are_aligned() {
        use OverrideOutcome::{Adjusted, Applied, Clamped, Forbidden};
        assert_eq!(lines("default", &[]), [""; 0]);
        let report = [
            report("build memory limit", ["16Gi", "64Mi to 8Gi", "8Gi"], "KUBERNETES_MEMORY_LIMIT", Clamped),
            report("build cpu request", ["-", "at most 1", "1"], "JobClass", Adjusted),
            report("helper cpu limit", ["2", "-", "-"], "KUBERNETES_HELPER_CPU_LIMIT", Forbidden),
            report("tolerations", ["", ".*", ""], "KUBERNETES_NODE_TOLERATIONS_1", Applied),
        ];
        assert_eq!(
            lines("default", &report),
            [
                "What the job asked for, by JobClass default:",
                "                      asked  allowed      applied  from",
                "  build memory limit  16Gi   64Mi to 8Gi  8Gi      KUBERNETES_MEMORY_LIMIT, within the class's bounds",
                "  build cpu request   -      at most 1    1        JobClass, to fit the limit",
                "  helper cpu limit    2      -            -        KUBERNETES_HELPER_CPU_LIMIT, ignored: the class does not let jobs choose",
                "  tolerations         \"\"     .*           \"\"       KUBERNETES_NODE_TOLERATIONS_1",
            ]
        );
    }

    #[test]
    fn a_cell_is_one_short_line() {
        assert_eq!(shown("a\nb\t\u{1b}[0m"), "a\\nb\\t\\u{1b}[0m");
        assert_eq!(shown(&"ä".repeat(61)), format!("{}…", "ä".repeat(59)));
        assert_eq!(shown("x=\"y\""), "x=\"y\"");
    }
}
