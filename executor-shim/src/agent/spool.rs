//! The spool of one attempt: a file of frames, appended to by one and sent from there as it is.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::sendfile::sendfile64;

use super::positions::{Positions, STEP, Stream, Walk};
use crate::wire::frame::{self, HEADER_LEN, MAX_PAYLOAD};
use crate::wire::message::ExitRecord;

/// The most bytes that one call sends.
const SEND: u64 = 1024 * 1024;

/// Length of the longest frame.
const MAX_FRAME: u64 = (HEADER_LEN + MAX_PAYLOAD) as u64;

/// Blocks of a file are given back as a whole; a range that begins in the middle of one is widened by
/// this much, over bytes that are gone already.
const BLOCK: u64 = 64 * 1024;

/// Room for one frame, the header's bytes first.
pub(super) type FrameBuffer = Box<[u8]>;

/// Makes such a room.
pub(super) fn frame_buffer() -> FrameBuffer {
    vec![0; HEADER_LEN + MAX_PAYLOAD].into_boxed_slice()
}

/// Mode of what the other container's agent reads when this one is dead, perhaps as another user. It
/// sees the volume read-only, and nobody else sees it.
const SHARED: u32 = 0o644;

/// An attempt's output on disk.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    path: PathBuf,
    positions: Positions,
}

impl Spool {
    /// Makes the spool of a new attempt. There must be none of that name.
    pub fn create(dir: &Path, attempt: &str) -> io::Result<Self> {
        let path = spool_path(dir, attempt);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(SHARED).open(&path)?;
        // Whatever the umask is.
        file.set_permissions(Permissions::from_mode(SHARED))?;
        Ok(Self { file, path, positions: Positions::default() })
    }

    /// What is known of it.
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// Appends the frame whose payload stands in `buffer` behind the room for its header. After an
    /// error the spool is as it was before.
    pub fn append(&mut self, stream: Stream, buffer: &mut FrameBuffer, len: usize) -> io::Result<()> {
        let frame = buffer.get_mut(..HEADER_LEN + len).ok_or(io::ErrorKind::InvalidInput)?;
        let (head, payload) = frame.split_first_chunk_mut().ok_or(io::ErrorKind::InvalidInput)?;
        *head = frame::header(stream.kind(), self.positions.offset(stream), payload);
        let at = self.positions.len();
        if let Err(error) = self.file.write_all_at(frame, at) {
            let _ = self.file.set_len(at);
            return Err(error);
        }
        self.positions.appended(stream, len as u64);
        Ok(())
    }

    /// Whether a client can go on from there.
    pub fn accepts(&self, position: u64) -> bool {
        // The script runs as the user that owns the file and could have cut it.
        let whole = self.file.metadata().is_ok_and(|meta| meta.len() >= self.positions.len());
        let Some(anchor) = self.positions.anchor(position).filter(|_| whole) else { return false };
        let next = self.positions.len().min(position.saturating_add(MAX_FRAME));
        walk(&self.file, anchor, position) == Some(position)
            && (next == position || walk(&self.file, position, next).is_some_and(|end| end > position))
    }

    /// Everything before `position` has arrived: gives its space back.
    pub fn acked(&mut self, position: u64) {
        let Some(range) = self.positions.acked(position) else { return };
        let start = range.start.saturating_sub(BLOCK);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if let (Ok(offset), Ok(len)) = (i64::try_from(start), i64::try_from(range.end - start)) {
            // A file system that cannot do that keeps the space until the attempt is closed.
            let _ = fallocate(&self.file, flags, offset, len);
        }
    }

    /// Sends from `position` on, as much as the socket takes. 0 where the file ends too early.
    pub fn send(&self, position: u64, socket: &impl AsFd) -> Result<u64, Errno> {
        send(&self.file, position, self.positions.len(), socket)
    }

