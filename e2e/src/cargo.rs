//! Calling cargo from a program that cargo itself started.

use std::env;
use std::ffi::OsStr;
use std::process::Command;

/// What `cargo run` tells the program about its own package. Build scripts of dependencies (ring's) ask to run again
/// when these change, so handing them on would compile half the tree anew whenever the caller is another one.
const OWN_PACKAGE: [&str; 7] = [
    "CARGO_BIN_NAME",
    "CARGO_CRATE_NAME",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_LINKS",
    "CARGO_MANIFEST_PATH",
    "CARGO_PRIMARY_PACKAGE",
    "OUT_DIR",
];
/// The same, for names that begin so.
const OWN_PACKAGE_PREFIX: &str = "CARGO_PKG_";

/// The cargo that started this program, or else the one in PATH, with the environment of a call by hand.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os().filter(|(name, _)| describes_own_package(name)) {
        cargo.env_remove(name);
    }
    cargo
}

fn describes_own_package(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| OWN_PACKAGE.contains(&name) || name.starts_with(OWN_PACKAGE_PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_tells_of_the_own_package_is_dropped() {
        for own in ["CARGO_MANIFEST_DIR", "CARGO_PKG_VERSION_MAJOR"] {
            assert!(describes_own_package(OsStr::new(own)), "{own}");
        }
        for other in ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_BUILD_JOBS", "CARGO", "PATH"] {
            assert!(!describes_own_package(OsStr::new(other)), "{other}");
        }
        // cargo runs tests with these set, so this sees the real thing.
        let removed: Vec<_> = cargo()
            .get_envs()
            .filter(|(_, value)| value.is_none())
            .map(|(name, _)| name.to_owned())
            .collect();
        assert!(removed.iter().any(|name| name == "CARGO_PKG_NAME"), "{removed:?}");
    }
}
