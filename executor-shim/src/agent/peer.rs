//! Who may speak to the agent.

use std::fmt::{self, Display};
use std::fs;

use nix::sys::socket::{getsockopt, sockopt};
use std::os::fd::AsFd;

/// The process at the other end of the socket, as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    /// Process id in the own PID namespace; 0 where it has none there.
    pub pid: i32,
    /// Effective user.
    pub uid: u32,
}

/// What a peer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// The agent's own user.
    pub uid: u32,
    /// Whether any process of that user will do, exec'd or not. Only in tests outside a pod.
    pub any_process: bool,
}

/// Why a peer may not speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stranger {
    /// It belongs to another user.
    User(u32),
    /// It was started inside the container.
    Inside,
    /// The kernel does not tell who it is.
    Unknown,
}

impl Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "user {uid} may not speak to the agent"),
            Self::Inside => {
                f.write_str("a process that was started inside the container may not speak to the agent")
            }
            Self::Unknown => f.write_str("the agent cannot tell who wants to speak to it"),
        }
    }
}

/// Decides whether `peer` may speak. `parent` looks up the parent of a process.
///
/// A process that a container runtime put into the container has a parent outside the PID namespace,
/// which shows as 0. A script's process can never have that: orphans go to PID 1.
pub(super) fn admit(peer: Peer, rule: Rule, parent: impl FnOnce(i32) -> Option<i32>) -> Result<(), Stranger> {
    if peer.uid != rule.uid && peer.uid != 0 {
        return Err(Stranger::User(peer.uid));
    }
    if rule.any_process {
        return Ok(());
    }
    if peer.pid <= 1 {
        return Err(Stranger::Unknown);
    }
    match parent(peer.pid) {
        Some(0) => Ok(()),
        Some(_) => Err(Stranger::Inside),
        None => Err(Stranger::Unknown),
    }
}

/// Asks the kernel who is at the other end.
pub(super) fn of(socket: &impl AsFd) -> Option<Peer> {
    let credentials = getsockopt(socket, sockopt::PeerCredentials).ok()?;
    Some(Peer { pid: credentials.pid(), uid: credentials.uid() })
}

/// Parent of a process of the own PID namespace.
pub(super) fn parent(pid: i32) -> Option<i32> {
    stat(&fs::read(format!("/proc/{pid}/stat")).ok()?).map(|stat| stat.parent)
}

/// What the agent reads of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    /// State, for example `R` or `Z`.
    pub state: u8,
    /// Parent; 0 where it is outside the PID namespace.
    pub parent: i32,
}

/// Reads a line of `/proc/PID/stat`. The command's name is in parentheses and may hold anything, also
/// parentheses and blanks.
pub(super) fn stat(line: &[u8]) -> Option<Stat> {
    let end = line.iter().rposition(|byte| *byte == b')')?;
    let mut words = line.get(end + 1..)?.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let state = *words.next()?.first()?;
    let parent = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    Some(Stat { state, parent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_execed_process_of_the_own_user_or_root_may_speak() {
        let strict = Rule { uid: 1000, any_process: false };
        let test = Rule { uid: 1000, any_process: true };
        for (peer, rule, parent, expected) in [
            ((7, 1000), strict, Some(0), Ok(())),
            ((7, 0), strict, Some(0), Ok(())),
            ((7, 1000), strict, Some(1), Err(Stranger::Inside)),
            ((7, 0), strict, Some(6), Err(Stranger::Inside)),
            ((7, 1001), strict, Some(0), Err(Stranger::User(1001))),
            ((7, 1000), strict, None, Err(Stranger::Unknown)),
            ((0, 1000), strict, Some(0), Err(Stranger::Unknown)),
            ((1, 1000), strict, Some(0), Err(Stranger::Unknown)),
            ((7, 1000), test, Some(6), Ok(())),
            ((7, 1001), test, Some(6), Err(Stranger::User(1001))),
        ] {
            let peer = Peer { pid: peer.0, uid: peer.1 };
            assert_eq!(admit(peer, rule, |_| parent), expected, "{peer:?} {rule:?} {parent:?}");
        }
    }

    #[test]
    fn a_process_name_cannot_pretend_to_be_the_rest_of_the_line() {
        for (line, expected) in [
            ("12 (sh) S 1 12 12 0", Some((b'S', 1))),
            ("12 (a) R 0 (b) S 7 12", Some((b'S', 7))),
            ("12 () Z 3 1", Some((b'Z', 3))),
            ("12 (sh", None),
            ("12 (sh)", None),
            ("12 (sh) S", None),
            ("12 (sh) S x", None),
        ] {
            let stat = stat(line.as_bytes()).map(|stat| (stat.state, stat.parent));
            assert_eq!(stat, expected, "{line}");
        }
    }

    #[test]
    fn the_kernel_tells_the_peer_and_its_parent() {
        let (one, _two) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = of(&one).unwrap();
        assert_eq!(u32::try_from(peer.pid).unwrap(), std::process::id());
        assert_eq!(u32::try_from(parent(peer.pid).unwrap()).unwrap(), std::os::unix::process::parent_id());
    }
}