    /// Deletes it.
    pub fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Sends the part of a file from `position` to `end`, as much as the socket takes.
pub(super) fn send(file: &File, position: u64, end: u64, socket: &impl AsFd) -> Result<u64, Errno> {
    let count = usize::try_from(end.saturating_sub(position).min(SEND)).unwrap_or(0);
    let mut offset = i64::try_from(position).map_err(|_| Errno::EOVERFLOW)?;
    loop {
        match sendfile64(socket, file, Some(&mut offset), count) {
            Err(Errno::EINTR) => {}
            sent => return sent.map(|len| len as u64),
        }
    }
}

/// Walks along the frames of a file from `from` to `to`. Answers with the end of the last frame that is
/// whole before `to`; `None` where something else than output is on the way or the file cannot be read.
pub(super) fn walk(file: &File, from: u64, to: u64) -> Option<u64> {
    let mut walk = Walk { at: from, end: to };
    let mut buffer = vec![0; usize::try_from(STEP).ok()?.min(usize::try_from(to - from.min(to)).ok()?)];
    while walk.at < to {
        let base = walk.at;
        let room = usize::try_from(to - base).ok()?.min(buffer.len());
        let piece = buffer.get_mut(..room)?;
        let len = read_at(file, piece, base).ok()?;
        if !walk.over(base, piece.get(..len)?) {
            return None;
        }
        if walk.at == base {
            break;
        }
    }
    Some(walk.at)
}

fn read_at(file: &File, buffer: &mut [u8], position: u64) -> io::Result<usize> {
    let mut len = 0;
    while let Some(rest) = buffer.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, position + len as u64) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// Where an attempt's output is.
pub(super) fn spool_path(dir: &Path, attempt: &str) -> PathBuf {
    dir.join(format!("{attempt}.spool"))
}

fn record_name(attempt: &str) -> String {
    format!("{attempt}.json")
}

/// Leaves an exit record beside the spool, for the other container's agent in case that this one dies.
pub(super) fn leave_record(dir: &Path, record: &ExitRecord) -> io::Result<()> {
    let text = serde_json::to_vec(record)?;
    replace(dir, &record_name(&record.attempt), SHARED, &text)
}

/// Reads an exit record that was left.
pub(super) fn read_record(dir: &Path, attempt: &str) -> Option<ExitRecord> {
    let text = fs::read(dir.join(record_name(attempt))).ok()?;
    serde_json::from_slice(&text).ok().filter(|record: &ExitRecord| record.attempt == attempt)
}

/// Deletes the exit record beside the spool.
pub(super) fn remove_record(dir: &Path, attempt: &str) {
    let _ = fs::remove_file(dir.join(record_name(attempt)));
}

/// Puts a file into a directory as a whole: a reader sees the old content or the new.
pub(super) fn replace(dir: &Path, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    let new = dir.join(format!(".{name}.new"));
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
        // Not left to the umask.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        fs::rename(&new, dir.join(name))
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn filled(dir: &Path, frames: usize, len: usize) -> Spool {
        let mut spool = Spool::create(dir, "a").unwrap();
        let mut buffer = frame_buffer();
        for number in 0..frames {
            let stream = if number % 2 == 0 { Stream::Out } else { Stream::Err };
            spool.append(stream, &mut buffer, len).unwrap();
        }
        spool
    }

    #[test]
    fn an_attempt_has_one_spool() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::create(dir.path(), "a").unwrap();
        assert_eq!(spool.file.metadata().unwrap().mode() & 0o7777, SHARED);
        assert!(Spool::create(dir.path(), "a").is_err());
        spool.remove();
        assert!(Spool::create(dir.path(), "a").is_ok());
    }

    #[test]
    fn only_borders_are_gone_on_from() {
        let dir = tempfile::tempdir().unwrap();
        let spool = filled(dir.path(), 40, MAX_PAYLOAD);
        let frame = (HEADER_LEN + MAX_PAYLOAD) as u64;
        for number in [0, 1, 17, 39, 40] {
            assert!(spool.accepts(number * frame), "{number}");
            assert!(!spool.accepts(number * frame + 1), "{number}");
        }
        assert!(!spool.accepts(41 * frame));
        spool.file.set_len(39 * frame).unwrap();
        assert!(!spool.accepts(0), "somebody has cut the file");
        spool.file.set_len(0).unwrap();
        spool.file.set_len(40 * frame).unwrap();
        assert!(!spool.accepts(0), "and the agent has written on behind the hole");
    }

    #[test]
    fn what_has_arrived_takes_no_space() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = filled(dir.path(), 200, MAX_PAYLOAD);
        let frame = (HEADER_LEN + MAX_PAYLOAD) as u64;
        let before = spool.file.metadata().unwrap().blocks();
        for number in 1..=200 {
            spool.acked(number * frame);
        }
        let after = spool.file.metadata().unwrap();
        assert_eq!(after.len(), 200 * frame);
        assert!(after.blocks() < before / 5, "{} of {before} blocks are left", after.blocks());
        assert!(!spool.accepts(0));
        assert!(spool.accepts(200 * frame));
        assert_eq!(walk(&spool.file, 0, 200 * frame), None, "a hole is no output");
    }

    #[test]
    fn a_walk_ends_before_a_torn_frame() {
        let dir = tempfile::tempdir().unwrap();
        let spool = filled(dir.path(), 3, 1000);
        assert_eq!(walk(&spool.file, 0, 3060), Some(3060));
        for len in [3059, 2060, 2059, 2041, 2040] {
            spool.file.set_len(len).unwrap();
            assert_eq!(walk(&spool.file, 0, len), Some(2040), "{len}");
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_left() {
        let dir = tempfile::tempdir().unwrap();
        let record = ExitRecord { attempt: "a".into(), code: Some(3), ..ExitRecord::default() };
        assert_eq!(read_record(dir.path(), "a"), None);
        leave_record(dir.path(), &record).unwrap();
        assert_eq!(read_record(dir.path(), "a"), Some(record));
        fs::copy(dir.path().join("a.json"), dir.path().join("b.json")).unwrap();
        assert_eq!(read_record(dir.path(), "b"), None, "another attempt's record");
        remove_record(dir.path(), "a");
        assert_eq!(read_record(dir.path(), "a"), None);
    }
}
