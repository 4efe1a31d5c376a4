//! PID 1: set up once, then one loop.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{geteuid, getpid};
use roadstead_crds::labels;
use thiserror::Error;

use super::cli::ServeOptions;
use super::clock::{self, Moment};
use super::conversation::Identity;
use super::hub::{Hub, Parts};
use super::install;
use super::log;
use super::peer::Rule;
use super::presence::Alive;
use super::script::Slot;
use super::signals;
use super::tools;

/// Name of the socket in the run directory.
pub(super) const SOCKET: &str = "agent.sock";

/// Variable with the pod's UID, put there by the pod's spec.
const POD_UID: &str = "ROADSTEAD_POD_UID";

/// Why the agent cannot begin.
#[derive(Debug, Error)]
enum SetUpError {
    /// Signals cannot be read.
    #[error("cannot read signals: {0}")]
    Signals(Errno),
    /// A descriptor for scripts cannot be kept free.
    #[error("cannot reserve a descriptor: {0}")]
    Slot(io::Error),
    /// The binary cannot be put where the other container waits for it.
    #[error("cannot install the agent in {0}: {1}")]
    Install(String, io::Error),
    /// The socket cannot be made.
    #[error("cannot listen in {0}: {1}")]
    Listen(String, io::Error),
}

/// Runs until the end of the container.
pub(super) fn serve(options: ServeOptions) -> ExitCode {
    match set_up(options) {
        Ok(hub) => ExitCode::from(run(hub)),
        Err(error) => {
            log::say(format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}

fn set_up(options: ServeOptions) -> Result<Hub, SetUpError> {
    // The lowest number: some shells know descriptors of one digit only.
    let slot = Slot::reserve().map_err(SetUpError::Slot)?;
    let signals = signals::open().map_err(SetUpError::Signals)?;
    // A core file of what crashes would leave the job's variables on a disk. A script that wants one can have it.
    if let Err(error) =
        getrlimit(Resource::RLIMIT_CORE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_CORE, 0, most))
    {
        log::say(format_args!("cannot forgo core files: {error}"));
    }
    if let Some(dir) = &options.install {
        install::install(dir).map_err(|error| SetUpError::Install(dir.display().to_string(), error))?;
    }
    let is_init = getpid().as_raw() == 1;
    if !is_init {
        // Outside a PID namespace of its own orphans would go elsewhere.
        let _ = prctl::set_child_subreaper(true);
    }
    let bin = tools::link_runner(&options.run_dir, &tools::search_path()).unwrap_or_else(|error| {
        log::say(format_args!("cannot make the name gitlab-runner: {error}"));
        None
    });
    let alive = Alive::claim(&options.spool_dir)
        .inspect_err(|error| log::say(format_args!("cannot lock the spool: {error}")))
        .ok();
    let listener = listen(&options.run_dir)
        .map_err(|error| SetUpError::Listen(options.run_dir.display().to_string(), error))?;
    if options.container == labels::HELPER_CONTAINER {
        // The build container may run as another user than the one that checks out, and scripts write
        // into the checkout. GitLab's own executor opens what its helper makes in the same way.
        umask(Mode::empty());
    }
    let me = Identity {
        pod_uid: std::env::var(POD_UID).unwrap_or_default(),
        boot_id: boot_id(),
        container: options.container.clone(),
    };
    log::say(format_args!(
        "version {} in container {}, user {}, as process {}",
        env!("CARGO_PKG_VERSION"),
        me.container,
        geteuid(),
        getpid(),
    ));
    let rule = Rule { uid: geteuid().as_raw(), any_process: options.any_peer };
    Ok(Hub::new(Parts { options, me, bin, slot, signals, listener, rule, alive }, clock::now()))
}

/// Makes the socket under another name and renames it: who finds the name can connect at once.
fn listen(dir: &Path) -> io::Result<UnixListener> {
    // The directory is an empty volume, open to everybody; only the owner can close it.
    let _ = fs::set_permissions(dir, Permissions::from_mode(0o755));
    let new = dir.join(format!(".{SOCKET}.new"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(&new);
    umask(before);
    let listener = listener?;
    listener.set_nonblocking(true)?;
    fs::rename(&new, dir.join(SOCKET))?;
    Ok(listener)
}

/// A random id. The kernel makes a new one for each reading.
fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    let id = id.trim();
    if id.is_empty() { format!("{:x}-{:x}", clock::now().0, getpid().as_raw()) } else { id.to_owned() }
}

/// What something has happened to.
#[derive(Clone, Copy, Debug)]
enum Source {
    Signals,
    Listener,
    Client(u64),
    Pipe(usize),
    Leftover(usize),
}

fn run(mut hub: Hub) -> u8 {
    loop {
        let now = clock::now();
        if let Some(code) = hub.settle(now) {
            return code;
        }
        let happened = wait(&hub, now);
        let now = clock::now();
        for (source, flags) in happened {
            match source {
                Source::Signals => hub.on_signals(now),
                Source::Listener => hub.on_connections(now),
                Source::Client(id) => {
                    let closed = flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR);
                    if closed || flags.contains(PollFlags::POLLIN) {
                        hub.on_client(id, closed, now);
                    }
                }
                Source::Pipe(pipe) => hub.on_pipe(pipe),
                Source::Leftover(pipe) => hub.on_leftover(pipe),
            }
        }
        hub.leftovers.retain(super::pipes::Pipe::is_open);
    }
}

fn wait(hub: &Hub, now: Moment) -> Vec<(Source, PollFlags)> {
    let mut sources = vec![Source::Signals];
    let mut fds = vec![PollFd::new(hub.signals.as_fd(), PollFlags::POLLIN)];
    let mut add = |source, fd, flags| {
        sources.push(source);
        fds.push(PollFd::new(fd, flags));
    };
    // Pipes before clients: what a script has written before something else happened is taken first.
    if hub.is_reading() {
        for (number, pipe) in hub.stage.iter().flat_map(super::stage::Stage::open_pipes) {
            add(Source::Pipe(number), pipe.as_fd(), PollFlags::POLLIN);
        }
    }
    for (number, pipe) in hub.leftovers.iter().enumerate() {
        add(Source::Leftover(number), pipe.as_fd(), PollFlags::POLLIN);
    }
    if hub.is_listening() {
        add(Source::Listener, hub.listener.as_fd(), PollFlags::POLLIN);
    }
    for (id, client) in &hub.clients {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, !client.eof);
        flags.set(PollFlags::POLLOUT, client.more);
        add(Source::Client(*id), client.as_fd(), flags);
    }
    let timeout = hub.deadline().map_or(PollTimeout::NONE, |deadline| {
        PollTimeout::try_from(deadline.since(now)).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut fds, timeout) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Vec::new(),
        Err(_) => {
            // Not to be expected, and no reason to end the job or to spin.
            std::thread::sleep(Duration::from_millis(10));
            return Vec::new();
        }
    }
    let flags = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
    sources.into_iter().zip(flags).filter(|(_, flags)| !flags.is_empty()).collect()
}
