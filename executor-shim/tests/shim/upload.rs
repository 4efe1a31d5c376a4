//! The script on its way to the agent.

use std::time::Duration;

use executor_shim::shim::exec::End;
use executor_shim::shim::exec::conversation::{Progress, Purpose, converse};
use executor_shim::shim::exec::session::Session;
use executor_shim::shim::stage::Container;
use executor_shim::wire::frame::Kind;
use executor_shim::wire::message::{Refusal, RefusalReason, Work};

use crate::conversation::{linger, record, talk_with};
use crate::fixture::{Sink, Unsaid, attempt, stopping};
use crate::peer::pair;

#[tokio::test(start_paused = true)]
async fn a_refusal_is_heard_while_a_long_script_is_sent() {
    let attempt = attempt(vec![b'#'; 5_000_000]);
    let (_interrupter, stopping) = stopping();
    let refusal = Refusal { reason: RefusalReason::NoShell, message: "no shell".into() };
    let said = refusal.clone();
    let talked = talk_with(&attempt, stopping, Sink::default(), |mut peer| async move {
        peer.greet(false).await;
        // It does not read the script.
        peer.json(Kind::Refused, &said).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
    })
    .await;
    assert_eq!(talked.end, End::Refused(refusal));
}

#[tokio::test(start_paused = true)]
async fn a_long_script_arrives_whole() {
    let script: Vec<u8> = (0..1_000_003_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let attempt = attempt(script.clone());
    let (_interrupter, stopping) = stopping();
    let record = record(&attempt, 0, 0, 0);
    let talked = talk_with(&attempt, stopping, Sink::default(), |mut peer| async move {
        let open = peer.greet(false).await;
        let Work::Run(run) = open.work else { panic!() };
        let arrived = peer.script(script.len()).await;
        assert!(arrived == script);
        assert_eq!((run.script_len, run.script_crc), (script.len() as u64, crc32fast::hash(&script)));
        peer.json(Kind::Exit, &record).await;
        linger(peer).await;
    })
    .await;
    assert!(matches!(talked.end, End::Exited(_)), "{:?}", talked.end);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_has_forgotten_the_stage_is_not_sent_it_again() {
    let attempt = attempt("echo hi");
    let (socket, mut peer) = pair().await;
    let (_interrupter, mut stopping) = stopping();
    let play = async {
        peer.greet(false).await;
        assert_eq!(peer.next().await, None, "no script may follow");
    };
    let talk = async {
        let mut progress = Progress { started: true, position: 0, ..Progress::default() };
        let open = attempt.open(Purpose::Run, 0);
        let (mut session, hello) = Session::greet(socket, &open, Container::Build).await.unwrap();
        let mut sink = Sink::default();
        converse(
            (&mut session, &hello),
            Purpose::Run,
            &attempt,
            &mut progress,
            &mut stopping,
            (&mut sink, &mut Unsaid),
        )
        .await
    };
    let (end, ()) = tokio::join!(talk, play);
    assert!(matches!(end, End::Refused(Refusal { reason: RefusalReason::Start, .. })), "{end:?}");
}
