//! One conversation with the agent over one exec stream.
//!
//! From the bottom: [`channel`] (what a WebSocket message carries), [`pump`] (moves messages),
//! [`frames`] (puts frames together), [`session`] (greets, and notices silence), [`conversation`]
//! (runs a script), [`connect`] (opens the stream). A conversation has exactly three ends; that the
//! stream is over is none of the first two.

pub mod channel;
pub mod connect;
pub mod conversation;
pub mod frames;
pub mod link;
pub mod pump;
pub mod schedule;
pub mod session;

use futures::{Sink, Stream};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::wire::frame::FrameError;
use crate::wire::message::{ExitRecord, Refusal};

/// An open WebSocket.
pub trait Socket:
    Stream<Item = Result<Message, tungstenite::Error>> + Sink<Message, Error = tungstenite::Error> + Unpin
{
}

impl<T> Socket for T where
    T: Stream<Item = Result<Message, tungstenite::Error>> + Sink<Message, Error = tungstenite::Error> + Unpin
{
}

/// How a conversation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The script has ended and all of its output has been written out.
    Exited(ExitRecord),
    /// The agent does not do what was wanted.
    Refused(Refusal),
    /// Anything else: how the script is doing is not known.
    Lost(Lost),
}

impl From<Lost> for End {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

/// Why a conversation was lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The connection was closed, and nothing said why.
    #[error("the connection was closed")]
    Closed,
    /// The agent's end of the stream ended, or was never started.
    #[error("{0}")]
    Ended(String),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Socket(String),
    /// Nothing arrived for too long.
    #[error("nothing arrived for {0} s")]
    Silent(u64),
    /// What arrived is damaged, or comes from somebody else.
    #[error("what arrived is damaged: {0}")]
    Damaged(FrameError),
    /// Output is missing or came twice.
    #[error("output is not continuous: byte {got} where byte {want} was next")]
    Gap {
        /// Offset that was next in the stream.
        want: u64,
        /// Offset that arrived.
        got: u64,
    },
    /// The agent counted other output than has arrived.
    #[error("the script's output is incomplete")]
    Incomplete,
    /// Something arrived that makes no sense here.
    #[error("unexpected message from the agent: {0}")]
    Nonsense(String),
    /// The script was not sent because the call shall end.
    #[error("the stage was not started")]
    NotStarted,
    /// The script did not end in time after it had been told to.
    #[error("the script did not end in time")]
    Overdue,
}
