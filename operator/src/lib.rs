//! The operator of Roadstead: runs each CiJob in a pod, by the rules of its JobClass, and enforces
//! its limits.
//!
//! [`policy`] and most of [`job`] are pure; `job::observe` asks, `job::apply` writes.

pub mod api;
pub mod backoff;
pub mod classes;
pub mod cli;
pub mod connect;
pub mod controller;
pub mod explain;
#[cfg(test)]
mod fixture;
pub mod http;
pub mod job;
pub mod journal;
pub mod lead;
pub mod policy;
pub mod queues;
pub mod requests;
pub mod run;
pub mod telemetry;
pub mod watch;

/// An error and everything that it comes from, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
