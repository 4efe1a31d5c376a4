//! Scripts that run from their start to their end.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use executor_shim::wire::frame::Kind;
use executor_shim::wire::message::{Open, RefusalReason, Work};

use super::client::{Session, run};
use super::world::{Agent, POD, binary};

#[test]
fn exit_codes_are_handed_on() {
    let agent = Agent::start();
    for code in [0, 1, 42, 137, 255] {
        let record = Session::new(format!("exit {code}")).all(&mut agent.connect());
        assert_eq!((record.code, record.signal, record.error), (Some(code), None, None));
        assert!(!record.stopped);
    }
}

#[test]
fn signals_are_told_from_exit_codes() {
    let agent = Agent::start();
    // 34 is a real-time signal: it has no name.
    for signal in [9, 6, 15, 34] {
        let start = Instant::now();
        let record =
            Session::new(format!("sleep 1000 & kill -{signal} $$; sleep 1000")).all(&mut agent.connect());
        assert_eq!((record.code, record.signal), (None, Some(signal)));
        assert!(start.elapsed() < Duration::from_secs(10), "the end came late");
    }
}

#[test]
fn both_streams_arrive_apart_and_in_order() {
    let script = "echo one; sleep 0.1; echo two >&2; sleep 0.1; echo three; sleep 0.1; printf four >&2";
    let (session, record) = run(script);
    assert_eq!((session.out().as_str(), session.err().as_str()), ("one\nthree\n", "two\nfour"));
    let order: Vec<_> = session.order.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(order, [Kind::Stdout, Kind::Stderr, Kind::Stdout, Kind::Stderr]);
    assert!(record.wall_ms >= 300 && record.wall_ms < 30_000, "{}", record.wall_ms);
}

#[test]
fn a_script_finds_a_quiet_and_clean_place() {
    let agent = Agent::with("build", &[], &[("ROADSTEAD_SECRET", "x"), ("KEPT", "y")]);
    let script = r#"
        echo "stdin $(wc -c)"
        echo "env $(env | grep -c ^ROADSTEAD) $KEPT"
        echo "group $(( $(ps -o pgid= -p $$) == $$ ))"
        echo "mask $(grep ^SigBlk /proc/self/status) $(grep ^SigIgn /proc/self/status)"
        ls -l /proc/self/fd | sed -n 's/.* \([0-9]*\) -> /fd \1 /p'
        echo "git $(git config --get-all safe.directory)"
        echo "cwd $PWD"
    "#;
    let mut session = Session::new(script);
    session.all(&mut agent.connect());
    let out = session.out();
    let line = |name: &str| out.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert_eq!(line("stdin"), "stdin 0");
    assert_eq!(line("env"), "env 0 y");
    assert_eq!(line("group"), "group 1");
    let pipe = 1 << (nix::libc::SIGPIPE - 1);
    // Rust ignores SIGPIPE; scripts need it. 32 and 33 are the C library's own.
    let (blocked, ignored) = line("mask").split_once("SigIgn:").map(|(a, b)| (mask(a), mask(b))).unwrap();
    // What the test itself was started with, by nohup for one, is inherited by everything.
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("SigIgn:")).map(mask).unwrap() & !pipe;
    assert_eq!((blocked, ignored & 0x7fff_ffff & !own), (0, 0));
    // 3 is the directory that ls reads. What the test itself was given is inherited by everything.
    for fd in out.lines().filter_map(|line| line.strip_prefix("fd ")) {
        let (number, target) = fd.split_once(' ').unwrap();
        let own = std::fs::read_link(format!("/proc/self/fd/{number}"));
        let inherited = own.is_ok_and(|own| own.to_str() == Some(target));
        assert!(matches!(number, "0" | "1" | "2" | "3") || inherited, "a script inherits {fd}");
    }
    assert!(out.contains("fd 0 /dev/null"), "{out}");
    assert_eq!(line("git"), "git *");
    assert_eq!(line("cwd"), format!("cwd {}", std::env::current_dir().unwrap().display()));
}

fn mask(text: &str) -> u64 {
    u64::from_str_radix(text.split_whitespace().last().unwrap(), 16).unwrap()
}

#[test]
fn the_helper_opens_what_it_makes_to_everybody() {
    for (container, mask, trust) in [("helper", "0000", ""), ("build", "0022", "*")] {
        let agent = Agent::with(container, &[], &[]);
        let mut session = Session::new("umask; git config --get-all safe.directory; true");
        session.all(&mut agent.connect());
        assert_eq!(session.out().trim(), format!("{mask}\n{trust}").trim(), "{container}");
    }
}

#[test]
fn the_runner_has_its_name() {
    let bin = tempfile::tempdir().unwrap();
    let program = bin.path().join("gitlab-runner-helper");
    // Not by this process: a child of another thread could have the file open for writing when it is run.
    let write = r#"printf '#!/bin/sh\necho helper "$@"\n' >"$0"; chmod 755 "$0""#;
    assert!(Command::new("sh").args(["-c", write]).arg(&program).status().unwrap().success());
    let path = format!("{}:{}", bin.path().display(), std::env::var("PATH").unwrap());
    let agent = Agent::with("helper", &[], &[("PATH", &path)]);
    let mut connection = agent.connect();
    connection.open(Work::Probe { shell: "bash".into() });
    let tools = connection.hello().tools.unwrap();
    let link = agent.run_dir().join("bin/gitlab-runner");
    assert_eq!(tools.gitlab_runner.as_deref(), link.to_str());
    assert!(Path::new(&tools.git.unwrap()).is_absolute());
    assert!(tools.shell.unwrap().ends_with("/bash"));
    let mut session = Session::new("gitlab-runner cache-archiver");
    session.all(&mut agent.connect());
    assert_eq!(session.out(), "helper cache-archiver\n");
}

