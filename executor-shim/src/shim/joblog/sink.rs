//! One standard stream of this process, written without blocking the runtime.
//!
//! gitlab-runner gives pipes. They are shared with nobody, but a person's terminal is: making the
//! descriptor non-blocking would change it for the shell too. So it stays as it is; a write waits
//! until the descriptor is writable and is then small enough not to block.

#[cfg(not(unix))]
pub use self::blocking::Sink;
#[cfg(unix)]
pub use self::unix::Sink;

/// Which standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdio {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

#[cfg(unix)]
mod unix {
    use std::fs::File;
    use std::io::{self, Write as _};
    use std::os::fd::{AsFd, OwnedFd};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    use super::Stdio;

    /// A pipe that is writable takes this much in one write without blocking (`PIPE_BUF`).
    const CHUNK: usize = 4096;

    /// One standard stream of this process.
    pub enum Sink {
        /// A pipe, socket or terminal, which may be full.
        Waiting(AsyncFd<File>),
        /// A file, which never is.
        Direct(File),
    }

    impl Sink {
        /// The stream. Needs a running tokio runtime.
        pub fn new(stdio: Stdio) -> io::Result<Self> {
            let fd = match stdio {
                Stdio::Stdout => io::stdout().as_fd().try_clone_to_owned()?,
                Stdio::Stderr => io::stderr().as_fd().try_clone_to_owned()?,
            };
            Self::on(fd)
        }

        /// A sink that writes to the descriptor.
        pub fn on(fd: OwnedFd) -> io::Result<Self> {
            let file = File::from(fd);
            let direct = file.try_clone()?;
            // The successor of this function is unsafe for descriptors that may close or change;
            // a File does neither.
            #[expect(deprecated, reason = "the only constructor that is not unsafe")]
            let waiting = AsyncFd::with_interest(file, Interest::WRITABLE);
            // Files and /dev/null cannot be waited for.
            Ok(waiting.map_or(Self::Direct(direct), Self::Waiting))
        }

        /// Writes some of the bytes. Waits until that is possible; may be dropped while it waits.
        pub async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let fd = match self {
                Self::Direct(file) => return retry(|| file.write(bytes)),
                Self::Waiting(fd) => fd,
            };
            let bytes = bytes.get(..CHUNK).unwrap_or(bytes);
            loop {
                let mut ready = fd.writable().await?;
                if is_writable(fd.get_ref())? {
                    match retry(|| fd.get_ref().write(bytes)) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        result => return result,
                    }
                }
                ready.clear_ready();
            }
        }
    }

    fn is_writable(file: &File) -> io::Result<bool> {
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
        // An error or a hang-up also counts: the write then says what it is.
        Ok(retry(|| Ok(poll(&mut fds, PollTimeout::ZERO)?))? > 0)
    }

    fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match call() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use std::io::Read;
        use std::time::Duration;

        use super::*;

        async fn write_all(sink: &mut Sink, mut bytes: &[u8]) -> io::Result<()> {
            while !bytes.is_empty() {
                let len = sink.write(bytes).await?;
                bytes = &bytes[len..];
            }
            Ok(())
        }

        #[tokio::test]
        async fn a_full_pipe_is_waited_for_and_nothing_is_lost() {
            let (mut reader, writer) = io::pipe().unwrap();
            let mut sink = Sink::on(writer.into()).unwrap();
            assert!(matches!(sink, Sink::Waiting(_)));
            let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
            let wait = Duration::from_millis(100);
            // Nobody reads, so it does not get through, and the runtime is not blocked meanwhile.
            let full = async {
                let mut done = 0;
                loop {
                    match tokio::time::timeout(wait, sink.write(&sent[done..])).await {
                        Ok(len) => done += len.unwrap(),
                        Err(_) => return done,
                    }
                }
            };
            let done = full.await;
            assert!((4096..=1_048_576).contains(&done), "{done}");
            let received = std::thread::spawn(move || {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).unwrap();
                bytes
            });
            write_all(&mut sink, &sent[done..]).await.unwrap();
            drop(sink);
            assert!(received.join().unwrap() == sent);
        }

        #[tokio::test]
        async fn a_pipe_that_nobody_reads_any_more_is_an_error() {
            let (reader, writer) = io::pipe().unwrap();
            let mut sink = Sink::on(writer.into()).unwrap();
            sink.write(b"x").await.unwrap();
            drop(reader);
            assert_eq!(sink.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }

        #[tokio::test]
        async fn a_file_is_written_at_its_end() {
            let file = tempfile::tempfile().unwrap();
            (&file).write_all(b"before ").unwrap();
            let mut sink = Sink::on(file.try_clone().unwrap().into()).unwrap();
            assert!(matches!(sink, Sink::Direct(_)));
            write_all(&mut sink, b"after").await.unwrap();
            let mut text = String::new();
            io::Seek::rewind(&mut (&file)).unwrap();
            (&file).read_to_string(&mut text).unwrap();
            assert_eq!(text, "before after");
        }
    }
}

#[cfg(not(unix))]
mod blocking {
    use std::io::{self, Write as _};

    use super::Stdio;

    /// One standard stream of this process; a write may block.
    pub struct Sink(Stdio);

    impl Sink {
        /// The stream.
        pub fn new(stdio: Stdio) -> io::Result<Self> {
            Ok(Self(stdio))
        }

        /// Writes the bytes.
        pub async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.0 {
                Stdio::Stdout => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush())?,
                Stdio::Stderr => io::stderr().write_all(bytes)?,
            }
            Ok(bytes.len())
        }
    }
}
