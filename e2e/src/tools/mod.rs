//! Programs that are built from pinned Go modules (`e2e/tools/NAME/go.mod`) and kept in the shared cache.

mod go;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::exec;
use crate::hash::Key;
use crate::lock::Lock;
use crate::progress::Progress;
use crate::state::State;

/// One pinned module and the programs that come from it.
struct Module {
    /// The folder in `e2e/tools`.
    name: &'static str,
    /// (name of the program, its package).
    programs: &'static [(&'static str, &'static str)],
    /// The module whose version the programs shall report, and the linker's variables that take it.
    version: Option<VersionFlags>,
}

struct VersionFlags {
    module: &'static str,
    variable: &'static str,
    /// Prefix of variables for major and minor version.
    parts: Option<&'static str>,
}

const MODULES: [Module; 3] = [
    Module { name: "etcd", programs: &[("etcd", "go.etcd.io/etcd/server/v3")], version: None },
    Module {
        name: "kubernetes",
        programs: &[
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
            ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
            ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
        ],
        version: Some(VersionFlags {
            module: "k8s.io/kubernetes",
            variable: "k8s.io/component-base/version.gitVersion",
            parts: Some("k8s.io/component-base/version."),
        }),
    },
    Module {
        name: "helm",
        programs: &[("helm", "helm.sh/helm/v3/cmd/helm")],
        version: Some(VersionFlags {
            module: "helm.sh/helm/v3",
            variable: "helm.sh/helm/v3/internal/version.version",
            parts: None,
        }),
    },
];

/// The built programs.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Folders that hold them, one per module.
    bins: Vec<PathBuf>,
}

impl Tools {
    /// Builds what the cache does not hold yet.
    ///
    /// # Errors
    /// When Go is missing or too old, or a build fails.
    pub fn ensure(progress: &Progress, state: &State, workspace: &Path) -> Result<Self> {
        let go = go::Go::find(state)?;
        let mut builds = Vec::new();
        for module in &MODULES {
            builds.push(Build::plan(state, workspace, &go, module)?);
        }
        if builds.iter().any(|build| !build.done.exists()) {
            let _lock = Lock::wait(progress, "tools", &state.cache_lock("tools"))?;
            for build in builds.iter().filter(|build| !build.done.exists()) {
                build.run(progress, state, &go)?;
            }
            // Gigabytes, of no use before the next version. An interrupted build keeps them.
            go.remove_caches()?;
        }
        Ok(Self { bins: builds.into_iter().map(|build| build.done).collect() })
    }

    /// Those that PATH has.
    #[must_use]
    pub fn of_path() -> Self {
        Self { bins: Vec::new() }
    }

    /// A program's path.
    ///
    /// # Errors
    /// When no module here gives that program.
    pub fn path(&self, program: &str) -> Result<PathBuf> {
        self.bins
            .iter()
            .map(|bin| bin.join(program))
            .find(|path| path.exists())
            .with_context(|| format!("{program} is none of the built tools"))
    }

    /// The folders, for PATH.
    #[must_use]
    pub fn bins(&self) -> &[PathBuf] {
        &self.bins
    }
}

/// One module's build.
struct Build {
    module: &'static Module,
    source: PathBuf,
    ldflags: String,
    /// The folder that holds the programs when they are built.
    done: PathBuf,
}

