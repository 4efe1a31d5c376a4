//! What ends a call early: SIGTERM or SIGINT, and the death of gitlab-runner.
//!
//! gitlab-runner's death does not reach the shim by itself, which runs in a process group of its
//! own. But gitlab-runner reads the shim's standard output; a pipe without a reader means that
//! nobody waits for this call any more.

use std::io;

use tokio::sync::watch;

/// Why a call shall end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A signal asked for it.
    Signal,
    /// Nobody reads the output any more.
    ReaderGone,
}

/// The wish that the call ends. Once there, it stays.
#[derive(Clone, Debug)]
pub struct Interrupt {
    cause: watch::Receiver<Option<Cause>>,
}

/// Where the wish comes from.
#[derive(Debug)]
pub struct Interrupter {
    cause: watch::Sender<Option<Cause>>,
}

impl Interrupter {
    /// A pair of which nobody has wished anything yet.
    pub fn new() -> (Self, Interrupt) {
        let (sender, receiver) = watch::channel(None);
        (Self { cause: sender }, Interrupt { cause: receiver })
    }

    /// Wishes that the call ends. Only the first cause counts.
    pub fn interrupt(&self, cause: Cause) {
        self.cause.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(cause);
            }
            first
        });
    }
}

impl Interrupt {
    /// The cause, if the call shall end.
    pub fn cause(&self) -> Option<Cause> {
        *self.cause.borrow()
    }

    /// Waits until the call shall end. May be dropped and asked again at any time.
    pub async fn wait(&mut self) -> Cause {
        match self.cause.wait_for(Option::is_some).await.map(|cause| *cause) {
            Ok(Some(cause)) => cause,
            // Nobody is left who could wish anything.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

/// Listens for what ends this process's call. Signals no longer end the process by themselves
/// from here on, however many arrive. Needs a running tokio runtime.
#[cfg(unix)]
pub fn listen() -> io::Result<Interrupt> {
    use tokio::signal::unix::{SignalKind, signal};

    let (interrupter, interrupt) = Interrupter::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut keyboard = signal(SignalKind::interrupt())?;
    let reader = unix::Reader::of_stdout()?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => interrupter.interrupt(Cause::Signal),
            _ = keyboard.recv() => interrupter.interrupt(Cause::Signal),
            () = reader.gone() => interrupter.interrupt(Cause::ReaderGone),
        }
        // The wish has been made; what keeps it is kept, so that it does not look withdrawn.
        std::future::pending::<()>().await;
        drop((interrupter, terminate, keyboard));
    });
    Ok(interrupt)
}

/// Listens for what ends this process's call.
#[cfg(not(unix))]
pub fn listen() -> io::Result<Interrupt> {
    let (interrupter, interrupt) = Interrupter::new();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupter.interrupt(Cause::Signal);
        }
        std::future::pending::<()>().await;
        drop(interrupter);
    });
    Ok(interrupt)
}

#[cfg(unix)]
mod unix {
    use std::io;
    use std::os::fd::{AsFd, OwnedFd};

    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    /// Whoever reads this process's standard output.
    pub struct Reader {
        /// Absent where a reader cannot be told from none, as with a file.
        fd: Option<AsyncFd<OwnedFd>>,
    }

    impl Reader {
        /// Whoever reads standard output.
        pub fn of_stdout() -> io::Result<Self> {
            Ok(Self::of(io::stdout().as_fd().try_clone_to_owned()?))
        }

        /// Whoever reads what is written to the descriptor.
        pub fn of(fd: OwnedFd) -> Self {
            // The successor of this function is unsafe for descriptors that may close or change;
            // an owned one does neither.
            #[expect(deprecated, reason = "the only constructor that is not unsafe")]
            let fd = AsyncFd::with_interest(fd, Interest::ERROR);
            Self { fd: fd.ok() }
        }

        /// Waits until there is no reader any more.
        pub async fn gone(&self) {
            match &self.fd {
                Some(fd) if fd.ready(Interest::ERROR).await.is_ok() => {}
                _ => std::future::pending().await,
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use std::time::Duration;

        use super::*;

        #[tokio::test]
        async fn the_end_of_the_reader_is_noticed_without_writing() {
            let (reader, writer) = io::pipe().unwrap();
            let watched = Reader::of(writer.into());
            let wait = Duration::from_millis(50);
            assert!(tokio::time::timeout(wait, watched.gone()).await.is_err(), "there is a reader");
            drop(reader);
            tokio::time::timeout(Duration::from_secs(10), watched.gone()).await.unwrap();
        }

        #[tokio::test]
        async fn a_file_has_no_reader_that_could_go() {
            let watched = Reader::of(tempfile::tempfile().unwrap().into());
            assert!(tokio::time::timeout(Duration::from_millis(50), watched.gone()).await.is_err());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_cause_stays() {
        let (interrupter, mut interrupt) = Interrupter::new();
        assert_eq!(interrupt.cause(), None);
        interrupter.interrupt(Cause::Signal);
        interrupter.interrupt(Cause::ReaderGone);
        assert_eq!(interrupt.wait().await, Cause::Signal);
        assert_eq!(interrupt.wait().await, Cause::Signal);
        assert_eq!(interrupt.cause(), Some(Cause::Signal));
    }
}
