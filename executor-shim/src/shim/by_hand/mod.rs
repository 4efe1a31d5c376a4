//! Jobs by hand, without gitlab-runner: one JSON object on standard input says what to do, one on
//! standard output says what came of it. Everything else, a script's output too, goes to standard
//! error.

mod answer;
mod identity;
mod output;
mod preview;
mod request;
mod script;
mod session;

use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use roadstead_crds::reason::Blame;
use roadstead_crds::status::JobConfig;
use roadstead_crds::{CiJobStatus, Phase};
use tokio::time::Instant;

use crate::shim::cleanup::{self, Job as Remains};
use crate::shim::cli::Options;
use crate::shim::cluster::{Cluster, persistently};
use crate::shim::exit::{End, Failure};
use crate::shim::joblog::Output as _;
use crate::shim::run::attempts::Attempts;
use crate::shim::run::{self, Section};
use crate::shim::signals::{self, Interrupt};
use crate::shim::stage::{Container, Stage};
use crate::shim::state::{StageEnd, StartFailure, State};
use crate::shim::{config, diagnostics, prepare, random};

use answer::{Answer, Kind, Trouble};
use output::Console;
use request::{Job, JobName, Wishes};
use session::{Session, Sessions, Setting};

pub use preview::preview;
pub use request::{Mistake, Request, read, read_file};

/// How long the API server may take to say whether a job is still there.
const LOOK_WITHIN: Duration = Duration::from_secs(30);

/// Does what was asked for, and answers.
pub async fn call(options: &Options, request: Result<Request, Mistake>) -> ExitCode {
    // Without standard streams there is nowhere to answer.
    let Ok(mut console) = Console::new() else { return ExitCode::FAILURE };
    if let Err(error) = diagnostics::set_up(options) {
        console.line(&format!("{error}; there will be none")).await;
    }
    let answer = match (request, signals::listen()) {
        (Err(mistake), _) => mistake.into(),
        (Ok(_), Err(error)) => {
            Answer::default().failed(Trouble::system(format!("cannot listen for signals: {error}")))
        }
        (Ok(request), Ok(interrupt)) => {
            let mut call = Call { options, console: &mut console, interrupt };
            call.answer(request).await
        }
    };
    if let Some(error) = &answer.error {
        console.line(error).await;
    }
    tracing::info!(command = answer.command, exit_code = answer.exit(), "the call by hand ends");
    if let Err(error) = console.answer(&answer.text()).await {
        tracing::warn!(%error, "nobody reads the answer");
    }
    ExitCode::from(answer.exit())
}

struct Call<'a> {
    options: &'a Options,
    console: &'a mut Console,
    interrupt: Interrupt,
}

