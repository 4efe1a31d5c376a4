//! What executor-shim and stage-agent say to each other.
//!
//! One exec stream carries one conversation, as [`frame`]s in both directions. The shim opens with
//! [`message::Open`], the agent answers with [`message::Hello`]; then either side speaks as it has to:
//!
//! ```text
//! shim                                   agent
//!  Open{pod, boot, work, position} ─────▶        which pod is meant, what is wanted
//!        ◀───────────────────────────── Hello{pod, boot, known}
//!  Script … Script                 ─────▶        only where the attempt is not known yet
//!        ◀───────────────────────────── Started
//!        ◀───────────────────────────── Stdout | Stderr …   (Heartbeat every 10 s of silence,
//!                                               and once when the container is being ended)
//!  Ack{position}                   ─────▶        what the agent may forget
//!  Stop{grace}                     ─────▶        only to end the script early
//!        ◀───────────────────────────── Exit{record}        after the last byte of output
//!  Close                           ─────▶        the record has arrived; forget the attempt
//! ```
//!
//! A connection that ends before Exit has arrived is lost, never an end. The shim opens a new one
//! with the same attempt and the position that it has reached, and the agent goes on from there.
//!
//! Where `build` has died with its agent, `helper` sends what that had stored: Open{collect} ▶, ◀ Hello,
//! ◀ Stdout | Stderr …, ◀ Exit, Close ▶.
//!
//! Positions count bytes of the spool, which is the sequence of Stdout and Stderr frames of an
//! attempt, headers included: whoever has received frames up to some byte can name that byte. The
//! offsets inside the frames count bytes per stream, so that a gap or a repetition shows at once.

pub mod frame;
pub mod message;

/// Version of the protocol. Both sides must have the same one; the shim's image and the agent's
/// are released together.
pub const PROTOCOL: u32 = 1;

/// An agent with nothing else to say sends a heartbeat this often.
pub const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(10);

/// A connection on which nothing arrives for this long is lost.
pub const SILENCE: std::time::Duration = std::time::Duration::from_secs(30);
