//! Moves messages over the WebSocket, in both directions and without one waiting for the other.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use futures::{SinkExt as _, StreamExt as _};
use kube::core::Status;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::channel::{self, Received};
use super::{Lost, Socket};

/// What is kept of the command's standard error; the agent writes nothing there, so it is the
/// container runtime or the kubelet that speaks.
const MOST_STDERR: usize = 2048;

/// Messages to be sent.
enum Outgoing {
    One(Bytes),
    Many(Box<dyn Iterator<Item = Bytes> + Send>),
}

/// Moves messages over a WebSocket. Pings are answered by the socket itself.
pub struct Pump<S> {
    socket: S,
    outgoing: VecDeque<Outgoing>,
    flushed: bool,
    /// Nothing can be sent any more; what has arrived may still say why.
    mute: bool,
    stderr: Vec<u8>,
    lost: Option<Lost>,
}

/// What the pump brings.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// A piece of the command's standard output.
    Stdout(Bytes),
    /// Nothing more will come.
    Over(Lost),
}

impl<S: Socket> Pump<S> {
    /// A pump on an open socket.
    pub fn new(socket: S) -> Self {
        let (outgoing, stderr) = (VecDeque::new(), Vec::new());
        Self { socket, outgoing, flushed: true, mute: false, stderr, lost: None }
    }

    /// Queues a message.
    pub fn send(&mut self, message: Bytes) {
        self.outgoing.push_back(Outgoing::One(message));
    }

    /// Queues messages that are made when there is room for them.
    pub fn send_all(&mut self, messages: impl Iterator<Item = Bytes> + Send + 'static) {
        self.outgoing.push_back(Outgoing::Many(Box::new(messages)));
    }

    /// Whether something is still to be sent.
    pub fn has_unsent(&self) -> bool {
        !self.mute && (!self.flushed || !self.outgoing.is_empty())
    }

    /// Sends what is queued. May be dropped and called again.
    pub async fn flush(&mut self) {
        poll_fn(|cx| self.poll_send(cx)).await;
    }

    /// Waits for the next piece, and sends what is queued meanwhile. May be dropped and called again.
    pub async fn next(&mut self) -> Piece {
        poll_fn(|cx| {
            // Whether it is done or has to wait, reading goes on.
            let _ = self.poll_send(cx);
            self.poll_receive(cx)
        })
        .await
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.has_unsent() {
            let Some(next) = self.outgoing.front_mut() else {
                let result = ready!(self.socket.poll_flush_unpin(cx));
                self.flushed = true;
                self.sent(result);
                continue;
            };
            // Made only when there is room, so that a long script is not in memory twice.
            let result = ready!(self.socket.poll_ready_unpin(cx));
            let message = match next {
                Outgoing::One(message) => {
                    let message = std::mem::take(message);
                    self.outgoing.pop_front();
                    message
                }
                Outgoing::Many(messages) => {
                    let Some(message) = messages.next() else {
                        self.outgoing.pop_front();
                        continue;
                    };
                    message
                }
            };
            self.flushed = false;
            let result = result.and_then(|()| self.socket.start_send_unpin(Message::Binary(message)));
            self.sent(result);
        }
        Poll::Ready(())
    }

    fn sent(&mut self, result: Result<(), tokio_tungstenite::tungstenite::Error>) {
        if let Err(error) = result {
            tracing::debug!(%error, "cannot send to the agent");
            self.mute = true;
            self.outgoing.clear();
        }
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Piece> {
        if let Some(lost) = &self.lost {
            return Poll::Ready(Piece::Over(lost.clone()));
        }
        let lost = loop {
            match ready!(self.socket.poll_next_unpin(cx)) {
                Some(Ok(Message::Binary(message))) => match channel::decode(message) {
                    Received::Stdout(piece) => return Poll::Ready(Piece::Stdout(piece)),
                    Received::Stderr(piece) => {
                        let room = MOST_STDERR.saturating_sub(self.stderr.len());
                        self.stderr.extend_from_slice(piece.get(..room).unwrap_or(&piece));
                    }
                    Received::Status(status) => break Lost::Ended(self.sentence(&status)),
                    Received::Nothing => {}
                },
                Some(Ok(_)) => {}
                Some(Err(error)) => break Lost::Socket(error.to_string()),
                None => break Lost::Closed,
            }
        };
        self.lost = Some(lost.clone());
        Poll::Ready(Piece::Over(lost))
    }

    /// What the server says about the end of the command.
    fn sentence(&self, status: &[u8]) -> String {
        let mut sentence = match serde_json::from_slice::<Status>(status) {
            Ok(status) if status.is_success() => "the agent's end of the connection ended".to_owned(),
            Ok(status) if !status.message.is_empty() => status.message.trim().to_owned(),
            Ok(status) => format!("the connection ended: {}", status.reason),
            Err(error) => format!("the connection ended with an unreadable status: {error}"),
        };
        let stderr = String::from_utf8_lossy(&self.stderr);
        if !stderr.trim().is_empty() {
            // Writing to a String cannot fail.
            let _ = write!(sentence, " ({})", stderr.trim());
        }
        sentence
    }
}
