//! What a dead container's agent has left: its output up to the last whole frame, and the exit record
//! if it came to that.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use super::presence;
use super::spool;
use crate::wire::message::{Collect, ExitRecord, Refusal, RefusalReason};

/// Output and end of an attempt of the other container.
#[derive(Debug)]
pub(super) struct Collected {
    /// The spool.
    pub file: File,
    /// Position up to which it was sent.
    pub sent: u64,
    /// Position after the last whole frame.
    pub end: u64,
    /// How it ended.
    pub record: ExitRecord,
    /// Whether that was sent.
    pub exit_sent: bool,
}

/// Looks for what is wanted in the other container's spool.
pub(super) fn open(dir: &Path, wanted: &Collect) -> Result<Collected, Refusal> {
    let refuse = |reason, message: String| Refusal { reason, message };
    if presence::is_alive(dir) {
        let message = "the build container's agent is alive and has to be asked itself".to_owned();
        return Err(refuse(RefusalReason::Alive, message));
    }
    let file = File::open(spool::spool_path(dir, &wanted.attempt)).map_err(|error| {
        let message = match error.kind() {
            ErrorKind::NotFound => "the build container has left no output of this attempt".to_owned(),
            _ => format!("the output that the build container has left cannot be read: {error}"),
        };
        refuse(RefusalReason::Position, message)
    })?;
    let len = file.metadata().map(|meta| meta.len()).map_err(|error| {
        let message = format!("the output that the build container has left cannot be read: {error}");
        refuse(RefusalReason::Position, message)
    })?;
    let end = Some(wanted.position)
        .filter(|position| *position <= len)
        .and_then(|position| spool::walk(&file, position, len))
        .ok_or_else(|| {
            let message = format!("the build container has left no output from byte {} on", wanted.position);
            refuse(RefusalReason::Position, message)
        })?;
    let record = spool::read_record(dir, &wanted.attempt).filter(|record| record.spool_bytes == end);
    let record = record.unwrap_or_else(|| ExitRecord {
        attempt: wanted.attempt.clone(),
        spool_bytes: end,
        error: Some("the build container died before the script ended".to_owned()),
        ..ExitRecord::default()
    });
    Ok(Collected { file, sent: wanted.position, end, record, exit_sent: false })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::wire::frame::{self, Kind};

    const FRAME: u64 = 24;

    fn left(frames: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = Vec::new();
        for number in 0..frames {
            frame::encode(&mut bytes, Kind::Stdout, 4 * number as u64, b"abcd");
        }
        fs::write(dir.path().join("a.spool"), bytes).unwrap();
        dir
    }

    fn wanted(position: u64) -> Collect {
        Collect { attempt: "a".into(), position }
    }

    #[test]
    fn a_death_in_the_middle_of_a_frame_leaves_the_whole_ones() {
        let dir = left(3);
        let file = fs::OpenOptions::new().write(true).open(dir.path().join("a.spool")).unwrap();
        file.set_len(3 * FRAME - 1).unwrap();
        let collected = open(dir.path(), &wanted(FRAME)).unwrap();
        assert_eq!((collected.sent, collected.end), (FRAME, 2 * FRAME));
        assert_eq!(collected.record.code, None);
        assert!(collected.record.error.is_some());
    }

    #[test]
    fn a_record_that_was_left_is_the_end() {
        let dir = left(3);
        let record = ExitRecord {
            attempt: "a".into(),
            code: Some(3),
            spool_bytes: 3 * FRAME,
            ..ExitRecord::default()
        };
        spool::leave_record(dir.path(), &record).unwrap();
        assert_eq!(open(dir.path(), &wanted(0)).unwrap().record, record);
        let short = ExitRecord { spool_bytes: 2 * FRAME, ..record };
        spool::leave_record(dir.path(), &short).unwrap();
        assert!(open(dir.path(), &wanted(0)).unwrap().record.error.is_some(), "not this output's record");
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let dir = left(3);
        for position in [1, FRAME + 1, 3 * FRAME + 1, u64::MAX] {
            let refusal = open(dir.path(), &wanted(position)).unwrap_err();
            assert_eq!(refusal.reason, RefusalReason::Position, "{position}");
        }
        fs::remove_file(dir.path().join("a.spool")).unwrap();
        assert_eq!(open(dir.path(), &wanted(0)).unwrap_err().reason, RefusalReason::Position);
    }

    #[test]
    fn a_living_agent_speaks_for_itself() {
        let dir = left(3);
        let alive = presence::Alive::claim(dir.path()).unwrap();
        assert_eq!(open(dir.path(), &wanted(0)).unwrap_err().reason, RefusalReason::Alive);
        drop(alive);
        assert!(open(dir.path(), &wanted(0)).is_ok());
    }
}
