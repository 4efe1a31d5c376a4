//! What was measured, as data.

use serde::Serialize;

use super::options::Topic;

/// What a value is counted in.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Milliseconds,
    /// Requests to the API server.
    Requests,
    /// MiB.
    Mebibytes,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The group that it belongs to.
    pub topic: Topic,
    /// What was measured.
    pub name: String,
    /// What it is counted in.
    pub unit: Unit,
    /// Roadstead's value. Absent when it could not be measured here.
    pub roadstead: Option<f64>,
    /// The value of GitLab's Kubernetes executor, where it was measured.
    pub gitlab: Option<f64>,
    /// How many times Roadstead's value the other one is.
    pub ratio: Option<f64>,
    /// The most that Roadstead's value should be.
    pub target: Option<f64>,
    /// Whether it is.
    pub reached: Option<bool>,
    /// Single measurements behind the values, where there are several.
    pub samples: Samples,
}

/// Single measurements, in their order.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Samples {
    /// Roadstead's.
    pub roadstead: Vec<f64>,
    /// Those of GitLab's Kubernetes executor.
    pub gitlab: Vec<f64>,
}

impl Row {
    /// A row of Roadstead's own.
    pub(super) fn new(topic: Topic, unit: Unit, name: impl Into<String>, roadstead: Option<f64>) -> Self {
        Self {
            topic,
            name: name.into(),
            unit,
            roadstead,
            gitlab: None,
            ratio: None,
            target: None,
            reached: None,
            samples: Samples::default(),
        }
    }

    /// Adds what GitLab's Kubernetes executor has.
    #[must_use]
    pub(super) fn against(mut self, gitlab: Option<f64>) -> Self {
        self.gitlab = gitlab;
        self.ratio = match (self.roadstead, gitlab) {
            (Some(ours), Some(theirs)) if ours > 0.0 => Some(theirs / ours),
            _ => None,
        };
        self
    }

    /// Adds the most that it should be.
    #[must_use]
    pub(super) fn target(mut self, most: f64) -> Self {
        self.target = Some(most);
        self.reached = self.roadstead.map(|value| value <= most);
        self
    }

    /// Adds the single measurements.
    #[must_use]
    pub(super) fn samples(mut self, roadstead: &[f64], gitlab: &[f64]) -> Self {
        self.samples = Samples { roadstead: roadstead.to_vec(), gitlab: gitlab.to_vec() };
        self
    }
}

/// Where and how it was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
    /// Roadstead's version and commit.
    pub roadstead: String,
    /// The API server's version.
    pub kubernetes: String,
    /// Version of the real gitlab-runner that drove the executors; absent where the test bench's played one did.
    pub gitlab_runner: Option<String>,
    /// Whether GitLab's Kubernetes executor was measured as well.
    pub compared: bool,
    /// Processors and memory.
    pub machine: String,
    /// The machine's load average of the last minute when the run began: more than a few tenths means that it was not
    /// alone.
    pub load: Option<f64>,
    /// How thorough it was.
    pub run: String,
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Where and how.
    pub about: About,
    /// What was found.
    pub rows: Vec<Row>,
    /// Why rows are missing.
    pub notes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_and_target_are_of_what_is_there() {
        let row = Row::new(Topic::Start, Unit::Seconds, "x", Some(2.0)).against(Some(5.0)).target(2.0);
        assert_eq!((row.ratio, row.reached), (Some(2.5), Some(true)));
        let row = Row::new(Topic::Start, Unit::Seconds, "x", Some(2.1)).against(None).target(2.0);
        assert_eq!((row.ratio, row.reached), (None, Some(false)));
        let row = Row::new(Topic::Start, Unit::Seconds, "x", None).against(Some(5.0)).target(2.0);
        assert_eq!((row.ratio, row.reached), (None, None));
        let row = Row::new(Topic::Requests, Unit::Requests, "x", Some(0.0)).against(Some(5.0));
        assert_eq!(row.ratio, None, "nothing is not a measure");
    }
}
