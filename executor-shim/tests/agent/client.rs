//! A small client: what the shim does, without an exec.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use executor_shim::wire::PROTOCOL;
use executor_shim::wire::frame::{self, HEADER_LEN, Kind};
use executor_shim::wire::message::{ExitRecord, Hello, Open, Refusal, Run, Stop, Work};
use serde::Serialize;

use super::world::{Agent, DEADLINE, POD, binary};

/// A frame with its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub kind: Kind,
    pub offset: u64,
    pub payload: Vec<u8>,
}

impl Heard {
    pub fn refusal(&self) -> Refusal {
        assert_eq!(self.kind, Kind::Refused, "{}", String::from_utf8_lossy(&self.payload));
        serde_json::from_slice(&self.payload).unwrap()
    }
}

enum Ends {
    Socket(UnixStream),
    Relay(Child, Option<ChildStdin>, ChildStdout),
}

/// One connection.
pub struct Connection {
    ends: Ends,
    inbox: Vec<u8>,
    made: Instant,
}

impl Connection {
    pub fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { ends: Ends::Socket(stream), inbox: Vec::new(), made: Instant::now() }
    }

    /// A connection by the exec'd end.
    pub fn relayed(agent: &Agent) -> Self {
        let run = agent.run_dir();
        Self::by(Command::new(binary()).args(["attach", "--any-server", "--run-dir", run.to_str().unwrap()]))
    }

    /// A connection by a command that relays.
    pub fn by(command: &mut Command) -> Self {
        let mut relay = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (relay.stdin.take(), relay.stdout.take().unwrap());
        Self { ends: Ends::Relay(relay, stdin, stdout), inbox: Vec::new(), made: Instant::now() }
    }

    pub fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.ends {
            Ends::Socket(stream) => stream.write_all(bytes),
            Ends::Relay(_, stdin, _) => stdin.as_mut().unwrap().write_all(bytes),
        }
    }

    pub fn send(&mut self, kind: Kind, offset: u64, payload: &[u8]) {
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, kind, offset, payload);
        self.write(&bytes).unwrap();
    }

    pub fn say(&mut self, kind: Kind, message: &impl Serialize) {
        self.send(kind, 0, &serde_json::to_vec(message).unwrap());
    }

    pub fn open(&mut self, work: Work) {
        self.open_with(work, |_| {});
    }

    pub fn open_with(&mut self, work: Work, change: impl FnOnce(&mut Open)) {
        let mut open =
            Open { protocol: PROTOCOL, pod_uid: POD.into(), boot_id: None, work, orphan_ms: 1_000_000 };
        change(&mut open);
        self.say(Kind::Open, &open);
    }

    /// Sends nothing more.
    pub fn shut(&mut self) {
        match &mut self.ends {
            Ends::Socket(stream) => stream.shutdown(std::net::Shutdown::Write).unwrap(),
            Ends::Relay(_, stdin, _) => drop(stdin.take()),
        }
    }

    /// The exit status of the relay, once the agent has ended the conversation.
    pub fn relay_status(&mut self) -> std::process::ExitStatus {
        match &mut self.ends {
            Ends::Socket(_) => panic!("no relay"),
            Ends::Relay(relay, ..) => relay.wait().unwrap(),
        }
    }

    /// Whether nothing arrives for that long.
    pub fn is_silent(&mut self, time: Duration) -> bool {
        let Ends::Socket(stream) = &self.ends else { panic!("no socket") };
        stream.set_read_timeout(Some(time)).unwrap();
        let mut byte = [0; 1];
        let got = (&*stream).read(&mut byte);
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        match got {
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
            Ok(len) => {
                self.inbox.extend(&byte[..len]);
                false
            }
        }
    }

    /// The next frame, heartbeats included; `None` at the end of the connection.
    pub fn any_frame(&mut self) -> Option<Heard> {
        loop {
            assert!(self.made.elapsed() < 3 * DEADLINE, "the conversation does not end");
            if let Some((frame, len)) = frame::decode(&self.inbox).unwrap() {
                let heard = Heard { kind: frame.kind, offset: frame.offset, payload: frame.payload.to_vec() };
                self.inbox.drain(..len);
                return Some(heard);
            }
            let mut piece = vec![0; 64 * 1024];
            let got = match &mut self.ends {
                Ends::Socket(stream) => stream.read(&mut piece),
                Ends::Relay(_, _, stdout) => stdout.read(&mut piece),
            };
            match got {
                Ok(0) => return None,
                Ok(len) => self.inbox.extend(&piece[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("nothing arrives: {error}"),
            }
        }
    }

    /// The next frame that says something.
    pub fn frame(&mut self) -> Option<Heard> {
        loop {
            let heard = self.any_frame();
            if heard.as_ref().is_none_or(|heard| heard.kind != Kind::Heartbeat) {
                return heard;
            }
        }
    }

    pub fn hello(&mut self) -> Hello {
        let heard = self.frame().expect("no hello");
        assert_eq!(heard.kind, Kind::Hello, "{}", String::from_utf8_lossy(&heard.payload));
        serde_json::from_slice(&heard.payload).unwrap()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Ends::Relay(relay, stdin, _) = &mut self.ends {
            drop(stdin.take());
            let _ = relay.kill();
            let _ = relay.wait();
        }
    }
}

/// A name for an attempt that no other has.
pub fn name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{:032x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// An attempt as the shim sees it, over any number of connections.
pub struct Session {
    pub run: Run,
    pub script: Vec<u8>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Streams in the order of their frames.
    pub order: Vec<(Kind, Vec<u8>)>,
    pub started: bool,
    pub record: Option<ExitRecord>,
}

impl Session {
    pub fn new(script: impl Into<Vec<u8>>) -> Self {
        let script = script.into();
        let run = Run {
            attempt: name(),
            stage: "step_script".into(),
            position: 0,
            script_len: script.len() as u64,
            script_crc: crc32fast::hash(&script),
            shell: "bash".into(),
            reap: false,
            limit: None,
        };
        Self {
            run,
            script,
            stdout: Vec::new(),
            stderr: Vec::new(),
            order: Vec::new(),
            started: false,
            record: None,
        }
    }

    pub fn sh(script: impl Into<Vec<u8>>) -> Self {
        let mut session = Self::new(script);
        session.run.shell = "sh".into();
        session
    }

    /// Opens, and sends the script where it is wanted. Whether the attempt was known.
    pub fn begin(&mut self, connection: &mut Connection) -> bool {
        connection.open(Work::Run(self.run.clone()));
        let known = connection.hello().known;
        if !known {
            self.upload(connection, 0);
        }
        known
    }

    pub fn upload(&mut self, connection: &mut Connection, from: usize) {
        let mut at = from;
        for piece in self.script[from..].chunks(10_000) {
            connection.send(Kind::Script, at as u64, piece);
            at += piece.len();
        }
    }

    /// Takes one frame. `false` after the last one.
    pub fn take(&mut self, heard: &Heard) -> bool {
        let stream = match heard.kind {
            Kind::Started => {
                self.started = true;
                return true;
            }
            Kind::Exit => {
                self.record = Some(serde_json::from_slice(&heard.payload).unwrap());
                return false;
            }
            Kind::Stdout => &mut self.stdout,
            Kind::Stderr => &mut self.stderr,
            kind => panic!("{kind:?}: {}", String::from_utf8_lossy(&heard.payload)),
        };
        assert!(self.started && self.record.is_none(), "output before the start or after the end");
        assert_eq!(heard.offset, stream.len() as u64, "a gap or a repetition");
        stream.extend(&heard.payload);
        self.run.position += (HEADER_LEN + heard.payload.len()) as u64;
        self.order.push((heard.kind, heard.payload.clone()));
        true
    }

    /// Reads to the exit record and checks that everything has arrived that it counts.
    pub fn finish(&mut self, connection: &mut Connection) -> ExitRecord {
        loop {
            let heard = connection.frame().expect("the connection ended before the stage");
            if !self.take(&heard) {
                break;
            }
            if matches!(heard.kind, Kind::Stdout | Kind::Stderr) {
                connection.send(Kind::Ack, self.run.position, &[]);
            }
        }
        let record = self.record.clone().unwrap();
        assert_eq!(record.attempt, self.run.attempt);
        assert_eq!(record.stdout_bytes, self.stdout.len() as u64);
        assert_eq!(record.stderr_bytes, self.stderr.len() as u64);
        assert_eq!(record.spool_bytes, self.run.position);
        record
    }

    /// Forgets the last frames, as a shim that died before it had written them out, but for what it has
    /// acknowledged. How many that were.
    pub fn rewind(&mut self, frames: usize, acked: u64) -> usize {
        for done in 0..frames {
            let Some((kind, payload)) = self.order.last() else { return done };
            let position = self.run.position - (HEADER_LEN + payload.len()) as u64;
            if position < acked {
                return done;
            }
            let stream = if *kind == Kind::Stdout { &mut self.stdout } else { &mut self.stderr };
            stream.truncate(stream.len() - payload.len());
            self.run.position = position;
            self.order.pop();
        }
        frames
    }

    /// From the first word to the last over one connection.
    pub fn all(&mut self, connection: &mut Connection) -> ExitRecord {
        self.begin(connection);
        let record = self.finish(connection);
        connection.send(Kind::Close, 0, &[]);
        assert_eq!(connection.frame(), None);
        record
    }

    /// Reads until standard output has this in it.
    pub fn read_until(&mut self, connection: &mut Connection, text: &str) {
        while !String::from_utf8_lossy(&self.stdout).contains(text) {
            let heard = connection.frame().expect("the connection ended");
            assert!(self.take(&heard), "the stage ended: {:?}", self.record);
        }
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    pub fn stop(connection: &mut Connection, grace_ms: u64) {
        connection.say(Kind::Stop, &Stop { grace_ms });
    }
}

/// Runs a script in an agent of its own.
pub fn run(script: &str) -> (Session, ExitRecord) {
    let agent = Agent::start();
    let mut session = Session::new(script);
    let record = session.all(&mut agent.connect());
    (session, record)
}
