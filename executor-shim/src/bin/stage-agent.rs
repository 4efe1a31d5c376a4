//! PID 1 in the containers of a job's pod, and the relay that is exec'd into them.

use std::process::ExitCode;

fn main() -> ExitCode {
    executor_shim::agent::main(std::env::args_os().skip(1))
}
