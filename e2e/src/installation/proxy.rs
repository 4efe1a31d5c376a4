//! A relay in front of the API server that can do to connections what networks do.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Relays TCP on loopback until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    weather: Arc<Weather>,
    task: JoinHandle<()>,
}

/// After how many bytes a connection is reset.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cut {
    /// So many from the API server to its client.
    Down(u64),
    /// So many from the client to the API server.
    Up(u64),
}

/// What the connections of a relay are exposed to.
struct Weather {
    /// Connections up to this number have been reset.
    reset: watch::Sender<u64>,
    /// Connections up to this number relay nothing any more and stay open.
    frozen: watch::Sender<u64>,
    /// What the next connections have coming, one each.
    cuts: Mutex<VecDeque<Cut>>,
    /// Bytes a second in each direction of each connection; 0 is as fast as can be.
    rate: AtomicU64,
    down: AtomicU64,
    connections: AtomicU64,
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
        let weather = Arc::new(Weather {
            reset: watch::Sender::new(0),
            frozen: watch::Sender::new(0),
            cuts: Mutex::default(),
            rate: AtomicU64::new(0),
            down: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        });
        let task = tokio::spawn(accept(listener, target, weather.clone()));
        Ok(Self { address, weather, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets every open connection: both sides see an error, not an end.
    pub fn cut(&self) {
        self.weather.reset.send_replace(self.connections());
    }

    /// Relays nothing on the open connections any more, and closes none: what a firewall does that
    /// has forgotten them. New ones are relayed.
    pub fn freeze(&self) {
        self.weather.frozen.send_replace(self.connections());
    }

    /// Resets each of the next connections after so many bytes, in this order; those after them live.
    pub fn cut_next(&self, cuts: impl IntoIterator<Item = Cut>) {
        self.weather.cuts.lock().unwrap_or_else(PoisonError::into_inner).extend(cuts);
    }

    /// Relays at most so many bytes a second in each direction of each connection; 0: no limit.
    pub fn throttle(&self, bytes_per_second: u64) {
        self.weather.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Bytes that went from the API server to its clients so far.
    pub fn bytes_down(&self) -> u64 {
        self.weather.down.load(Ordering::Relaxed)
    }

    /// Connections that were accepted so far.
    pub fn connections(&self) -> u64 {
        self.weather.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, weather: Arc<Weather>) {
    while let Ok((client, _)) = listener.accept().await {
        let number = weather.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let weather = weather.clone();
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(target).await else { return };
            // Closing with SO_LINGER 0 sends a reset.
            let _ = (client.set_zero_linger(), server.set_zero_linger());
            let mut reset = weather.reset.subscribe();
            tokio::select! {
                () = relay(client, server, number, &weather) => {}
                _ = reset.wait_for(|last| number <= *last) => {}
            }
        });
    }
}

/// Relays until one side has closed or the connection has had its bytes. The streams are closed by
/// their end of life.
async fn relay(mut client: TcpStream, mut server: TcpStream, number: u64, weather: &Weather) {
    let cut = weather.cuts.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let (down, up) = match cut {
        Some(Cut::Down(bytes)) => (Some(bytes), None),
        Some(Cut::Up(bytes)) => (None, Some(bytes)),
        None => (None, None),
    };
    let (client_read, client_write) = client.split();
    let (server_read, server_write) = server.split();
    let unseen = AtomicU64::new(0);
    let downward = copy(server_read, client_write, down, number, weather, &weather.down);
    let upward = copy(client_read, server_write, up, number, weather, &unseen);
    // An error ends both directions.
    let _ = tokio::try_join!(downward, upward);
}

/// Copies one direction. An error says that the connection is to be reset.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut budget: Option<u64>,
    number: u64,
    weather: &Weather,
    count: &AtomicU64,
) -> Result<()> {
    let mut frozen = weather.frozen.subscribe();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let room =
            budget.map_or(buffer.len(), |left| buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        let read = from.read(&mut buffer[..room.max(1)]).await?;
        if number <= *frozen.borrow_and_update() {
            std::future::pending::<()>().await;
        }
        if read == 0 {
            to.shutdown().await?;
            return Ok(());
        }
        if budget == Some(0) {
            anyhow::bail!("the connection has had its bytes");
        }
        to.write_all(&buffer[..read]).await?;
        count.fetch_add(read as u64, Ordering::Relaxed);
        budget = budget.map(|left| left.saturating_sub(read as u64));
        let rate = weather.rate.load(Ordering::Relaxed);
        if let Some(nanoseconds) = (read as u64).saturating_mul(1_000_000_000).checked_div(rate) {
            tokio::time::sleep(Duration::from_nanos(nanoseconds)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets, and a relay in front of it.
    async fn echo() -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        Proxy::start(address).await.unwrap()
    }

    async fn round_trip(stream: &mut TcpStream, bytes: usize) -> std::io::Result<usize> {
        stream.write_all(&vec![7; bytes]).await?;
        let mut back = vec![0; bytes];
        stream.read_exact(&mut back).await
    }

    #[tokio::test]
    async fn a_connection_is_cut_after_its_bytes_and_the_next_one_lives() {
        for cut in [Cut::Down(1000), Cut::Up(1000)] {
            let proxy = echo().await;
            proxy.cut_next([cut]);
            let mut first = TcpStream::connect(proxy.address()).await.unwrap();
            round_trip(&mut first, 600).await.unwrap();
            round_trip(&mut first, 600).await.unwrap_err();
            let mut second = TcpStream::connect(proxy.address()).await.unwrap();
            round_trip(&mut second, 4000).await.unwrap();
            proxy.cut();
            round_trip(&mut second, 1).await.unwrap_err();
        }
    }

    #[tokio::test]
    async fn a_frozen_connection_stays_open_and_silent() {
        let proxy = echo().await;
        let mut first = TcpStream::connect(proxy.address()).await.unwrap();
        round_trip(&mut first, 10).await.unwrap();
        proxy.freeze();
        let silence = tokio::time::timeout(Duration::from_millis(200), round_trip(&mut first, 10)).await;
        assert!(silence.is_err(), "{silence:?}");
        let mut second = TcpStream::connect(proxy.address()).await.unwrap();
        round_trip(&mut second, 10).await.unwrap();
    }
}
