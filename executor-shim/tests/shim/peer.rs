//! The other end of an exec stream, in memory and played by the test.

use executor_shim::shim::exec::frames::{FrameReader, Incoming};
use executor_shim::wire::PROTOCOL;
use executor_shim::wire::frame::{self, Kind};
use executor_shim::wire::message::{Hello, Open};
use futures::{SinkExt, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::DuplexStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Bytes, Message};

pub const POD: &str = "0d9ac1a2-6a7c-4a0c-9b4e-7d5f3c1f2a10";
pub const BOOT: &str = "boot-1";

/// What fits between the two ends before a sender has to wait.
pub const ROOM: usize = 64 * 1024;

pub type Socket = WebSocketStream<DuplexStream>;

/// The end of the shim, and the other one.
pub async fn pair() -> (Socket, Peer) {
    let (near, far) = tokio::io::duplex(ROOM);
    let near = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
    let far = WebSocketStream::from_raw_socket(far, Role::Server, None).await;
    (near, Peer { socket: far, frames: FrameReader::default() })
}

/// API server, kubelet and agent in one.
pub struct Peer {
    pub socket: Socket,
    frames: FrameReader,
}

impl Peer {
    /// Sends a message on a channel.
    pub async fn say(&mut self, channel: u8, bytes: &[u8]) {
        let mut message = vec![channel];
        message.extend_from_slice(bytes);
        // That the shim has gone is for the shim's side to assert.
        let _ = self.socket.send(Message::Binary(message.into())).await;
    }

    /// Sends a frame.
    pub async fn frame(&mut self, kind: Kind, offset: u64, payload: &[u8]) {
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, kind, offset, payload);
        self.say(1, &bytes).await;
    }

    /// Sends a frame with a message.
    pub async fn json(&mut self, kind: Kind, payload: &impl Serialize) {
        self.frame(kind, 0, &serde_json::to_vec(payload).unwrap()).await;
    }

    /// Waits for the next binary message; `None` at the end.
    pub async fn message(&mut self) -> Option<Bytes> {
        loop {
            match self.socket.next().await? {
                Ok(Message::Binary(bytes)) => return Some(bytes),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }

    /// Waits for the next frame; `None` at the end of the connection or of standard input.
    pub async fn next(&mut self) -> Option<Incoming> {
        loop {
            if let Some(frame) = self.frames.take().unwrap() {
                return Some(frame);
            }
            let mut message = self.message().await?;
            if message[..] == [255, 0] {
                return None;
            }
            assert_eq!(message[0], 0, "the shim only uses standard input");
            self.frames.push(message.split_off(1));
        }
    }

    /// Waits for a frame of that kind with a message.
    pub async fn read<T: DeserializeOwned>(&mut self, kind: Kind) -> T {
        let frame = self.next().await.unwrap();
        assert_eq!(frame.kind, kind);
        serde_json::from_slice(&frame.payload).unwrap()
    }

    /// Takes the first words and greets.
    pub async fn greet(&mut self, known: bool) -> Open {
        let open = self.read(Kind::Open).await;
        self.json(Kind::Hello, &hello(known)).await;
        open
    }

    /// Takes a script of that length.
    pub async fn script(&mut self, len: usize) -> Vec<u8> {
        let mut script = Vec::new();
        while script.len() < len {
            let frame = self.next().await.unwrap();
            assert_eq!((frame.kind, frame.offset), (Kind::Script, script.len() as u64));
            script.extend_from_slice(&frame.payload);
        }
        script
    }
}

pub fn hello(known: bool) -> Hello {
    Hello {
        protocol: PROTOCOL,
        version: "1".into(),
        pod_uid: POD.into(),
        boot_id: BOOT.into(),
        container: "build".into(),
        known,
        tools: None,
    }
}