impl Build {
    fn plan(state: &State, workspace: &Path, go: &go::Go, module: &'static Module) -> Result<Self> {
        let source = workspace.join("e2e/tools").join(module.name);
        let read = |name: &str| {
            let path = source.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let go_mod = read("go.mod")?;
        go.check(&go_mod)?;
        let ldflags = ldflags(module, &go_mod)?;
        let key = Key::new()
            .part("go.mod", &go_mod)
            .part("go.sum", read("go.sum")?)
            .part("go", go.version())
            .part("flags", go::FLAGS)
            .part("ldflags", &ldflags)
            .finish();
        let done = state.cache("tools")?.join(format!("{}-{key}", module.name));
        Ok(Self { module, source, ldflags, done })
    }

    fn run(&self, progress: &Progress, state: &State, go: &go::Go) -> Result<()> {
        let name = self.module.name;
        let what = format!("tools: {name}");
        progress.say(format_args!("{what}: building from source (minutes the first time)"));
        let building = self.done.with_extension("building");
        if building.exists() {
            fs::remove_dir_all(&building).with_context(|| format!("cannot remove {}", building.display()))?;
        }
        fs::create_dir_all(&building).with_context(|| format!("cannot create {}", building.display()))?;
        let log = state.cache("logs")?.join(format!("tools-{name}.log"));
        let mut build = go.build(&self.source, &self.ldflags, &output(self.module, &building));
        exec::logged(progress, &what, &mut build, &log)?;
        fs::rename(&building, &self.done).with_context(|| format!("cannot keep {}", self.done.display()))?;
        progress.say(format_args!("{what}: built"));
        Ok(())
    }
}

/// `-o` and the packages. A single program is named, because Go would call `server/v3` "server".
fn output(module: &Module, dir: &Path) -> Vec<OsString> {
    let target = if let [(name, _)] = module.programs {
        dir.join(name).into_os_string()
    } else {
        let mut dir = dir.as_os_str().to_owned();
        dir.push("/");
        dir
    };
    let mut args = vec![OsString::from("-o"), target];
    args.extend(module.programs.iter().map(|(_, package)| OsString::from(package)));
    args
}

fn ldflags(module: &Module, go_mod: &str) -> Result<String> {
    use std::fmt::Write as _;
    let mut flags = String::from("-s -w");
    if let Some(version) = &module.version {
        let required = required_version(go_mod, version.module).with_context(|| {
            format!("e2e/tools/{}/go.mod does not require {}", module.name, version.module)
        })?;
        let _ = write!(flags, " -X {}={required}", version.variable);
        if let Some(prefix) = version.parts {
            let mut parts = required.trim_start_matches('v').split('.');
            for name in ["gitMajor", "gitMinor"] {
                let _ = write!(flags, " -X {prefix}{name}={}", parts.next().unwrap_or_default());
            }
        }
    }
    Ok(flags)
}

/// The version that a go.mod requires of a module.
fn required_version<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let mut words = line.trim_start_matches("require").split_whitespace();
        (words.next() == Some(module)).then(|| words.next()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GO_MOD: &str = "module x\n\ngo 1.25.0\n\nrequire k8s.io/kubernetes v1.35.4\n\nrequire (\n\thelm.sh/helm/v3 v3.20.2\n)\n";

    #[test]
    fn programs_report_the_required_version() {
        let flags = ldflags(&MODULES[1], GO_MOD).unwrap();
        assert_eq!(
            flags,
            "-s -w -X k8s.io/component-base/version.gitVersion=v1.35.4 \
             -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=35"
        );
        assert_eq!(
            ldflags(&MODULES[2], GO_MOD).unwrap(),
            "-s -w -X helm.sh/helm/v3/internal/version.version=v3.20.2"
        );
        assert!(ldflags(&MODULES[2], "module x\n").unwrap_err().to_string().contains("helm.sh/helm/v3"));
    }

    #[test]
    fn one_program_is_named_several_go_into_the_folder() {
        let dir = Path::new("/d");
        assert_eq!(output(&MODULES[0], dir), ["-o", "/d/etcd", "go.etcd.io/etcd/server/v3"]);
        assert_eq!(output(&MODULES[1], dir)[..2], ["-o", "/d/"]);
    }

    #[test]
    fn every_module_is_in_the_repository() {
        for module in &MODULES {
            let go_mod = crate::state::workspace().join("e2e/tools").join(module.name).join("go.mod");
            let text = fs::read_to_string(&go_mod).unwrap();
            ldflags(module, &text).unwrap();
        }
    }
}
