//! Runs one script over one session, or goes on with it.

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Bytes;

use super::frames::Incoming;
use super::session::{Session, json};
use super::{End, Lost, Socket};
use crate::shim::joblog::{Output, Stream};
use crate::shim::signals::{Cause, Interrupt};
use crate::shim::stage::Container;
use crate::wire::PROTOCOL;
use crate::wire::frame::Kind;
use crate::wire::message::{
    Collect, ExitRecord, Hello, Limit, Open, Refusal, RefusalReason, Run, Stop, Work,
};

/// Output after which the agent is told that it has arrived, in bytes.
const ACK_EVERY: u64 = 1024 * 1024;

/// How soon most scripts end that are told to. The end of the call says why then, and nothing else has to.
const ENDS_BY_ITSELF: Duration = Duration::from_millis(200);

/// What a stopped script may take beyond its grace.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// What is to be run, and where.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Random name of the attempt.
    pub name: String,
    /// GitLab's name of the stage.
    pub stage: String,
    /// Where it runs.
    pub container: Container,
    /// The script.
    pub script: Bytes,
    /// Dialect of the script.
    pub shell: String,
    /// Whether no process of the container may outlive the stage.
    pub reap: bool,
    /// UID of the pod that is meant.
    pub pod_uid: String,
    /// Run of the agent that is meant.
    pub boot_id: String,
    /// Run of the agent in `helper`, which is asked for what a dead `build` has left.
    pub helper_boot_id: String,
    /// How long the pod may be without a client afterwards.
    pub orphan: Duration,
    /// Between SIGTERM and SIGKILL where the script is stopped.
    pub grace: Duration,
    /// How long the script may run.
    pub limit: Option<Duration>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To run the script, or to go on with it.
    Run,
    /// To collect what the dead container has left of it.
    Collect,
}

impl Attempt {
    /// The container to connect to.
    pub fn peer(&self, purpose: Purpose) -> Container {
        match purpose {
            Purpose::Run => self.container,
            Purpose::Collect => Container::Helper,
        }
    }

    /// First words of a connection for this attempt.
    pub fn open(&self, purpose: Purpose, position: u64) -> Open {
        let (boot_id, work) = match purpose {
            Purpose::Run => {
                let run = Run {
                    attempt: self.name.clone(),
                    stage: self.stage.clone(),
                    position,
                    script_len: self.script.len() as u64,
                    script_crc: crc32fast::hash(&self.script),
                    shell: self.shell.clone(),
                    reap: self.reap,
                    limit: self.limit.map(|after| Limit {
                        after_ms: milliseconds(after),
                        grace_ms: milliseconds(self.grace),
                    }),
                };
                (&self.boot_id, Work::Run(run))
            }
            Purpose::Collect => {
                let collect = Collect { attempt: self.name.clone(), position };
                (&self.helper_boot_id, Work::Collect(collect))
            }
        };
        Open {
            protocol: PROTOCOL,
            pod_uid: self.pod_uid.clone(),
            boot_id: Some(boot_id.clone()),
            work,
            orphan_ms: milliseconds(self.orphan),
        }
    }
}

/// How far the attempt has come, over all of its connections.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Position in the spool up to which output has been written out.
    pub position: u64,
    /// Bytes of standard output that have been written out.
    pub stdout: u64,
    /// Bytes of standard error that have been written out.
    pub stderr: u64,
    /// Whether the script may have reached the agent, so that it may have been started.
    pub sent: bool,
    /// Whether the agent has said that the script runs or ran. From then on it is never sent again.
    pub started: bool,
    /// Frames that showed that the script is being taken care of.
    pub signs_of_life: u64,
    /// When the first byte of output arrived.
    pub first_output: Option<Timestamp>,
    /// Why output cannot be written any more.
    pub output_error: Option<String>,
}

/// The wish that the call ends, and how long that may take.
#[derive(Debug)]
pub struct Stopping {
    interrupt: Interrupt,
    grace: Duration,
    wish: Option<(Cause, Instant)>,
}

