//! One script over as many connections as it takes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use executor_shim::shim::exec::connect::ConnectError;
use executor_shim::shim::exec::conversation::{Attempt, Progress, Stopping};
use executor_shim::shim::joblog::Stream;
use executor_shim::shim::run::supervise::{JobEnd, Verdict, supervise};
use executor_shim::shim::signals::Cause;
use executor_shim::shim::stage::Container;
use executor_shim::wire::frame::Kind;
use executor_shim::wire::message::{ExitRecord, Refusal, RefusalReason, Stop};
use proptest::prelude::*;
use roadstead_crds::Reason;
use tokio::time::Instant;

use crate::agent::{Agent, Look, Script, Try};
use crate::fixture::{GRACE, Sink, attempt, stopping};

struct Supervised {
    verdict: Verdict,
    reconnects: u32,
    sink: Sink,
    look: Look,
}

async fn run(script: &Script, mut look: Look, mut stopping: Stopping, attempt: &Attempt) -> Supervised {
    let (mut progress, mut sink) = (Progress::default(), Sink::default());
    let (verdict, reconnects) =
        supervise(script, &mut look, attempt, &mut progress, &mut stopping, &mut sink).await;
    Supervised { verdict, reconnects, sink, look }
}

async fn supervised(script: &Script) -> Supervised {
    let (_end, look) = Look::new();
    let (_interrupter, stopping) = stopping();
    run(script, look, stopping, &attempt("echo hi")).await
}

fn whole() -> usize {
    usize::MAX
}

fn gone() -> Try {
    Try::Fail(ConnectError::NotReady("container not found (\"build\")".into()))
}

fn short_script() -> Arc<Mutex<Agent>> {
    Agent::of(&attempt("echo hi"), &[(Kind::Stdout, b"out".to_vec()), (Kind::Stderr, b"err".to_vec())])
}

