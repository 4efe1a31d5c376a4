//! Frames to and from the agent: the greeting, and the clock that notices silence.

use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Bytes;

use super::frames::{FrameReader, Incoming};
use super::pump::{Piece, Pump};
use super::{End, Lost, Socket, channel};
use crate::shim::stage::Container;
use crate::wire::frame::{self, Kind};
use crate::wire::message::{Hello, Open, Refusal, RefusalReason};
use crate::wire::{PROTOCOL, SILENCE};

/// Length of the pieces in which a script is sent, in bytes.
const SCRIPT_PIECE: usize = 32 * 1024;

/// How long the last words may take.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A stream of frames to and from the agent.
pub struct Session<S> {
    pump: Pump<S>,
    frames: FrameReader,
    /// Since when a frame is waited for.
    listening_since: Instant,
}

impl<S: Socket> Session<S> {
    /// Opens the conversation on a socket. The answer comes from the pod, the run of the agent and
    /// the container that were meant, or it is a refusal.
    pub async fn greet(socket: S, open: &Open, container: Container) -> Result<(Self, Hello), End> {
        let mut session =
            Self { pump: Pump::new(socket), frames: FrameReader::default(), listening_since: Instant::now() };
        session.send_json(Kind::Open, open)?;
        let frame = session.receive().await?;
        match frame.kind {
            Kind::Hello => {
                let hello: Hello = json(&frame)?;
                check(&hello, open, container).map_err(End::Refused)?;
                Ok((session, hello))
            }
            Kind::Refused => Err(End::Refused(json(&frame)?)),
            kind => Err(Lost::Nonsense(format!("{kind:?} before Hello")).into()),
        }
    }

    /// Queues a frame.
    pub fn send(&mut self, kind: Kind, offset: u64, payload: &[u8]) {
        self.pump.send(message(kind, offset, payload));
    }

    /// Queues a frame with a message.
    pub fn send_json(&mut self, kind: Kind, payload: &impl serde::Serialize) -> Result<(), Lost> {
        let payload = serde_json::to_vec(payload).map_err(|error| Lost::Nonsense(error.to_string()))?;
        self.send(kind, 0, &payload);
        Ok(())
    }

    /// Queues a script.
    pub fn send_script(&mut self, script: Bytes) {
        let mut sent = 0;
        self.pump.send_all(std::iter::from_fn(move || {
            let piece = script.slice(sent..script.len().min(sent + SCRIPT_PIECE));
            let offset = sent as u64;
            sent += piece.len();
            (!piece.is_empty()).then(|| message(Kind::Script, offset, &piece))
        }));
    }

    /// Whether something is still to be sent.
    pub fn has_unsent(&self) -> bool {
        self.pump.has_unsent()
    }

    /// Sends what is queued. May be dropped and called again.
    pub async fn flush(&mut self) {
        self.pump.flush().await;
    }

    /// Waits for the next frame, but not longer than an agent can be silent. May be dropped and
    /// called again.
    pub async fn receive(&mut self) -> Result<Incoming, Lost> {
        loop {
            if let Some(frame) = self.frames.take().map_err(Lost::Damaged)? {
                self.listening_since = Instant::now();
                return Ok(frame);
            }
            let piece = tokio::time::timeout_at(self.listening_since + SILENCE, self.pump.next()).await;
            match piece.map_err(|_| Lost::Silent(SILENCE.as_secs()))? {
                Piece::Stdout(piece) => self.frames.push(piece),
                Piece::Over(lost) => return Err(lost),
            }
        }
    }

    /// Says that nobody has listened until now: what was not read is no silence of the agent's.
    pub fn listen_again(&mut self) {
        self.listening_since = Instant::now();
    }

    /// Keeps the connection until it is lost.
    pub async fn hold(&mut self) -> Lost {
        loop {
            match self.receive().await {
                Ok(frame) if frame.kind == Kind::Heartbeat => {}
                Ok(frame) => return Lost::Nonsense(format!("{:?} on an idle connection", frame.kind)),
                Err(lost) => return lost,
            }
        }
    }

    /// Says goodbye: everything has arrived. That the agent hears it is not waited for.
    pub async fn close(&mut self, position: u64) {
        self.send(Kind::Ack, position, &[]);
        self.send(Kind::Close, 0, &[]);
        self.pump.send(channel::end_of_stdin());
        if tokio::time::timeout(LAST_WORDS, self.pump.flush()).await.is_err() {
            tracing::debug!("the last words to the agent did not get through");
        }
    }
}

/// Reads a message out of a frame.
pub fn json<T: DeserializeOwned>(frame: &Incoming) -> Result<T, Lost> {
    serde_json::from_slice(&frame.payload)
        .map_err(|error| Lost::Nonsense(format!("{:?} that cannot be read: {error}", frame.kind)))
}

fn message(kind: Kind, offset: u64, payload: &[u8]) -> Bytes {
    channel::stdin(&[&frame::header(kind, offset, payload), payload])
}

fn check(hello: &Hello, open: &Open, container: Container) -> Result<(), Refusal> {
    let refusal = |reason, message: String| Err(Refusal { reason, message });
    if hello.protocol != PROTOCOL {
        let versions = format!("executor-shim speaks version {PROTOCOL} of the protocol");
        let message = format!("{versions}, the agent in the pod version {}", hello.protocol);
        return refusal(RefusalReason::Protocol, message);
    }
    if hello.pod_uid != open.pod_uid {
        let message = "the pod was replaced by another one of the same name";
        return refusal(RefusalReason::WrongPod, message.to_owned());
    }
    if open.boot_id.as_ref().is_some_and(|boot| *boot != hello.boot_id) {
        return refusal(RefusalReason::WrongPod, format!("the container {container} was restarted"));
    }
    if hello.container != container.name() {
        let message = format!("the container {container} answers as {:?}", hello.container);
        return refusal(RefusalReason::WrongPod, message);
    }
    Ok(())
}