impl Stopping {
    /// Nobody has wished it yet, as far as is known.
    pub fn new(interrupt: Interrupt, grace: Duration) -> Self {
        Self { interrupt, grace, wish: None }
    }

    /// Why the call shall end, if it shall.
    pub fn cause(&self) -> Option<Cause> {
        self.wish.map(|(cause, _)| cause)
    }

    /// Wishes it.
    pub fn wish(&mut self, cause: Cause) {
        self.wish.get_or_insert((cause, Instant::now() + self.grace + STOP_MARGIN));
    }

    /// Waits until it is wished, or, where the agent has been told already, until its end has taken
    /// too long. May be dropped and called again.
    pub async fn next(&mut self, told: bool) -> StopEvent {
        match self.wish {
            Some((_, deadline)) if told => {
                tokio::time::sleep_until(deadline).await;
                StopEvent::Overdue
            }
            Some(_) => StopEvent::Wished,
            None => {
                let cause = self.interrupt.wait().await;
                self.wish(cause);
                StopEvent::Wished
            }
        }
    }
}

/// Tells why the container is being ended.
pub trait Farewell {
    /// Waits until it is known why. May be dropped and called again; asks nobody before it is called for the first
    /// time.
    fn reason(&mut self) -> impl Future<Output = String>;
}

/// What is next on the way to an early end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopEvent {
    /// The script shall end.
    Wished,
    /// It should have ended by now.
    Overdue,
}

/// Runs the script, goes on with it or collects what is left of it, until the conversation ends.
pub async fn converse<S: Socket, O: Output>(
    (session, hello): (&mut Session<S>, &Hello),
    purpose: Purpose,
    attempt: &Attempt,
    progress: &mut Progress,
    stopping: &mut Stopping,
    (output, farewell): (&mut O, &mut impl Farewell),
) -> End {
    let acked = progress.position;
    let mut conversation = Conversation {
        session,
        purpose,
        attempt,
        progress,
        stopping,
        output,
        farewell,
        acked,
        stop_sent: false,
        warning: None,
    };
    let known = hello.known || purpose == Purpose::Collect;
    match conversation.run(known).await {
        Ok(record) => End::Exited(record),
        Err(end) => end,
    }
}

struct Conversation<'a, S, O, F> {
    session: &'a mut Session<S>,
    purpose: Purpose,
    attempt: &'a Attempt,
    progress: &'a mut Progress,
    stopping: &'a mut Stopping,
    output: &'a mut O,
    farewell: &'a mut F,
    acked: u64,
    stop_sent: bool,
    /// When to say that the container is being ended, and how long the script may take until then.
    warning: Option<(Instant, Duration)>,
}

