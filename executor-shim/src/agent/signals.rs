//! Which signals PID 1 obeys.

use nix::errno::Errno;
use nix::libc::{SI_USER, SIGCHLD, SIGINT, SIGTERM};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Children have ended.
    Reap,
    /// End, with this exit code.
    End(u8),
    /// Nothing: the sender may not ask.
    Nothing,
}

/// Reads the meaning of a signal from its number, its `si_code` and its `si_pid`.
///
/// Only who is outside the container may end it. The kernel fills in 0 as the sender's process id for
/// a sender outside the PID namespace. A process inside could queue a signal with any process id,
/// but never with the code of a plain `kill`.
pub(super) fn wish(signal: i32, code: i32, pid: u32) -> Wish {
    let outside = code == SI_USER && pid == 0;
    match signal {
        SIGCHLD => Wish::Reap,
        // As a shell would put it: 128 and the number of the signal.
        SIGTERM if outside => Wish::End(143),
        SIGINT if outside => Wish::End(130),
        _ => Wish::Nothing,
    }
}

/// Blocks the signals that the loop reads itself and opens a descriptor to read them from. Children
/// inherit the mask; see [`start`](super::start).
pub(super) fn open() -> Result<SignalFd, Errno> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.add(Signal::SIGTERM);
    mask.add(Signal::SIGINT);
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// The next signal's wish; `None` where no signal is waiting.
pub(super) fn next(signals: &SignalFd) -> Option<Wish> {
    loop {
        match signals.read_signal() {
            Ok(Some(info)) => {
                let signal = i32::try_from(info.ssi_signo).unwrap_or(0);
                return Some(wish(signal, info.ssi_code, info.ssi_pid));
            }
            Err(Errno::EINTR) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_kill_from_outside_ends_the_agent() {
        const SI_QUEUE: i32 = -1;
        const SI_KERNEL: i32 = 0x80;
        for (signal, code, pid, expected) in [
            (SIGCHLD, 1, 7, Wish::Reap),
            (SIGTERM, SI_USER, 0, Wish::End(143)),
            (SIGINT, SI_USER, 0, Wish::End(130)),
            (SIGTERM, SI_USER, 7, Wish::Nothing),
            (SIGINT, SI_USER, 1, Wish::Nothing),
            (SIGTERM, SI_QUEUE, 0, Wish::Nothing),
            (SIGINT, SI_KERNEL, 0, Wish::Nothing),
            (1, SI_USER, 0, Wish::Nothing),
        ] {
            assert_eq!(wish(signal, code, pid), expected, "signal {signal} code {code} pid {pid}");
        }
    }
}
