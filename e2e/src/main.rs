//! `cargo e2e`.

fn main() -> std::process::ExitCode {
    roadstead_e2e::cli::main()
}
