//! Whose executor runs the jobs that faults happen to: Roadstead, or GitLab's own one for comparison.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;

use super::Site;
use crate::coordinator::JobSpec;
use crate::gitlab_executor::{self, GitLabExecutor};
use crate::harness::{Harness, RunningJob, real};
use crate::images::RUNNER_HELPER_ENV;
use crate::installation::{Installation, Proxy};
use crate::progress::Progress;

/// What runs jobs.
#[derive(Clone, Copy)]
pub(super) enum Executor<'a> {
    /// Roadstead, called by the played gitlab-runner.
    Roadstead,
    /// GitLab's Kubernetes executor in a real gitlab-runner, with its default settings.
    GitLab(&'a GitLabExecutor),
}

/// Room for all that a job says, in KiB: gitlab-runner would keep 4 MiB of it by default.
const OUTPUT_LIMIT: u32 = 64 << 10;

/// Most that jobs with a small limit could ask for.
const MAX: &str = "1Gi";

/// A relay in front of the API server, and the way through it.
pub(super) struct Relay {
    pub(super) proxy: Proxy,
    kubeconfig: PathBuf,
}

/// Sets up GitLab's executor in the cluster of the installation.
///
/// # Errors
/// When the environment names no gitlab-runner, or the cluster has no image of its helper.
pub(super) async fn gitlab(progress: &Progress, bench: &Installation) -> Result<GitLabExecutor> {
    let program = real::program().with_context(|| {
        format!("nothing to compare with: {} names no gitlab-runner", real::PROGRAM_VARIABLE)
    })?;
    bench
        .image(gitlab_executor::HELPER)
        .with_context(|| format!("{RUNNER_HELPER_ENV} has to name a gitlab-runner-helper"))?;
    progress.say("faults: setting up GitLab's Kubernetes executor");
    let mut config = bench.runner();
    config.output_limit = Some(OUTPUT_LIMIT);
    GitLabExecutor::install(bench, program, config).await
}

impl Site<'_> {
    /// Starts a job.
    pub(super) async fn start(&self, spec: &JobSpec) -> Result<RunningJob> {
        match self.executor {
            Executor::Roadstead => self.bench.harness()?.start(spec).await,
            Executor::GitLab(theirs) => Ok(theirs.start(spec).await?.0),
        }
    }

    /// Starts a job whose executor reaches the API server through a relay only.
    pub(super) async fn start_behind(&self, relay: &Relay, spec: &JobSpec) -> Result<RunningJob> {
        match self.executor {
            Executor::Roadstead => {
                Harness::new(self.bench.runner().env("KUBECONFIG", &relay.kubeconfig))?.start(spec).await
            }
            Executor::GitLab(theirs) => {
                let host = format!("https://{}", relay.proxy.address());
                Ok(theirs.start_with(spec, &host, &[]).await?.0)
            }
        }
    }

    /// Starts a job whose script may take so much of a resource.
    pub(super) async fn start_with_limit(
        &self,
        spec: &JobSpec,
        resource: &str,
        limit: &str,
    ) -> Result<RunningJob> {
        match self.executor {
            Executor::Roadstead => {
                let class = self
                    .class(|class| {
                        let build = &mut class.spec.resources.build;
                        build.requests.remove(resource);
                        build.limits.insert(resource.to_owned(), limit.to_owned());
                        build.max.insert(resource.to_owned(), MAX.to_owned());
                    })
                    .await?;
                self.start_in(&class, spec).await
            }
            Executor::GitLab(theirs) => {
                let setting = format!("{}_limit", resource.replace('-', "_"));
                Ok(theirs.start_with(spec, theirs.host(), &[(&setting, limit)]).await?.0)
            }
        }
    }

    /// Starts a job of Roadstead in a class.
    pub(super) async fn start_in(&self, class: &str, spec: &JobSpec) -> Result<RunningJob> {
        self.bench.harness_of(class)?.start(spec).await
    }

    /// A relay for jobs of the executor.
    pub(super) async fn relay(&self) -> Result<Relay> {
        let (proxy, kubeconfig) = self.bench.proxied().await?;
        Ok(Relay { proxy, kubeconfig })
    }

    /// Where the jobs' pods are.
    pub(super) fn namespace(&self) -> &str {
        match self.executor {
            Executor::Roadstead => self.bench.job_namespace(),
            Executor::GitLab(_) => gitlab_executor::NAMESPACE,
        }
    }

    /// The pods there.
    pub(super) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.bench.client.clone(), self.namespace())
    }

    /// The name of the job's pod.
    pub(super) async fn pod_of(&self, job: i64) -> Result<String> {
        let name = match self.executor {
            Executor::Roadstead => {
                self.bench.cijob_of(job).await?.status.and_then(|status| status.pod).map(|pod| pod.name)
            }
            Executor::GitLab(theirs) => theirs.pods_of(job).await?.pop().and_then(|pod| pod.metadata.name),
        };
        name.with_context(|| format!("job {job} has no pod"))
    }

    /// Waits until a job has no pod left.
    pub(super) async fn wait_no_pods(&self, job: i64, deadline: Duration) -> Result<()> {
        match self.executor {
            Executor::Roadstead => self.bench.wait_no_pods(job, deadline).await,
            Executor::GitLab(theirs) => theirs.wait_no_pods_of(job, deadline).await,
        }
    }

    pub(super) fn is_ours(&self) -> bool {
        matches!(self.executor, Executor::Roadstead)
    }
}
