//! The product's programs, built by cargo and linked statically, so that they run in any image.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cargo::cargo;
use crate::exec::{capture, command};
use crate::progress::Progress;

/// The static programs.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    pub(super) operator: PathBuf,
    pub(super) shim: PathBuf,
    pub(super) agent: PathBuf,
}

/// One call of cargo.
struct Build {
    /// What it makes, for the progress line.
    what: &'static str,
    args: &'static [&'static str],
    /// The folder that the profile's results are in.
    folder: &'static str,
}

// One call for both, so that what they share is compiled once, with the features that either needs.
const CLIENTS: Build = Build {
    what: "roadstead-operator, executor-shim",
    args: &[
        "--release",
        "--package=roadstead-operator",
        "--bin=roadstead-operator",
        "--package=executor-shim",
        "--bin=executor-shim",
    ],
    folder: "release",
};
// Without the default features it has no Kubernetes client in it.
const AGENT: Build = Build {
    what: "stage-agent",
    args: &["--profile=agent", "--package=executor-shim", "--no-default-features", "--bin=stage-agent"],
    folder: "agent",
};

/// Most bytes that the agent may have.
const AGENT_LIMIT: u64 = 2 << 20;

/// Builds all of them; cargo skips what is fresh. Its messages go to the terminal as they are.
pub(super) fn build(progress: Progress, workspace: &Path) -> Result<Programs> {
    let target = host_target(&capture(&mut command("rustc", ["--version", "--verbose"]))?)?;
    let run = |build: &Build| -> Result<PathBuf> {
        progress.say(format_args!("programs: {}", build.what));
        let status = compile(workspace, build, &target)
            .status()
            .with_context(|| format!("cannot start cargo for {}", build.what))?;
        if !status.success() {
            bail!("cargo cannot build {} ({status})", build.what);
        }
        Ok(target_dir(workspace).join(&target).join(build.folder))
    };
    let agent = run(&AGENT)?.join("stage-agent");
    let size = fs::metadata(&agent).with_context(|| format!("cannot read {}", agent.display()))?.len();
    if size > AGENT_LIMIT {
        bail!(
            "the stage-agent has {size} bytes; every job's pod copies it, so more than {AGENT_LIMIT} are too many"
        );
    }
    let clients = run(&CLIENTS)?;
    Ok(Programs { agent, shim: clients.join("executor-shim"), operator: clients.join("roadstead-operator") })
}

fn compile(workspace: &Path, build: &Build, target: &str) -> Command {
    let mut cargo = cargo();
    cargo
        .args(["build", "--locked"])
        .args(build.args)
        // With a named target the flags concern the programs only, not the build scripts.
        .args(["--target", target])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(workspace);
    cargo
}

fn target_dir(workspace: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), |dir| workspace.join(dir))
}

/// The machine's own target triple.
fn host_target(verbose_version: &str) -> Result<String> {
    match verbose_version.lines().find_map(|line| line.strip_prefix("host: ")) {
        Some(target) => Ok(target.to_owned()),
        None => bail!("rustc does not say which target this machine is"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_built_without_the_client() {
        let cargo = compile(Path::new("/w"), &AGENT, "x86_64-unknown-linux-gnu");
        let args: Vec<&str> = cargo.get_args().filter_map(|arg| arg.to_str()).collect();
        assert_eq!(
            args.join(" "),
            "build --locked --profile=agent --package=executor-shim --no-default-features \
             --bin=stage-agent --target x86_64-unknown-linux-gnu"
        );
    }

    #[test]
    fn the_target_is_the_machines_own() {
        let text = "rustc 1.95.0\nbinary: rustc\nhost: aarch64-unknown-linux-gnu\nrelease: 1.95.0\n";
        assert_eq!(host_target(text).unwrap(), "aarch64-unknown-linux-gnu");
        host_target("rustc").unwrap_err();
    }
}
