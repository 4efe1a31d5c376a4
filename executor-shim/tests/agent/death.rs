//! Full disks, slow readers, dead containers, and the end of everything.

use std::process::{Command, Stdio};
use std::time::Duration;

use executor_shim::wire::frame::{HEADER_LEN, Kind};
use executor_shim::wire::message::{Collect, RefusalReason, Work};

use super::client::Session;
use super::world::{Agent, POD, binary, lives, until};

#[test]
fn a_script_waits_for_its_reader_and_nothing_is_lost() {
    const LIMIT: u64 = 300_000;
    let agent = Agent::with("build", &["--spool-bytes", &LIMIT.to_string()], &[]);
    let mut session = Session::new("seq 1 500000; echo $(seq 1 500000) >&2; exit 2");
    let mut connection = agent.connect();
    session.begin(&mut connection);
    assert_eq!(connection.frame().unwrap().kind, Kind::Started);
    drop(connection);
    let spool = agent.spool_dir().join(format!("{}.spool", session.run.attempt));
    let len = || std::fs::metadata(&spool).unwrap().len();
    until("a full spool", || (len() >= LIMIT).then_some(()));
    // Once full it stays as it is: the agent sleeps, and so does the script.
    let before = until("a pause", || {
        let before = (len(), agent.cpu());
        std::thread::sleep(Duration::from_millis(300));
        ((len(), agent.cpu()) == before).then_some(before)
    });
    assert!(before.0 < LIMIT + 2 * (64 * 1024 + HEADER_LEN as u64), "{} bytes", before.0);

    // A reader that acknowledges nothing gets what is there.
    let mut silent = agent.connect();
    assert!(session.begin(&mut silent));
    while session.run.position < before.0 {
        assert!(session.take(&silent.frame().unwrap()));
    }
    assert!(silent.is_silent(Duration::from_millis(200)), "more than the limit was kept");
    silent.send(Kind::Ack, session.run.position, &[]);
    let record = session.finish(&mut silent);
    assert_eq!(record.code, Some(2));
    let numbers: Vec<String> = (1..=500_000).map(|number| number.to_string()).collect();
    assert!(session.out() == numbers.join("\n") + "\n");
    assert!(session.err() == numbers.join(" ") + "\n");
}

