//! Elections against a server that keeps one Lease as the real one does.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use futures::stream;
use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use kube::core::Status;
use serde::Serialize;
use tokio::time::Instant;
use tower::service_fn;

use super::*;
use crate::lead::Terms;

const NAME: &str = "roadstead-operator";

#[derive(Clone)]
struct Server {
    lease: watch::Sender<Option<Lease>>,
    /// Candidates that get no answer.
    deaf: Arc<Mutex<BTreeSet<String>>>,
}

impl Server {
    fn new() -> Self {
        Self { lease: watch::channel(None).0, deaf: Arc::default() }
    }

    /// Carries out a write for the version that it has.
    fn write(&self, mut lease: Lease) -> Option<Lease> {
        let mut written = None;
        self.lease.send_if_modified(|current| {
            let version = |lease: &Lease| lease.metadata.resource_version.clone();
            let known = current.as_ref().and_then(version);
            if known != version(&lease) {
                return false;
            }
            let next = known.map_or(1, |known| known.parse::<u32>().unwrap() + 1);
            lease.metadata.resource_version = Some(next.to_string());
            *current = Some(lease.clone());
            written = Some(lease);
            true
        });
        written
    }

    async fn answer(self, who: String, request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        if self.deaf.lock().unwrap().contains(&who) {
            return std::future::pending().await;
        }
        let (parts, body) = request.into_parts();
        let sent = serde_json::from_slice(&body.collect_bytes().await?);
        let current = self.lease.borrow().clone();
        Ok(match (parts.method, current) {
            (Method::GET, Some(lease)) => answer(200, &lease),
            (Method::GET | Method::PUT, None) => {
                answer(404, &Status::failure("no such Lease", "NotFound").with_code(404))
            }
            (Method::POST, Some(_)) => {
                answer(409, &Status::failure("there is one", "AlreadyExists").with_code(409))
            }
            _ => match self.write(sent.expect("a Lease")) {
                Some(lease) => answer(200, &lease),
                None => answer(409, &Status::failure("another version", "Conflict").with_code(409)),
            },
        })
    }

    fn stand(&self, who: &str) -> (Leadership, Tenure) {
        let (server, name) = (self.clone(), who.to_owned());
        let service = service_fn(move |request| server.clone().answer(name.clone(), request));
        let changes = stream::unfold((self.lease.subscribe(), true), async |(mut lease, first)| {
            if !first {
                lease.changed().await.ok()?;
            }
            let now = lease.borrow_and_update().clone();
            Some((now, (lease, false)))
        });
        let tenure = Tenure::new();
        let election = Election {
            lease: LeaseName { namespace: "system".to_owned(), name: NAME.to_owned() },
            leases: Api::namespaced(Client::new(service, "system"), "system"),
            changes,
            candidate: Candidate::new(who, Terms::default()),
            tenure: tenure.clone(),
            random: || 0.5,
        };
        (election.stand(), tenure)
    }

    fn holder(&self) -> Option<String> {
        self.lease.borrow().as_ref()?.spec.as_ref()?.holder_identity.clone()
    }
}

fn answer(code: u16, body: &impl Serialize) -> Response<Body> {
    Response::builder().status(code).body(Body::from(serde_json::to_vec(body).unwrap())).unwrap()
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn who_resigns_is_followed_at_once() {
    let server = Server::new();
    let (mut first, tenure) = server.stand("first");
    first.won().await.unwrap();
    let (mut second, other) = server.stand("second");
    seconds(60).await;
    assert!(tenure.holds() && !other.holds());
    assert_eq!(*second.standing().borrow(), Standing::StandsBy(Some("first".to_owned())));
    let version = server.lease.borrow().as_ref().and_then(|lease| lease.metadata.resource_version.clone());
    let renewals: u32 = version.unwrap().parse().unwrap();
    assert!((14..=20).contains(&renewals), "{renewals} writes in a minute");

    let told = Instant::now();
    first.resign().await;
    second.won().await.unwrap();
    assert!(!tenure.holds() && other.holds());
    assert!(told.elapsed() < Duration::from_millis(100), "{:?}", told.elapsed());
    assert_eq!(server.holder().as_deref(), Some("second"));
}

#[tokio::test(start_paused = true)]
async fn who_is_cut_off_stops_before_another_begins() {
    let server = Server::new();
    let (mut first, tenure) = server.stand("first");
    first.won().await.unwrap();
    let (mut second, other) = server.stand("second");
    seconds(30).await;
    server.deaf.lock().unwrap().insert("first".to_owned());
    let cut = Instant::now();
    let loss = first.lost().await;
    assert!(matches!(loss, Loss::NotRenewed { .. }), "{loss}");
    assert!(!tenure.holds() && !other.holds());
    assert!(cut.elapsed() <= Duration::from_secs(11), "{:?}", cut.elapsed());
    second.won().await.unwrap();
    assert!(other.holds());
    assert!(
        cut.elapsed() >= Duration::from_secs(10) && cut.elapsed() <= Duration::from_secs(16),
        "{:?}",
        cut.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn who_starts_again_under_its_name_goes_on_at_once() {
    let server = Server::new();
    let (first, _) = server.stand("pod");
    seconds(1).await;
    first.task.abort();
    let (mut second, tenure) = server.stand("pod");
    let began = Instant::now();
    second.won().await.unwrap();
    assert!(tenure.holds() && began.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_somebody_changes_by_hand_is_believed() {
    let server = Server::new();
    let (mut first, tenure) = server.stand("first");
    first.won().await.unwrap();
    // Labels are nothing to stop for.
    let mut lease = server.lease.borrow().clone().unwrap();
    lease.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
    server.write(lease).unwrap();
    seconds(60).await;
    assert!(tenure.holds());
    // Gone is not taken.
    server.lease.send_replace(None);
    seconds(60).await;
    assert!(tenure.holds());
    assert_eq!(server.holder().as_deref(), Some("first"));
    let mut lease = server.lease.borrow().clone().unwrap();
    lease.spec.as_mut().unwrap().holder_identity = Some("other".to_owned());
    server.write(lease).unwrap();
    assert_eq!(
        first.lost().await,
        Loss::Taken { lease: format!("system/{NAME}"), holder: "other".to_owned() }
    );
    assert!(!tenure.holds());
}

#[tokio::test]
async fn without_a_lease_there_is_nothing_to_wait_for() {
    let tenure = Tenure::new();
    let mut leadership = Leadership::unopposed(&tenure);
    leadership.won().await.unwrap();
    assert!(tenure.holds());
    leadership.resign().await;
}
