//! The Kubernetes objects of Roadstead, API group `roadstead.dev/v1alpha1`.
//!
//! A [`CiJob`] asks for one GitLab CI job to be run; a [`JobClass`] says what jobs may use, where
//! and for how long. The crate holds their types, names and labels and knows no client: the
//! operator and the executor shim both depend on it and never on each other.
//!
//! The YAML in `manifests/` is generated from these types; a test keeps the two together.

pub mod cijob;
pub mod jobclass;
pub mod labels;
pub mod names;
pub mod reason;
pub mod report;
pub mod request;
pub mod status;

pub use cijob::{CiJob, CiJobSpec};
pub use jobclass::{JobClass, JobClassSpec};
pub use reason::Reason;
pub use status::{CiJobStatus, Phase};

/// API group of both kinds.
pub const GROUP: &str = "roadstead.dev";

/// API version of both kinds.
pub const VERSION: &str = "v1alpha1";
