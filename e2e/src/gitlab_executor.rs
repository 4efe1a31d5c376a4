//! GitLab's own Kubernetes executor, set up beside Roadstead in the same cluster: a namespace with the rights that it
//! needs, and an account for each job, so that the audit log tells its requests apart. The benchmark and the faults
//! compare with it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::Kubeconfig;
use kube::runtime::conditions::is_deleted;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::json;

use crate::coordinator::JobSpec;
use crate::harness::real::{KubernetesExecutor, RealRunner};
use crate::harness::{RunnerConfig, RunningJob};
use crate::installation::{Installation, account};

/// Where its pods run.
pub(crate) const NAMESPACE: &str = "gitlab-executor";

/// What its pods carry: GitLab's number of their job.
const JOB_ID: &str = "job.runner.gitlab.com/id";

/// Image of its helper container, which `cargo e2e up` builds where it is given a gitlab-runner-helper.
pub(crate) const HELPER: &str = "gitlab-helper";

/// What Kubernetes itself may take to make or remove something.
const SOON: Duration = Duration::from_mins(1);

/// The executor, ready for jobs.
pub(crate) struct GitLabExecutor {
    client: Client,
    program: PathBuf,
    config: RunnerConfig,
    host: String,
    ca_file: PathBuf,
    helper_image: String,
}

impl GitLabExecutor {
    /// Makes its namespace and gives it its rights.
    pub(crate) async fn install(
        installation: &Installation,
        program: PathBuf,
        config: RunnerConfig,
    ) -> Result<Self> {
        let client = installation.client.clone();
        let (host, ca) = server(installation)?;
        let ca_file = installation.dir().join("gitlab-executor-ca.crt");
        fs::write(&ca_file, ca).context("cannot write the authority's certificate")?;
        let helper_image = installation.image(HELPER)?.to_owned();
        let executor = Self { client, program, config, host, ca_file, helper_image };
        // One that was left by a run that was killed.
        executor.remove().await?;
        executor.make().await.context("cannot set up GitLab's Kubernetes executor")?;
        Ok(executor)
    }

