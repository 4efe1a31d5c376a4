//! One job while it runs: its variables, where it works, what it writes, and how it is told to stop.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use tokio::sync::watch;

use crate::coordinator::{JobSpec, Variable};

use super::config::RunnerConfig;
use super::error::{JobError, Reason};
use super::job::RunnerJob;
use super::joblog::JobLog;
use super::process::{KillTimeouts, Runner};
use super::record::Recorder;
use super::remote::Remote;
use super::scope::Scope;
use super::script::{Source, Stage};
use super::settings::{GitStrategy, Settings};
use super::variables::{Place, Variables};

/// A job and everything that belongs to its run.
#[derive(Debug)]
pub(super) struct Build {
    pub(super) config: Arc<RunnerConfig>,
    pub(super) job: RunnerJob,
    pub(super) log: JobLog,
    pub(super) recorder: Recorder,
    pub(super) runner: Runner,
    pub(super) control: Control,
    /// The whole job, from before `config` to before `cleanup`.
    pub(super) scope: Scope,
    secrets: Vec<Variable>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    place: Place,
    hostname: String,
    variables: Variables,
    tmpdirs: Vec<std::path::PathBuf>,
}

/// How a job is told to stop. Clones steer the same job.
#[derive(Debug, Clone)]
pub(super) struct Control {
    /// What `cancel` ends: the whole job, later only the script.
    target: Arc<Mutex<Option<Scope>>>,
    whole: Scope,
    interrupted: watch::Sender<bool>,
}

impl Control {
    /// GitLab says `canceling`. Only the first word counts, and after the script it means nothing.
    pub(super) fn cancel(&self) {
        let target = self.target.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(target) = target {
            target.cancel();
        }
    }

    /// GitLab says `canceled`, or that it knows no such job.
    pub(super) fn abort(&self) {
        self.target.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.whole.cancel();
    }

    /// The runner gets SIGTERM.
    pub(super) fn interrupt(&self) {
        self.interrupted.send_replace(true);
    }

    /// Waits until the runner gets SIGTERM.
    pub(super) async fn interruption(&self) {
        let mut interrupted = self.interrupted.subscribe();
        // The sender lives as long as this.
        let _ = interrupted.wait_for(|interrupted| *interrupted).await;
    }

    /// From now on `cancel` ends only this.
    pub(super) fn narrow(&self, scope: &Scope) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = Some(scope.clone());
    }
}

impl Build {
    pub(super) fn new(config: Arc<RunnerConfig>, spec: &JobSpec) -> Result<Self> {
        let mut job = RunnerJob::parse(&spec.payload(&config.url))?;
        let secrets: Vec<Variable> = spec
            .secrets
            .iter()
            .map(|secret| Variable {
                key: secret.key.clone(),
                value: secret.value.clone(),
                file: secret.file,
                masked: true,
                raw: true,
                public: false,
            })
            .collect();
        let known = Variables::of_job(&config, &job, &secrets, &Place::default());
        job.image.name = known.expand_text(&job.image.name);
        job.image.alias = known.expand_text(&job.image.alias);
        for service in job.services.iter_mut().flatten() {
            service.name = known.expand_text(&service.name);
            service.alias = known.expand_text(&service.alias);
        }
        let scope = Scope::root(Some(job.timeout()));
        let (log, recorder) = (JobLog::new(), Recorder::new());
        let timeouts =
            KillTimeouts { graceful: config.graceful_kill_timeout, force: config.force_kill_timeout };
        let build = Self {
            runner: Runner {
                recorder: recorder.clone(),
                log: log.clone(),
                timeouts,
                latest: watch::Sender::new(None),
            },
            control: Control {
                target: Arc::new(Mutex::new(Some(scope.clone()))),
                whole: scope.clone(),
                interrupted: watch::Sender::new(false),
            },
            config,
            job,
            log,
            recorder,
            scope,
            secrets,
            state: Mutex::new(State::default()),
        };
        build.refresh_variables();
        Ok(build)
    }

    /// Makes the variables anew, for the place as it is now.
    pub(super) fn refresh_variables(&self) {
        let mut state = self.state();
        state.variables = Variables::of_job(&self.config, &self.job, &self.secrets, &state.place);
    }

    /// The variables as they are now.
    pub(super) fn variables(&self) -> Variables {
        self.state().variables.clone()
    }

    /// What the variables say about the runner's work.
    pub(super) fn settings(&self) -> Settings {
        Settings::read(&self.job, &self.state().variables)
    }

    /// Sets `CI_JOB_STATUS` for everything that follows.
    pub(super) fn set_status(&self, status: &str) {
        self.state().variables.overwrite_first("CI_JOB_STATUS", status);
    }

    /// Remembers what `config` said about the host.
    pub(super) fn set_hostname(&self, hostname: String) {
        self.state().hostname = hostname;
    }

    /// Remembers a temporary folder of the runner.
    pub(super) fn add_tmpdir(&self, dir: std::path::PathBuf) {
        self.state().tmpdirs.push(dir);
    }

    /// All temporary folders so far; one for each try to prepare.
    pub(super) fn tmpdirs(&self) -> Vec<std::path::PathBuf> {
        self.state().tmpdirs.clone()
    }

