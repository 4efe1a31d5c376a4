//! Roadstead's test bench: clusters to run on, a GitLab to talk to, a runner to drive the shim, and what is built of
//! them: end-to-end tests, the demo and the benchmark.

pub mod audit;
pub mod bench;
pub mod cli;
pub mod cluster;
pub mod coordinator;
pub mod faults;
pub mod gitrepo;
pub mod harness;
pub mod installation;
pub mod program;

mod cargo;
mod demo;
mod exec;
mod gitlab_executor;
mod hash;
mod images;
mod lock;
mod needs;
mod packages;
mod product;
pub mod progress;
mod provider;
mod release;
mod state;
mod tools;
mod wait;

pub use cluster::{Action, Cluster, Component};
pub use release::Release;
