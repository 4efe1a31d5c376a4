//! Scripts that are ended before their time.

use std::time::{Duration, Instant};

use executor_shim::wire::frame::Kind;
use executor_shim::wire::message::{ExitRecord, Limit, RefusalReason, Work};

use super::client::Session;
use super::world::{Agent, lives, until};

/// Starts a script, waits for its word `ready`, stops it.
fn stopped(agent: &Agent, script: &str, grace_ms: u64) -> (Session, ExitRecord) {
    let mut session = Session::new(script);
    let mut connection = agent.connect();
    session.begin(&mut connection);
    session.read_until(&mut connection, "ready");
    Session::stop(&mut connection, grace_ms);
    let record = session.finish(&mut connection);
    assert!(record.stopped);
    (session, record)
}

/// Runs a script that has a limit.
fn limited(script: &str, after_ms: u64, grace_ms: u64) -> (Session, ExitRecord) {
    let agent = Agent::start();
    let mut session = Session::new(script);
    session.run.limit = Some(Limit { after_ms, grace_ms });
    let record = session.all(&mut agent.connect());
    (session, record)
}

#[test]
fn a_script_that_exceeds_its_limit_is_ended_without_being_asked() {
    let start = Instant::now();
    let (session, record) =
        limited("trap 'echo bye; exit 0' TERM; echo ready; sleep 1000 & wait", 300, 60_000);
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!((record.code, record.expired, record.stopped), (Some(0), true, true));
    assert_eq!(session.out(), "ready\nbye\n");
    let (_, record) = limited("trap '' TERM; while :; do sleep 0.02; done", 100, 200);
    assert_eq!((record.signal, record.expired), (Some(9), true));
}

#[test]
fn a_limit_that_is_not_reached_changes_nothing() {
    let (session, record) = limited("echo done; exit 3", 60_000, 0);
    assert_eq!((record.code, record.expired, record.stopped), (Some(3), false, false));
    assert_eq!(session.out(), "done\n");
}

#[test]
fn a_limit_holds_while_nobody_is_connected() {
    let agent = Agent::start();
    let mut session = Session::new("echo ready $$; sleep 1000");
    session.run.limit = Some(Limit { after_ms: 1_000, grace_ms: 0 });
    let mut connection = agent.connect();
    session.begin(&mut connection);
    session.read_until(&mut connection, "ready");
    drop(connection);
    let shell = session.out().split_whitespace().nth(1).unwrap().parse().unwrap();
    until("the end of the script", || (!lives(shell)).then_some(()));
    let mut connection = agent.connect();
    assert!(session.begin(&mut connection), "the attempt is known");
    assert!(session.finish(&mut connection).expired);
}

#[test]
fn a_trap_ends_a_script_in_its_own_way() {
    let agent = Agent::start();
    let script = "trap 'echo bye; exit 1' TERM; echo ready; sleep 1000 & wait";
    let (session, record) = stopped(&agent, script, 60_000);
    assert_eq!((record.code, record.signal), (Some(1), None));
    assert_eq!(session.out(), "ready\nbye\n");
}

#[test]
fn gitlabs_own_shape_of_a_script_ends_at_once() {
    // The command in the foreground says that it is there. A SIGTERM just before it is started would miss
    // it, and bash runs the trap after it.
    let agent = Agent::start();
    let script = "#!/usr/bin/env bash\n\ntrap 'exit 1' TERM\n\nif set -o | grep pipefail > /dev/null; then set -o pipefail; fi; set -o errexit\nset +o noclobber\n(trap 'exit 1' TERM; eval $'sh -c \"echo ready; exec sleep 1000\"\\n') < /dev/null\nexit 0\n";
    let start = Instant::now();
    let (_, record) = stopped(&agent, script, 60_000);
    assert_eq!(record.code, Some(1), "{record:?}");
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn who_does_not_listen_is_killed_after_the_grace() {
    let agent = Agent::start();
    let script = "trap '' TERM; sh -c 'sleep 1000' & echo ready $!; while :; do sleep 0.02; done";
    let start = Instant::now();
    let (session, record) = stopped(&agent, script, 300);
    assert_eq!((record.code, record.signal), (None, Some(9)));
    assert!(start.elapsed() >= Duration::from_millis(300));
    let child = session.out().split_whitespace().nth(1).unwrap().parse().unwrap();
    until("the end of the whole group", || (!lives(child)).then_some(()));
}

#[test]
fn what_a_stopped_script_leaves_in_its_group_ends_with_it() {
    let agent = Agent::start();
    let script = "(trap '' TERM; while :; do sleep 0.05; done) & echo ready $!; wait";
    let (session, record) = stopped(&agent, script, 60_000);
    assert_eq!(record.signal, Some(15));
    let child = session.out().split_whitespace().nth(1).unwrap().parse().unwrap();
    until("the end of the whole group", || (!lives(child)).then_some(()));
}

#[test]
fn a_frozen_script_can_be_stopped() {
    let agent = Agent::start();
    let script = "echo ready; kill -STOP $$; echo not reached";
    let mut session = Session::new(script);
    let mut connection = agent.connect();
    session.begin(&mut connection);
    session.read_until(&mut connection, "ready");
    let status = format!("/proc/{}/stat", child_of(&agent));
    until("the freeze", || std::fs::read_to_string(&status).unwrap().contains(") T ").then_some(()));
    Session::stop(&mut connection, 60_000);
    let record = session.finish(&mut connection);
    assert_eq!((record.signal, session.out().as_str()), (Some(15), "ready\n"));
}

fn child_of(agent: &Agent) -> u32 {
    let pid = agent.child.id();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_later_stop_can_only_hurry() {
    let agent = Agent::start();
    let mut session = Session::new("trap 'echo term' TERM; echo ready; while :; do sleep 0.02; done");
    let mut connection = agent.connect();
    session.begin(&mut connection);
    session.read_until(&mut connection, "ready");
    Session::stop(&mut connection, 600_000);
    session.read_until(&mut connection, "term");
    Session::stop(&mut connection, 900_000);
    Session::stop(&mut connection, 100);
    let record = session.finish(&mut connection);
    assert_eq!((record.signal, session.out().as_str()), (Some(9), "ready\nterm\n"));
}

#[test]
fn a_stop_before_the_start_leaves_nothing_started() {
    let agent = Agent::start();
    let mark = agent.dir.path().join("mark");
    let mut session = Session::new(format!("echo x >{}", mark.display()));
    let mut connection = agent.connect();
    connection.open(Work::Run(session.run.clone()));
    connection.hello();
    connection.send(Kind::Script, 0, &session.script[..4]);
    Session::stop(&mut connection, 0);
    assert_eq!(connection.frame().unwrap().refusal().reason, RefusalReason::Script);
    assert_eq!(connection.frame(), None);
    assert!(!mark.exists());
    session.all(&mut agent.connect());
    assert!(mark.exists(), "the attempt was not started, so it may be");
}

#[test]
fn a_stop_after_the_end_changes_nothing() {
    let agent = Agent::start();
    let mut session = Session::new("exit 3");
    let mut connection = agent.connect();
    session.begin(&mut connection);
    let record = session.finish(&mut connection);
    Session::stop(&mut connection, 0);
    let mut again = agent.connect();
    session.begin(&mut again);
    assert_eq!(session.finish(&mut again), record);
    assert!(!record.stopped);
}