impl<S: Socket, O: Output, F: Farewell> Conversation<'_, S, O, F> {
    async fn run(&mut self, known: bool) -> Result<ExitRecord, End> {
        if known {
            self.progress.started = true;
        } else if self.progress.started {
            // It must not start twice, and whether it ended well will never be known.
            let message = "the agent in the pod does not know the stage any more".to_owned();
            return Err(End::Refused(Refusal { reason: RefusalReason::Start, message }));
        } else if self.stopping.cause().is_some() {
            return Err(Lost::NotStarted.into());
        } else {
            self.progress.sent = true;
            self.session.send_script(self.attempt.script.clone());
        }
        loop {
            let warning = self.warning;
            let farewell = &mut *self.farewell;
            let frame = tokio::select! {
                biased;
                event = self.stopping.next(self.stop_sent) => {
                    self.stop(event)?;
                    continue;
                }
                frame = self.session.receive() => frame?,
                Some((left, why)) = reason(warning, farewell) => {
                    self.warning = None;
                    let seconds = left.as_secs_f64().ceil();
                    let line = format!("{why} The script has at most {seconds} s to end before it is killed.");
                    self.output.line(&line).await;
                    continue;
                }
            };
            match frame.kind {
                Kind::Started => self.progress.started = true,
                Kind::Stdout => self.deliver(Stream::Stdout, &frame).await?,
                Kind::Stderr => self.deliver(Stream::Stderr, &frame).await?,
                Kind::Heartbeat => {
                    self.progress.signs_of_life += 1;
                    if frame.offset > 0 {
                        let left = Duration::from_millis(frame.offset);
                        self.warning.get_or_insert((Instant::now() + ENDS_BY_ITSELF, left));
                    }
                }
                Kind::Exit => return self.finish(json(&frame)?).await,
                Kind::Refused => return Err(End::Refused(json(&frame)?)),
                kind => return Err(Lost::Nonsense(format!("{kind:?} while a script runs")).into()),
            }
        }
    }

    fn stop(&mut self, event: StopEvent) -> Result<(), Lost> {
        match event {
            StopEvent::Overdue => Err(Lost::Overdue),
            // What is dead already needs no telling.
            StopEvent::Wished if self.purpose == Purpose::Collect => {
                self.stop_sent = true;
                Ok(())
            }
            StopEvent::Wished => {
                self.stop_sent = true;
                let stop = Stop { grace_ms: milliseconds(self.attempt.grace) };
                self.session.send_json(Kind::Stop, &stop)
            }
        }
    }

    /// Writes a frame's output out. The connection is not read meanwhile, so that a slow reader of
    /// the job log slows the script down rather than filling memory.
    async fn deliver(&mut self, stream: Stream, frame: &Incoming) -> Result<(), Lost> {
        let want = match stream {
            Stream::Stdout => self.progress.stdout,
            Stream::Stderr => self.progress.stderr,
        };
        if frame.offset != want {
            return Err(Lost::Gap { want, got: frame.offset });
        }
        if self.progress.first_output.is_none() && !frame.payload.is_empty() {
            self.progress.first_output = Some(Timestamp::now());
        }
        let mut rest = &frame.payload[..];
        while !rest.is_empty() && self.progress.output_error.is_none() {
            tokio::select! {
                biased;
                event = self.stopping.next(self.stop_sent) => self.stop(event)?,
                written = self.output.write(stream, rest) => match written {
                    Ok(len) => rest = rest.get(len..).unwrap_or_default(),
                    Err(error) => {
                        // There is nobody to run the script for.
                        self.progress.output_error = Some(error.to_string());
                        self.stopping.wish(Cause::ReaderGone);
                    }
                },
                () = self.session.flush(), if self.session.has_unsent() => {}
            }
        }
        let len = frame.payload.len() as u64;
        match stream {
            Stream::Stdout => self.progress.stdout += len,
            Stream::Stderr => self.progress.stderr += len,
        }
        self.progress.position += frame.whole_len();
        self.progress.started = true;
        self.progress.signs_of_life += 1;
        if self.progress.position - self.acked >= ACK_EVERY {
            self.acked = self.progress.position;
            self.session.send(Kind::Ack, self.acked, &[]);
        }
        self.session.listen_again();
        Ok(())
    }

    /// The script has ended; it is known how, if this is its record and nothing is missing.
    async fn finish(&mut self, record: ExitRecord) -> Result<ExitRecord, End> {
        if record.attempt != self.attempt.name {
            return Err(Lost::Nonsense("the exit record of another stage".to_owned()).into());
        }
        let progress = &self.progress;
        let whole = progress.position == record.spool_bytes;
        // Who only finds a spool does not know how much of which stream is in it.
        let counted = self.purpose == Purpose::Collect
            || (progress.stdout, progress.stderr) == (record.stdout_bytes, record.stderr_bytes);
        if !(whole && counted) {
            return Err(Lost::Incomplete.into());
        }
        self.session.close(progress.position).await;
        Ok(record)
    }
}

/// Why the container is being ended, when it is time to say so, and how long the script may take.
async fn reason(
    warning: Option<(Instant, Duration)>,
    farewell: &mut impl Farewell,
) -> Option<(Duration, String)> {
    let (at, left) = warning?;
    tokio::time::sleep_until(at).await;
    Some((left.saturating_sub(ENDS_BY_ITSELF), farewell.reason().await))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
