//! The driver that gitlab-runner's custom executor calls (`executor-shim`), and what runs inside a
//! job's pod on its behalf (`stage-agent`).
//!
//! Both speak [`wire`] over the stream of a pod exec. The agent knows no Kubernetes client, so that
//! it stays small; everything that does is behind the feature `shim`.

pub mod agent;
#[cfg(feature = "shim")]
pub mod shim;
pub mod wire;
