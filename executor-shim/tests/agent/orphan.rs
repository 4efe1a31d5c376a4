//! The pod that is nobody's.

use std::time::{Duration, Instant};

use executor_shim::wire::message::Work;
use roadstead_crds::labels::ORPHANED_EXIT_CODE;

use super::client::{Connection, Session};
use super::world::{Agent, until};

fn probe(agent: &Agent, orphan_ms: u64) -> Connection {
    let mut connection = agent.connect();
    connection.open_with(Work::Probe { shell: "sh".into() }, |open| open.orphan_ms = orphan_ms);
    connection.hello();
    connection
}

fn is_alive(agent: &mut Agent) -> bool {
    agent.child.try_wait().unwrap().is_none()
}

#[test]
fn a_helper_that_nobody_comes_to_ends_and_build_does_not() {
    let mut build = Agent::with("build", &["--orphan-ms", "10"], &[]);
    drop(probe(&build, 10));
    let start = Instant::now();
    let mut helper = Agent::with("helper", &["--orphan-ms", "400"], &[]);
    assert_eq!(helper.wait().code(), Some(ORPHANED_EXIT_CODE));
    assert!(start.elapsed() >= Duration::from_millis(400));
    assert!(helper.log().contains("no client came for 400 ms"));
    assert!(is_alive(&mut build));
}

#[test]
fn a_client_keeps_the_pod_and_says_for_how_long() {
    let mut helper = Agent::with("helper", &["--orphan-ms", "100000"], &[]);
    let connection = probe(&helper, 200);
    let mut other = probe(&helper, 300);
    assert!(other.is_silent(Duration::from_millis(800)), "it is gone while a client is there");
    drop(other);
    drop(connection);
    let start = Instant::now();
    assert_eq!(helper.wait().code(), Some(ORPHANED_EXIT_CODE));
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(290) && waited < Duration::from_secs(30), "{waited:?}");
}

#[test]
fn a_connection_that_says_nothing_is_no_client() {
    let mut helper = Agent::with("helper", &["--orphan-ms", "300"], &[]);
    let _silent = helper.connect();
    assert_eq!(helper.wait().code(), Some(ORPHANED_EXIT_CODE));
}

#[test]
fn who_has_said_everything_is_no_client() {
    let mut helper = Agent::with("helper", &["--orphan-ms", "100000"], &[]);
    let mut session = Session::new("sleep 100");
    let mut connection = helper.connect();
    connection.open_with(Work::Run(session.run.clone()), |open| open.orphan_ms = 200);
    connection.hello();
    session.upload(&mut connection, 0);
    session.take(&connection.frame().unwrap());
    connection.shut();
    assert_eq!(helper.wait().code(), Some(ORPHANED_EXIT_CODE));
}

#[test]
fn a_client_of_build_keeps_the_pod() {
    let build = Agent::start();
    let client = probe(&build, 300);
    let spool = build.spool_dir();
    let flags = ["--orphan-ms", "50", "--build-spool-dir", spool.to_str().unwrap()];
    let mut helper = Agent::with("helper", &flags, &[]);
    drop(helper.connect());
    let (ticks, wakes) = helper.cpu();
    std::thread::sleep(Duration::from_millis(600));
    assert!(is_alive(&mut helper));
    let after = helper.cpu();
    assert!(after.0 <= ticks + 1 && after.1 <= wakes + 20, "it looks too often: {} times", after.1 - wakes);
    drop(client);
    let start = Instant::now();
    assert_eq!(helper.wait().code(), Some(ORPHANED_EXIT_CODE));
    assert!(start.elapsed() >= Duration::from_millis(290), "the client of build had said for how long");
}

#[test]
fn a_dead_builds_client_does_not_keep_the_pod() {
    let mut build = Agent::start();
    let _client = probe(&build, 1_000_000);
    build.child.kill().unwrap();
    build.child.wait().unwrap();
    let spool = build.spool_dir();
    assert_eq!(std::fs::read_to_string(spool.join("client")).unwrap(), "connected\n");
    let flags = ["--orphan-ms", "200", "--build-spool-dir", spool.to_str().unwrap()];
    let mut helper = Agent::with("helper", &flags, &[]);
    assert_eq!(helper.wait().code(), Some(ORPHANED_EXIT_CODE));
}

/// Runs a script that fails, or is stopped, and goes.
fn failed(agent: &Agent, stage: &str, script: &str, stop: bool) -> Instant {
    let mut connection = agent.connect();
    let mut session = Session::new(script);
    session.run.stage = stage.into();
    connection.open_with(Work::Run(session.run.clone()), |open| open.orphan_ms = 100);
    connection.hello();
    session.upload(&mut connection, 0);
    if stop {
        session.read_until(&mut connection, "ready");
        Session::stop(&mut connection, 1000);
    }
    session.finish(&mut connection);
    let start = Instant::now();
    drop(connection);
    start
}

#[test]
fn a_stage_that_may_be_tried_again_earns_time() {
    let flags = ["--orphan-ms", "100000", "--failed-orphan-ms", "1500"];
    for (stage, script, stop, earns) in [
        ("get_sources", "exit 0", false, false),
        ("get_sources", "exit 1", false, true),
        ("get_sources", "echo ready; sleep 99", true, false),
        // By hand.
        ("step_run", "exit 1", false, false),
    ] {
        let mut helper = Agent::with("helper", &flags, &[]);
        let start = failed(&helper, stage, script, stop);
        assert_eq!(helper.wait().code(), Some(ORPHANED_EXIT_CODE));
        let waited = start.elapsed();
        // Sooner than at once by the clocks' grain.
        assert!(waited >= Duration::from_millis(if earns { 1490 } else { 90 }), "{script}: {waited:?}");
        assert!(earns || waited < Duration::from_millis(1400), "{script}: {waited:?}");
    }
}

#[test]
fn the_jobs_own_script_is_not_tried_again() {
    let build = Agent::with("build", &["--failed-orphan-ms", "1500"], &[]);
    failed(&build, "build_script", "exit 1", false);
    let word = until("the word of a client's end", || {
        let word = std::fs::read_to_string(build.spool_dir().join("client")).unwrap();
        word.starts_with("idle").then_some(word)
    });
    assert_eq!(word.split_whitespace().nth(2), Some("100"));
}
