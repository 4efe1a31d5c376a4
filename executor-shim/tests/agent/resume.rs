//! Lost connections, and attempts that are known.

use std::time::Duration;

use executor_shim::wire::frame::Kind;
use executor_shim::wire::message::{RefusalReason, Work};

use super::client::{Connection, Session};
use super::world::{Agent, until};

/// A script that tells a file of each of its runs.
fn counted(agent: &Agent) -> (std::path::PathBuf, Session) {
    let mark = agent.dir.path().join("runs");
    let session = Session::new(format!("echo run >>{}; echo out; echo err >&2; exit 4", mark.display()));
    (mark, session)
}

fn runs(mark: &std::path::Path) -> usize {
    std::fs::read_to_string(mark).unwrap_or_default().lines().count()
}

fn wait_for_record(agent: &Agent, session: &Session) {
    until("an exit record", || agent.has_record(&session.run.attempt).then_some(()));
}

#[test]
fn everything_is_kept_until_somebody_comes() {
    let agent = Agent::start();
    let (mark, mut session) = counted(&agent);
    let mut connection = agent.connect();
    assert!(!session.begin(&mut connection));
    assert_eq!(connection.frame().unwrap().kind, Kind::Started);
    drop(connection);
    wait_for_record(&agent, &session);
    let mut connection = agent.connect();
    assert!(session.begin(&mut connection), "the attempt is known");
    assert_eq!(session.finish(&mut connection).code, Some(4));
    assert_eq!((session.out().as_str(), session.err().as_str()), ("out\n", "err\n"));
    assert_eq!(runs(&mark), 1);
}

#[test]
fn a_known_attempt_is_never_started_again() {
    let agent = Agent::start();
    let (mark, mut session) = counted(&agent);
    let record = session.all(&mut agent.connect());
    // Closed: its output is gone, its end is not.
    let spool = agent.spool_dir().join(format!("{}.spool", session.run.attempt));
    until("the end of the spool", || (!spool.exists()).then_some(()));
    let mut connection = agent.connect();
    assert!(session.begin(&mut connection));
    assert_eq!(session.finish(&mut connection), record);
    session.run.position = 0;
    let mut connection = agent.connect();
    connection.open(Work::Run(session.run.clone()));
    assert_eq!(connection.frame().unwrap().refusal().reason, RefusalReason::Position);
    assert_eq!(runs(&mark), 1);
}

#[test]
fn a_script_that_has_not_arrived_is_forgotten() {
    let agent = Agent::start();
    let (mark, mut session) = counted(&agent);
    session.script.extend("\n# the end of a script\n".as_bytes());
    session.run.script_len = session.script.len() as u64;
    session.run.script_crc = crc32fast::hash(&session.script);
    for part in [0, 1, 20, session.script.len() - 1] {
        let mut connection = agent.connect();
        connection.open(Work::Run(session.run.clone()));
        assert!(!connection.hello().known);
        connection.send(Kind::Script, 0, &session.script[..part]);
    }
    assert_eq!(runs(&mark), 0);
    assert_eq!(session.all(&mut agent.connect()).code, Some(4));
    assert_eq!(runs(&mark), 1);
}

#[test]
fn the_newer_connection_replaces_the_older() {
    let agent = Agent::start();
    let mut session = Session::new("echo begin; sleep 1000");
    let mut older = agent.connect();
    session.begin(&mut older);
    session.read_until(&mut older, "begin");
    let mut newer = agent.connect();
    assert!(session.begin(&mut newer));
    assert_eq!(older.frame(), None, "the older one is closed");
    Session::stop(&mut newer, 0);
    assert!(session.finish(&mut newer).stopped);
}

#[test]
fn two_uploads_of_one_attempt_start_it_once() {
    let agent = Agent::start();
    let (mark, mut session) = counted(&agent);
    let mut older = agent.connect();
    older.open(Work::Run(session.run.clone()));
    assert!(!older.hello().known);
    let mut newer = agent.connect();
    assert!(!session.begin(&mut newer));
    let mut late = Vec::new();
    executor_shim::wire::frame::encode(&mut late, Kind::Script, 0, &session.script);
    let _ = older.write(&late);
    assert_eq!(older.frame(), None);
    session.finish(&mut newer);
    assert_eq!(runs(&mark), 1);
}

#[test]
fn a_new_attempt_ends_the_one_that_runs() {
    let agent = Agent::start();
    let mut old = Session::new("trap '' TERM; echo $$; while :; do sleep 0.05; done");
    let mut connection = agent.connect();
    old.begin(&mut connection);
    old.read_until(&mut connection, "\n");
    let mut new = Session::new("kill -0 $OLD 2>/dev/null || echo alone".replace("$OLD", old.out().trim()));
    assert_eq!(new.all(&mut agent.connect()).code, Some(0));
    assert_eq!(new.out(), "alone\n");
    let record = old.finish(&mut connection);
    assert_eq!((record.code, record.signal, record.stopped), (None, Some(9), false));
}

