//! Where a run takes place, for its heading.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::options::Plan;
use super::report::About;
use crate::exec::{capture, command};
use crate::harness::real;
use crate::installation::Installation;

/// Looks around.
pub(super) async fn about(installation: &Installation, workspace: &Path, plan: &Plan) -> Result<About> {
    let version =
        installation.client.apiserver_version().await.context("cannot ask for Kubernetes' version")?;
    let gitlab_runner = match real::program().filter(|_| plan.compare) {
        Some(program) => {
            let text = capture(&mut command(program, ["--version"])).context("gitlab-runner does not run")?;
            Some(labelled(&text, "Version:").unwrap_or("of an unknown version").to_owned())
        }
        None => None,
    };
    Ok(About {
        roadstead: roadstead(workspace),
        kubernetes: version.git_version,
        gitlab_runner,
        compared: false,
        machine: machine(),
        load: fs::read_to_string("/proc/loadavg").ok().and_then(|text| load(&text)),
        run: plan.name.clone(),
    })
}

fn roadstead(workspace: &Path) -> String {
    let mut describe = command("git", ["describe", "--always", "--dirty=, changed", "--exclude=*"]);
    // A source archive has no history.
    match capture(describe.current_dir(workspace)) {
        Ok(commit) => format!("{} ({})", env!("CARGO_PKG_VERSION"), commit.trim()),
        Err(_) => env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_gib(&text));
    let memory = memory.map(|gib| format!(", {gib} GiB of memory")).unwrap_or_default();
    format!("{processors} processors{memory}")
}

fn total_gib(meminfo: &str) -> Option<u64> {
    let kib: u64 = labelled(meminfo, "MemTotal:")?.strip_suffix("kB")?.trim().parse().ok()?;
    Some((kib + (1 << 19)) >> 20)
}

fn load(loadavg: &str) -> Option<f64> {
    loadavg.split(' ').next()?.parse().ok()
}

fn labelled<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(label)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_and_the_kernel_say_is_understood() {
        assert_eq!(labelled("Version:      17.9.3\nGit revision: x\n", "Version:"), Some("17.9.3"));
        assert_eq!(total_gib("MemTotal:       24683836 kB\nMemFree: 1 kB\n"), Some(24));
        assert_eq!(load("0.52 0.58 0.59 1/1 5\n"), Some(0.52));
    }
}
