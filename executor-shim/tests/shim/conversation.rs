//! One conversation over one WebSocket in memory.

use std::future::Future;
use std::time::Duration;

use executor_shim::shim::exec::conversation::{Attempt, Farewell, Progress, Purpose, Stopping, converse};
use executor_shim::shim::exec::session::Session;
use executor_shim::shim::exec::{End, Lost};
use executor_shim::shim::joblog::Stream;
use executor_shim::shim::stage::Container;
use executor_shim::wire::frame::{self, Kind};
use executor_shim::wire::message::{ExitRecord, Hello, Open, RefusalReason, Work};
use futures::{SinkExt, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use crate::fixture::{Sink, Unsaid, attempt, stopping};
use crate::peer::{Peer, ROOM, hello, pair};

const HEADER: u64 = frame::HEADER_LEN as u64;

pub fn record(attempt: &Attempt, out: u64, err: u64, frames: u64) -> ExitRecord {
    ExitRecord {
        attempt: attempt.name.clone(),
        code: Some(0),
        stdout_bytes: out,
        stderr_bytes: err,
        spool_bytes: out + err + frames * HEADER,
        ..ExitRecord::default()
    }
}

/// What is left of a conversation.
pub struct Talked {
    pub end: End,
    pub took: Duration,
    pub progress: Progress,
    pub sink: Sink,
}

/// Talks with a peer that the test plays.
pub async fn talk_with<F, Fut>(attempt: &Attempt, mut stopping: Stopping, mut sink: Sink, play: F) -> Talked
where
    F: FnOnce(Peer) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (socket, peer) = pair().await;
    let played = tokio::spawn(play(peer));
    let mut progress = Progress::default();
    let open = attempt.open(Purpose::Run, 0);
    let start = Instant::now();
    let end = match Session::greet(socket, &open, Container::Build).await {
        Err(end) => end,
        Ok((mut session, hello)) => {
            let talk = (&mut session, &hello);
            converse(talk, Purpose::Run, attempt, &mut progress, &mut stopping, (&mut sink, &mut Unsaid))
                .await
        }
    };
    let took = start.elapsed();
    // What the peer expects may only show after the end. Some never come to an end of their own.
    if let Ok(played) = tokio::time::timeout(Duration::from_secs(3600), played).await {
        played.unwrap();
    }
    Talked { end, took, progress, sink }
}

async fn talk<F, Fut>(play: F) -> Talked
where
    F: FnOnce(Peer, Attempt) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let attempt = attempt("echo hi");
    let (_interrupter, stopping) = stopping();
    let play = |peer| play(peer, attempt.clone());
    talk_with(&attempt, stopping, Sink::default(), play).await
}

/// Waits until the connection is closed by the shim.
pub async fn linger(mut peer: Peer) {
    while peer.message().await.is_some() {}
}

