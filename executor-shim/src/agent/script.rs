//! A script on its way from the shim to the shell: collected in memory, checked, sealed.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{dup2, dup3};
use thiserror::Error;

/// Longest script in bytes. It counts against the container's memory limit; GitLab's are some
/// kilobytes, seldom megabytes.
const LIMIT: u64 = 256 * 1024 * 1024;

/// `MFD_NOEXEC_SEAL` of Linux 6.3, which a kernel may insist on; older ones do not know it.
const NOEXEC_SEAL: MFdFlags = MFdFlags::from_bits_retain(8);

/// What is wrong with a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum ScriptError {
    /// More was announced than is ever taken.
    #[error("a script of {0} bytes is longer than the limit of {LIMIT}")]
    Limit(u64),
    /// A piece is not the one that follows.
    #[error("the script has a piece at byte {found}, expected byte {expected}")]
    Offset {
        /// Where the next piece belongs.
        expected: u64,
        /// Where this one says that it belongs.
        found: u64,
    },
    /// More arrived than was announced.
    #[error("the script is longer than announced")]
    Length,
    /// The bytes are not those that were announced.
    #[error("the script's checksum is wrong")]
    Checksum,
    /// It cannot be kept in memory.
    #[error("the script cannot be kept in memory: {0}")]
    Memory(Errno),
}

/// What has arrived of a script: pure.
#[derive(Debug)]
struct Arrival {
    len: u64,
    crc: u32,
    got: u64,
    hasher: crc32fast::Hasher,
}

impl Arrival {
    fn piece(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ScriptError> {
        if offset != self.got {
            return Err(ScriptError::Offset { expected: self.got, found: offset });
        }
        let got = self.got.saturating_add(bytes.len() as u64);
        if got > self.len {
            return Err(ScriptError::Length);
        }
        self.got = got;
        self.hasher.update(bytes);
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.got == self.len
    }

    fn check(&self) -> Result<(), ScriptError> {
        if self.hasher.clone().finalize() == self.crc { Ok(()) } else { Err(ScriptError::Checksum) }
    }
}

/// A script that is still arriving.
#[derive(Debug)]
pub(super) struct Upload {
    arrival: Arrival,
    file: File,
}

impl Upload {
    /// Makes room for a script. `slot` is where the shell will find it.
    pub fn new(len: u64, crc: u32, slot: &Slot) -> Result<Self, ScriptError> {
        if len > LIMIT {
            return Err(ScriptError::Limit(len));
        }
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let memory = match memfd_create(c"script", flags | NOEXEC_SEAL) {
            Err(Errno::EINVAL) => memfd_create(c"script", flags),
            made => made,
        };
        let mut file = File::from(memory.map_err(ScriptError::Memory)?);
        file.write_all(slot.prologue().as_bytes()).map_err(|error| memory_error(&error))?;
        Ok(Self { arrival: Arrival { len, crc, got: 0, hasher: crc32fast::Hasher::new() }, file })
    }

    /// Takes the next piece.
    pub fn piece(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ScriptError> {
        self.arrival.piece(offset, bytes)?;
        self.file.write_all(bytes).map_err(|error| memory_error(&error))
    }

    /// Whether everything has arrived.
    pub fn is_whole(&self) -> bool {
        self.arrival.is_whole()
    }

    /// Checks the whole script, and makes it impossible to change.
    pub fn seal(self) -> Result<Script, ScriptError> {
        self.arrival.check()?;
        let seals =
            SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&self.file, FcntlArg::F_ADD_SEALS(seals)).map_err(ScriptError::Memory)?;
        Ok(Script(self.file))
    }
}

fn memory_error(error: &io::Error) -> ScriptError {
    ScriptError::Memory(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

/// A whole script.
#[derive(Debug)]
pub(super) struct Script(File);

/// A descriptor number that is kept free for scripts: the shell opens its script under that number in
/// `/proc/self/fd`, and it has to be known before the script is written.
#[derive(Debug)]
pub(super) struct Slot(OwnedFd);

impl Slot {
    /// Takes the lowest number that is free.
    pub fn reserve() -> io::Result<Self> {
        io::stdin().as_fd().try_clone_to_owned().map(Self)
    }

    /// Where the shell finds the script.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    /// What the script begins with: it closes the descriptor that it was opened from, so that what it
    /// starts does not inherit the script. The shell reads on from a descriptor of its own. This
    /// stands before the script's first line, not on a line of its own, so that line numbers in error
    /// messages are right. Small shells know descriptors of one digit only.
    fn prologue(&self) -> String {
        match self.0.as_raw_fd() {
            number @ 3..=9 => format!("exec {number}<&-; "),
            _ => String::new(),
        }
    }

    /// Has `start` start a process that inherits the script.
    pub fn lend<T>(&mut self, script: &Script, start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        dup2(&script.0, &mut self.0)?;
        let started = start();
        // What was started has been, also if the descriptor cannot be taken back.
        let _ = dup3(io::stdin(), &mut self.0, OFlag::O_CLOEXEC);
        started
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn arrival(script: &[u8]) -> Arrival {
        let len = script.len() as u64;
        Arrival { len, crc: crc32fast::hash(script), got: 0, hasher: crc32fast::Hasher::new() }
    }

    proptest! {
        #[test]
        fn a_script_in_pieces_is_whole_at_its_last_byte(script in prop::collection::vec(any::<u8>(), 1..300), piece in 1usize..50) {
            let mut arrival = arrival(&script);
            let mut at = 0;
            for bytes in script.chunks(piece) {
                prop_assert!(!arrival.is_whole());
                arrival.piece(at, bytes).unwrap();
                at += bytes.len() as u64;
            }
            prop_assert!(arrival.is_whole());
            prop_assert_eq!(arrival.check(), Ok(()));
        }
    }

    #[test]
    fn a_gap_a_repetition_a_surplus_and_another_content_are_refused() {
        let mut script = arrival(b"echo");
        assert_eq!(script.piece(1, b"e"), Err(ScriptError::Offset { expected: 0, found: 1 }));
        script.piece(0, b"ech").unwrap();
        assert_eq!(script.piece(0, b"ech"), Err(ScriptError::Offset { expected: 3, found: 0 }));
        assert_eq!(script.piece(3, b"o!"), Err(ScriptError::Length));
        script.piece(3, b"x").unwrap();
        assert_eq!(script.check(), Err(ScriptError::Checksum));
    }

    #[test]
    fn too_much_is_refused_before_it_is_sent() {
        let slot = Slot::reserve().unwrap();
        assert_eq!(Upload::new(LIMIT + 1, 0, &slot).unwrap_err(), ScriptError::Limit(LIMIT + 1));
    }

    #[test]
    fn a_sealed_script_cannot_be_changed_and_runs() {
        let mut slot = Slot::reserve().unwrap();
        let text = b"#!/bin/false\necho line $LINENO\n";
        let mut upload = Upload::new(text.len() as u64, crc32fast::hash(text), &slot).unwrap();
        upload.piece(0, text).unwrap();
        let mut script = upload.seal().unwrap();
        assert!(script.0.write_all(b"x").is_err());
        assert!(script.0.set_len(0).is_err());
        assert!(script.0.set_len(1000).is_err());
        for _ in 0..2 {
            let mut shell = Command::new("bash");
            shell.arg(slot.path()).stdout(std::process::Stdio::piped());
            let mut child = slot.lend(&script, || shell.spawn()).unwrap();
            let mut out = String::new();
            child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
            assert_eq!(out, "line 2\n");
            assert!(child.wait().unwrap().success());
        }
    }
}
