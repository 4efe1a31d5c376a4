//! The command line: `cargo e2e …`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use nix::unistd::geteuid;

use crate::bench;
use crate::cargo::cargo;
use crate::cluster::{Action, Cluster, Component};
use crate::demo;
use crate::faults;
use crate::images::{self, Images};
use crate::lock::Lock;
use crate::needs;
use crate::product;
use crate::progress::{Progress, error_line, output};
use crate::provider::{Name, Provider, Supply, Target, host, provider, record, recorded};
use crate::state::{ClusterDir, State, workspace};

/// Roadstead's test bench: a Kubernetes cluster on this machine, and the product in it.
#[derive(Debug, Parser)]
#[command(name = "cargo e2e", bin_name = "cargo e2e", version)]
struct Arguments {
    /// Where the cluster comes from
    #[arg(long, value_enum, default_value_t = Name::Host, global = true)]
    provider: Name,
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start the cluster and install the product; does only what is not done yet
    Up {
        /// Leave the product out: only the cluster and the images that test jobs run in
        #[arg(long)]
        cluster_only: bool,
    },
    /// End the cluster; its images stay on disk, so that the next start is quick
    Down {
        /// End the clusters of all clones and remove the whole state folder, with its caches
        #[arg(long)]
        all: bool,
    },
    /// Print shell commands that set KUBECONFIG, PATH and the rest: eval "$(cargo e2e env)"
    Env,
    /// Build all images into the cache and print name, reference and archive of each
    Images,
    /// Start the cluster, run a real job in it, and show its log, its object and where its time went
    Demo,
    /// Start the cluster and measure: start, output, requests, memory; against GitLab's Kubernetes executor where
    /// ROADSTEAD_GITLAB_RUNNER and ROADSTEAD_GITLAB_RUNNER_HELPER name a real gitlab-runner and its helper
    Bench(bench::Options),
    /// Start the cluster, then run the tests of the whole workspace against it
    #[command(disable_help_flag = true)]
    Test {
        /// Further arguments of `cargo test`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Start the cluster, break what can break under running jobs, and show in a table whether they survived it
    Faults {
        /// Only the fault of this name; may be given more than once
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
        /// How often each fault
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        repeat: u32,
        /// Where random choices start from: the same seed breaks the same bytes
        #[arg(long, value_name = "S", default_value_t = 1)]
        seed: u64,
        /// Put GitLab's own Kubernetes executor through the same faults and show both side by side; needs
        /// ROADSTEAD_GITLAB_RUNNER and ROADSTEAD_GITLAB_RUNNER_HELPER
        #[arg(long)]
        compare: bool,
        /// Only name the faults, what happens in them and what a job must come to
        #[arg(long)]
        list: bool,
    },
    /// Look at or disturb the cluster's components
    Component {
        /// What to do
        #[command(subcommand)]
        action: ComponentVerb,
    },
    /// Make a cluster's namespaces and start its supervisor in them
    #[command(hide = true)]
    Launch { plan: PathBuf },
    /// Be a cluster's first process
    #[command(hide = true)]
    Supervise { plan: PathBuf },
}

#[derive(Debug, Subcommand)]
enum ComponentVerb {
    /// One line each: name, state, process in the cluster, number of starts
    Status,
    /// SIGKILL; it is started again at once
    Kill { component: ComponentName },
    /// Stop it until it is started
    Stop { component: ComponentName },
    /// Start it again
    Start { component: ComponentName },
    /// SIGSTOP: its connections stay open and nothing answers
    Pause { component: ComponentName },
    /// SIGCONT
    Resume { component: ComponentName },
}

/// [`Component`] as an argument.
#[derive(Clone, Copy, Debug)]
struct ComponentName(Component);

impl ValueEnum for ComponentName {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: [ComponentName; Component::ALL.len()] = {
            let mut all = [ComponentName(Component::Etcd); Component::ALL.len()];
            let mut index = 0;
            while index < all.len() {
                all[index] = ComponentName(Component::ALL[index]);
                index += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.0.name()))
    }
}

/// The feature that builds the tests which need a cluster.
const CLUSTER_TESTS: &str = "roadstead-e2e/cluster";