#[tokio::test(start_paused = true)]
async fn a_whole_conversation() {
    let (tell, told) = tokio::sync::oneshot::channel();
    let talked = talk(|mut peer, attempt| async move {
        let open = peer.greet(false).await;
        let Work::Run(run) = &open.work else { panic!("{open:?}") };
        assert_eq!((run.attempt.as_str(), run.position, run.script_len), (attempt.name.as_str(), 0, 7));
        assert_eq!((open.orphan_ms, run.reap, run.shell.as_str()), (120_000, false, "bash"));
        assert_eq!(peer.script(7).await, b"echo hi");
        peer.frame(Kind::Started, 0, &[]).await;
        peer.frame(Kind::Stdout, 0, b"one ").await;
        peer.frame(Kind::Stderr, 0, b"two ").await;
        peer.frame(Kind::Heartbeat, 0, &[]).await;
        peer.frame(Kind::Stdout, 4, b"three").await;
        let record = record(&attempt, 9, 4, 3);
        peer.json(Kind::Exit, &record).await;
        let ack = peer.next().await.unwrap();
        assert_eq!((ack.kind, ack.offset), (Kind::Ack, record.spool_bytes));
        assert_eq!(peer.next().await.unwrap().kind, Kind::Close);
        assert_eq!(peer.next().await, None, "standard input is closed, and nothing else is");
        tell.send(()).unwrap();
    })
    .await;
    let written: Vec<_> = talked.sink.written.iter().map(|(stream, bytes)| (*stream, &bytes[..])).collect();
    assert_eq!(
        written,
        [(Stream::Stdout, &b"one "[..]), (Stream::Stderr, b"two "), (Stream::Stdout, b"three")],
        "in the order in which the agent read them"
    );
    assert!(matches!(talked.end, End::Exited(ExitRecord { code: Some(0), .. })), "{:?}", talked.end);
    assert!(talked.progress.first_output.is_some());
    told.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn whoever_is_not_meant_is_not_spoken_to() {
    let other = |change: fn(&mut Hello)| {
        let mut hello = hello(false);
        change(&mut hello);
        hello
    };
    for (hello, reason) in [
        (other(|hello| hello.pod_uid = "another".into()), RefusalReason::WrongPod),
        (other(|hello| hello.boot_id = "boot-2".into()), RefusalReason::WrongPod),
        (other(|hello| hello.container = "helper".into()), RefusalReason::WrongPod),
        (other(|hello| hello.protocol = 2), RefusalReason::Protocol),
    ] {
        let talked = talk(|mut peer, _| async move {
            let _: Open = peer.read(Kind::Open).await;
            peer.json(Kind::Hello, &hello).await;
            assert_eq!(peer.next().await, None, "no script may follow");
        })
        .await;
        let End::Refused(refusal) = talked.end else { panic!("{:?}", talked.end) };
        assert_eq!(refusal.reason, reason);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_just_ends_is_lost() {
    let talked = talk(|mut peer, _| async move {
        peer.greet(false).await;
        peer.script(7).await;
        peer.frame(Kind::Started, 0, &[]).await;
        peer.frame(Kind::Stdout, 0, b"all went well").await;
        peer.socket.close(None).await.unwrap();
        linger(peer).await;
    })
    .await;
    assert_eq!(talked.end, End::Lost(Lost::Closed));
    assert_eq!(talked.progress.position, HEADER + 13);
    assert!(talked.progress.started);

    // Without a closing handshake, and in the middle of a frame.
    let talked = talk(|mut peer, _| async move {
        peer.greet(false).await;
        peer.script(7).await;
        peer.say(1, &frame::header(Kind::Stdout, 0, b"all went well")).await;
    })
    .await;
    assert!(matches!(talked.end, End::Lost(Lost::Socket(_))), "{:?}", talked.end);
    assert_eq!(talked.progress.position, 0);
}

#[tokio::test(start_paused = true)]
async fn success_of_the_command_is_no_success_of_the_script() {
    let talked = talk(|mut peer, _| async move {
        peer.greet(false).await;
        peer.script(7).await;
        peer.frame(Kind::Stdout, 0, b"output").await;
        peer.say(3, br#"{"metadata":{},"status":"Success"}"#).await;
        linger(peer).await;
    })
    .await;
    assert_eq!(talked.end, End::Lost(Lost::Ended("the agent's end of the connection ended".into())));
    assert_eq!(talked.sink.text(Stream::Stdout), "output");
}

#[tokio::test(start_paused = true)]
async fn what_the_server_says_is_handed_on() {
    let talked = talk(|mut peer, _| async move {
        let _: Open = peer.read(Kind::Open).await;
        peer.say(2, b"exec failed: no such file\n").await;
        let status = r#"{"status":"Failure","message":"container not found (\"build\")","reason":"InternalError","code":500}"#;
        peer.say(3, status.as_bytes()).await;
        linger(peer).await;
    })
    .await;
    let text = r#"container not found ("build") (exec failed: no such file)"#;
    assert_eq!(talked.end, End::Lost(Lost::Ended(text.into())));
}

#[tokio::test(start_paused = true)]
async fn thirty_seconds_without_a_frame_are_too_long() {
    let talked = talk(|mut peer, _| async move {
        peer.greet(false).await;
        peer.script(7).await;
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(29)).await;
            peer.frame(Kind::Heartbeat, 0, &[]).await;
        }
        // What keeps a proxy's connection alive is no sign of the agent.
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let _ = peer.socket.send(Message::Ping(b"?".to_vec().into())).await;
        }
        linger(peer).await;
    })
    .await;
    assert_eq!(talked.end, End::Lost(Lost::Silent(30)));
    assert_eq!(talked.took, Duration::from_secs(5 * 29 + 30));
}

#[tokio::test(start_paused = true)]
async fn pings_are_answered() {
    let talked = talk(|mut peer, attempt| async move {
        peer.greet(false).await;
        peer.script(7).await;
        peer.socket.send(Message::Ping(b"there?".to_vec().into())).await.unwrap();
        let pong = peer.socket.next().await.unwrap().unwrap();
        assert_eq!(pong, Message::Pong(b"there?".to_vec().into()));
        peer.json(Kind::Exit, &record(&attempt, 0, 0, 0)).await;
        linger(peer).await;
    })
    .await;
    assert!(matches!(talked.end, End::Exited(_)), "{:?}", talked.end);
}

#[tokio::test(start_paused = true)]
async fn output_that_is_damaged_missing_or_doubled_is_not_written() {
    let mut damaged = Vec::new();
    frame::encode(&mut damaged, Kind::Stdout, 3, b"wrong");
    *damaged.last_mut().unwrap() ^= 1;
    let (mut gap, mut again, mut other) = (Vec::new(), Vec::new(), Vec::new());
    frame::encode(&mut gap, Kind::Stdout, 4, b"wrong");
    frame::encode(&mut again, Kind::Stdout, 0, b"wrong");
    frame::encode(&mut other, Kind::Open, 0, b"wrong");
    for (bytes, lost) in [
        (damaged, Lost::Damaged(frame::FrameError::Checksum(Kind::Stdout))),
        (gap, Lost::Gap { want: 3, got: 4 }),
        (again, Lost::Gap { want: 3, got: 0 }),
        (other, Lost::Nonsense("Open while a script runs".into())),
        (b"sh: not found".to_vec(), Lost::Damaged(frame::FrameError::Magic(b's'))),
    ] {
        let talked = talk(|mut peer, _| async move {
            peer.greet(false).await;
            peer.script(7).await;
            peer.frame(Kind::Stdout, 0, b"ok,").await;
            peer.say(1, &bytes).await;
            linger(peer).await;
        })
        .await;
        assert_eq!(talked.end, End::Lost(lost));
        assert_eq!(talked.sink.text(Stream::Stdout), "ok,");
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_without_all_of_the_output_is_no_end() {
    let made: [fn(&mut ExitRecord); 4] = [
        |record| record.stdout_bytes = 4,
        |record| record.stderr_bytes = 1,
        |record| record.spool_bytes += 1,
        |record| record.attempt = "another".into(),
    ];
    for change in made {
        let talked = talk(|mut peer, attempt| async move {
            peer.greet(false).await;
            peer.script(7).await;
            peer.frame(Kind::Stdout, 0, b"abc").await;
            let mut record = record(&attempt, 3, 0, 1);
            change(&mut record);
            peer.json(Kind::Exit, &record).await;
            assert_eq!(peer.next().await, None, "it must not be closed");
        })
        .await;
        assert!(matches!(talked.end, End::Lost(Lost::Incomplete | Lost::Nonsense(_))), "{:?}", talked.end);
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_arrived_is_acknowledged_about_every_mebibyte() {
    const FRAMES: u64 = 80;
    let payload = vec![b'x'; frame::MAX_PAYLOAD];
    let size = payload.len() as u64;
    let (tell, told) = tokio::sync::oneshot::channel();
    let talked = talk(|mut peer, attempt| async move {
        peer.greet(false).await;
        peer.script(7).await;
        for number in 0..FRAMES {
            peer.frame(Kind::Stdout, number * size, &payload).await;
        }
        peer.json(Kind::Exit, &record(&attempt, FRAMES * size, 0, FRAMES)).await;
        let mut acks = Vec::new();
        while let Some(frame) = peer.next().await {
            if frame.kind == Kind::Ack {
                acks.push(frame.offset);
            }
        }
        tell.send(acks).unwrap();
    })
    .await;
    assert!(matches!(talked.end, End::Exited(_)), "{:?}", talked.end);
    let acks = told.await.unwrap();
    assert_eq!(acks.last(), Some(&(FRAMES * (size + HEADER))));
    assert_eq!(acks.len(), 6, "{acks:?}");
    assert!(acks.windows(2).all(|pair| pair[0] <= pair[1]));
}

#[tokio::test(start_paused = true)]
async fn a_job_log_that_is_not_read_slows_the_script_down_and_is_no_silence() {
    let attempt = attempt("echo hi");
    let (_interrupter, stopping) = stopping();
    let (stall, stalled) = watch::channel(true);
    let (count, counted) = watch::channel(0_u64);
    let payload = vec![b'x'; 8 * 1024];
    let size = payload.len() as u64;
    let talked = {
        let record = record(&attempt, 100 * size, 0, 100);
        let play = |mut peer: Peer| async move {
            peer.greet(false).await;
            peer.script(7).await;
            for number in 0..100 {
                peer.frame(Kind::Stdout, number * size, &payload).await;
                count.send_replace(number + 1);
            }
            peer.json(Kind::Exit, &record).await;
            linger(peer).await;
        };
        let watched = async {
            tokio::time::sleep(Duration::from_secs(600)).await;
            let sent = *counted.borrow();
            // What fits into the buffers on the way, the shim's own included.
            assert!(sent * size <= 4 * ROOM as u64, "{sent} frames were taken from the agent");
            stall.send_replace(false);
            stall
        };
        let (talked, _) =
            tokio::join!(talk_with(&attempt, stopping, Sink::stalled_by(stalled), play), watched);
        talked
    };
    assert!(matches!(talked.end, End::Exited(_)), "{:?}", talked.end);
    assert_eq!(talked.sink.of(Stream::Stdout).len() as u64, 100 * size);
}

#[tokio::test(start_paused = true)]
async fn writes_may_be_short() {
    let attempt = attempt("echo hi");
    let (_interrupter, stopping) = stopping();
    let record = record(&attempt, 10, 0, 1);
    let sink = Sink { most: 3, ..Sink::default() };
    let talked = talk_with(&attempt, stopping, sink, |mut peer| async move {
        peer.greet(false).await;
        peer.script(7).await;
        peer.frame(Kind::Stdout, 0, b"0123456789").await;
        peer.json(Kind::Exit, &record).await;
        linger(peer).await;
    })
    .await;
    assert!(matches!(talked.end, End::Exited(_)), "{:?}", talked.end);
    assert_eq!(talked.sink.text(Stream::Stdout), "0123456789");
}

/// Knows why the container is being ended.
struct Drained;

impl Farewell for Drained {
    async fn reason(&mut self) -> String {
        "The node is drained.".into()
    }
}

/// A script that is told to end, and takes so long to.
async fn warned(takes: Duration) -> Vec<String> {
    let attempt = attempt("echo hi");
    let (_interrupter, mut stopping) = stopping();
    let (socket, mut peer) = pair().await;
    let ended = record(&attempt, 0, 0, 0);
    let played = tokio::spawn(async move {
        peer.greet(false).await;
        peer.script(7).await;
        peer.frame(Kind::Started, 0, &[]).await;
        for left in [10_000, 9_000] {
            peer.frame(Kind::Heartbeat, left, &[]).await;
        }
        tokio::time::sleep(takes).await;
        peer.json(Kind::Exit, &ended).await;
        linger(peer).await;
    });
    let (mut progress, mut sink) = (Progress::default(), Sink::default());
    let open = attempt.open(Purpose::Run, 0);
    let (mut session, hello) = Session::greet(socket, &open, Container::Build).await.unwrap();
    let talk = (&mut session, &hello);
    let end =
        converse(talk, Purpose::Run, &attempt, &mut progress, &mut stopping, (&mut sink, &mut Drained)).await;
    assert!(matches!(end, End::Exited(_)), "{end:?}");
    drop(session);
    played.await.unwrap();
    sink.lines
}

#[tokio::test(start_paused = true)]
async fn why_the_container_is_being_ended_is_said_while_the_script_still_runs() {
    let line = "The node is drained. The script has at most 10 s to end before it is killed.";
    assert_eq!(warned(Duration::from_secs(3)).await, [line]);
    assert_eq!(warned(Duration::from_millis(100)).await, Vec::<String>::new(), "the end of the call says it");
}
