//! The exec'd end.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use executor_shim::wire::frame::{self, Kind};
use executor_shim::wire::message::{Open, Work};

use super::client::{Connection, Heard, Session};
use super::world::{Agent, POD, binary, lives, until};

#[test]
fn a_relay_carries_a_whole_conversation() {
    let agent = Agent::start();
    let mut connection = Connection::relayed(&agent);
    let mut session = Session::new("head -c 3000000 /dev/zero; echo err >&2; exit 5");
    let record = session.all(&mut connection);
    assert_eq!((record.code, session.stdout.len()), (Some(5), 3_000_000));
    assert!(connection.relay_status().success());
}

#[test]
fn a_relay_also_writes_to_what_is_no_pipe() {
    let agent = Agent::start();
    let mut session = Session::new("seq 1 300000; exit 5");
    let mut connection = agent.connect();
    session.begin(&mut connection);
    assert_eq!(connection.frame().unwrap().kind, Kind::Started);
    drop(connection);
    until("the end", || agent.has_record(&session.run.attempt).then_some(()));
    let mut words = Vec::new();
    let open = Open {
        protocol: executor_shim::wire::PROTOCOL,
        pod_uid: POD.into(),
        boot_id: None,
        work: Work::Run(session.run.clone()),
        orphan_ms: 1000,
    };
    frame::encode(&mut words, Kind::Open, 0, &serde_json::to_vec(&open).unwrap());
    let (mut input, output) = (tempfile::tempfile().unwrap(), tempfile::NamedTempFile::new().unwrap());
    std::io::Write::write_all(&mut input, &words).unwrap();
    std::io::Seek::rewind(&mut input).unwrap();
    let status = Command::new(binary())
        .args(["attach", "--any-server", "--run-dir", agent.run_dir().to_str().unwrap()])
        .stdin(input)
        .stdout(output.reopen().unwrap())
        .status()
        .unwrap();
    assert!(status.success());
    let bytes = std::fs::read(output.path()).unwrap();
    let mut at = 0;
    let mut more = true;
    while let Some((heard, len)) = frame::decode(&bytes[at..]).unwrap() {
        at += len;
        if heard.kind != Kind::Hello {
            assert!(more, "something follows the end");
            let heard = Heard { kind: heard.kind, offset: heard.offset, payload: heard.payload.to_vec() };
            more = session.take(&heard);
        }
    }
    assert_eq!(at, bytes.len());
    assert_eq!(session.record.as_ref().unwrap().code, Some(5));
    assert!(session.out().ends_with("\n300000\n"));
}

#[test]
fn a_relay_waits_for_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["run", "spool", "build-spool"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    // What an agent before has left does not lead anywhere.
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("run/agent.sock")).unwrap());
    let relay = Command::new(binary())
        .args(["attach", "--any-server", "--run-dir", dir.path().join("run").to_str().unwrap()])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = relay.id();
    let mut agent = Agent::over(dir, "build", &[], &[]);
    let mut relay = Guard(relay);
    until("a connection", || is_connected(pid));
    drop(relay.0.stdin.take());
    assert!(relay.0.wait().unwrap().success());
    assert!(lives(i32::try_from(agent.child.id()).unwrap()));
    agent.child.kill().unwrap();
}

struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a process has a socket.
fn is_connected(pid: u32) -> Option<()> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .any(|link| link.to_string_lossy().starts_with("socket:"))
        .then_some(())
}

#[test]
fn a_relay_without_an_agent_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let output =
        Command::new(binary()).args(["attach", "--run-dir", dir.path().to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot be reached"));
    assert!(start.elapsed() >= Duration::from_secs(10), "it did not wait");
}

#[test]
fn a_relay_trusts_nobody_but_process_1() {
    let agent = Agent::start();
    drop(agent.connect());
    let output = Command::new(binary())
        .args(["attach", "--run-dir", agent.run_dir().to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another process"));
}

#[test]
fn a_relay_ends_with_its_reader() {
    let agent = Agent::start();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut relay = Guard(
        Command::new(binary())
            .args(["attach", "--any-server", "--run-dir", agent.run_dir().to_str().unwrap()])
            .stdin(Stdio::piped())
            .stdout(writer)
            .spawn()
            .unwrap(),
    );
    until("a connection", || is_connected(relay.0.id()));
    assert!(relay.0.try_wait().unwrap().is_none());
    drop(reader);
    let status = until("the relay's end", || relay.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(1));
}
