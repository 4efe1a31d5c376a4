//! Keeps a script's conversation going over as many connections as it takes.

use std::future::Future;
use std::time::Duration;

use roadstead_crds::Reason;
use tokio::time::Instant;

use crate::shim::cluster::Backoff;
use crate::shim::exec::connect::{ConnectError, Connector};
use crate::shim::exec::conversation::{Attempt, Farewell, Progress, Purpose, StopEvent, Stopping, converse};
use crate::shim::exec::session::Session;
use crate::shim::exec::{End, Lost};
use crate::shim::joblog::Output;
use crate::wire::message::{ExitRecord, Refusal, RefusalReason};

/// How long a script may be out of reach before the stage is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(300);

/// Shorter interruptions are not worth a line in the job log.
const WORTH_A_LINE: Duration = Duration::from_secs(5);

/// Waits before the connection is opened again: from the first they double up to the ordinary one.
/// A longer interruption is waited for longer, so that a stage costs the cluster about twenty tries
/// at most and is back soon for as long as it was away. An API server that answers again and is not
/// ready yet is a new beginning.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const ORDINARY_WAIT: Duration = Duration::from_secs(5);
const PART_OF_OUTAGE: u32 = 5;

/// How long the operator may take to say why a script could not come to its end.
const EXPLANATION: Duration = Duration::from_secs(15);

/// How often a connection may bring damaged output in a row: once may be the network's fault.
const MOST_DAMAGE: u32 = 3;

/// How long it may not be allowed any more to reach a script that was reached. An API server that
/// has just started may not know who may do what.
const DENIED_FOR: Duration = Duration::from_secs(60);

/// Connections that are tried to tell the agent that the script shall end.
const MOST_GOODBYES: u32 = 2;

/// How the job itself ended, as its CiJob says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobEnd {
    /// It has a final phase.
    Final {
        /// Why, in a word.
        reason: Option<Reason>,
        /// Why, in a sentence.
        message: Option<String>,
    },
    /// Its pod was taken from it. Another one may take its place.
    PodLost {
        /// Why, in a word.
        reason: Reason,
        /// Why, in a sentence.
        message: String,
    },
    /// It was deleted.
    Deleted,
}

/// A look at the job, for when the connection is lost.
pub trait Oversight {
    /// Waits until the job has ended. May be dropped and called again; asks nobody before it is
    /// called for the first time.
    fn ended(&mut self) -> impl Future<Output = JobEnd>;
}

/// The container is ended for the job's end.
struct EndOfJob<'a, V>(&'a mut V);

impl<V: Oversight> Farewell for EndOfJob<'_, V> {
    async fn reason(&mut self) -> String {
        match self.0.ended().await {
            JobEnd::Final { message: Some(message), .. } | JobEnd::PodLost { message, .. } => message,
            JobEnd::Final { message: None, .. } => "The job has ended.".to_owned(),
            JobEnd::Deleted => "The job's CiJob was deleted.".to_owned(),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The script has ended, and all of its output has been written out.
    Exited(ExitRecord),
    /// The agent does not run it.
    Refused(Refusal),
    /// The job has ended under it.
    JobEnded(JobEnd),
    /// The container died under it, and nobody says why.
    Died(ExitRecord),
    /// The API server does not let the shim reach the pod.
    Denied(String),
    /// It could not be reached for too long.
    GivenUp {
        /// Why not, the last time.
        reason: String,
        /// For how long.
        after: Duration,
    },
    /// It was to be stopped, and its end is not known.
    StoppedBlindly,
}

/// What a connection came to.
enum Connection {
    /// It ended the conversation.
    Ended(End),
    /// There was none.
    Failed(ConnectError),
    /// It was open, and the agent did not greet.
    Ungreeted(End),
}

/// An interruption of the conversation.
struct Outage {
    since: Instant,
    /// When the API server first said something in it.
    answered: Option<Instant>,
    failures: u32,
    announced: bool,
}

/// Runs the script, however many connections that takes.
pub async fn supervise<C: Connector, V: Oversight, O: Output>(
    connector: &C,
    oversight: &mut V,
    attempt: &Attempt,
    progress: &mut Progress,
    stopping: &mut Stopping,
    output: &mut O,
) -> (Verdict, u32) {
    let backoff = Backoff::new(FIRST_WAIT, ORDINARY_WAIT);
    let mut supervisor = Supervisor {
        connector,
        oversight,
        attempt,
        progress,
        stopping,
        output,
        backoff,
        outage: None,
        denied: None,
        reconnects: 0,
        connected: false,
        damage: 0,
        goodbyes: 0,
    };
    let verdict = supervisor.run().await;
    (verdict, supervisor.reconnects)
}

struct Supervisor<'a, C, V, O> {
    connector: &'a C,
    oversight: &'a mut V,
    attempt: &'a Attempt,
    progress: &'a mut Progress,
    stopping: &'a mut Stopping,
    output: &'a mut O,
    backoff: Backoff,
    outage: Option<Outage>,
    /// When it was first not allowed, in this interruption.
    denied: Option<Instant>,
    reconnects: u32,
    connected: bool,
    damage: u32,
    /// Connections opened since the script was to be stopped.
    goodbyes: u32,
}