#[test]
fn every_shell_reads_on_after_the_first_line() {
    let agent = Agent::start();
    for script in ["#!/usr/bin/env bash\nexit 7\n", "\n\nexit 7", "exit 7", "# nothing\nexit 7\n"] {
        for mut session in [Session::new(script), Session::sh(script)] {
            assert_eq!(session.all(&mut agent.connect()).code, Some(7), "{script:?}");
        }
    }
    let record = Session::new("").all(&mut agent.connect());
    assert_eq!(record.code, Some(0), "an empty script");
    let mut session = Session::new("#!/usr/bin/env bash\n\nnot_a_command\n");
    session.all(&mut agent.connect());
    assert!(session.err().contains("line 3:"), "{}", session.err());
}

#[test]
fn a_long_script_runs_as_it_was_sent() {
    let body = "x=$((x+1)) # a line that only takes room\n".repeat(60_000);
    let (session, _) = run(&format!("{body}echo $x"));
    assert_eq!(session.out(), "60000\n");
}

#[test]
fn what_is_wrong_is_refused_with_a_sentence() {
    let agent = Agent::start();
    let refused = |change: &dyn Fn(&mut Open)| {
        let mut connection = agent.connect();
        connection.open_with(Work::Run(Session::new("exit 0").run), change);
        let refusal = connection.frame().unwrap().refusal();
        assert_eq!(connection.frame(), None, "something follows a refusal");
        assert!(!refusal.message.is_empty());
        refusal.reason
    };
    assert_eq!(refused(&|open| open.protocol = 99), RefusalReason::Protocol);
    assert_eq!(refused(&|open| open.pod_uid = "x".into()), RefusalReason::WrongPod);
    assert_eq!(refused(&|open| open.boot_id = Some("x".into())), RefusalReason::WrongPod);
    let run = |open: &mut Open, change: &dyn Fn(&mut executor_shim::wire::message::Run)| {
        if let Work::Run(run) = &mut open.work {
            change(run);
        }
    };
    assert_eq!(refused(&|open| run(open, &|run| run.shell = "pwsh".into())), RefusalReason::NoShell);
    assert_eq!(refused(&|open| run(open, &|run| run.position = 1)), RefusalReason::Position);
    assert_eq!(refused(&|open| run(open, &|run| run.script_len = 1 << 40)), RefusalReason::Script);
    assert_eq!(refused(&|open| run(open, &|run| run.attempt = "../x".into())), RefusalReason::Protocol);

    let mut connection = agent.connect();
    connection.write(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(connection.frame().unwrap().refusal().reason, RefusalReason::Protocol);

    let mut session = Session::new("exit 0");
    session.run.script_crc ^= 1;
    let mut connection = agent.connect();
    session.begin(&mut connection);
    assert_eq!(connection.frame().unwrap().refusal().reason, RefusalReason::Script);
}

#[test]
fn a_spool_that_cannot_be_made_is_refused_and_nothing_runs() {
    let agent = Agent::start();
    let mut session = Session::new("echo ran");
    std::fs::write(agent.spool_dir().join(format!("{}.spool", session.run.attempt)), "").unwrap();
    let mut connection = agent.connect();
    session.begin(&mut connection);
    let refusal = connection.frame().unwrap().refusal();
    assert_eq!(refusal.reason, RefusalReason::Start);
    assert!(refusal.message.contains("output"), "{}", refusal.message);
}

#[test]
fn the_version_is_told_and_nonsense_is_not_done() {
    let version = Command::new(binary()).arg("--version").output().unwrap();
    assert!(version.status.success());
    assert_eq!(
        String::from_utf8_lossy(&version.stdout),
        format!("stage-agent {}\n", env!("CARGO_PKG_VERSION"))
    );
    let nonsense = Command::new(binary()).arg("serve").output().unwrap();
    assert_eq!(nonsense.status.code(), Some(2));
}

#[test]
fn a_shell_that_cannot_be_started_is_told_to_the_agent() {
    use std::io::Read;
    let (mut told, tells) = std::io::pipe().unwrap();
    let status = Command::new(binary())
        .args(["start", "/nonexistent/sh", "/proc/self/fd/3"])
        .stdin(tells)
        .status()
        .unwrap();
    let mut sentence = String::new();
    told.read_to_string(&mut sentence).unwrap();
    assert_eq!(status.code(), Some(126));
    assert!(sentence.starts_with("/nonexistent/sh: No such file"), "{sentence}");
}

#[test]
fn the_binary_installs_itself() {
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new(binary()).args(["install", dir.path().to_str().unwrap()]).status();
    assert!(status.unwrap().success());
    let copy = dir.path().join("stage-agent");
    assert!(Command::new(&copy).arg("--version").status().unwrap().success());

    let other = tempfile::tempdir().unwrap();
    let agent = Agent::with("helper", &["--install", other.path().to_str().unwrap()], &[]);
    let mut connection = agent.connect();
    connection.open(Work::Probe { shell: "sh".into() });
    assert_eq!(connection.hello().pod_uid, POD);
    assert!(other.path().join("stage-agent").exists());
}