#[test]
fn only_what_is_kept_and_begins_a_frame_can_be_gone_on_from() {
    let agent = Agent::start();
    let mut session = Session::new("head -c 6000000 /dev/zero; sleep 1000");
    let mut connection = agent.connect();
    session.begin(&mut connection);
    while session.stdout.len() < 6_000_000 {
        session.take(&connection.frame().unwrap());
        connection.send(Kind::Ack, session.run.position, &[]);
    }
    // An answer shows that the last acknowledgement was read.
    let mut probe = agent.connect();
    probe.open(Work::Probe { shell: "sh".into() });
    probe.hello();
    let end = session.run.position;
    for (position, fine) in [(0, false), (end - 1, false), (end + 1, false), (u64::MAX, false), (end, true)] {
        let mut connection = agent.connect();
        session.run.position = position;
        connection.open(Work::Run(session.run.clone()));
        let heard = connection.frame().unwrap();
        if fine {
            assert_eq!(heard.kind, Kind::Hello, "{position}");
        } else {
            assert_eq!(heard.refusal().reason, RefusalReason::Position, "{position}");
        }
    }
    let spool = agent.spool_dir().join(format!("{}.spool", session.run.attempt));
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(spool).unwrap());
    assert!(blocks * 512 < 3_000_000, "{blocks} blocks of what has arrived are kept");
}

#[test]
fn what_was_not_sent_cannot_be_acknowledged() {
    let agent = Agent::start();
    let mut session = Session::new("echo x; sleep 1000");
    let mut connection = agent.connect();
    session.begin(&mut connection);
    session.read_until(&mut connection, "x");
    connection.send(Kind::Ack, session.run.position + 1, &[]);
    assert_eq!(connection.frame().unwrap().refusal().reason, RefusalReason::Protocol);
    let mut connection = agent.connect();
    assert!(session.begin(&mut connection), "the attempt is none the worse");
    connection.send(Kind::Close, 0, &[]);
    assert_eq!(connection.frame().unwrap().kind, Kind::Started);
    assert_eq!(connection.frame().unwrap().refusal().reason, RefusalReason::Protocol, "not before the end");
}

#[test]
fn who_has_said_everything_still_hears_everything() {
    let agent = Agent::start();
    for relayed in [false, true] {
        let mut connection = if relayed { Connection::relayed(&agent) } else { agent.connect() };
        let mut session = Session::new("sleep 0.2; seq 1 200000; exit 6");
        assert!(!session.begin(&mut connection));
        // The script must have been started: nobody starts one for a client that has gone.
        session.take(&connection.frame().unwrap());
        connection.shut();
        while session.take(&connection.frame().unwrap()) {}
        assert_eq!(session.record.as_ref().unwrap().code, Some(6));
        assert!(session.out().ends_with("\n200000\n"));
        assert_eq!(connection.frame(), None, "the agent ends what nobody can end any more");
    }
}

#[test]
fn old_attempts_make_room() {
    let agent = Agent::with("build", &["--spool-bytes", "1000000"], &[]);
    let mut sessions: Vec<Session> = (0..3).map(|_| Session::new("head -c 600000 /dev/zero")).collect();
    for session in &mut sessions {
        let mut connection = agent.connect();
        session.begin(&mut connection);
        assert_eq!(connection.frame().unwrap().kind, Kind::Started);
        wait_for_record(&agent, session);
    }
    let kept = |session: &Session| agent.spool_dir().join(format!("{}.spool", session.run.attempt)).exists();
    until("room", || (!kept(&sessions[1])).then_some(()));
    assert_eq!(sessions.iter().map(kept).collect::<Vec<_>>(), [false, false, true]);
    let mut connection = agent.connect();
    assert!(sessions[2].begin(&mut connection));
    sessions[2].finish(&mut connection);
    assert!(connection.is_silent(Duration::from_millis(10)));
}

#[test]
fn output_beyond_the_bound_stays_until_its_reader_has_it() {
    let agent = Agent::with("build", &["--spool-bytes", "100000"], &[]);
    // The spool takes what the bound allows, the pipe the rest, and the script comes to its end.
    let mut session = Session::new("head -c 150000 /dev/zero");
    let mut connection = agent.connect();
    session.begin(&mut connection);
    wait_for_record(&agent, &session);
    session.finish(&mut connection);
    assert_eq!(session.stdout.len(), 150_000);
}

#[test]
fn who_reads_too_late_is_not_left_waiting() {
    let agent = Agent::with("build", &["--spool-bytes", "2000000"], &[]);
    let mut slow = Session::new("head -c 1900000 /dev/zero");
    let mut connection = agent.connect();
    slow.begin(&mut connection);
    wait_for_record(&agent, &slow);
    // Its socket is full and stays so; meanwhile the next stages need the room.
    let mut next = Session::new("head -c 1900000 /dev/zero");
    let mut other = agent.connect();
    next.begin(&mut other);
    wait_for_record(&agent, &next);
    let mut frames = 0;
    while let Some(heard) = connection.frame() {
        frames += 1;
        slow.take(&heard);
    }
    assert!(frames > 0 && slow.record.is_none() && slow.stdout.len() < 1_900_000);
    let mut connection = agent.connect();
    connection.open(Work::Run(slow.run.clone()));
    assert_eq!(connection.frame().unwrap().refusal().reason, RefusalReason::Position);
}