impl<C: Connector, V: Oversight, O: Output> Supervisor<'_, C, V, O> {
    async fn run(&mut self) -> Verdict {
        loop {
            let life = self.progress.signs_of_life;
            let connection = self.connection(Purpose::Run).await;
            let answered = matches!(&connection, Connection::Failed(error) if error.is_answer());
            if self.progress.signs_of_life > life {
                // It is being taken care of: whatever follows is a new interruption.
                self.outage = None;
                self.denied = None;
                self.damage = 0;
                self.backoff.reset();
            }
            let reason = match self.judge(connection).await {
                Ok(verdict) => return verdict,
                Err(reason) => reason,
            };
            tracing::info!(reason, stage = self.attempt.stage, "the connection to the agent is lost");
            if let Some(verdict) = self.wait(reason, answered).await {
                return verdict;
            }
        }
    }

    /// Whether a connection has led to a verdict; otherwise why another one is needed.
    async fn judge(&mut self, connection: Connection) -> Result<Verdict, String> {
        let (reason, may_be_dead) = match connection {
            Connection::Ended(End::Exited(record)) => return Ok(self.explained(record).await),
            Connection::Ended(End::Refused(refusal)) | Connection::Ungreeted(End::Refused(refusal)) => {
                // The script did not arrive whole: it was not started, so it can be sent again.
                let again = refusal.reason == RefusalReason::Script && self.stopping.cause().is_none();
                if !again || self.too_much_damage() {
                    return Ok(Verdict::Refused(refusal));
                }
                (refusal.message, false)
            }
            Connection::Ended(End::Lost(Lost::Overdue | Lost::NotStarted)) => {
                return Ok(Verdict::StoppedBlindly);
            }
            Connection::Ended(End::Lost(lost)) => {
                let damage = matches!(
                    lost,
                    Lost::Damaged(_) | Lost::Gap { .. } | Lost::Incomplete | Lost::Nonsense(_)
                );
                if damage && self.too_much_damage() {
                    return Ok(Verdict::GivenUp { reason: lost.to_string(), after: Duration::ZERO });
                }
                (lost.to_string(), false)
            }
            Connection::Failed(ConnectError::Denied(reason)) => {
                let since = *self.denied.get_or_insert_with(Instant::now);
                if !self.connected || since.elapsed() > DENIED_FOR {
                    return Ok(Verdict::Denied(reason));
                }
                (reason, false)
            }
            Connection::Failed(error) => {
                let may_be_dead = matches!(error, ConnectError::NotReady(_));
                (error.to_string(), may_be_dead)
            }
            Connection::Ungreeted(End::Lost(lost)) => (lost.to_string(), matches!(lost, Lost::Ended(_))),
            Connection::Ungreeted(End::Exited(_)) => ("the agent did not greet".to_owned(), false),
        };
        if may_be_dead && let Some(record) = self.collect().await {
            return Ok(self.explained(record).await);
        }
        Err(reason)
    }

    /// The verdict on a record. Where the script did not come to an end of its own, the operator knows
    /// better why: the pod was deleted, evicted, out of memory.
    async fn explained(&mut self, record: ExitRecord) -> Verdict {
        if record.error.is_none() || self.stopping.cause().is_some() {
            return Verdict::Exited(record);
        }
        tokio::select! {
            end = self.oversight.ended() => Verdict::JobEnded(end),
            () = tokio::time::sleep(EXPLANATION) => Verdict::Died(record),
            _ = self.stopping.next(false) => Verdict::Exited(record),
        }
    }

    fn too_much_damage(&mut self) -> bool {
        self.damage += 1;
        self.damage >= MOST_DAMAGE
    }

    /// Opens a connection and talks over it until it ends.
    async fn connection(&mut self, purpose: Purpose) -> Connection {
        let mut told = self.stopping.cause().is_some();
        self.goodbyes += u32::from(told);
        let container = self.attempt.peer(purpose);
        let open = self.attempt.open(purpose, self.progress.position);
        let connector = self.connector;
        let greeting = async {
            let socket = connector.connect(container).await.map_err(Connection::Failed)?;
            Session::greet(socket, &open, container).await.map_err(Connection::Ungreeted)
        };
        tokio::pin!(greeting);
        let greeted = loop {
            tokio::select! {
                biased;
                greeted = &mut greeting => break greeted,
                event = self.stopping.next(told) => match event {
                    // The script may run, so the agent has to be told.
                    StopEvent::Wished if self.connected => told = true,
                    StopEvent::Wished | StopEvent::Overdue => return Connection::Ended(Lost::Overdue.into()),
                },
            }
        };
        let (mut session, hello) = match greeted {
            Ok(greeted) => greeted,
            Err(connection) => return connection,
        };
        let known = hello.known;
        tracing::debug!(%container, ?purpose, agent = hello.version, known, "connected to the agent");
        if purpose == Purpose::Run {
            self.greeted().await;
        }
        let (stopping, output) = (&mut *self.stopping, &mut *self.output);
        let mut farewell = EndOfJob(&mut *self.oversight);
        let talk = (&mut session, &hello);
        let end = converse(talk, purpose, self.attempt, self.progress, stopping, (output, &mut farewell));
        Connection::Ended(end.await)
    }

    /// A connection stands.
    async fn greeted(&mut self) {
        if std::mem::replace(&mut self.connected, true) {
            self.reconnects += 1;
        }
        if let Some(outage) = &mut self.outage
            && std::mem::take(&mut outage.announced)
        {
            let seconds = outage.since.elapsed().as_secs();
            self.output.line(&format!("the connection to the job's pod is back after {seconds} s")).await;
        }
    }

    /// Collects what `build` has left, if it is dead.
    async fn collect(&mut self) -> Option<ExitRecord> {
        if self.attempt.container == self.attempt.peer(Purpose::Collect) || !self.connected {
            return None;
        }
        match self.connection(Purpose::Collect).await {
            Connection::Ended(End::Exited(record)) => Some(record),
            _ => None,
        }
    }

    /// Waits before the next connection, unless it would come to nothing.
    async fn wait(&mut self, reason: String, answered: bool) -> Option<Verdict> {
        let told = self.stopping.cause().is_some();
        if told && (self.goodbyes >= MOST_GOODBYES || !self.connected) {
            return Some(Verdict::StoppedBlindly);
        }
        let now = Instant::now();
        let outage =
            self.outage.get_or_insert(Outage { since: now, answered: None, failures: 0, announced: false });
        outage.failures += 1;
        if answered && outage.answered.is_none() {
            outage.answered = Some(now);
            self.backoff.reset();
        }
        let since = outage.answered.unwrap_or(outage.since);
        let after = outage.since.elapsed();
        if after >= GIVE_UP_AFTER {
            return Some(Verdict::GivenUp { reason, after });
        }
        let growing = self.backoff.next_wait().max(since.elapsed() / PART_OF_OUTAGE);
        let wait = growing.min(GIVE_UP_AFTER.saturating_sub(after));
        // The first attempt to come back needs no second opinion.
        let look = outage.failures > 1;
        if after >= WORTH_A_LINE && !std::mem::replace(&mut outage.announced, true) {
            self.output
                .line(&format!("the connection to the job's pod is lost, trying again: {reason}"))
                .await;
        }
        let end = tokio::select! {
            biased;
            event = self.stopping.next(told) => return match event {
                StopEvent::Wished => None,
                StopEvent::Overdue => Some(Verdict::StoppedBlindly),
            },
            end = self.oversight.ended(), if look => end,
            () = tokio::time::sleep(wait) => return None,
        };
        Some(match self.collect().await {
            Some(record) if record.error.is_none() => Verdict::Exited(record),
            _ => Verdict::JobEnded(end),
        })
    }
}
