//! Scripts that go to the limits of their container, and containers with odd settings.

use nix::sys::signal::Signal;

use super::client::Session;
use super::death::limited;
use super::namespace::Container;
use super::world::Agent;

#[test]
fn a_fork_bomb_is_ended_and_the_next_script_runs() {
    // The limit counts the processes of a user, so it needs one of its own.
    let setup = "exec prlimit --nproc=40 setpriv --reuid=54377 --regid=54377 --clear-groups -- \"$@\"";
    let container = Container::with("build", &[], setup);
    // Of a bounded strength, should the limit not hold.
    let forks = "for (1..300) { my $pid = fork; last if !defined $pid; sleep 1000 if !$pid }";
    let mut bomb = Session::sh(format!(
        "echo ready; exec perl -e '$| = 1; {forks} print \"full\\n\" if $!{{EAGAIN}}; sleep 1000'"
    ));
    let mut connection = container.connect();
    bomb.begin(&mut connection);
    bomb.read_until(&mut connection, "full");
    Session::stop(&mut connection, 60_000);
    let record = bomb.finish(&mut connection);
    assert_eq!((record.signal, record.error), (Some(Signal::SIGTERM as i32), None));
    assert_eq!(container.run("echo next"), "next\n");
}

#[test]
fn a_script_may_become_another_program() {
    let agent = Agent::start();
    let mut session = Session::new("echo one; exec sh -c 'echo two; exec perl -e \"exit 5\"'; echo never");
    let record = session.all(&mut agent.connect());
    assert_eq!((record.code, session.out().as_str()), (Some(5), "one\ntwo\n"));
}

#[test]
fn a_hundred_megabytes_in_one_go_arrive() {
    let agent = Agent::start();
    let mut session = Session::new("head -c 100000000 /dev/zero | tr '\\0' x; echo end >&2");
    let record = session.all(&mut agent.connect());
    assert_eq!((record.code, record.stdout_bytes), (Some(0), 100_000_000));
    assert_eq!(session.stdout.len(), 100_000_000);
    assert!(session.stdout.iter().all(|byte| *byte == b'x'));
    assert_eq!(session.err(), "end\n");
}

#[test]
fn a_container_whose_umask_forbids_everything_works() {
    let setup = "umask 0777; exec setpriv --reuid=54378 --regid=54378 --clear-groups -- \"$@\"";
    let container = Container::with("build", &[], setup);
    assert_eq!(container.run("umask; echo said >&2"), "0777\n", "it is the image's to choose");
    assert_eq!(container.run("echo again"), "again\n");
}

#[test]
fn an_agent_without_standard_streams_works() {
    let agent = limited("exec 0<&- 1>&-");
    let mut session = Session::new("echo one; exec 0<&-; cat; echo \"cat $?\"");
    let record = session.all(&mut agent.connect());
    assert_eq!((record.code, session.out().as_str()), (Some(0), "one\ncat 1\n"));
}

#[test]
fn what_crashes_leaves_no_core_file_unless_the_script_wants_one() {
    let agent = limited("ulimit -S -c unlimited 2>/dev/null || ulimit -S -c $(ulimit -H -c)");
    let mut session = Session::new("ulimit -S -c; ulimit -S -c $(ulimit -H -c); ulimit -S -c; ulimit -H -c");
    assert_eq!(session.all(&mut agent.connect()).code, Some(0), "{}", session.err());
    let out = session.out();
    let limits: Vec<_> = out.lines().collect();
    let [first, raised, most] = limits.as_slice() else { panic!("{out}") };
    assert_eq!((*first, raised), ("0", most));
    let own = std::fs::read_to_string(format!("/proc/{}/limits", agent.child.id())).unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(own.split_whitespace().next(), Some("0"), "{own}");
}
