//! Conversations that shall end early.

use std::time::Duration;

use executor_shim::shim::exec::{End, Lost};
use executor_shim::shim::joblog::Stream;
use executor_shim::shim::signals::Cause;
use executor_shim::wire::frame::Kind;
use executor_shim::wire::message::{ExitRecord, Stop};
use tokio::sync::watch;

use crate::conversation::{linger, record, talk_with};
use crate::fixture::{GRACE, Sink, attempt, stopping};

#[tokio::test(start_paused = true)]
async fn a_wish_to_end_stops_the_script_and_waits_for_its_last_words() {
    let attempt = attempt("echo hi");
    let (interrupter, stopping) = stopping();
    let record = ExitRecord { code: Some(1), stopped: true, ..record(&attempt, 4, 0, 1) };
    let talked = talk_with(&attempt, stopping, Sink::default(), |mut peer| async move {
        peer.greet(false).await;
        peer.script(7).await;
        peer.frame(Kind::Started, 0, &[]).await;
        interrupter.interrupt(Cause::Signal);
        let stop: Stop = peer.read(Kind::Stop).await;
        assert_eq!(u128::from(stop.grace_ms), GRACE.as_millis());
        interrupter.interrupt(Cause::Signal);
        tokio::time::sleep(GRACE).await;
        peer.frame(Kind::Stdout, 0, b"bye\n").await;
        peer.json(Kind::Exit, &record).await;
        assert_eq!(peer.next().await.unwrap().kind, Kind::Ack, "the script is stopped once");
        linger(peer).await;
    })
    .await;
    assert!(matches!(talked.end, End::Exited(ExitRecord { stopped: true, .. })), "{:?}", talked.end);
    assert_eq!(talked.sink.text(Stream::Stdout), "bye\n");
}

#[tokio::test(start_paused = true)]
async fn a_script_that_does_not_end_is_not_waited_for() {
    let attempt = attempt("echo hi");
    let (interrupter, stopping) = stopping();
    interrupter.interrupt(Cause::Signal);
    let talked = talk_with(&attempt, stopping, Sink::default(), |mut peer| async move {
        peer.greet(true).await;
        let _: Stop = peer.read(Kind::Stop).await;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            peer.frame(Kind::Heartbeat, 0, &[]).await;
        }
    })
    .await;
    assert_eq!(talked.end, End::Lost(Lost::Overdue));
    assert_eq!(talked.took, GRACE + Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_wish_to_end_gets_through_while_the_job_log_stands_still() {
    let attempt = attempt("echo hi");
    let (interrupter, stopping) = stopping();
    let (_stall, stalled) = watch::channel(true);
    let (tell, told) = tokio::sync::oneshot::channel();
    let talked = talk_with(&attempt, stopping, Sink::stalled_by(stalled), |mut peer| async move {
        peer.greet(true).await;
        peer.frame(Kind::Stdout, 0, b"nobody reads this").await;
        tokio::time::sleep(Duration::from_secs(100)).await;
        interrupter.interrupt(Cause::Signal);
        let _: Stop = peer.read(Kind::Stop).await;
        tell.send(()).unwrap();
        linger(peer).await;
    })
    .await;
    told.await.unwrap();
    assert_eq!(talked.end, End::Lost(Lost::Overdue));
}

#[tokio::test(start_paused = true)]
async fn a_script_that_was_not_sent_is_not_sent_any_more() {
    let attempt = attempt("echo hi");
    let (interrupter, mut stopping) = stopping();
    interrupter.interrupt(Cause::Signal);
    stopping.next(false).await;
    let talked = talk_with(&attempt, stopping, Sink::default(), |mut peer| async move {
        peer.greet(false).await;
        assert_eq!(peer.next().await, None);
    })
    .await;
    assert_eq!(talked.end, End::Lost(Lost::NotStarted));
}

#[tokio::test(start_paused = true)]
async fn output_that_cannot_be_written_stops_the_script() {
    let attempt = attempt("echo hi");
    let (_interrupter, stopping) = stopping();
    let record = ExitRecord { code: Some(1), ..record(&attempt, 6, 3, 3) };
    let sink = Sink { broken_after: Some(1), ..Sink::default() };
    let talked = talk_with(&attempt, stopping, sink, |mut peer| async move {
        peer.greet(true).await;
        peer.frame(Kind::Stdout, 0, b"one").await;
        peer.frame(Kind::Stdout, 3, b"two").await;
        let _: Stop = peer.read(Kind::Stop).await;
        peer.frame(Kind::Stderr, 0, b"bye").await;
        peer.json(Kind::Exit, &record).await;
        linger(peer).await;
    })
    .await;
    // The rest is read, so that the script can end, and dropped.
    assert!(matches!(talked.end, End::Exited(_)), "{:?}", talked.end);
    assert_eq!(talked.sink.text(Stream::Stdout), "one");
    assert!(talked.progress.output_error.is_some());
}
