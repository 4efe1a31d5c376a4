//! What conversations need besides a connection.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use executor_shim::shim::exec::conversation::{Attempt, Farewell, Stopping};
use executor_shim::shim::joblog::{Output, Stream};
use executor_shim::shim::signals::{Interrupt, Interrupter};
use executor_shim::shim::stage::Container;
use tokio::sync::watch;

use crate::peer::{BOOT, POD};

pub const GRACE: Duration = Duration::from_secs(10);

pub fn attempt(script: impl Into<Vec<u8>>) -> Attempt {
    Attempt {
        name: "0123456789abcdef0123456789abcdef".into(),
        stage: "build_script".into(),
        container: Container::Build,
        script: script.into().into(),
        shell: "bash".into(),
        reap: false,
        limit: None,
        pod_uid: POD.into(),
        boot_id: BOOT.into(),
        helper_boot_id: BOOT.into(),
        orphan: Duration::from_secs(120),
        grace: GRACE,
    }
}

pub fn stopping() -> (Interrupter, Stopping) {
    let (interrupter, interrupt) = Interrupter::new();
    (interrupter, with(interrupt))
}

fn with(interrupt: Interrupt) -> Stopping {
    Stopping::new(interrupt, GRACE)
}

/// Nobody knows why a container is being ended.
pub struct Unsaid;

impl Farewell for Unsaid {
    async fn reason(&mut self) -> String {
        std::future::pending().await
    }
}

/// Keeps what was written, in order, and can be made slow or broken.
pub struct Sink {
    pub written: Vec<(Stream, Vec<u8>)>,
    pub lines: Vec<String>,
    /// While true, no write gets through.
    pub stalled: watch::Receiver<bool>,
    /// Errors of the writes to come, after that many of them.
    pub broken_after: Option<usize>,
    /// Most bytes of one write.
    pub most: usize,
    /// Waits before each of the writes to come.
    pub waits: VecDeque<Duration>,
    /// Nobody stalls it; the other end of `stalled` must live as long.
    #[expect(dead_code, reason = "it is only kept")]
    pub keep: Option<watch::Sender<bool>>,
}

impl Default for Sink {
    fn default() -> Self {
        let (sender, stalled) = watch::channel(false);
        Self { keep: Some(sender), ..Self::stalled_by(stalled) }
    }
}

impl Sink {
    pub fn stalled_by(stalled: watch::Receiver<bool>) -> Self {
        let (written, lines, waits) = (Vec::new(), Vec::new(), VecDeque::new());
        Self { written, lines, stalled, broken_after: None, most: usize::MAX, waits, keep: None }
    }

    pub fn of(&self, wanted: Stream) -> Vec<u8> {
        self.written
            .iter()
            .filter(|(stream, _)| *stream == wanted)
            .flat_map(|(_, bytes)| bytes.clone())
            .collect()
    }

    pub fn text(&self, stream: Stream) -> String {
        String::from_utf8(self.of(stream)).unwrap()
    }
}

impl Output for Sink {
    async fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<usize> {
        if let Some(wait) = self.waits.pop_front() {
            tokio::time::sleep(wait).await;
        }
        self.stalled.wait_for(|stalled| !stalled).await.map_err(io::Error::other)?;
        if let Some(left) = &mut self.broken_after {
            match left.checked_sub(1) {
                Some(less) => *left = less,
                None => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        let bytes = &bytes[..bytes.len().min(self.most)];
        self.written.push((stream, bytes.to_vec()));
        Ok(bytes.len())
    }

    async fn line(&mut self, text: &str) {
        self.lines.push(text.to_owned());
    }
}
