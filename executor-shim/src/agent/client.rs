//! One connection of a client: bytes in, bytes out, and what it is about.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use serde::Serialize;

use super::clock::Moment;
use super::collect::Collected;
use super::script::{Script, Upload};
use crate::wire::frame::{self, HEADER_LEN, Kind, MAX_PAYLOAD};
use crate::wire::message::{Refusal, Run};

/// What a client is about.
#[derive(Debug)]
pub(super) enum Role {
    /// It has not said anything yet, and must by then.
    Silent { until: Moment },
    /// It only wants to know that the agent is there, or to be there itself.
    Probe,
    /// It sends a script.
    Upload(Box<(Run, Upload)>),
    /// Its script is whole and waits for the end of another stage.
    Queued(Box<(Run, Script)>),
    /// It reads an attempt's output and end.
    Follow(Follow),
    /// It reads what the other container has left.
    Collect(Box<Collected>),
    /// It gets what was said to it last, and no more.
    Leaving,
}

/// How far a client has come with an attempt.
#[derive(Debug)]
pub(super) struct Follow {
    /// The attempt.
    pub attempt: String,
    /// Spool position up to which it was sent everything.
    pub sent: u64,
    /// Whether it was sent the exit record.
    pub exit_sent: bool,
    /// Whether it was told that the container is being ended.
    pub warned: bool,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Client {
    /// The socket.
    pub stream: UnixStream,
    /// What it is about.
    pub role: Role,
    /// When it was sent something last.
    pub last_sent: Moment,
    /// Whether it will say nothing more.
    pub eof: bool,
    /// Whether the connection is to be dropped.
    pub gone: bool,
    /// Whether there is more to send than the socket takes at the moment.
    pub more: bool,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    written: usize,
}

/// What a read has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Something or nothing, but more may come.
    Open,
    /// The last words.
    End,
}

impl Client {
    /// A connection that has just been made.
    pub fn new(stream: UnixStream, now: Moment, patience_ms: u64) -> Self {
        Self {
            stream,
            role: Role::Silent { until: now.plus(patience_ms) },
            last_sent: now,
            eof: false,
            gone: false,
            more: false,
            inbox: Vec::new(),
            outbox: Vec::new(),
            written: 0,
        }
    }

    /// Whether its presence keeps the pod.
    pub fn is_present(&self) -> bool {
        !self.eof && !self.gone && !matches!(self.role, Role::Silent { .. } | Role::Leaving)
    }

    /// The attempt that it speaks of.
    pub fn attempt(&self) -> Option<&str> {
        match &self.role {
            Role::Upload(upload) => Some(&upload.0.attempt),
            Role::Queued(queued) => Some(&queued.0.attempt),
            Role::Follow(follow) => Some(&follow.attempt),
            Role::Silent { .. } | Role::Probe | Role::Collect(_) | Role::Leaving => None,
        }
    }

    /// Takes what has arrived, up to about one frame.
    pub fn hear(&mut self) -> Heard {
        let had = self.inbox.len();
        self.inbox.resize(had + HEADER_LEN + MAX_PAYLOAD, 0);
        let got = loop {
            match self.stream.read(self.inbox.get_mut(had..).unwrap_or_default()) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break None,
                Ok(0) | Err(_) => break Some(0),
                Ok(len) => break Some(len),
            }
        };
        self.inbox.truncate(had + got.unwrap_or(0));
        if got == Some(0) {
            self.eof = true;
            return Heard::End;
        }
        Heard::Open
    }

    /// The bytes that were heard and not used, to be given back by [`unused`](Self::unused).
    pub fn heard(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.inbox)
    }

    /// Keeps the part of the heard bytes that is no whole frame yet.
    pub fn unused(&mut self, mut bytes: Vec<u8>, used: usize) {
        bytes.drain(..used.min(bytes.len()));
        self.inbox = bytes;
    }

    /// Adds a frame without payload to what is to be sent.
    pub fn signal(&mut self, kind: Kind) {
        frame::encode(&mut self.outbox, kind, 0, &[]);
    }

    /// Adds a heartbeat that says how long the script may still take.
    pub fn warn(&mut self, left_ms: u64) {
        frame::encode(&mut self.outbox, Kind::Heartbeat, left_ms, &[]);
    }

    /// Adds a frame with a message to what is to be sent.
    pub fn say(&mut self, kind: Kind, message: &impl Serialize) {
        match serde_json::to_vec(message) {
            Ok(payload) if payload.len() <= MAX_PAYLOAD => {
                frame::encode(&mut self.outbox, kind, 0, &payload);
            }
            // Nothing that the agent says is that long; and a client must not wait for it forever.
            Ok(_) | Err(_) => self.gone = true,
        }
    }

    /// Refuses what the client wants. Nothing follows.
    pub fn refuse(&mut self, refusal: &Refusal) {
        self.say(Kind::Refused, refusal);
        self.role = Role::Leaving;
    }

    /// Sends what is to be sent; whether everything is.
    pub fn flush(&mut self, now: Moment) -> bool {
        while let Some(rest) = self.outbox.get(self.written..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(len) => {
                    self.written += len;
                    self.last_sent = now;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.gone |= error.kind() != ErrorKind::WouldBlock;
                    return false;
                }
            }
        }
        self.outbox.clear();
        self.written = 0;
        true
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
