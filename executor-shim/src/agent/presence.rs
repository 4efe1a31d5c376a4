//! What the agent of one container leaves for the agent of the other, in the spool's volume: whether
//! it has a client (for the orphan clock), and that it is alive (for whoever wants to collect).

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::clock::Moment;
use super::orphan::Presence;
use super::spool;

const CLIENT: &str = "client";
const ALIVE: &str = "alive";

/// Longest file that is read: far more than any word takes.
const LIMIT: u64 = 256;

/// Leaves word. The file is replaced as a whole, so that a reader sees the old or the new one.
pub(super) fn leave(spool_dir: &Path, presence: Presence) -> io::Result<()> {
    // The other container may run as another user.
    spool::replace(spool_dir, CLIENT, 0o644, format(presence).as_bytes())
}

/// Reads the word of the other agent; `None` where there is none that can be understood.
pub(super) fn read(spool_dir: &Path) -> Option<Presence> {
    let mut text = String::new();
    File::open(spool_dir.join(CLIENT)).ok()?.take(LIMIT).read_to_string(&mut text).ok()?;
    parse(&text)
}

fn format(presence: Presence) -> String {
    match presence {
        Presence::Connected => "connected\n".to_owned(),
        Presence::Idle { since, orphan_ms } => format!("idle {} {orphan_ms}\n", since.0),
    }
}

fn parse(text: &str) -> Option<Presence> {
    let mut words = text.split_whitespace();
    let presence = match words.next()? {
        "connected" => Presence::Connected,
        "idle" => Presence::Idle {
            since: Moment(words.next()?.parse().ok()?),
            orphan_ms: words.next()?.parse().ok()?,
        },
        _ => return None,
    };
    words.next().is_none().then_some(presence)
}

/// A lock that this process holds until it ends, however it ends.
#[derive(Debug)]
pub(super) struct Alive {
    _lock: Flock<File>,
}

impl Alive {
    /// Says that this agent is alive.
    pub fn claim(spool_dir: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(spool_dir.join(ALIVE))?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error)?;
        Ok(Self { _lock: lock })
    }
}

/// Whether the agent that owns the spool is alive, or may be for all that can be told.
pub(super) fn is_alive(spool_dir: &Path) -> bool {
    let file = match File::open(spool_dir.join(ALIVE)) {
        Ok(file) => file,
        Err(error) => return error.kind() != io::ErrorKind::NotFound,
    };
    matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), None);
        for presence in [
            Presence::Connected,
            Presence::Idle { since: Moment(12), orphan_ms: 330_000 },
            Presence::Idle { since: Moment(u64::MAX), orphan_ms: 0 },
        ] {
            leave(dir.path(), presence).unwrap();
            assert_eq!(read(dir.path()), Some(presence));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn nonsense_is_no_word() {
        for text in ["", "connected now", "idle", "idle 1", "idle 1 2 3", "idle -1 2", "gone", "idle 1 x"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_lock_tells_who_is_alive() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_alive(dir.path()));
        let alive = Alive::claim(dir.path()).unwrap();
        assert!(is_alive(dir.path()));
        drop(alive);
        assert!(!is_alive(dir.path()));
    }
}
