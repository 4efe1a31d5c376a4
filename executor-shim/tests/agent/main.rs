//! The real `stage-agent`, as a child process, with real scripts.

mod basics;
mod client;
mod world;
