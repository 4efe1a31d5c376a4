//! The driver that gitlab-runner's custom executor calls. All of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    executor_shim::shim::main(std::env::args_os())
}
