//! The real `stage-agent`, as a child process, with real scripts.

mod basics;
mod client;
mod death;
mod namespace;
mod orphan;
mod output;
mod random;
mod resume;
mod stop;
mod world;
