//! Keeps one container's agent reached while a pod starts: tries, then holds the connection.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::connect::{ConnectError, Connector};
use super::schedule::{Occasion, Schedule};
use super::session::Session;
use super::{End, Lost};
use crate::shim::stage::Container;
use crate::wire::message::{Hello, Open, Refusal};

/// Connections that may be lost before only a change of status leads to another one.
const MOST_LOSSES: u32 = 5;

/// How long a try may take once the stream is open. The exec'd end waits up to 10 s for its agent.
const GREETING: Duration = Duration::from_secs(12);

type Attempt<'a, S> = Pin<Box<dyn Future<Output = Result<(Session<S>, Hello), TryError>> + 'a>>;

/// Why a try failed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum TryError {
    Connect(ConnectError),
    Refused(Refusal),
    Lost(Lost),
}

/// What has become of a link.
#[derive(Debug)]
pub enum LinkEvent {
    /// The agent has answered, and the connection stays.
    Up(Hello),
    /// A try failed, or the connection is gone; it is tried again.
    Down(String),
    /// It is not allowed to reach the agent.
    Denied(String),
    /// The agent does not want this client.
    Refused(Refusal),
}

/// The connection to one container's agent.
pub struct Link<'a, C: Connector> {
    connector: &'a C,
    container: Container,
    open: Open,
    schedule: Schedule,
    state: State<'a, C>,
    tries: u32,
    losses: u32,
}

enum State<'a, C: Connector> {
    /// Nothing is due.
    Idle,
    Waiting(Pin<Box<Sleep>>),
    Trying(Attempt<'a, C::Socket>),
    Up(Box<Session<C::Socket>>),
}

impl<'a, C: Connector> Link<'a, C> {
    /// Starts to reach the agent in that container.
    pub fn new(connector: &'a C, container: Container, open: Open, occasion: Occasion) -> Self {
        let (schedule, wait) = Schedule::new(occasion);
        Self { connector, container, open, schedule, state: waiting(wait), tries: 0, losses: 0 }
    }

    /// How often it was tried.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// The CiJob's status has changed.
    pub fn status_changed(&mut self, running: bool) {
        match self.state {
            State::Idle | State::Waiting(_) if running && self.schedule.running() => {
                self.restart(Occasion::Running);
            }
            State::Idle => self.state = waiting(Duration::ZERO),
            _ => {}
        }
    }

    /// Waits for what happens next. May be dropped and called again.
    pub async fn next(&mut self) -> LinkEvent {
        loop {
            match &mut self.state {
                State::Idle => std::future::pending().await,
                State::Waiting(sleep) => {
                    sleep.as_mut().await;
                    self.tries += 1;
                    let (connector, container, open) = (self.connector, self.container, self.open.clone());
                    self.state = State::Trying(Box::pin(attempt(connector, container, open)));
                }
                State::Trying(attempt) => match attempt.await {
                    Ok((session, hello)) => {
                        self.state = State::Up(Box::new(session));
                        return LinkEvent::Up(hello);
                    }
                    Err(error) => return self.failed(error),
                },
                State::Up(session) => {
                    let lost = session.hold().await;
                    self.losses += 1;
                    if self.losses <= MOST_LOSSES {
                        self.restart(Occasion::Loss);
                    } else {
                        self.state = State::Idle;
                    }
                    return LinkEvent::Down(lost.to_string());
                }
            }
        }
    }

    fn restart(&mut self, occasion: Occasion) {
        let (schedule, wait) = Schedule::new(occasion);
        (self.schedule, self.state) = (schedule, waiting(wait));
    }

    fn failed(&mut self, error: TryError) -> LinkEvent {
        self.state = State::Idle;
        tracing::info!(container = %self.container, tries = self.tries, ?error, "the agent did not answer yet");
        let reason = match error {
            TryError::Connect(ConnectError::Denied(reason)) => return LinkEvent::Denied(reason),
            TryError::Refused(refusal) => return LinkEvent::Refused(refusal),
            TryError::Connect(error) => error.to_string(),
            TryError::Lost(lost) => lost.to_string(),
        };
        if let Some(wait) = self.schedule.failed() {
            self.state = waiting(wait);
        }
        LinkEvent::Down(reason)
    }
}

fn waiting<'a, C: Connector>(wait: Duration) -> State<'a, C> {
    State::Waiting(Box::pin(tokio::time::sleep(wait)))
}

async fn attempt<C: Connector>(
    connector: &C,
    container: Container,
    open: Open,
) -> Result<(Session<C::Socket>, Hello), TryError> {
    let socket = connector.connect(container).await.map_err(TryError::Connect)?;
    let deadline = Instant::now() + GREETING;
    match tokio::time::timeout_at(deadline, Session::greet(socket, &open, container)).await {
        Ok(Ok(greeted)) => Ok(greeted),
        Ok(Err(End::Refused(refusal))) => Err(TryError::Refused(refusal)),
        Ok(Err(End::Lost(lost))) => Err(TryError::Lost(lost)),
        Ok(Err(End::Exited(_))) => Err(TryError::Lost(Lost::Nonsense("an exit record".to_owned()))),
        Err(_) => Err(TryError::Lost(Lost::Silent(GREETING.as_secs()))),
    }
}