    async fn make(&self) -> Result<()> {
        let namespace =
            serde_json::from_value(json!({"metadata": {"name": NAMESPACE}})).context("a namespace")?;
        self.namespaces()
            .create(&PostParams::default(), &namespace)
            .await
            .context("cannot make its namespace")?;
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": {"name": "runners"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
            "subjects": [{
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "Group",
                "name": format!("system:serviceaccounts:{NAMESPACE}"),
            }],
        }))
        .context("a binding")?;
        let bindings: Api<RoleBinding> = Api::namespaced(self.client.clone(), NAMESPACE);
        bindings.create(&PostParams::default(), &binding).await.context("cannot give it its rights")?;
        // Without its account, a namespace refuses pods.
        let there = |account: Option<&ServiceAccount>| account.is_some();
        let default = await_condition(self.accounts(), "default", there);
        tokio::time::timeout(SOON, default)
            .await
            .context("its namespace gets no account")?
            .context("the watch failed")?;
        Ok(())
    }

    fn namespaces(&self) -> Api<Namespace> {
        Api::all(self.client.clone())
    }

    fn accounts(&self) -> Api<ServiceAccount> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// The API server as it knows it.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Starts a job under an account of its own, and tells the account's name.
    pub(crate) async fn start(&self, spec: &JobSpec) -> Result<(RunningJob, String)> {
        self.start_with(spec, &self.host, &[]).await
    }

    /// The same with another way to the API server, and with texts in `[runners.kubernetes]`.
    pub(crate) async fn start_with(
        &self,
        spec: &JobSpec,
        host: &str,
        settings: &[(&str, &str)],
    ) -> Result<(RunningJob, String)> {
        let name = format!("runner-{}", spec.id);
        let own = serde_json::from_value(json!({"metadata": {"name": name}})).context("an account")?;
        self.accounts().create(&PostParams::default(), &own).await.context("cannot make an account")?;
        let executor = KubernetesExecutor {
            host: host.to_owned(),
            ca_file: self.ca_file.clone(),
            bearer_token: account::token(&self.client, NAMESPACE, &name).await?,
            namespace: NAMESPACE.to_owned(),
            helper_image: self.helper_image.clone(),
            settings: settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let runner = RealRunner::new(&self.program, self.config.clone())?.kubernetes(executor);
        Ok((runner.start(spec).await?, name))
    }

    /// The pods of its jobs.
    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// The pods that one of its jobs has.
    pub(crate) async fn pods_of(&self, job: i64) -> Result<Vec<Pod>> {
        let list = self.pods().list(&ListParams::default()).await.context("cannot list pods")?;
        let job = job.to_string();
        let marked = |marks: &Option<BTreeMap<String, String>>| {
            marks.as_ref().and_then(|marks| marks.get(JOB_ID)).is_some_and(|id| *id == job)
        };
        let own = |pod: &Pod| marked(&pod.metadata.annotations) || marked(&pod.metadata.labels);
        Ok(list.items.into_iter().filter(own).collect())
    }

    /// Waits until a job has no pod. One that is still there afterwards is removed, so that nothing else suffers from
    /// it, and its name is in the error.
    pub(crate) async fn wait_no_pods_of(&self, job: i64, deadline: Duration) -> Result<()> {
        let until = tokio::time::Instant::now() + deadline;
        loop {
            let Some(meta) = self.pods_of(job).await?.into_iter().next().map(|pod| pod.metadata) else {
                return Ok(());
            };
            let (name, uid) = (meta.name.unwrap_or_default(), meta.uid.unwrap_or_default());
            let gone = await_condition(self.pods(), &name, is_deleted(&uid));
            if tokio::time::timeout_at(until, gone).await.is_err() {
                // It may be gone by now.
                let _ = self.pods().delete(&name, &DeleteParams::default().grace_period(0)).await;
                bail!("pod {name} of job {job} is still there after {deadline:?}");
            }
        }
    }

    /// Waits until no pod of its jobs is left. It leaves them to their grace period of 30 s; here nobody is helped by
    /// it, so it is cut short.
    pub(crate) async fn wait_no_pods(&self) -> Result<()> {
        let pods = self.pods();
        let until = tokio::time::Instant::now() + SOON;
        loop {
            let list = pods.list(&ListParams::default()).await.context("cannot list pods")?;
            let Some(meta) = list.items.into_iter().next().map(|pod| pod.metadata) else { return Ok(()) };
            let (name, uid) = (meta.name.unwrap_or_default(), meta.uid.unwrap_or_default());
            // It may be gone by now.
            let _ = pods.delete(&name, &DeleteParams::default().grace_period(1)).await;
            let gone = await_condition(pods.clone(), &name, is_deleted(&uid));
            if tokio::time::timeout_at(until, gone).await.is_err() {
                bail!("pod {name} of GitLab's Kubernetes executor is still there after {SOON:?}");
            }
        }
    }

    /// Removes everything that it has in the cluster, and waits until it is gone.
    pub(crate) async fn remove(&self) -> Result<()> {
        let Some(there) =
            self.namespaces().get_opt(NAMESPACE).await.context("cannot look for its namespace")?
        else {
            return Ok(());
        };
        self.namespaces()
            .delete(NAMESPACE, &DeleteParams::default())
            .await
            .context("cannot remove its namespace")?;
        let uid = there.metadata.uid.unwrap_or_default();
        let gone = await_condition(self.namespaces(), NAMESPACE, is_deleted(&uid));
        tokio::time::timeout(SOON, gone)
            .await
            .context("its namespace does not go away")?
            .context("the watch failed")?;
        Ok(())
    }
}

/// URL and authority of the API server.
fn server(installation: &Installation) -> Result<(String, Vec<u8>)> {
    let config =
        Kubeconfig::read_from(&installation.cluster.kubeconfig).context("cannot read the kubeconfig")?;
    let cluster = config.clusters.into_iter().next().and_then(|named| named.cluster);
    let cluster = cluster.context("the kubeconfig names no cluster")?;
    let host = cluster.server.context("the kubeconfig names no server")?;
    let ca = match (cluster.certificate_authority_data, cluster.certificate_authority) {
        (Some(data), _) => STANDARD.decode(data).context("the kubeconfig's authority is not base64")?,
        (None, Some(file)) => fs::read(&file).with_context(|| format!("cannot read {file}"))?,
        (None, None) => bail!("the kubeconfig names no authority"),
    };
    Ok((host, ca))
}
