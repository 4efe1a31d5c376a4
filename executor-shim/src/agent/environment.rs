//! The environment of a script: the container's, with little added. GitLab's script exports the job's
//! variables itself.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::tools;

const PRIVATE: &[u8] = b"ROADSTEAD_";

/// Makes a script's environment from the container's.
///
/// `bin` is a directory of the agent's own that goes first on the search path, where there is one.
/// `foreign_checkout` says that the script works on a checkout that may belong to another user: git
/// refuses to touch such a one unless told otherwise. Who has told git anything in this way is left alone.
pub(super) fn of_script(
    container: impl IntoIterator<Item = (OsString, OsString)>,
    bin: Option<&Path>,
    foreign_checkout: bool,
) -> Vec<(OsString, OsString)> {
    let mut vars: Vec<_> =
        container.into_iter().filter(|(name, _)| !name.as_bytes().starts_with(PRIVATE)).collect();
    if let Some(bin) = bin {
        let old = position(&vars, "PATH").map(|at| vars.swap_remove(at).1);
        let old = old.filter(|path| !path.is_empty()).unwrap_or_else(|| tools::DEFAULT_PATH.into());
        let mut path = bin.as_os_str().to_owned();
        path.push(":");
        path.push(old);
        vars.push(("PATH".into(), path));
    }
    if foreign_checkout && position(&vars, "GIT_CONFIG_COUNT").is_none() {
        for (name, value) in
            [("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", "safe.directory"), ("GIT_CONFIG_VALUE_0", "*")]
        {
            vars.retain(|(other, _)| other != name);
            vars.push((name.into(), value.into()));
        }
    }
    vars
}

fn position(vars: &[(OsString, OsString)], name: &str) -> Option<usize> {
    vars.iter().position(|(other, _)| other == OsStr::new(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(container: &[(&str, &str)], bin: Option<&str>, foreign: bool) -> Vec<String> {
        let container = container.iter().map(|(name, value)| (name.into(), value.into()));
        let mut vars: Vec<_> = of_script(container, bin.map(Path::new), foreign)
            .into_iter()
            .map(|(name, value)| format!("{}={}", name.display(), value.display()))
            .collect();
        vars.sort();
        vars
    }

    #[test]
    fn the_agents_own_variables_are_kept_back() {
        let container = [("A", "1"), ("ROADSTEAD_POD_UID", "x"), ("XROADSTEAD_", "2"), ("PATH", "/bin")];
        assert_eq!(made(&container, None, false), ["A=1", "PATH=/bin", "XROADSTEAD_=2"]);
    }

    #[test]
    fn the_own_directory_goes_first() {
        assert_eq!(made(&[("PATH", "/a:/b")], Some("/run/bin"), false), ["PATH=/run/bin:/a:/b"]);
        let default = format!("PATH=/run/bin:{}", tools::DEFAULT_PATH);
        assert_eq!(made(&[], Some("/run/bin"), false), std::slice::from_ref(&default));
        assert_eq!(made(&[("PATH", "")], Some("/run/bin"), false), [default]);
    }

    #[test]
    fn git_is_told_to_trust_the_checkout_unless_it_was_told_something() {
        let told = ["GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"];
        assert_eq!(made(&[], None, true), told);
        assert_eq!(made(&[("GIT_CONFIG_KEY_0", "left.over")], None, true), told);
        assert_eq!(made(&[("GIT_CONFIG_COUNT", "0")], None, true), ["GIT_CONFIG_COUNT=0"]);
        assert!(made(&[], None, false).is_empty());
    }
}
