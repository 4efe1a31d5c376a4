//! The agent as PID 1 of a namespace of its own, as in a container. Needs root: `cargo e2e test` leaves these out for others.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use executor_shim::wire::frame::Kind;
use executor_shim::wire::message::{RefusalReason, Work};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use roadstead_crds::labels::ORPHANED_EXIT_CODE;
use tempfile::TempDir;

use super::client::{Connection, Session};
use super::world::{Agent, POD, binary, until};

pub struct Container {
    dir: TempDir,
    unshare: Child,
    /// PID 1, seen from outside.
    init: i32,
}

impl Container {
    pub fn start() -> Self {
        Self::with("build", &[], "exec \"$@\"")
    }

    /// An agent that `setup`, a shell script, has turned into PID 1.
    pub fn with(container: &str, flags: &[&str], setup: &str) -> Self {
        assert!(geteuid().is_root(), "this test makes a namespace of processes, which needs root");
        let dir = tempfile::tempdir().unwrap();
        let everybody = || std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(dir.path(), everybody()).unwrap();
        for name in ["run", "spool", "build-spool"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::set_permissions(dir.path().join(name), everybody()).unwrap();
        }
        let mut args = Agent::serve(dir.path(), container, flags);
        args.retain(|arg| arg != "--any-peer");
        let unshare = Command::new("unshare")
            .args(["--pid", "--mount", "--fork", "--mount-proc", "sh", "-c", setup, "sh"])
            .arg(binary())
            .args(args)
            .env("ROADSTEAD_POD_UID", POD)
            .env("DIR", dir.path())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = unshare.id();
        let init = until("process 1", || {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
            children.split_whitespace().next()?.parse().ok()
        });
        Self { dir, unshare, init }
    }

    fn socket(&self) {
        let path = self.dir.path().join("run/agent.sock");
        until("a socket", || path.exists().then_some(()));
    }

    /// A command in the container, as the container runtime would exec it.
    fn exec(&self, command: &[&str]) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &self.init.to_string(), "--pid", "--mount"]).args(command);
        nsenter
    }

    pub fn connect(&self) -> Connection {
        self.socket();
        let run = self.dir.path().join("run");
        let mut command = self.exec(&[binary(), "attach", "--run-dir", run.to_str().unwrap()]);
        Connection::by(&mut command)
    }

    pub fn run(&self, script: &str) -> String {
        let mut session = Session::new(script);
        let record = session.all(&mut self.connect());
        assert_eq!(record.code, Some(0), "{}{}", session.out(), session.err());
        session.out()
    }

    fn exit_code(&mut self) -> Option<i32> {
        until("the end of the container", || self.unshare.try_wait().unwrap()).code()
    }

    fn log(&mut self) -> String {
        let mut text = String::new();
        self.unshare.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // The namespace ends with it, and then `unshare`.
        if self.unshare.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = kill(Pid::from_raw(self.init), Signal::SIGKILL);
        }
        let _ = self.unshare.wait();
    }
}

#[test]
fn thousands_of_orphans_are_reaped() {
    let container = Container::start();
    let out = container.run("echo $$; i=0; while [ $i -lt 3000 ]; do (sleep 0 &); i=$((i+1)); done");
    assert_ne!(out.trim(), "1");
    let count = "sleep 0.1; cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || true";
    until("the reaping", || (container.run(count).trim() == "0").then_some(()));
}

#[test]
fn nothing_inside_ends_or_stops_process_1() {
    let container = Container::start();
    let script = "
        for round in 1 2; do for signal in $(seq 1 64); do kill -$signal 1 2>/dev/null; done; done
        # A queued signal can claim any sender.
        perl -e 'my ($pid, $sig) = (1, 15); my $info = pack(\"iiiiii\", 15, 0, -1, 0, 0, 0) . \"\\0\" x 104;
            syscall(129, $pid, $sig, $info)' 2>/dev/null
        echo alive";
    assert_eq!(container.run(script), "alive\n");
    assert_eq!(container.run("echo alive"), "alive\n");
}

#[test]
fn an_execed_process_inside_may_not_end_it_either() {
    let container = Container::start();
    container.socket();
    assert!(container.exec(&["kill", "-TERM", "1"]).status().unwrap().success());
    assert_eq!(container.run("echo alive"), "alive\n");
}

#[test]
fn who_is_outside_ends_it_in_order() {
    // Also a script that says that all is well was not let to its end.
    for code in [0, 1] {
        let mut container = Container::start();
        let mut session = Session::new(format!(
            "trap 'sleep 0.3; echo bye; exit {code}' TERM; echo ready; sleep 1000 & wait"
        ));
        let mut connection = container.connect();
        session.begin(&mut connection);
        session.read_until(&mut connection, "ready");
        kill(Pid::from_raw(container.init), Signal::SIGTERM).unwrap();
        let mut warning = connection.any_frame().unwrap();
        while warning.kind != Kind::Heartbeat {
            session.take(&warning);
            warning = connection.any_frame().unwrap();
        }
        assert!((1..=10_000).contains(&warning.offset), "{} ms are left", warning.offset);
        let record = session.finish(&mut connection);
        assert_eq!((record.code, record.stopped, session.out().as_str()), (None, true, "ready\nbye\n"));
        assert!(record.error.unwrap().contains("ended from outside"), "its end is not its own");
        assert_eq!(container.exit_code(), Some(143));
    }

    let mut container = Container::start();
    container.socket();
    kill(Pid::from_raw(container.init), Signal::SIGINT).unwrap();
    assert_eq!(container.exit_code(), Some(130));
}

