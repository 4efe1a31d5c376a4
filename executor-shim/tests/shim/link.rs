//! How often a starting container is tried, and when.

use std::time::Duration;

use executor_shim::shim::exec::connect::ConnectError;
use executor_shim::shim::exec::link::{Link, LinkEvent};
use executor_shim::shim::exec::schedule::Occasion;
use executor_shim::shim::stage::Container;
use executor_shim::wire::PROTOCOL;
use executor_shim::wire::frame::Kind;
use executor_shim::wire::message::{Open, Refusal, RefusalReason, Work};
use tokio::time::Instant;

use crate::agent::{Script, Try};
use crate::peer::POD;

fn open() -> Open {
    let work = Work::Probe { shell: "bash".into() };
    Open { protocol: PROTOCOL, pod_uid: POD.into(), boot_id: None, work, orphan_ms: 120_000 }
}

fn link(script: &Script, occasion: Occasion) -> Link<'_, Script> {
    Link::new(script, Container::Build, open(), occasion)
}

fn not_there() -> Try {
    Try::Fail(ConnectError::NotReady("container not found".into()))
}

/// Lets an hour pass and counts what happens.
async fn an_hour(link: &mut Link<'_, Script>) -> usize {
    let end = Instant::now() + Duration::from_secs(3600);
    let mut events = 0;
    while tokio::time::timeout_at(end, link.next()).await.is_ok() {
        events += 1;
    }
    events
}

#[tokio::test(start_paused = true)]
async fn after_eight_tries_only_a_change_leads_to_another() {
    let script = Script::new([], not_there);
    let mut link = link(&script, Occasion::FirstOfNode);
    assert_eq!(an_hour(&mut link).await, 8);
    for tries in 9..12 {
        link.status_changed(false);
        an_hour(&mut link).await;
        assert_eq!(script.made().len(), tries);
    }
    // Now it should really be there.
    link.status_changed(true);
    an_hour(&mut link).await;
    assert_eq!(script.made().len(), 11 + 8);
    link.status_changed(true);
    an_hour(&mut link).await;
    assert_eq!(script.made().len(), 11 + 8 + 1);
}

#[tokio::test(start_paused = true)]
async fn changes_do_not_hurry_a_series_along() {
    let script = Script::new([], not_there);
    let mut link = link(&script, Occasion::FirstOfNode);
    for _ in 0..100 {
        link.status_changed(false);
        let _ = tokio::time::timeout(Duration::from_millis(1), link.next()).await;
    }
    assert_eq!(script.made().len(), 0, "the first try is due after 300 ms");
}

#[tokio::test(start_paused = true)]
async fn running_containers_are_tried_at_once() {
    let agent = || {
        Try::play(|mut peer| async move {
            peer.greet(false).await;
            while peer.next().await.is_some() {}
        })
    };
    let script = Script::new([agent()], not_there);
    let mut link = link(&script, Occasion::FirstOfNode);
    link.status_changed(true);
    let start = Instant::now();
    let LinkEvent::Up(hello) = link.next().await else { panic!() };
    assert_eq!((hello.pod_uid.as_str(), start.elapsed()), (POD, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_kept_and_taken_up_again_but_not_for_ever() {
    let agent = || {
        Try::play(|mut peer| async move {
            peer.greet(false).await;
            for _ in 0..6 {
                tokio::time::sleep(Duration::from_secs(10)).await;
                peer.frame(Kind::Heartbeat, 0, &[]).await;
            }
        })
    };
    let script = Script::new([], agent);
    let mut link = link(&script, Occasion::Running);
    assert!(matches!(link.next().await, LinkEvent::Up(_)));
    let start = Instant::now();
    assert!(matches!(link.next().await, LinkEvent::Down(_)));
    assert!(start.elapsed() >= Duration::from_secs(60), "heartbeats keep it");
    an_hour(&mut link).await;
    assert_eq!(script.made().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn what_will_not_change_is_told_at_once() {
    let refusal = Refusal { reason: RefusalReason::WrongPod, message: "another pod".into() };
    let refuse = {
        let refusal = refusal.clone();
        Try::play(move |mut peer| async move {
            let _: Open = peer.read(Kind::Open).await;
            peer.json(Kind::Refused, &refusal).await;
            while peer.next().await.is_some() {}
        })
    };
    let denied = Try::Fail(ConnectError::Denied("no".into()));
    let script = Script::new([refuse, denied], not_there);
    let mut refused = link(&script, Occasion::Running);
    let LinkEvent::Refused(found) = refused.next().await else { panic!() };
    assert_eq!(found, refusal);
    assert!(matches!(link(&script, Occasion::Running).next().await, LinkEvent::Denied(_)));
}