fn pieces() -> impl Strategy<Value = Vec<(Kind, Vec<u8>)>> {
    let kind = prop_oneof![Just(Kind::Stdout), Just(Kind::Stderr)];
    prop::collection::vec((kind, prop::collection::vec(any::<u8>(), 1..3000)), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn wherever_the_line_breaks_every_byte_arrives_once(pieces in pieces(), cuts in prop::collection::vec(1usize..9000, 0..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let agent = Agent::of(&attempt("echo hi"), &pieces);
        let script = Script::new(cuts.into_iter().map(|cut| Try::agent(&agent, cut)), {
            let agent = Arc::clone(&agent);
            move || Try::agent(&agent, whole())
        });
        let supervised = runtime.block_on(async {
            let supervised = supervised(&script).await;
            // The last words are on their way.
            tokio::time::sleep(Duration::from_secs(1)).await;
            supervised
        });
        let agent = agent.lock().unwrap();
        prop_assert_eq!(&supervised.verdict, &Verdict::Exited(agent.record.clone()));
        for (stream, wanted) in [(Stream::Stdout, Kind::Stdout), (Stream::Stderr, Kind::Stderr)] {
            let sent: Vec<u8> = pieces.iter().filter(|(kind, _)| *kind == wanted).flat_map(|(_, bytes)| bytes.clone()).collect();
            prop_assert!(supervised.sink.of(stream) == sent);
        }
        let order: Vec<_> = pieces.iter().map(|(kind, _)| *kind == Kind::Stdout).collect();
        let written: Vec<_> = supervised.sink.written.iter().map(|(stream, _)| *stream == Stream::Stdout).collect();
        prop_assert_eq!(written, order, "in the order of the agent");
        prop_assert_eq!(agent.starts, 1);
        prop_assert!(agent.closed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_script_out_of_reach_is_given_up_after_five_minutes() {
    let start = Instant::now();
    let script = Script::new([], Try::trouble);
    let supervised = supervised(&script).await;
    let Verdict::GivenUp { reason, after } = supervised.verdict else { panic!("{:?}", supervised.verdict) };
    assert_eq!(reason, "connection refused");
    assert!(after >= Duration::from_secs(300) && start.elapsed() < Duration::from_secs(306), "{after:?}");
    assert!(script.made().len() < 30, "{} connections", script.made().len());
}

#[tokio::test(start_paused = true)]
async fn the_longer_an_interruption_the_fewer_the_tries() {
    for seconds in [1, 10, 60, 240] {
        let agent = short_script();
        let start = Instant::now();
        let back = start + Duration::from_secs(seconds);
        let script = Script::new([Try::agent(&agent, 300)], move || {
            if Instant::now() < back { Try::trouble() } else { Try::agent(&agent, whole()) }
        });
        let supervised = supervised(&script).await;
        assert!(matches!(supervised.verdict, Verdict::Exited(_)), "{:?}", supervised.verdict);
        let late = Instant::now() - back;
        assert!(
            late <= Duration::from_secs(5).max(Duration::from_secs(seconds) / 4),
            "{seconds} s: {late:?}"
        );
        let tries = script.made().len();
        assert!(tries <= 30, "{seconds} s: {tries} tries");
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_answers_and_is_not_ready_is_asked_again_soon() {
    for (down, starting) in [(10, 5), (60, 5), (60, 20), (200, 5)] {
        let agent = short_script();
        let up = Instant::now() + Duration::from_secs(down);
        let ready = up + Duration::from_secs(starting);
        let script = Script::new([Try::agent(&agent, 300)], move || match Instant::now() {
            now if now < up => Try::trouble(),
            now if now < ready => Try::Fail(ConnectError::Unable("not yet ready to handle request".into())),
            _ => Try::agent(&agent, whole()),
        });
        let supervised = supervised(&script).await;
        assert!(matches!(supervised.verdict, Verdict::Exited(_)), "{:?}", supervised.verdict);
        // The one wait that grew with the outage, and a short one.
        let late = Instant::now() - ready;
        let most = Duration::from_secs(down / 4 + 5).saturating_sub(Duration::from_secs(starting));
        assert!(late <= most.max(Duration::from_secs(6)), "{down} s, {starting} s: {late:?}");
        assert!(script.made().len() <= 40, "{} tries", script.made().len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_quiet_script_on_a_line_that_breaks_now_and_then_goes_on() {
    let agent = short_script();
    let quiet = || {
        Try::play(|mut peer| async move {
            peer.greet(true).await;
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(10)).await;
                peer.frame(Kind::Heartbeat, 0, &[]).await;
            }
        })
    };
    agent.lock().unwrap().starts = 1;
    let hour = (0..120).map(|_| quiet()).chain([Try::agent(&agent, whole())]);
    let script = Script::new(hour, Try::trouble);
    let start = Instant::now();
    let supervised = supervised(&script).await;
    assert!(matches!(supervised.verdict, Verdict::Exited(_)), "{:?}", supervised.verdict);
    assert!(start.elapsed() > Duration::from_secs(3600));
    assert_eq!(supervised.reconnects, 120);
    assert_eq!(supervised.sink.lines, [""; 0], "no interruption was long");
}

#[tokio::test(start_paused = true)]
async fn only_a_long_interruption_is_told() {
    let agent = short_script();
    let failures = |n| (0..n).map(|_| Try::trouble());
    let cut = || Try::agent(&agent, 300);
    let script = Script::new(
        [cut()].into_iter().chain(failures(2)).chain([Try::agent(&agent, whole())]),
        Try::trouble,
    );
    assert_eq!(supervised(&script).await.sink.lines, [""; 0]);

    let agent = short_script();
    let cut = Try::agent(&agent, 300);
    let script =
        Script::new([cut].into_iter().chain(failures(12)).chain([Try::agent(&agent, whole())]), Try::trouble);
    let lines = supervised(&script).await.sink.lines;
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0], "the connection to the job's pod is lost, trying again: connection refused");
    assert!(lines[1].starts_with("the connection to the job's pod is back after "), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_has_ended_is_not_waited_for() {
    let agent = short_script();
    let (end, look) = Look::new();
    let (_interrupter, stopping) = stopping();
    let ended = JobEnd::Final { reason: Some(Reason::PodEvicted), message: Some("the node is full".into()) };
    end.send_replace(Some(ended.clone()));
    let script = Script::new([Try::agent(&agent, 300)], Try::trouble);
    let start = Instant::now();
    let supervised = run(&script, look, stopping, &attempt("echo hi")).await;
    assert_eq!(supervised.verdict, Verdict::JobEnded(ended));
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn the_cijob_is_not_looked_at_while_the_line_holds_or_comes_back_at_once() {
    let agent = short_script();
    let script = Script::new(
        [Try::agent(&agent, 300), Try::agent(&agent, 500), Try::agent(&agent, whole())],
        Try::trouble,
    );
    let supervised = supervised(&script).await;
    assert!(matches!(supervised.verdict, Verdict::Exited(_)), "{:?}", supervised.verdict);
    assert!(!supervised.look.asked);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_never_opens_does_not_keep_a_stopped_call() {
    let (interrupter, stopping) = stopping();
    let (_end, look) = Look::new();
    let script = Script::new([Try::Hang], Try::trouble);
    let interrupt = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        interrupter.interrupt(Cause::Signal);
    };
    let start = Instant::now();
    let attempt = attempt("echo hi");
    let (supervised, ()) = tokio::join!(run(&script, look, stopping, &attempt), interrupt);
    assert_eq!(supervised.verdict, Verdict::StoppedBlindly);
    assert_eq!(start.elapsed(), Duration::from_secs(3), "nothing was sent, so nobody has to be told");
}

#[tokio::test(start_paused = true)]
async fn a_wish_to_end_is_delivered_over_a_new_connection() {
    let (interrupter, stopping) = stopping();
    let (_end, look) = Look::new();
    let attempt = attempt("echo hi");
    let first = Try::play(move |mut peer| async move {
        peer.greet(false).await;
        peer.script(7).await;
        peer.frame(Kind::Started, 0, &[]).await;
        peer.frame(Kind::Heartbeat, 0, &[]).await;
        interrupter.interrupt(Cause::Signal);
    });
    let record =
        ExitRecord { attempt: attempt.name.clone(), code: Some(1), stopped: true, ..ExitRecord::default() };
    let sent = record.clone();
    let second = Try::play(|mut peer| async move {
        peer.greet(true).await;
        let _: Stop = peer.read(Kind::Stop).await;
        peer.json(Kind::Exit, &sent).await;
        while peer.next().await.is_some() {}
    });
    let script = Script::new([first, second], Try::trouble);
    let supervised = run(&script, look, stopping, &attempt).await;
    assert_eq!(supervised.verdict, Verdict::Exited(record));
}

#[tokio::test(start_paused = true)]
async fn a_wish_to_end_that_cannot_be_delivered_does_not_take_long() {
    let (interrupter, stopping) = stopping();
    let (_end, look) = Look::new();
    let first = Try::play(move |mut peer| async move {
        peer.greet(false).await;
        peer.script(7).await;
        peer.frame(Kind::Started, 0, &[]).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        interrupter.interrupt(Cause::Signal);
    });
    let script = Script::new([first], || Try::Hang);
    let start = Instant::now();
    let supervised = run(&script, look, stopping, &attempt("echo hi")).await;
    assert_eq!(supervised.verdict, Verdict::StoppedBlindly);
    assert!(start.elapsed() <= Duration::from_secs(1) + GRACE + Duration::from_secs(5));

    let agent = short_script();
    let (interrupter, stopping) = crate::fixture::stopping();
    let (_end, look) = Look::new();
    interrupter.interrupt(Cause::Signal);
    let script = Script::new([Try::agent(&agent, 300)], Try::trouble);
    let start = Instant::now();
    let supervised = run(&script, look, stopping, &attempt("echo hi")).await;
    assert_eq!(supervised.verdict, Verdict::StoppedBlindly);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_allowed_is_not_tried_again() {
    let script = Script::new([], || Try::Fail(ConnectError::Denied("no".into())));
    assert_eq!(supervised(&script).await.verdict, Verdict::Denied("no".into()));
    assert_eq!(script.made().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_allowed_may_be_so_again() {
    let denied = || Try::Fail(ConnectError::Denied("no".into()));
    let agent = short_script();
    let script =
        Script::new([Try::agent(&agent, 300), denied(), denied(), Try::agent(&agent, whole())], denied);
    assert!(matches!(supervised(&script).await.verdict, Verdict::Exited(_)));

    // However long nobody answered before.
    let agent = short_script();
    let start = Instant::now();
    let script = Script::new([Try::agent(&agent, 300)], move || match start.elapsed().as_secs() {
        0..100 => Try::trouble(),
        100..140 => denied(),
        _ => Try::agent(&agent, whole()),
    });
    assert!(matches!(supervised(&script).await.verdict, Verdict::Exited(_)));

    let start = Instant::now();
    let script = Script::new([Try::agent(&short_script(), 300)], denied);
    assert_eq!(supervised(&script).await.verdict, Verdict::Denied("no".into()));
    // A try comes at most a fifth of the outage later than the limit.
    assert!(start.elapsed() < Duration::from_secs(75), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_container_has_left_is_collected() {
    use Container::{Build, Helper};
    // Its script had ended.
    let agent = short_script();
    let script = Script::new([Try::agent(&agent, 330), gone(), Try::agent(&agent, whole())], Try::trouble);
    let supervised = supervised(&script).await;
    assert_eq!(supervised.verdict, Verdict::Exited(agent.lock().unwrap().record.clone()));
    assert_eq!(
        (supervised.sink.text(Stream::Stdout), supervised.sink.text(Stream::Stderr)),
        ("out".into(), "err".into())
    );
    assert_eq!(script.made(), [Build, Build, Helper]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_container_is_explained_by_the_cijob() {
    let oom = JobEnd::Final { reason: Some(Reason::OutOfMemory), message: Some("out of memory".into()) };
    for explanation in [Some(oom), None] {
        let agent = short_script();
        let (end, look) = Look::new();
        let (_interrupter, stopping) = stopping();
        let dead = {
            let mut agent = agent.lock().unwrap();
            let error = Some("the build container died before the script ended".to_owned());
            let (attempt, spool_bytes) = (agent.record.attempt.clone(), agent.record.spool_bytes);
            agent.record = ExitRecord { attempt, spool_bytes, error, ..ExitRecord::default() };
            agent.record.clone()
        };
        let script = Script::new([Try::agent(&agent, 330), gone(), Try::agent(&agent, whole())], gone);
        let explain = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            end.send_replace(explanation.clone());
        };
        let attempt = attempt("echo hi");
        let (supervised, ()) = tokio::join!(run(&script, look, stopping, &attempt), explain);
        let expected = explanation.map_or(Verdict::Died(dead), Verdict::JobEnded);
        assert_eq!(supervised.verdict, expected);
        assert_eq!(supervised.sink.text(Stream::Stderr), "err", "the output is delivered all the same");
    }
}

#[tokio::test(start_paused = true)]
async fn a_script_that_arrived_damaged_is_sent_again_but_not_for_ever() {
    let refusal = Refusal { reason: RefusalReason::Script, message: "checksum mismatch".into() };
    let refuse = |refusal: Refusal| {
        Try::play(|mut peer| async move {
            peer.greet(false).await;
            peer.script(7).await;
            peer.json(Kind::Refused, &refusal).await;
            while peer.next().await.is_some() {}
        })
    };
    let agent = short_script();
    let script = Script::new([refuse(refusal.clone()), Try::agent(&agent, whole())], Try::trouble);
    assert!(matches!(supervised(&script).await.verdict, Verdict::Exited(_)));

    let again = refusal.clone();
    let script = Script::new([], move || refuse(again.clone()));
    assert_eq!(supervised(&script).await.verdict, Verdict::Refused(refusal));
    assert_eq!(script.made().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn damage_that_repeats_itself_ends_the_stage() {
    let agent = short_script();
    agent.lock().unwrap().record.stdout_bytes += 1;
    let script = Script::new([], move || Try::agent(&agent, whole()));
    let supervised = supervised(&script).await;
    let Verdict::GivenUp { reason, .. } = supervised.verdict else { panic!("{:?}", supervised.verdict) };
    assert_eq!(reason, "the script's output is incomplete");
    assert_eq!(supervised.sink.text(Stream::Stdout), "out");
    assert!(script.made().len() <= 4, "{:?}", script.made());
}
