//! Roadstead's test bench: clusters to run on, a GitLab to talk to, a runner to drive the shim, and what is built of
//! them: end-to-end tests, the demo and the benchmark.

pub mod coordinator;
pub mod gitrepo;