/// An agent with limits that a shell has set.
pub fn limited(limits: &str) -> Agent {
    let dir = tempfile::tempdir().unwrap();
    for name in ["run", "spool", "build-spool"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    let child = Command::new("bash")
        .args(["-c", &format!("{limits}; exec \"$@\""), "bash", binary()])
        .args(Agent::serve(dir.path(), "build", &[]))
        .env("ROADSTEAD_POD_UID", POD)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Agent { dir, child }
}

#[test]
fn a_full_disk_is_never_a_success() {
    // No file may grow beyond 100 KiB, and the write says so.
    let agent = limited("trap '' XFSZ; ulimit -f 100");
    for script in ["head -c 500000 /dev/zero; sleep 1000", "trap '' PIPE; head -c 200000 /dev/zero; exit 0"] {
        let mut session = Session::new(script);
        let record = session.all(&mut agent.connect());
        assert_eq!((record.code, record.signal), (None, None));
        let error = record.error.unwrap();
        assert!(error.starts_with("the output could not be stored"), "{error}");
        assert!(session.stdout.len() < 102_400, "what was stored has arrived: {}", session.stdout.len());
    }
    assert_eq!(Session::new("echo fine").all(&mut agent.connect()).code, Some(0));
}

#[test]
fn an_agent_without_free_descriptors_waits_for_some() {
    let agent = limited("ulimit -n 24");
    let held: Vec<_> = (0..40).map(|_| agent.connect()).collect();
    let before = agent.cpu();
    std::thread::sleep(Duration::from_millis(500));
    let after = agent.cpu();
    assert!(after.0 - before.0 <= 2 && after.1 - before.1 <= 20, "it spins: {before:?} {after:?}");
    drop(held);
    let fds = format!("/proc/{}/fd", agent.child.id());
    until("free descriptors", || (std::fs::read_dir(&fds).unwrap().count() < 12).then_some(()));
    assert_eq!(Session::new("exit 3").all(&mut agent.connect()).code, Some(3));
}

#[test]
fn output_that_a_script_has_cut_is_never_a_success() {
    let agent = Agent::start();
    let mut session = Session::new("");
    let spool = agent.spool_dir().join(format!("{}.spool", session.run.attempt));
    session.script = format!(
        "seq 1 100000; while ! [ -e {0}.go ]; do sleep 0.01; done; : >{0}; echo end",
        spool.display()
    )
    .into();
    session.run.script_len = session.script.len() as u64;
    session.run.script_crc = crc32fast::hash(&session.script);
    let mut connection = agent.connect();
    session.begin(&mut connection);
    assert_eq!(connection.frame().unwrap().kind, Kind::Started);
    drop(connection);
    until("output", || (std::fs::metadata(&spool).unwrap().len() > 588_895).then_some(()));
    std::fs::write(format!("{}.go", spool.display()), "").unwrap();
    until("the end", || agent.has_record(&session.run.attempt).then_some(()));
    let mut connection = agent.connect();
    connection.open(Work::Run(session.run.clone()));
    assert_eq!(connection.frame().unwrap().refusal().reason, RefusalReason::Position);
}

#[test]
fn the_last_stage_leaves_no_process() {
    let agent = Agent::start();
    let mut first = Session::new(
        "sleep 1000 & echo $!; setsid sleep 1000 & echo $!; (setsid sh -c 'sleep 1000 & echo $!') ; sleep 0.1",
    );
    first.all(&mut agent.connect());
    let pids: Vec<i32> = first.out().lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(pids.len(), 3);
    assert!(pids.iter().all(|pid| lives(*pid)), "they live until the last stage");
    let mut last = Session::new("nohup sleep 1000 >/dev/null 2>&1 & echo $!");
    last.run.reap = true;
    last.all(&mut agent.connect());
    let left = last.out().trim().parse().unwrap();
    for pid in pids.into_iter().chain([left]) {
        until("the end of what was left", || (!lives(pid)).then_some(()));
    }
    assert!(lives(i32::try_from(std::process::id()).unwrap()));
    assert_eq!(Session::new("exit 0").all(&mut agent.connect()).code, Some(0));
}

/// A build container that dies, agent and all, and what `helper` has of it.
fn dead_build(script: &str, when: impl Fn(&Agent, &Session)) -> (Agent, Session) {
    let mut build = Agent::start();
    let mut session = Session::new(script);
    let mut connection = build.connect();
    session.begin(&mut connection);
    session.take(&connection.frame().unwrap());
    drop(connection);
    when(&build, &session);
    build.child.kill().unwrap();
    build.child.wait().unwrap();
    let helper = Agent::with("helper", &[], &[]);
    let dir = helper.dir.path().join("build-spool");
    std::fs::remove_dir(&dir).unwrap();
    std::fs::rename(build.spool_dir(), dir).unwrap();
    (helper, session)
}

fn collect(helper: &Agent, session: &Session) -> super::client::Connection {
    let mut connection = helper.connect();
    let wanted = Collect { attempt: session.run.attempt.clone(), position: session.run.position };
    connection.open(Work::Collect(wanted));
    connection
}

#[test]
fn the_helper_delivers_what_a_dead_build_container_has_written() {
    let script = "echo $$ >&2; sleep 0.05; seq 1 100000; exec sleep 30";
    let (helper, mut session) = dead_build(script, |build, session| {
        let spool = build.spool_dir().join(format!("{}.spool", session.run.attempt));
        until("output", || std::fs::read(&spool).unwrap().ends_with(b"\n100000\n").then_some(()));
    });
    let mut connection = collect(&helper, &session);
    assert!(connection.hello().known);
    while session.take(&connection.frame().unwrap()) {
        connection.send(Kind::Ack, session.run.position, &[]);
    }
    let record = session.record.clone().unwrap();
    assert_eq!((record.code, record.signal), (None, None));
    assert_eq!(record.spool_bytes, session.run.position);
    assert!(record.error.unwrap().contains("died"));
    assert_eq!(session.stdout.len(), 588_895);
    connection.send(Kind::Close, 0, &[]);
    assert_eq!(connection.frame(), None);
    let pid: i32 = session.err().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();

    session.run.position += 1;
    let mut connection = collect(&helper, &session);
    assert_eq!(connection.frame().unwrap().refusal().reason, RefusalReason::Position);
}

#[test]
fn the_helper_delivers_the_end_that_a_dead_build_container_has_left() {
    let (helper, mut session) = dead_build("echo out; exit 3", |build, session| {
        until("the record", || build.has_record(&session.run.attempt).then_some(()));
    });
    let mut connection = collect(&helper, &session);
    connection.hello();
    let record = session.finish(&mut connection);
    assert_eq!((record.code, record.error, session.out().as_str()), (Some(3), None, "out\n"));
}

#[test]
fn a_living_build_container_is_asked_itself() {
    let build = Agent::start();
    let session = Session::new("exit 0");
    drop(build.connect());
    let helper = Agent::with("helper", &["--build-spool-dir", build.spool_dir().to_str().unwrap()], &[]);
    let mut connection = collect(&helper, &session);
    assert_eq!(connection.frame().unwrap().refusal().reason, RefusalReason::Alive);
}
