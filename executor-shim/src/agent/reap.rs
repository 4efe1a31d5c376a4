//! Reaping: PID 1 gets every orphan of the container.

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};

use super::clock::Moment;
use super::spool::FrameBuffer;
use super::stage::Stage;

/// Reaps every dead child. The stage's shell is looked at before it is reaped: until then its number,
/// and that of its process group, is nobody else's.
pub(super) fn reap(mut stage: Option<&mut Stage>, now: Moment, buffer: &mut FrameBuffer) {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        match waitid(Id::All, look).map(|status| status.pid()) {
            Ok(Some(pid)) => match &mut stage {
                Some(stage) if stage.pid() == pid => stage.shell_ended(now, buffer),
                _ => {
                    let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
                }
            },
            Err(Errno::EINTR) => {}
            // A child that died of a real-time signal: its status has no representation here, and with
            // it goes its number. The standard library can read the shell's.
            Err(Errno::EINVAL) => {
                if let Some(stage) = &mut stage {
                    stage.shell_may_have_ended(now, buffer);
                }
                let _ = waitpid(None, Some(WaitPidFlag::WNOHANG));
                // If that was the shell, which had ended in between, its status is lost, but not its end.
                if let Some(stage) = &mut stage {
                    stage.shell_may_have_ended(now, buffer);
                }
            }
            // Nothing has ended; what ends from now on brings a signal of its own.
            Ok(None) => return,
            Err(_) => break,
        }
    }
    if let Some(stage) = &mut stage {
        stage.shell_may_have_ended(now, buffer);
    }
}
