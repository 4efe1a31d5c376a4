//! Roadstead as it stands in a test cluster: everything that tests, demo and benchmark start from.

pub(crate) mod account;
mod proxy;

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::{Condition, Error as WaitError, await_condition};
use kube::runtime::watcher;
use kube::{Api, Client, Config};
use roadstead_crds::{CiJob, JobClass, Phase, labels};
use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::coordinator::{Coordinator, CoordinatorConfig};
use crate::harness::{Driver, Harness, RunnerConfig};
use crate::release::Release;

pub(crate) use account::resolve;
pub use proxy::{Cut, Proxy};

/// An installed Roadstead, a GitLab that gives it jobs, and a client that sees everything.
pub struct Installation {
    /// The cluster that Roadstead runs in.
    pub cluster: Cluster,
    /// A client with the administrator's rights.
    pub client: Client,
    /// GitLab, as far as runners and pods see it.
    pub coordinator: Coordinator,
    /// Kubeconfig of the shim's account: what a platform team gives to its gitlab-runner.
    pub kubeconfig: PathBuf,
    shim: PathBuf,
    dir: TempDir,
}

impl Installation {
    /// Joins the running cluster.
    ///
    /// # Errors
    /// When there is no cluster, or Roadstead is not installed in it.
    pub async fn join() -> Result<Self> {
        Self::of(Cluster::find()?).await
    }

    /// The one in that cluster.
    ///
    /// # Errors
    /// When Roadstead is not installed in it.
    pub async fn of(cluster: Cluster) -> Result<Self> {
        crypto_provider();
        let shim = cluster.shim.clone().context("Roadstead is not installed: run `cargo e2e up`")?;
        let client = client_of(&cluster.kubeconfig).await?;
        let dir = tempfile::tempdir().context("cannot create a temporary folder")?;
        let kubeconfig = dir.path().join("shim.kubeconfig");
        account::write_kubeconfig(&client, &cluster, &kubeconfig).await?;
        let coordinator = Coordinator::start(
            CoordinatorConfig::new((cluster.host_address, 0).into())
                .advertise(format!("http://{}:{{port}}", cluster.host_address)),
        )
        .await?;
        Ok(Self { cluster, client, coordinator, kubeconfig, shim, dir })
    }

    /// What gitlab-runner is configured with: the shim, its account and namespace.
    pub fn runner(&self) -> RunnerConfig {
        self.runner_with(Driver::shim(&self.shim))
    }

    /// The same with another driver in front of the shim.
    pub fn runner_with(&self, driver: Driver) -> RunnerConfig {
        let config = RunnerConfig::new(driver)
            .coordinator(&self.coordinator)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("ROADSTEAD_NAMESPACE", self.job_namespace())
            .env("ROADSTEAD_LOG_FILE", self.shim_log())
            .env("ROADSTEAD_LOG", "debug");
        // Where the classes are shared, the one that jobs get without asking is somebody else's.
        match self.release().class_prefix.as_str() {
            "" => config,
            _ => config.env("ROADSTEAD_CLASS", self.class_name("default")),
        }
    }

    /// A harness with [`Self::runner`]'s configuration.
    pub fn harness(&self) -> Result<Harness> {
        Harness::new(self.runner())
    }

    /// A harness whose runner names this class, by its full name.
    pub fn harness_of(&self, class: impl AsRef<str>) -> Result<Harness> {
        Harness::new(self.runner().env("ROADSTEAD_CLASS", class.as_ref()))
    }

    /// The executor-shim that is tested.
    pub fn shim(&self) -> &Path {
        &self.shim
    }

    /// Where the shim writes its diagnostics.
    pub fn shim_log(&self) -> PathBuf {
        self.dir.path().join("shim.log")
    }

    /// A folder that goes with this value.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The names that this installation goes by.
    pub fn release(&self) -> &Release {
        &self.cluster.release
    }

    /// The namespace that jobs run in.
    pub fn job_namespace(&self) -> &str {
        &self.release().job_namespace
    }

    /// The operator's namespace.
    pub fn system_namespace(&self) -> &str {
        &self.release().namespace
    }

    /// The full name of a JobClass of this installation.
    pub fn class_name(&self, name: &str) -> String {
        self.release().class(name)
    }

    /// An image of the test cluster by its short name.
    pub fn image(&self, name: &str) -> Result<&str> {
        self.cluster.image(name)
    }

    /// The CiJobs of the job namespace.
    pub fn cijobs(&self) -> Api<CiJob> {
        Api::namespaced(self.client.clone(), self.job_namespace())
    }

