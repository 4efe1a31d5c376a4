//! What arrives of what scripts write.

use std::time::{Duration, Instant};

use executor_shim::wire::frame::Kind;
use executor_shim::wire::message::Work;

use super::client::{Session, run};
use super::random::Random;
use super::world::{Agent, lives, until};

#[test]
fn twenty_mebibytes_survive_any_number_of_disconnects() {
    const LINES: usize = 1_500_000;
    let agent = Agent::start();
    let script = format!("seq 1 {LINES} & seq 2 2 {} >&2 & wait; printf end; exit 9", 2 * LINES);
    let mut session = Session::new(script);
    let mut random = Random::new(20_260_917);
    let (mut connections, mut rewound) = (0, 0);
    let mut acked = 0;
    let record = 'attempt: loop {
        let mut connection = agent.connect();
        connections += 1;
        session.begin(&mut connection);
        let frames = if connections % 5 == 0 { 3 } else { random.below(25) };
        for _ in 0..frames {
            if !session.take(&connection.frame().unwrap()) {
                break 'attempt session.record.clone().unwrap();
            }
            if random.below(3) == 0 {
                connection.send(Kind::Ack, session.run.position, &[]);
                acked = session.run.position;
            }
        }
        if random.below(2) == 0 {
            rewound += session.rewind(random.below(10), acked);
        }
    };
    assert!(connections > 20, "only {connections} connections");
    assert!(rewound > 0);
    assert_eq!((record.code, record.error), (Some(9), None));
    let expect = |numbers: &mut dyn Iterator<Item = usize>| {
        numbers.fold(String::new(), |mut all, number| {
            use std::fmt::Write;
            writeln!(all, "{number}").unwrap();
            all
        })
    };
    assert!(session.out() == expect(&mut (1..=LINES)) + "end");
    assert!(session.err() == expect(&mut (1..=LINES).map(|number| 2 * number)));
    assert_eq!(record.stdout_bytes, session.stdout.len() as u64);
    assert_eq!(record.stderr_bytes, session.stderr.len() as u64);
    assert_eq!(record.spool_bytes, session.run.position);
    assert!(session.stdout.len() + session.stderr.len() > 20 * 1024 * 1024);
}

#[test]
fn bytes_are_bytes() {
    let script = "for i in {0..255}; do printf -v byte '\\\\x%02x' $i; all+=$byte; done; printf \"$all\"; printf \"$all\" >&2";
    let (session, _) = run(script);
    let expected: Vec<u8> = (0..=255).collect();
    assert_eq!((&session.stdout, &session.stderr), (&expected, &expected));
}

#[test]
fn many_small_writes_arrive_as_they_were() {
    let (session, _) = run("for i in {1..3000}; do printf x; printf y >&2; done");
    assert_eq!(session.out(), "x".repeat(3000));
    assert_eq!(session.err(), "y".repeat(3000));
}

#[test]
fn a_script_may_close_its_output_and_go_on() {
    let (session, record) = run("echo one; exec >&-; sleep 0.1; echo two >&2; exec 2>&-; sleep 0.1; exit 3");
    assert_eq!((session.out().as_str(), session.err().as_str()), ("one\n", "two\n"));
    assert_eq!(record.code, Some(3));
    assert!(record.wall_ms >= 200);
}

#[test]
fn a_holder_of_the_pipes_does_not_hold_up_the_end() {
    let agent = Agent::start();
    let start = Instant::now();
    let mut session = Session::new("sleep 1000 & echo $!");
    let record = session.all(&mut agent.connect());
    assert_eq!(record.code, Some(0));
    assert!(start.elapsed() < Duration::from_secs(10));
    let pid = session.out().trim().parse().unwrap();
    assert!(lives(pid), "it may live on");
    let mut last = Session::new("true");
    last.run.reap = true;
    last.all(&mut agent.connect());
    until("the death of the background process", || (!lives(pid)).then_some(()));
}

#[test]
fn a_late_writer_is_neither_blocked_nor_killed() {
    let agent = Agent::start();
    let mark = agent.dir.path().join("mark");
    // Far more than a pipe holds, after the stage has ended.
    let script = format!("(sleep 0.5; head -c 3000000 /dev/zero && echo ok >{}) & exit 0", mark.display());
    let mut session = Session::new(script);
    session.all(&mut agent.connect());
    assert!(session.stdout.is_empty());
    until("the end of the writer", || std::fs::read_to_string(&mark).ok().filter(|text| text == "ok\n"));
}

#[test]
fn what_a_filter_writes_after_the_shell_is_not_lost() {
    let (session, _) =
        run("exec > >(while read -r line; do sleep 0.02; echo \"late $line\"; done); echo word");
    assert_eq!(session.out(), "late word\n");
}

#[test]
fn a_daemon_is_left_alone_and_reaped() {
    let agent = Agent::start();
    let mut session = Session::new("setsid sh -c 'sleep 1000 & echo $!; exit' </dev/null; sleep 0.1");
    session.all(&mut agent.connect());
    let pid: i32 = session.out().trim().parse().unwrap();
    let parent = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let parent = parent.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse::<u32>();
    assert_eq!(parent, Ok(agent.child.id()), "orphans come to the agent");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let proc = format!("/proc/{pid}");
    until("the reaping", || (!std::path::Path::new(&proc).exists()).then_some(()));
}

#[test]
fn an_agent_with_nothing_to_do_does_nothing() {
    let agent = Agent::start();
    let mut probe = agent.connect();
    probe.open(Work::Probe { shell: "sh".into() });
    probe.hello();
    let mut session = Session::new("echo begin; sleep 1000");
    let mut connection = agent.connect();
    session.begin(&mut connection);
    session.read_until(&mut connection, "begin");
    let before = agent.cpu();
    assert!(probe.is_silent(Duration::from_secs(2)));
    let after = agent.cpu();
    assert_eq!(after.0, before.0, "clock ticks");
    assert!(after.1 - before.1 <= 1, "it woke up {} times", after.1 - before.1);
    let mut last = Session::new("true");
    last.run.reap = true;
    last.all(&mut agent.connect());
}

#[test]
fn silence_is_filled_with_heartbeats() {
    let agent = Agent::with("build", &["--heartbeat-ms", "50"], &[]);
    let mut session = Session::new("sleep 0.5; echo end");
    let mut connection = agent.connect();
    session.begin(&mut connection);
    let mut beats = 0;
    loop {
        let heard = connection.any_frame().unwrap();
        if heard.kind == Kind::Heartbeat {
            beats += 1;
        } else if !session.take(&heard) {
            break;
        }
    }
    assert!((5..=20).contains(&beats), "{beats} heartbeats in half a second");
    assert_eq!(session.out(), "end\n");
}
