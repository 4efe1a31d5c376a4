//! Tests of executor-shim that need no cluster: conversations over a WebSocket in memory, the
//! agent's real binary behind one, and the shim's real binary against a small API server.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]

mod agent;
mod apiserver;
mod attempts;
mod by_hand;
mod calls;
mod cli;
mod conversation;
mod fixture;
mod link;
mod peer;
mod pod;
mod services;
mod stages;
mod start;
mod stopping;
mod supervise;
mod tags;
mod upload;
