//! The reading ends of a script's standard output and error.

use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, BorrowedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::positions::Stream;

/// Wanted capacity in bytes: some frames, so that the script seldom waits for the loop.
const CAPACITY: i32 = 256 * 1024;

/// What came out of a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// That many bytes.
    Data(usize),
    /// Nothing for now.
    Nothing,
    /// Nothing ever again.
    End,
}

/// One pipe of a script.
#[derive(Debug)]
pub(super) struct Pipe {
    reader: PipeReader,
    stream: Stream,
    open: bool,
}

impl Pipe {
    /// Makes a pipe and answers with the end for the script, too.
    pub fn new(stream: Stream) -> io::Result<(Self, PipeWriter)> {
        let (reader, writer) = io::pipe()?;
        // Each end has flags of its own: the script's end stays blocking.
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // A smaller pipe will do; an unprivileged user may have reached its bound.
        let _ = fcntl(&reader, FcntlArg::F_SETPIPE_SZ(CAPACITY));
        Ok((Self { reader, stream, open: true }, writer))
    }

    /// Which stream it carries.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// Whether anything can still come.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The most bytes that can be in the pipe at any moment.
    pub fn capacity(&self) -> usize {
        let size = fcntl(&self.reader, FcntlArg::F_GETPIPE_SZ).ok();
        size.and_then(|size| usize::try_from(size).ok()).unwrap_or(1024 * 1024)
    }

    /// Reads once.
    pub fn take(&mut self, into: &mut [u8]) -> Taken {
        if !self.open {
            return Taken::End;
        }
        loop {
            match self.reader.read(into) {
                Ok(0) => break,
                Ok(len) => return Taken::Data(len),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Taken::Nothing,
                // Nothing else is known of a pipe; and it would not end.
                Err(_) => break,
            }
        }
        self.open = false;
        Taken::End
    }
}

impl AsFd for Pipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}
