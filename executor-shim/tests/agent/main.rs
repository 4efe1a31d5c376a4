//! The real `stage-agent`, as a child process, with real scripts.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod basics;
mod client;
mod death;
mod namespace;
mod orphan;
mod output;
mod random;
mod relay;
mod resume;
mod stop;
mod stress;
mod world;