#[test]
fn the_record_of_a_script_that_does_not_listen_is_read_before_the_containers_grace_is_over() {
    let mut container = Container::with("build", &["--grace-ms", "3000"], "exec \"$@\"");
    let mut session = Session::new("trap '' TERM; echo ready; while :; do sleep 0.02; done");
    let mut connection = container.connect();
    session.begin(&mut connection);
    session.read_until(&mut connection, "ready");
    let start = Instant::now();
    kill(Pid::from_raw(container.init), Signal::SIGTERM).unwrap();
    let warning = connection.any_frame().unwrap();
    assert_eq!(warning.kind, Kind::Heartbeat);
    assert!((1..=1_500).contains(&warning.offset), "{} ms are left", warning.offset);
    let record = session.finish(&mut connection);
    assert!(start.elapsed() >= Duration::from_millis(1_500));
    assert!(record.error.unwrap().contains("ended from outside"));
    assert_eq!(container.exit_code(), Some(143));
}

#[test]
fn only_who_was_execed_from_outside_may_speak() {
    let mut container = Container::start();
    let run = container.dir.path().join("run").to_str().unwrap().to_owned();
    let attach = format!("{} attach --run-dir {run}", binary());
    // A child of a script, an orphan of one, and one that has left its session.
    let script = format!(
        "{attach} </dev/null; echo; (sh -c '{attach} </dev/null >{run}/orphan' &); setsid {attach} </dev/null;
         for i in $(seq 200); do grep -aq inside {run}/orphan 2>/dev/null && break; sleep 0.02; done; cat {run}/orphan"
    );
    // The socket's directory belongs to the agent: the orphan writes elsewhere where it may not.
    let out = container.run(&script);
    assert_eq!(out.matches("a process that was started inside").count(), 3, "{out}");
    let mut connection = container.connect();
    connection.open(Work::Probe { shell: "sh".into() });
    assert_eq!(connection.hello().pod_uid, POD, "an exec'd one may");
    kill(Pid::from_raw(container.init), Signal::SIGTERM).unwrap();
    container.exit_code();
    assert_eq!(
        container.log().matches("refused a connection").count(),
        1,
        "the log is not for scripts to fill"
    );
}

#[test]
fn a_direct_connection_from_outside_the_namespace_is_refused() {
    let container = Container::start();
    container.socket();
    let stream =
        std::os::unix::net::UnixStream::connect(container.dir.path().join("run/agent.sock")).unwrap();
    let mut connection = Connection::over(stream);
    assert_eq!(connection.frame().unwrap().refusal().reason, RefusalReason::Peer);
}

#[test]
fn root_without_the_right_to_trace_cannot_look_into_process_1() {
    // What container runtimes leave to root.
    let caps = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,\
                +net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";
    let drop = format!("exec setpriv --bounding-set={caps} --inh-caps=-all -- \"$@\"");
    let container = Container::with("build", &[], &drop);
    let script = "
        for file in environ maps mem; do head -c 1 /proc/1/$file >/dev/null 2>&1 && echo \"read $file\"; done
        readlink /proc/1/exe /proc/1/cwd
        ls -l /proc/1/fd 2>/dev/null | grep -e '->'
        head -c 1 /proc/$$/environ >/dev/null && echo own
        true";
    assert_eq!(container.run(script), "own\n");
}

#[test]
fn the_last_stage_spares_who_was_execed_from_outside() {
    let container = Container::start();
    container.socket();
    let mut guest = container.exec(&["sleep", "1000"]).spawn().unwrap();
    let pids = "ls /proc | grep -c '^[0-9]'";
    container.run("sleep 1000 & setsid sleep 1000 >/dev/null & (setsid sleep 1000 &) ; true");
    let mut last = Session::new("sleep 1000 & true");
    last.run.reap = true;
    last.all(&mut container.connect());
    // The agent, the guest, the relay, the shell and what counts.
    until("an empty container", || (container.run(pids).trim().parse::<usize>().unwrap() <= 6).then_some(()));
    assert!(guest.try_wait().unwrap().is_none(), "it was killed");
    guest.kill().unwrap();
    guest.wait().unwrap();
}

#[test]
fn any_user_and_a_read_only_root_will_do() {
    let setup = "mount --bind $DIR $DIR && mount -o remount,ro,bind / && \
                 exec setpriv --reuid=54321 --regid=54321 --clear-groups --no-new-privs -- \"$@\"";
    let container = Container::with("helper", &[], setup);
    let mut connection = container.connect();
    connection.open(Work::Probe { shell: "bash".into() });
    let tools = connection.hello().tools.unwrap();
    assert_eq!((tools.uid, tools.gid), (54321, 54321));
    let mut session = Session::sh(
        "id -u; touch /x 2>/dev/null || echo read-only; head -c 100000 /dev/zero | wc -c; exit 8",
    );
    let record = session.all(&mut container.connect());
    assert_eq!(session.out(), "54321\nread-only\n100000\n");
    assert_eq!(record.code, Some(8));
}

#[test]
fn an_orphaned_container_ends_with_its_code() {
    let mut container = Container::with("helper", &["--orphan-ms", "300"], "exec \"$@\"");
    assert_eq!(container.exit_code(), Some(ORPHANED_EXIT_CODE));
}

#[test]
fn a_full_volume_is_never_a_success() {
    let container =
        Container::with("build", &[], "mount -t tmpfs -o size=512k,mode=777 x $DIR/spool && exec \"$@\"");
    let mut session = Session::new("head -c 2000000 /dev/zero; exit 0");
    let record = session.all(&mut container.connect());
    assert_eq!((record.code, record.signal), (None, None));
    assert!(record.error.unwrap().contains("No space left"));
    assert_eq!(container.run("echo next"), "next\n");
}
