//! The Go toolchain that builds the tools.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::exec::{self, command};
use crate::state::State;

/// `GOFLAGS` of every build: the pinned versions and nothing from the machine's paths.
pub(super) const FLAGS: &str = "-mod=readonly -modcacherw -buildvcs=false -trimpath";

/// The machine's `go`.
#[derive(Clone, Debug)]
pub(super) struct Go {
    version: String,
    build_cache: PathBuf,
    module_cache: PathBuf,
}

impl Go {
    /// Asks `go` for its version. The caches are the state folder's own.
    pub(super) fn find(state: &State) -> Result<Self> {
        let mut ask = command("go", ["env", "GOVERSION"]);
        let version = exec::capture(ask.env("GOTOOLCHAIN", "local")).context(
            "the tools of the test cluster are built with Go, and there is no working `go` in PATH",
        )?;
        Ok(Self {
            version: version.trim().to_owned(),
            build_cache: state.cache("go-build")?,
            module_cache: state.cache("go-mod")?,
        })
    }

    /// For example `go1.26.1`.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Refuses a Go that is older than a go.mod asks for.
    pub(super) fn check(&self, go_mod: &str) -> Result<()> {
        let needed = go_mod.lines().find_map(|line| line.strip_prefix("go ")).unwrap_or("1.25");
        if numbers(self.version.trim_start_matches("go")) < numbers(needed) {
            bail!(
                "the tools of the test cluster need Go {needed} or newer, and the `go` in PATH is {}: \
                 install a newer one and put it first in PATH",
                self.version
            );
        }
        Ok(())
    }

    /// Removes what building has left behind, apart from its result.
    pub(super) fn remove_caches(&self) -> Result<()> {
        for dir in [&self.build_cache, &self.module_cache] {
            std::fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        Ok(())
    }

    /// `go build` in a module's folder. `-v` makes the log show how far it is.
    pub(super) fn build(&self, source: &Path, ldflags: &str, rest: &[OsString]) -> Command {
        let mut build = command("go", ["build", "-v", "-ldflags", ldflags]);
        build
            .args(rest)
            .current_dir(source)
            .env("CGO_ENABLED", "0")
            .env("GOCACHE", &self.build_cache)
            .env("GOMODCACHE", &self.module_cache)
            .env("GOFLAGS", FLAGS)
            .env("GOTOOLCHAIN", "local")
            .env("GOWORK", "off");
        build
    }
}

/// `1.26.1` as numbers; what is no number (`rc1`) ends it.
fn numbers(version: &str) -> Vec<u32> {
    version.trim().split('.').map_while(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go(version: &str) -> Go {
        Go { version: version.into(), build_cache: "/b".into(), module_cache: "/m".into() }
    }

    #[test]
    fn an_old_go_is_refused_in_one_sentence() {
        let go_mod = "module x\n\ngo 1.25.0\n";
        for good in ["go1.25.0", "go1.26.1", "go2.0"] {
            go(good).check(go_mod).unwrap();
        }
        for bad in ["go1.19.8", "go1.24.9", "go1.9"] {
            let error = go(bad).check(go_mod).unwrap_err().to_string();
            assert!(error.contains("1.25.0") && error.contains(bad), "{error}");
        }
    }
}