impl Call<'_> {
    async fn answer(&mut self, request: Request) -> Answer {
        match request {
            Request::Initialize(wishes) => {
                let answer = Answer::to("initialize");
                match self.initialize(&wishes).await {
                    Ok(started) => Answer { command: answer.command, ..started },
                    Err(trouble) => answer.failed(trouble),
                }
            }
            Request::Run { job, script, container } => {
                let answer = Answer::to("run");
                match job {
                    Job::New(wishes) => self.run_once(&wishes, &script, container, answer).await,
                    Job::Known(name) => self.run_again(&name, &script, container, answer).await,
                }
            }
            Request::Cleanup { job: name, namespace } => {
                let job = name.as_str().to_owned();
                let answer = Answer { job: Some(job), ..Answer::to("cleanup") };
                match self.clean_up(&name, namespace).await {
                    Ok(()) => answer,
                    Err(trouble) => answer.failed(trouble),
                }
            }
        }
    }

    async fn cluster(&self) -> Result<Cluster, Trouble> {
        Cluster::find(self.options).await.map_err(|error| Trouble::system(error.to_string()))
    }

    async fn initialize(&mut self, wishes: &Wishes) -> Result<Answer, Trouble> {
        let sessions = Sessions::find(self.options)?;
        sessions.sweep(Timestamp::now());
        let cluster = self.cluster().await?;
        let mut state = new_state(&cluster)?;
        let session = sessions.create(&state.cijob)?;
        let started = self.start(&cluster, &session, &mut state, (wishes, "session")).await;
        let remembered = started.and_then(|(config, status)| {
            let setting = Setting { variables: wishes.variables.clone(), directory: config.builds_dir };
            session.remember(&setting).map(|()| status)
        });
        let status = match remembered {
            Ok(status) => status,
            Err(trouble) => {
                self.let_go(&state, wishes).await;
                session.remove();
                return Err(trouble);
            }
        };
        let timeouts = state.timeouts.as_ref();
        Ok(Answer {
            job: Some(state.cijob.clone()),
            namespace: Some(state.namespace.clone()),
            pod: state.pod.as_ref().map(|pod| pod.name.clone()),
            class: status.class,
            image: status.image,
            keep_seconds: timeouts.map(|timeouts| timeouts.orphan_seconds),
            timeout_seconds: timeouts.map(|timeouts| timeouts.job_seconds),
            ..Answer::default()
        })
    }

    /// Runs a script in a job of its own.
    async fn run_once(
        &mut self,
        wishes: &Wishes,
        script: &[String],
        container: Container,
        answer: Answer,
    ) -> Answer {
        let begun = async {
            let cluster = self.cluster().await?;
            let dir = tempfile::tempdir()
                .map_err(|error| Trouble::system(format!("cannot create a temporary directory: {error}")))?;
            Ok((new_state(&cluster)?, cluster, dir))
        };
        let (mut state, cluster, dir) = match begun.await {
            Ok(begun) => begun,
            Err(trouble) => return answer.failed(trouble),
        };
        let answer = Answer { job: Some(state.cijob.clone()), ..answer };
        let session = Session::passing(dir.path());
        let answer = match self.start(&cluster, &session, &mut state, (wishes, "run")).await {
            Ok((config, _)) => {
                let setting = Setting { variables: wishes.variables.clone(), directory: config.builds_dir };
                let work = (script, container, &setting);
                self.run_script(&cluster, &session, &mut state, work, answer).await
            }
            Err(trouble) => answer.failed(trouble),
        };
        self.let_go(&state, wishes).await;
        answer
    }

    /// Runs a script in a job that an earlier call has started.
    async fn run_again(
        &mut self,
        name: &JobName,
        script: &[String],
        container: Container,
        answer: Answer,
    ) -> Answer {
        let answer = Answer { job: Some(name.as_str().to_owned()), ..answer };
        let found = self.find(name).await;
        let Found { session, cluster, mut state, setting, lock } = match found {
            Ok(found) => found,
            Err(trouble) => return answer.failed(trouble),
        };
        let work = (script, container, &setting);
        let answer = self.run_script(&cluster, &session, &mut state, work, answer).await;
        drop(lock);
        answer
    }

    async fn find(&mut self, name: &JobName) -> Result<Found, Trouble> {
        let unknown = || {
            let name = name.as_str();
            Trouble::request(format!(
                "the job {name} is not known here: it was cleaned up, or started by another user or elsewhere"
            ))
        };
        let session = Sessions::find(self.options)?.get(name).ok_or_else(unknown)?;
        let lock = session.lock()?.ok_or_else(|| {
            Trouble::request(format!("another call runs a script in the job {} at the moment", name.as_str()))
        })?;
        let state = session.state().read().map_err(|error| Trouble::system(error.to_string()))?;
        let cluster = self.cluster().await?;
        let looked = tokio::select! {
            looked = look(&cluster, &state) => looked,
            _ = self.interrupt.wait() => return Err(Trouble::interrupted("the call was interrupted before the script ran")),
        };
        if let Err(trouble) = looked {
            if trouble.kind == Kind::Request {
                // Nothing will come of it any more.
                session.remove();
            }
            return Err(trouble);
        }
        let setting = session.recall()?;
        Ok(Found { session, cluster, state, setting, lock })
    }

    /// Starts a job and waits until scripts can run in it. Where it does not come to that, the
    /// state knows why.
    async fn start(
        &mut self,
        cluster: &Cluster,
        session: &Session,
        state: &mut State,
        (wishes, what): (&Wishes, &str),
    ) -> Result<(JobConfig, CiJobStatus), Trouble> {
        let (file, class) = (session.state(), self.options.class.as_deref());
        let started = async {
            let mut request =
                identity::request(wishes, what, class, state.requested_at).inspect_err(|_| {
                    // There is no job yet.
                    state.refused = true;
                })?;
            state.namespace = config::namespace(&mut request, &cluster.namespace);
            let deposit = identity::deposit(wishes);
            let settled = config::ask(cluster, &file, state, request, &deposit).await?;
            prepare::wait(cluster, &file, state, self.console).await?;
            Ok::<_, Failure>(settled)
        };
        let (end, trouble) = tokio::select! {
            biased;
            _ = self.interrupt.wait() => {
                (StageEnd::Stopped, Trouble::interrupted("the call was interrupted before the job's pod was ready"))
            }
            started = started => match started {
                Ok(settled) => return Ok(settled),
                Err(failure) => {
                    let end = if failure.blame == Blame::User { StageEnd::Failed } else { StageEnd::Errored };
                    (end, failure.into())
                }
            },
        };
        state.failure = Some(StartFailure { end, message: Some(trouble.sentence.clone()) });
        Err(trouble)
    }

    async fn run_script(
        &mut self,
        cluster: &Cluster,
        session: &Session,
        state: &mut State,
        (lines, container, setting): (&[String], Container, &Setting),
        answer: Answer,
    ) -> Answer {
        let script = script::write(lines, &setting.variables, &setting.directory);
        let section =
            Section { stage: &Stage::by_hand(container), script: script.into(), attempts: Attempts::ONE };
        let (file, interrupt) = (session.state(), self.interrupt.clone());
        let ended = run::run_section(cluster, &file, state, section, self.console, interrupt).await;
        let duration = state.stages.last().map_or(0, |record| record.report.duration_ms);
        let answer = answer.with_output(self.console.tail(), duration);
        answer.with_end(ended.unwrap_or_else(End::from))
    }

    /// Lets go of a job that this call has started.
    async fn let_go(&mut self, state: &State, wishes: &Wishes) {
        if state.refused {
            return;
        }
        let remains = Remains::Recorded(Box::new(state.clone()));
        if let Err(reason) = cleanup::let_go(self.options, &wishes.variables.secrets(), &remains).await {
            self.console.line(&cleanup::left_alone(&reason)).await;
        }
    }

    async fn clean_up(&mut self, name: &JobName, namespace: Option<String>) -> Result<(), Trouble> {
        let session = Sessions::find(self.options).ok().and_then(|sessions| sessions.get(name));
        let state = session.as_ref().and_then(|session| session.state().read().ok());
        let remains = match (state, namespace) {
            (Some(state), _) => Remains::Recorded(Box::new(state)),
            (None, Some(namespace)) => Remains::Named(name.as_str().to_owned(), namespace),
            (None, None) => Remains::Named(name.as_str().to_owned(), self.cluster().await?.namespace),
        };
        // Without a setting no script has run.
        let setting = session.as_ref().and_then(|session| session.recall().ok()).unwrap_or_default();
        let let_go = cleanup::let_go(self.options, &setting.variables.secrets(), &remains).await;
        let_go.map_err(|reason| Trouble::system(cleanup::left_alone(&reason)))?;
        if let Some(session) = session {
            session.remove();
        }
        Ok(())
    }
}