    /// The pods of the job namespace.
    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), self.job_namespace())
    }

    /// The pods of Roadstead itself.
    pub fn system_pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), self.system_namespace())
    }

    /// The JobClasses.
    pub fn classes(&self) -> Api<JobClass> {
        Api::all(self.client.clone())
    }

    /// All CiJobs of a GitLab job, one per Prepare attempt, oldest first.
    pub async fn cijobs_of(&self, job_id: i64) -> Result<Vec<CiJob>> {
        let list = self.cijobs().list(&ListParams::default()).await.context("cannot list CiJobs")?;
        let mut found: Vec<CiJob> =
            list.items.into_iter().filter(|job| job.spec.request.job.id == job_id).collect();
        found.sort_by(|one, two| one.spec.request.requested_at.cmp(&two.spec.request.requested_at));
        Ok(found)
    }

    /// The CiJob of the last Prepare attempt of a GitLab job.
    pub async fn cijob_of(&self, job_id: i64) -> Result<CiJob> {
        let found = self.cijobs_of(job_id).await?.pop();
        found.with_context(|| format!("job {job_id} has no CiJob"))
    }

    /// Waits until the CiJob fulfils a condition and returns it as it was then.
    pub async fn wait_cijob(
        &self,
        name: &str,
        what: &str,
        deadline: Duration,
        condition: impl Condition<CiJob>,
    ) -> Result<CiJob> {
        let condition = &condition;
        let watched = async {
            loop {
                let met = |job: Option<&CiJob>| condition.matches_object(job);
                match await_condition(self.cijobs(), name, met).await {
                    // A definition that is renewed ends the watches of its objects.
                    Err(WaitError::ProbeFailed(watcher::Error::WatchError(status))) if status.code == 410 => {
                    }
                    found => return found,
                }
            }
        };
        let Ok(found) = tokio::time::timeout(deadline, watched).await else {
            let now = self.cijobs().get_opt(name).await.context("cannot read the CiJob")?;
            bail!("CiJob {name}: not {what} after {deadline:?}; it is {now:#?}");
        };
        found.context("the watch failed")?.with_context(|| format!("CiJob {name} is gone"))
    }

    /// Waits until the operator has ended the CiJob, and returns it with its last word.
    pub async fn wait_finished(&self, name: &str, deadline: Duration) -> Result<CiJob> {
        let finished =
            |job: Option<&CiJob>| job.and_then(|job| job.status.as_ref()?.phase).is_some_and(Phase::is_final);
        self.wait_cijob(name, "finished", deadline, finished).await
    }

    /// Waits until a GitLab job has no pod left, for any of its attempts.
    pub async fn wait_no_pods(&self, job_id: i64, deadline: Duration) -> Result<()> {
        let params = ListParams::default().labels(&format!("{}={job_id}", labels::JOB_ID));
        let until = tokio::time::Instant::now() + deadline;
        loop {
            let pods = self.pods().list(&params).await.context("cannot list pods")?.items;
            let Some(name) = pods.first().and_then(|pod| pod.metadata.name.clone()) else { return Ok(()) };
            let uid = pods.first().and_then(|pod| pod.metadata.uid.clone()).unwrap_or_default();
            let gone = await_condition(self.pods(), &name, kube::runtime::conditions::is_deleted(&uid));
            if tokio::time::timeout_at(until, gone).await.is_err() {
                bail!("pod {name} of job {job_id} is still there after {deadline:?}");
            }
        }
    }

    /// Creates a JobClass from the class `default` with changes, in place of one of that name, and returns
    /// its full name. It has no match, so that only who names it gets it.
    pub async fn class(&self, name: &str, change: impl FnOnce(&mut JobClass)) -> Result<String> {
        let (name, base) = (self.class_name(name), self.class_name("default"));
        let base =
            self.classes().get(&base).await.with_context(|| format!("cannot read the class {base}"))?;
        let mut class = JobClass::new(&name, base.spec);
        class.spec.matching = None;
        change(&mut class);
        // An error says that there is none, or comes again with the creation.
        let _ = self.classes().delete(&name, &DeleteParams::default()).await;
        self.classes().create(&PostParams::default(), &class).await.context("cannot create a JobClass")?;
        Ok(name)
    }

    /// Waits until the operator has looked at a class as it is now, and returns it with that verdict in its status.
    pub async fn class_judged(&self, name: &str, deadline: Duration) -> Result<JobClass> {
        let judged = |class: Option<&JobClass>| {
            class.is_some_and(|class| {
                let observed = class.status.as_ref().and_then(|status| status.observed_generation);
                observed.is_some() && observed == class.metadata.generation
            })
        };
        let waited = tokio::time::timeout(deadline, await_condition(self.classes(), name, judged)).await;
        let waited =
            waited.with_context(|| format!("no operator has looked at class {name} for {deadline:?}"))?;
        waited.context("the watch failed")?.with_context(|| format!("class {name} is gone"))
    }

    /// A relay in front of the API server that can cut connections, and a kubeconfig of the shim's
    /// account that goes through it.
    pub async fn proxied(&self) -> Result<(Proxy, PathBuf)> {
        let target = account::server_address(&self.kubeconfig)?;
        let proxy = Proxy::start(target).await?;
        let path = self.dir.path().join(format!("proxied-{}.kubeconfig", proxy.address().port()));
        account::redirect(&self.kubeconfig, proxy.address(), &path)?;
        Ok((proxy, path))
    }
}

/// A client for a kubeconfig.
pub async fn client_of(kubeconfig: &Path) -> Result<Client> {
    Client::try_from(config_of(kubeconfig).await?).context("cannot make a client")
}

/// A client that acts as another user, which takes an administrator's kubeconfig.
pub async fn impersonated(kubeconfig: &Path, user: &str) -> Result<Client> {
    let mut config = config_of(kubeconfig).await?;
    config.auth_info.impersonate = Some(user.to_owned());
    Client::try_from(config).context("cannot make a client")
}

async fn config_of(kubeconfig: &Path) -> Result<Config> {
    crypto_provider();
    let config = Kubeconfig::read_from(kubeconfig).context("cannot read the kubeconfig")?;
    Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
        .await
        .context("cannot use the kubeconfig")
}

fn crypto_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error only says that one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
