//! The exec'd end: relays between the exec stream and the agent's socket.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::unistd;
use thiserror::Error;

use super::cli::AttachOptions;
use super::log;
use super::peer;
use super::serve::SOCKET;

/// How long the agent may take to come up.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often to look where the kernel does not tell of new files.
const BLIND: Duration = Duration::from_millis(50);

/// The most bytes that are moved at once.
const PIECE: usize = 256 * 1024;

/// Why there is no conversation any more.
#[derive(Debug, Error)]
enum AttachError {
    /// The agent does not answer.
    #[error("the agent cannot be reached: {0}")]
    Connect(io::Error),
    /// Something else listens in its place.
    #[error("the agent's socket belongs to another process")]
    Impostor,
    /// A system call of the relay failed.
    #[error("cannot wait for data: {0}")]
    Poll(Errno),
    /// The socket failed.
    #[error("the connection to the agent failed: {0}")]
    Socket(io::Error),
    /// What comes from outside cannot be read.
    #[error("cannot read standard input: {0}")]
    Input(Errno),
    /// What goes outside cannot be written, most likely because the reader has gone.
    #[error("cannot write standard output: {0}")]
    Output(Errno),
}

/// Relays until the agent ends the conversation.
pub(super) fn attach(options: &AttachOptions) -> ExitCode {
    let relayed = connect(&options.run_dir).map_err(AttachError::Connect).and_then(|socket| {
        if !options.any_server && peer::of(&socket).is_none_or(|server| server.pid != 1) {
            return Err(AttachError::Impostor);
        }
        relay(&socket)
    });
    match relayed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::say(format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}

/// Connects as soon as there is something to connect to: this process may be started before PID 1 has
/// got to its socket.
fn connect(dir: &Path) -> io::Result<UnixStream> {
    let started = Instant::now();
    let path = dir.join(SOCKET);
    // Before the first look, so that nothing happens between the two.
    let watch = watch(dir);
    loop {
        match UnixStream::connect(&path) {
            Ok(socket) => return Ok(socket),
            Err(error) if started.elapsed() >= PATIENCE => return Err(error),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {}
            Err(error) => return Err(error),
        }
        let left = PATIENCE.saturating_sub(started.elapsed());
        match &watch {
            Ok(watch) => {
                let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
                let _ = poll(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)], timeout);
                let _ = watch.read_events();
            }
            // A user has a bounded number of watches.
            Err(_) => std::thread::sleep(BLIND.min(left)),
        }
    }
}

fn watch(dir: &Path) -> Result<Inotify, Errno> {
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    watch.add_watch(dir, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
    Ok(watch)
}

/// Moves bytes both ways until the agent has closed the conversation and everything that it said has
/// been passed on.
fn relay(socket: &UnixStream) -> Result<(), AttachError> {
    socket.set_nonblocking(true).map_err(AttachError::Socket)?;
    let mut inward = Inward { buffer: Vec::new(), written: 0, open: true, shut: false };
    let mut outward = Outward { full: false, copies: false };
    loop {
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::POLLIN, !outward.full);
        wanted.set(PollFlags::POLLOUT, !inward.is_empty());
        let writing = if outward.full { PollFlags::POLLOUT } else { PollFlags::empty() };
        // A reader that goes away shows without anything to write.
        let mut fds = vec![PollFd::new(stdout.as_fd(), writing)];
        let socket_at = (!wanted.is_empty()).then(|| {
            fds.push(PollFd::new(socket.as_fd(), wanted));
            fds.len() - 1
        });
        let stdin_at = (inward.open && inward.is_empty()).then(|| {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            fds.len() - 1
        });
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(AttachError::Poll(error)),
        }
        let flags =
            |at: Option<usize>| at.and_then(|at| fds.get(at)?.revents()).unwrap_or(PollFlags::empty());
        let (of_stdout, of_socket, of_stdin) = (flags(Some(0)), flags(socket_at), flags(stdin_at));
        if of_stdout.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL) {
            return Err(AttachError::Output(Errno::EPIPE));
        }
        if !of_stdin.is_empty() {
            inward.fill()?;
        }
        inward.pass_on(socket);
        let ready = if outward.full { of_stdout } else { of_socket - PollFlags::POLLOUT };
        if !ready.is_empty() && outward.pass_on(socket)? {
            return Ok(());
        }
    }
}

/// The way from the exec stream to the agent. Little comes along here, but for a script.
struct Inward {
    buffer: Vec<u8>,
    written: usize,
    /// Whether more can come from outside.
    open: bool,
    /// Whether the agent was told that nothing more comes.
    shut: bool,
}

impl Inward {
    fn is_empty(&self) -> bool {
        self.written >= self.buffer.len()
    }

    /// Reads once; that does not block after `poll` has said so.
    fn fill(&mut self) -> Result<(), AttachError> {
        self.written = 0;
        self.buffer.resize(PIECE, 0);
        let got = unistd::read(io::stdin(), &mut self.buffer);
        self.buffer.truncate(got.unwrap_or(0));
        match got {
            Ok(0) => self.open = false,
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(AttachError::Input(error)),
        }
        Ok(())
    }

    fn pass_on(&mut self, mut socket: &UnixStream) {
        while let Some(rest) = self.buffer.get(self.written..).filter(|rest| !rest.is_empty()) {
            match socket.write(rest) {
                Ok(len) => self.written += len,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    // The agent has said its last and does not listen any more.
                    self.open = false;
                    self.buffer.clear();
                }
            }
        }
        if !self.open && !self.shut {
            self.shut = true;
            let _ = socket.shutdown(Shutdown::Write);
        }
    }
}

/// The way from the agent to the exec stream.
struct Outward {
    /// Standard output takes nothing at the moment.
    full: bool,
    /// Standard output is no pipe: bytes have to be copied.
    copies: bool,
}

impl Outward {
    /// Moves what there is; whether that was the last.
    fn pass_on(&mut self, socket: &UnixStream) -> Result<bool, AttachError> {
        if self.copies {
            return copy(socket);
        }
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        match splice(socket, None, io::stdout(), None, PIECE, flags) {
            Ok(0) | Err(Errno::ECONNRESET) => return Ok(true),
            Ok(_) => self.full = false,
            Err(Errno::EINTR) => {}
            // Of the two sides the one was ready that was waited for; so it is the other.
            Err(Errno::EAGAIN) => self.full = !self.full,
            Err(Errno::EINVAL) => {
                self.copies = true;
                self.full = false;
            }
            Err(error) => return Err(AttachError::Output(error)),
        }
        Ok(false)
    }
}

/// Moves one piece by reading and writing, to where no pipe is; whether that was the last.
fn copy(mut socket: &UnixStream) -> Result<bool, AttachError> {
    let mut piece = vec![0; PIECE];
    let len = match socket.read(&mut piece) {
        Ok(0) => return Ok(true),
        Ok(len) => len,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            return Ok(false);
        }
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(true),
        Err(error) => return Err(AttachError::Socket(error)),
    };
    let mut rest = piece.get(..len).unwrap_or_default();
    while !rest.is_empty() {
        match unistd::write(io::stdout(), rest) {
            Ok(len) => rest = rest.get(len..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let stdout = io::stdout();
                let _ = poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE);
            }
            Err(error) => return Err(AttachError::Output(error)),
        }
    }
    Ok(false)
}