/// A job that an earlier call has started.
struct Found {
    session: Session,
    cluster: Cluster,
    state: State,
    setting: Setting,
    lock: std::fs::File,
}

fn new_state(cluster: &Cluster) -> Result<State, Trouble> {
    let random = random::name().map_err(|error| Trouble::system(error.to_string()))?;
    let now = crate::shim::request::in_microseconds(Timestamp::now());
    let state = State::new(cluster.namespace.clone(), identity::name(&random), now);
    Ok(State { by_hand: true, ..state })
}

/// Whether the job is still there.
async fn look(cluster: &Cluster, state: &State) -> Result<(), Trouble> {
    let api = cluster.cijobs(&state.namespace);
    let name = format!("{}/{}", state.namespace, state.cijob);
    let there = persistently(Instant::now() + LOOK_WITHIN, || api.get_opt(&state.cijob)).await;
    let there =
        there.map_err(|error| Trouble::system(error.sentence(&format!("look at the CiJob {name}"))))?;
    let Some(job) = there.filter(|job| job.metadata.uid == state.cijob_uid) else {
        return Err(Trouble::request(format!("the job {name} is gone from the cluster")));
    };
    let status = job.status.unwrap_or_default();
    if status.phase.is_some_and(Phase::is_final) || job.spec.report.is_some() {
        let message = status.message.map_or_else(String::new, |message| format!(": {message}"));
        return Err(Trouble::request(format!("the job {name} has ended{message}")));
    }
    Ok(())
}