/// Runs the command line. Errors are printed here.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            error_line(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.verb {
        Verb::Launch { plan } => host::launch(&plan)?,
        Verb::Supervise { plan } => host::supervise(&plan)?,
        Verb::Faults { list: true, .. } => output(faults::list()),
        verb => {
            let bench = Bench::open(arguments.provider, arguments.target)?;
            match verb {
                Verb::Up { cluster_only } => drop(bench.up(!cluster_only)?),
                Verb::Down { all: false } => bench.down()?,
                Verb::Down { all: true } => bench.down_all()?,
                Verb::Env => bench.env()?,
                Verb::Images => bench.images()?,
                Verb::Demo => bench.demo()?,
                Verb::Bench(options) => bench.bench(&options)?,
                Verb::Test { arguments } => return bench.test(&arguments),
                Verb::Faults { only, repeat, seed, compare, .. } => {
                    return bench.faults(&faults::Options { only, repeat, seed, compare });
                }
                Verb::Component { action } => component(&action)?,
                Verb::Launch { .. } | Verb::Supervise { .. } => {}
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What all verbs need.
struct Bench {
    progress: Progress,
    state: State,
    workspace: PathBuf,
    dir: ClusterDir,
    name: Name,
    provider: Box<dyn Provider>,
}

impl Bench {
    fn open(name: Name, target: Target) -> Result<Self> {
        let progress = Progress::start();
        let state = State::open()?;
        let workspace = workspace();
        let dir = state.cluster(&workspace, name)?;
        let provider = provider(name, target, &state, &dir)?;
        Ok(Self { progress, state, workspace, dir, name, provider })
    }

    fn lock(&self) -> Result<Lock> {
        Lock::wait(&self.progress, "cluster", &self.dir.file("up.lock"))
    }

    fn up(&self, with_product: bool) -> Result<Cluster> {
        let progress = &self.progress;
        let _lock = self.lock()?;
        self.remove_orphans()?;
        let clone = self.dir.file("clone");
        fs::write(&clone, self.workspace.as_os_str().as_encoded_bytes())
            .with_context(|| format!("cannot write {}", clone.display()))?;
        record(self.name, &self.dir)?;
        self.provider.prepare(progress)?;
        let tools = self.provider.tools(progress)?;
        let mut cluster = self.provider.start(progress, &tools)?;
        // Images are looked at while the control plane starts.
        let mut archives = Vec::new();
        match self.provider.supply() {
            Supply::Built(builder) => {
                let images = Images::new(*progress, builder, &self.state, &self.workspace);
                archives = images.jobs()?;
                if with_product {
                    let product = images.product()?;
                    archives.extend(product.images);
                    cluster.shim = Some(product.shim);
                }
            }
            Supply::Registry if with_product => {
                cluster.shim = Some(images::shim(*progress, &self.workspace)?);
            }
            Supply::Registry => {}
        }
        self.provider.wait_ready(progress, &cluster)?;
        self.provider.load_images(progress, &cluster, &archives)?;
        cluster
            .images
            .extend(archives.iter().map(|image| (image.name.clone(), image.short_reference().to_owned())));
        cluster.store(&self.dir.description())?;
        if with_product {
            product::install(progress, &self.dir, &cluster, &self.workspace, self.provider.as_ref())?;
        }
        self.provider.remove_old_images(&cluster, &archives)?;
        progress.say(format_args!("up: {}", self.dir.dir().display()));
        Ok(cluster)
    }

    /// Clones come and go (a CI's above all); what their clusters left behind goes too.
    fn remove_orphans(&self) -> Result<()> {
        for dir in self.state.clusters()? {
            let Ok(clone) = fs::read_to_string(dir.file("clone")) else { continue };
            if dir.id() == self.dir.id() || Path::new(&clone).exists() {
                continue;
            }
            if let Some(_lock) = Lock::attempt(&dir.file("up.lock"))? {
                self.progress.say(format_args!("cluster {}: its clone {clone} is gone", dir.id()));
                let stopped = self.stop(&dir);
                // A cluster elsewhere may not answer today: that is no reason to start none here.
                if let (Err(error), true) = (&stopped, recorded(&dir) != Name::Host) {
                    self.progress.say(format_args!("cluster {}: {error:#}", dir.id()));
                } else {
                    stopped?;
                }
            }
        }
        Ok(())
    }

    /// Ends a cluster of whatever provider, for good.
    fn stop(&self, dir: &ClusterDir) -> Result<()> {
        provider(recorded(dir), Target::default(), &self.state, dir)?.stop(&self.progress, true)
    }

    fn down(&self) -> Result<()> {
        let _lock = self.lock()?;
        self.provider.stop(&self.progress, false)
    }

    fn down_all(&self) -> Result<()> {
        for dir in self.state.clusters()? {
            let _lock = Lock::wait(&self.progress, "cluster", &dir.file("up.lock"))?;
            self.stop(&dir)?;
        }
        self.state.remove()?;
        self.progress.say(format_args!("removed {}", self.state.root().display()));
        Ok(())
    }

    fn env(&self) -> Result<()> {
        let description = self.dir.description();
        let cluster = Cluster::load(&description)
            .with_context(|| format!("no test cluster: run `cargo e2e up --provider {}`", self.name))?;
        for (name, value) in cluster.environment(&description) {
            output(format_args!("export {name}={}\n", quoted(&value)));
        }
        Ok(())
    }

    fn images(&self) -> Result<()> {
        let Supply::Built(builder) = self.provider.supply() else {
            bail!(
                "images are built with the other providers' programs: buildah (--provider host) or Docker \
                 (--provider kind)"
            )
        };
        self.provider.prepare(&self.progress)?;
        let images = Images::new(self.progress, builder, &self.state, &self.workspace);
        for image in images.jobs()?.into_iter().chain(images.product()?.images) {
            output(format_args!("{} {} {}\n", image.name, image.reference, image.path.display()));
        }
        Ok(())
    }

    fn demo(&self) -> Result<()> {
        let cluster = self.up(true)?;
        let runtime = tokio::runtime::Runtime::new().context("cannot start a runtime")?;
        runtime.block_on(demo::run(self.progress, cluster))
    }

    fn bench(&self, options: &bench::Options) -> Result<()> {
        let cluster = self.up(true)?;
        let runtime = tokio::runtime::Runtime::new().context("cannot start a runtime")?;
        runtime.block_on(bench::run(self.progress, cluster, options))
    }

    fn faults(&self, options: &faults::Options) -> Result<ExitCode> {
        let cluster = self.up(true)?;
        let runtime = tokio::runtime::Runtime::new().context("cannot start a runtime")?;
        let table = runtime.block_on(faults::run(self.progress, cluster, options))?;
        output(&table);
        Ok(if table.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn test(&self, arguments: &[OsString]) -> Result<ExitCode> {
        let cluster = self.up(true)?;
        let left_out = needs::left_out(self.name, geteuid().is_root());
        for (test, why) in &left_out {
            self.progress.say(format_args!("test: left out on {}: {test}: {why}", self.name));
        }
        self.progress.say(format_args!("test: cargo test --workspace --features {CLUSTER_TESTS}"));
        let status = cargo()
            .args(["test", "--workspace", "--features", CLUSTER_TESTS])
            .args(without(arguments, left_out.iter().map(|(test, _)| *test)))
            .current_dir(&self.workspace)
            .envs(cluster.environment(&self.dir.description()))
            .status()
            .context("cannot start cargo test")?;
        let count = left_out.len();
        match count {
            0 => self.progress.say(format_args!("test: {status}")),
            _ => self.progress.say(format_args!(
                "test: {status}; {count} tests were left out on {}, as said above",
                self.name
            )),
        }
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Arguments of `cargo test` that leave out tests by name.
fn without<'a>(arguments: &[OsString], tests: impl Iterator<Item = &'a str>) -> Vec<OsString> {
    let mut all = arguments.to_vec();
    if !all.iter().any(|argument| argument == "--") {
        all.push("--".into());
    }
    all.extend(tests.flat_map(|test| ["--skip".into(), test.into()]));
    all
}

fn component(verb: &ComponentVerb) -> Result<()> {
    let cluster = Cluster::find()?;
    let (action, name) = match verb {
        ComponentVerb::Status => {
            output(format_args!("{}\n", cluster.status()?));
            return Ok(());
        }
        ComponentVerb::Kill { component } => (Action::Kill, component),
        ComponentVerb::Stop { component } => (Action::Stop, component),
        ComponentVerb::Start { component } => (Action::Start, component),
        ComponentVerb::Pause { component } => (Action::Pause, component),
        ComponentVerb::Resume { component } => (Action::Resume, component),
    };
    cluster.control(action, name.0)
}

/// A word that any POSIX shell takes as it is.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn test_hands_on_what_follows() {
        let parsed = Arguments::parse_from(["e2e", "test", "--package", "x", "--", "--nocapture"]);
        let Verb::Test { arguments } = parsed.verb else { panic!("not test") };
        assert_eq!(arguments, ["--package", "x", "--", "--nocapture"]);
    }

    #[test]
    fn the_provider_is_named_before_or_after_the_verb() {
        for line in [["e2e", "--provider", "kind", "test"], ["e2e", "test", "--provider", "kind"]] {
            let parsed = Arguments::parse_from(line);
            assert_eq!(parsed.provider, Name::Kind);
            let Verb::Test { arguments } = parsed.verb else { panic!("not test") };
            assert!(arguments.is_empty(), "{arguments:?}");
        }
        let line = ["e2e", "test", "--provider", "existing", "--images", "f", "--package", "x"];
        let parsed = Arguments::parse_from(line);
        assert_eq!(parsed.target.images.as_deref(), Some(Path::new("f")));
        let Verb::Test { arguments } = parsed.verb else { panic!("not test") };
        assert_eq!(arguments, ["--package", "x"]);
    }

    #[test]
    fn tests_are_left_out_behind_the_users_own_arguments() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let left_out = ["a::b", "c::d"];
        assert_eq!(without(&[], left_out.into_iter()), words("-- --skip a::b --skip c::d"));
        assert_eq!(
            without(&words("-p x -- --nocapture"), left_out.into_iter()),
            words("-p x -- --nocapture --skip a::b --skip c::d")
        );
    }

    #[test]
    fn components_go_by_their_programs_names() {
        let parsed = Arguments::parse_from(["e2e", "component", "kill", "kube-apiserver"]);
        let Verb::Component { action: ComponentVerb::Kill { component } } = parsed.verb else {
            panic!("not kill")
        };
        assert_eq!(component.0, Component::Apiserver);
    }

    #[test]
    fn shell_words_survive_quotes_and_spaces() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("a'b"), "'a'\\''b'");
    }
}
