//! The operator of Roadstead: runs each CiJob in a pod, by the rules of its JobClass, and enforces
//! its limits.
//!
//! [`policy`] and most of [`job`] are pure; `job::observe` asks, `job::apply` writes.

pub mod api;
#[cfg(test)]
mod fixture;
pub mod job;
pub mod journal;
pub mod policy;
pub mod requests;
pub mod telemetry;
