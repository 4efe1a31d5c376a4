//! The names that one installation of the chart goes by.

use serde::{Deserialize, Serialize};

/// A release of the chart.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Release {
    /// Its name for helm. The names of its objects start with it.
    pub name: String,
    /// The operator's namespace.
    pub namespace: String,
    /// The namespace that jobs run in.
    pub job_namespace: String,
    /// What the names of its JobClasses start with: all releases in a cluster share the classes.
    pub class_prefix: String,
}

impl Default for Release {
    /// The names that the documents use, for a cluster of the tests' own.
    fn default() -> Self {
        Self {
            name: "roadstead".to_owned(),
            namespace: "roadstead-system".to_owned(),
            job_namespace: "ci-jobs".to_owned(),
            class_prefix: String::new(),
        }
    }
}

impl Release {
    /// The operator's Deployment and account.
    #[must_use]
    pub fn operator(&self) -> String {
        format!("{}-operator", self.name)
    }

    /// The shim's account.
    #[must_use]
    pub fn shim_account(&self) -> String {
        format!("{}-shim", self.name)
    }

    /// The second namespace that jobs run in, where they ask for it.
    #[must_use]
    pub fn second_job_namespace(&self) -> String {
        format!("{}-2", self.job_namespace)
    }

    /// A JobClass of this release.
    #[must_use]
    pub fn class(&self, name: &str) -> String {
        format!("{}{name}", self.class_prefix)
    }
}