    /// Decides where the job works.
    pub(super) fn choose_place(&self, builds: &str, cache: &str, shared: bool) -> Result<(), JobError> {
        for (dir, name) in [(builds, "builds_dir"), (cache, "cache_dir")] {
            if dir.is_empty() {
                let message = format!("the {name} is not configured");
                return Err(JobError::build(Reason::Configuration, message));
            }
        }
        // A chosen clone path may refer to CI_BUILDS_DIR, so that is known first.
        builds.clone_into(&mut self.state().place.root);
        self.refresh_variables();
        let settings = self.settings();
        let mut project = Remote::parse(&self.job.git_info.repo_url)
            .and_then(|remote| remote.project().map(str::to_owned))
            .unwrap_or_else(|| format!("project-{}", self.job.job_info.project_id));
        if settings.strategy == GitStrategy::Empty {
            project.push_str("-empty");
        }
        let place = Place {
            root: builds.to_owned(),
            cache: join(cache, &project),
            project: self.project_dir(&settings, builds, &project, shared)?,
        };
        self.state().place = place;
        self.refresh_variables();
        Ok(())
    }

    fn project_dir(
        &self,
        settings: &Settings,
        builds: &str,
        project: &str,
        shared: bool,
    ) -> Result<String, JobError> {
        let asked = settings.clone_path.as_str();
        if asked.is_empty() {
            let slot = format!("{}/{}", self.config.short_token(), self.config.concurrent_project_id);
            return Ok(if shared { join(&join(builds, &slot), project) } else { join(builds, project) });
        }
        if !self.config.custom_build_dir {
            let message = "setting GIT_CLONE_PATH is not allowed, enable `custom_build_dir` feature";
            return Err(JobError::build(Reason::Configuration, message));
        }
        let (asked, root) = (cleaned(asked), cleaned(builds));
        if asked != root && !asked.starts_with(&format!("{root}/")) {
            let message = format!("the GIT_CLONE_PATH={asked:?} has to be within {root:?}");
            return Err(JobError::build(Reason::Configuration, message));
        }
        Ok(asked)
    }

    /// The script of a stage; `None` when there is nothing to do.
    pub(super) fn script(&self, stage: &Stage, shell: &str) -> Result<Option<String>, JobError> {
        let settings = self.settings();
        let known = self.state();
        let source = Source {
            config: &self.config,
            job: &self.job,
            variables: &known.variables,
            settings: &settings,
            place: &known.place,
            shell,
            hostname: &known.hostname,
        };
        source.script(stage)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two parts of a path with one slash between them.
fn join(folder: &str, name: &str) -> String {
    cleaned(&format!("{folder}/{name}"))
}

/// A path without `.`, `..` and doubled slashes.
fn cleaned(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::config::Driver;

    fn build(spec: &JobSpec) -> Build {
        let mut config = RunnerConfig::new(Driver::shim("/shim"));
        config.custom_build_dir = true;
        Build::new(Arc::new(config), spec).unwrap()
    }

    fn project_dir(spec: &JobSpec, shared: bool) -> Result<String, String> {
        let build = build(spec);
        build.choose_place("/builds", "/cache", shared).map_err(|error| error.message())?;
        Ok(build.variables().value("CI_PROJECT_DIR").to_owned())
    }

    #[test]
    fn projects_have_their_own_folders() {
        assert_eq!(project_dir(&JobSpec::new(1), false).unwrap(), "/builds/grp/proj");
        assert_eq!(project_dir(&JobSpec::new(1), true).unwrap(), "/builds/harness01/0/grp/proj");
        let empty = JobSpec::new(1).variable("GIT_STRATEGY", "empty");
        assert_eq!(project_dir(&empty, false).unwrap(), "/builds/grp/proj-empty");
    }

    #[test]
    fn a_chosen_clone_path_stays_inside() {
        let inside = JobSpec::new(1).variable("GIT_CLONE_PATH", "$CI_BUILDS_DIR/x/$CI_CONCURRENT_ID");
        assert_eq!(project_dir(&inside, false).unwrap(), "/builds/x/0");
        for outside in ["/etc", "$CI_BUILDS_DIR/../etc", "/builds2"] {
            let why = project_dir(&JobSpec::new(1).variable("GIT_CLONE_PATH", outside), false).unwrap_err();
            assert!(why.contains("has to be within"), "{outside}: {why}");
        }
    }

    #[test]
    fn before_config_nobody_knows_the_place() {
        let build = build(&JobSpec::new(1));
        let variables = build.variables();
        assert_eq!(variables.value("CI_BUILDS_DIR"), "");
        assert_eq!(variables.value("CI_PROJECT_DIR"), "");
        assert_eq!(variables.value("RUNNER_TEMP_PROJECT_DIR"), ".tmp");
        assert_eq!(variables.value("CI_JOB_STATUS"), "running");
    }

    #[test]
    fn images_and_services_are_expanded_once() {
        let spec = JobSpec::new(1)
            .image("img:$TAG")
            .variable("TAG", "3")
            .service(crate::coordinator::Image::new("db:${TAG}").alias("db-$TAG"));
        let build = build(&spec);
        assert_eq!(build.job.image_name(), "img:3");
        assert_eq!(build.variables().value("CI_JOB_IMAGE"), "img:3");
        assert_eq!(build.job.services()[0].name, "db:3");
        assert_eq!(build.job.services()[0].alias, "db-3");
    }
}
