//! The Kubernetes objects of Roadstead, API group `roadstead.dev/v1alpha1`.
//!
//! A [`CiJob`] asks for one GitLab CI job to be run; a [`JobClass`] says what jobs may use, where
//! and for how long. The crate holds their types, names and labels and knows no client: the
//! operator and the executor shim both depend on it and never on each other.
//!
//! The YAML in `manifests/` is generated from these types; a test keeps the two together.

#[cfg(feature = "objects")]
pub mod cijob;
#[cfg(feature = "objects")]
pub mod jobclass;
pub mod labels;
#[cfg(feature = "objects")]
pub mod names;
#[cfg(feature = "objects")]
pub mod overrides;
#[cfg(feature = "objects")]
pub mod quantity;
#[cfg(feature = "objects")]
pub mod reason;
#[cfg(feature = "objects")]
pub mod report;
#[cfg(feature = "objects")]
pub mod request;
#[cfg(feature = "objects")]
mod schema;
#[cfg(feature = "objects")]
pub mod status;

#[cfg(feature = "objects")]
pub use cijob::{CiJob, CiJobSpec};
#[cfg(feature = "objects")]
pub use jobclass::{JobClass, JobClassSpec, JobClassStatus};
#[cfg(feature = "objects")]
pub use reason::Reason;
#[cfg(feature = "objects")]
pub use status::{CiJobStatus, Phase};

/// API group of both kinds.
pub const GROUP: &str = "roadstead.dev";

/// API version of both kinds.
pub const VERSION: &str = "v1alpha1";
