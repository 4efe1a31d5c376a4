//! A relay in front of the API server whose connections can be cut.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

/// Relays TCP on loopback until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    cut: broadcast::Sender<()>,
    down: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Relays connections to `target`.
    ///
    /// # Errors
    /// When no port of loopback can be had.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("cannot listen on loopback")?;
        let address = listener.local_addr().context("the relay has no address")?;
        let (cut, _) = broadcast::channel(4);
        let down = Arc::new(AtomicU64::new(0));
        let connections = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(accept(listener, target, cut.clone(), down.clone(), connections.clone()));
        Ok(Self { address, cut, down, connections, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets every open connection: both sides see an error, not an end.
    pub fn cut(&self) {
        // No receiver means that no connection is open.
        let _ = self.cut.send(());
    }

    /// Bytes that went from the API server to its clients so far.
    pub fn bytes_down(&self) -> u64 {
        self.down.load(Ordering::Relaxed)
    }

    /// Connections that were accepted so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    cut: broadcast::Sender<()>,
    down: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
) {
    while let Ok((client, _)) = listener.accept().await {
        connections.fetch_add(1, Ordering::Relaxed);
        let (mut cut, down) = (cut.subscribe(), down.clone());
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(target).await else { return };
            // Closing with SO_LINGER 0 sends a reset.
            let _ = (client.set_zero_linger(), server.set_zero_linger());
            tokio::select! {
                _ = relay(client, server, &down) => {}
                _ = cut.recv() => {}
            }
        });
    }
}

async fn relay(client: TcpStream, server: TcpStream, down: &AtomicU64) -> std::io::Result<()> {
    let (mut client_read, mut client_write) = client.into_split();
    let (mut server_read, mut server_write) = server.into_split();
    let upward = async {
        tokio::io::copy(&mut client_read, &mut server_write).await?;
        server_write.shutdown().await
    };
    let downward = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = server_read.read(&mut buffer).await?;
            if read == 0 {
                return client_write.shutdown().await;
            }
            client_write.write_all(&buffer[..read]).await?;
            down.fetch_add(read as u64, Ordering::Relaxed);
        }
    };
    tokio::try_join!(upward, downward).map(drop)
}
