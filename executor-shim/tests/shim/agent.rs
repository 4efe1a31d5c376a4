//! A perfect agent on a line that is not.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use executor_shim::shim::exec::connect::{ConnectError, Connector};
use executor_shim::shim::exec::conversation::Attempt;
use executor_shim::shim::run::supervise::{JobEnd, Oversight};
use executor_shim::shim::stage::Container;
use executor_shim::wire::frame::{self, Kind};
use executor_shim::wire::message::{ExitRecord, Open, Work};
use tokio::sync::watch;

use crate::peer::{Peer, Socket, hello, pair};

/// An agent that has, or will have, run one attempt.
#[derive(Default)]
pub struct Agent {
    pub spool: Vec<u8>,
    pub record: ExitRecord,
    pub starts: usize,
    pub closed: bool,
}

impl Agent {
    /// An agent whose script writes these pieces.
    pub fn of(attempt: &Attempt, output: &[(Kind, Vec<u8>)]) -> Arc<Mutex<Self>> {
        let (mut spool, mut out, mut err) = (Vec::new(), 0, 0);
        for (kind, payload) in output {
            let offset = if *kind == Kind::Stdout { &mut out } else { &mut err };
            frame::encode(&mut spool, *kind, *offset, payload);
            *offset += payload.len() as u64;
        }
        let record = ExitRecord {
            attempt: attempt.name.clone(),
            code: Some(7),
            stdout_bytes: out,
            stderr_bytes: err,
            spool_bytes: spool.len() as u64,
            ..ExitRecord::default()
        };
        Arc::new(Mutex::new(Self { spool, record, ..Self::default() }))
    }
}

/// Serves one connection, and drops it after that many bytes.
pub async fn serve(agent: Arc<Mutex<Agent>>, mut peer: Peer, cut: usize) {
    let Some(frame) = peer.next().await else { return };
    let open: Open = serde_json::from_slice(&frame.payload).unwrap();
    let mut greeting = hello(agent.lock().unwrap().starts > 0);
    let position = match &open.work {
        Work::Run(run) => {
            greeting.known = agent.lock().unwrap().starts > 0;
            run.position
        }
        Work::Collect(collect) => {
            greeting.container = "helper".into();
            greeting.known = true;
            collect.position
        }
        Work::Probe { .. } => panic!("nobody probes here"),
    };
    let mut line = Line { peer, left: cut };
    if !line.json(Kind::Hello, &greeting).await {
        return;
    }
    if let (Work::Run(run), false) = (&open.work, greeting.known) {
        let mut len = 0;
        while len < run.script_len {
            let Some(frame) = line.peer.next().await else { return };
            len += frame.payload.len() as u64;
        }
        agent.lock().unwrap().starts += 1;
    }
    let (rest, record) = {
        let agent = agent.lock().unwrap();
        (agent.spool[usize::try_from(position).unwrap()..].to_vec(), agent.record.clone())
    };
    if matches!(open.work, Work::Run(_)) && !line.send(&encoded(Kind::Started, &[])).await {
        return;
    }
    for piece in rest.chunks(777) {
        if !line.send(piece).await {
            return;
        }
    }
    if !line.json(Kind::Exit, &record).await {
        return;
    }
    while let Some(frame) = line.peer.next().await {
        if frame.kind == Kind::Close {
            agent.lock().unwrap().closed = true;
        }
    }
}

struct Line {
    peer: Peer,
    left: usize,
}

impl Line {
    /// Sends what still gets through, and says whether that was all.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        let len = bytes.len().min(self.left);
        self.left -= len;
        if len > 0 {
            self.peer.say(1, &bytes[..len]).await;
        }
        len == bytes.len()
    }

    async fn json(&mut self, kind: Kind, payload: &impl serde::Serialize) -> bool {
        self.send(&encoded(kind, &serde_json::to_vec(payload).unwrap())).await
    }
}

fn encoded(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, kind, 0, payload);
    bytes
}

type Play = Box<dyn FnOnce(Peer) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// What becomes of one try to connect.
pub enum Try {
    Fail(ConnectError),
    Play(Play),
    Hang,
}

impl Try {
    pub fn play<F, Fut>(play: F) -> Self
    where
        F: FnOnce(Peer) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        Self::Play(Box::new(|peer| Box::pin(play(peer))))
    }

    /// The agent, on a line that breaks after that many bytes.
    pub fn agent(agent: &Arc<Mutex<Agent>>, cut: usize) -> Self {
        let agent = Arc::clone(agent);
        Self::play(move |peer| serve(agent, peer, cut))
    }

    pub fn trouble() -> Self {
        Self::Fail(ConnectError::Trouble("connection refused".into()))
    }
}

/// Connects as the script of the test says; after its end, as the last resort says.
pub struct Script {
    pub tries: Mutex<VecDeque<Try>>,
    pub then: Box<dyn Fn() -> Try>,
    pub made: Mutex<Vec<Container>>,
}

impl Script {
    pub fn new(tries: impl IntoIterator<Item = Try>, then: impl Fn() -> Try + 'static) -> Self {
        let tries = Mutex::new(tries.into_iter().collect());
        Self { tries, then: Box::new(then), made: Mutex::default() }
    }

    pub fn made(&self) -> Vec<Container> {
        self.made.lock().unwrap().clone()
    }
}

impl Connector for Script {
    type Socket = Socket;

    async fn connect(&self, container: Container) -> Result<Socket, ConnectError> {
        self.made.lock().unwrap().push(container);
        let next = self.tries.lock().unwrap().pop_front();
        match next.unwrap_or_else(|| (self.then)()) {
            Try::Fail(error) => Err(error),
            Try::Hang => std::future::pending().await,
            Try::Play(play) => {
                let (socket, peer) = pair().await;
                tokio::spawn(play(peer));
                Ok(socket)
            }
        }
    }
}

/// A look at a job whose end the test decides.
pub struct Look {
    pub end: watch::Receiver<Option<JobEnd>>,
    pub asked: bool,
}

impl Look {
    pub fn new() -> (watch::Sender<Option<JobEnd>>, Self) {
        let (sender, end) = watch::channel(None);
        (sender, Self { end, asked: false })
    }
}

impl Oversight for Look {
    async fn ended(&mut self) -> JobEnd {
        self.asked = true;
        self.end.wait_for(Option::is_some).await.unwrap().clone().unwrap()
    }
}
