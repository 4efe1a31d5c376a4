//! The agent's state, and what it does when something happens.

use std::collections::BTreeMap;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use nix::sys::signalfd::SignalFd;
use roadstead_crds::labels;

use super::book::Book;
use super::cli::ServeOptions;
use super::client::{Client, Follow, Heard, Role};
use super::clock::{self, Moment};
use super::conversation::{self, Identity, refusal};
use super::log;
use super::orphan::{OrphanClock, Presence, Verdict};
use super::peer::{self, Rule, Stranger};
use super::pipes::Pipe;
use super::presence::{self, Alive};
use super::process;
use super::reap;
use super::script::Slot;
use super::signals::{self, Wish};
use super::spool::{self, FrameBuffer, Spool};
use super::stage::{Remains, Setting, Stage};
use super::tools;
use crate::wire::frame::{self, Kind};
use crate::wire::message::{Refusal, RefusalReason};

/// How long a connection may be silent before its first words.
const PATIENCE_MS: u64 = 30_000;

/// Most connections at a time.
const CLIENTS: usize = 64;

/// How long clients may take to read the end of a script with which the container ends. Of the container's grace this
/// much is kept from the script, or half of it where it is short: with this process would go the record of the end.
const FAREWELL_MS: u64 = 2_000;

/// How long no connection is taken after one could not be.
const PAUSE_MS: u64 = 100;

/// The end of the container, wanted from outside.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    code: u8,
    /// When the script is killed at the latest.
    kill: Moment,
    at: Option<Moment>,
}

/// Everything that the agent knows.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) options: ServeOptions,
    pub(super) me: Identity,
    pub(super) bin: Option<PathBuf>,
    pub(super) slot: Slot,
    pub(super) signals: SignalFd,
    pub(super) listener: UnixListener,
    pub(super) clients: BTreeMap<u64, Client>,
    pub(super) stage: Option<Stage>,
    pub(super) book: Book<Spool>,
    pub(super) orphan: OrphanClock,
    /// Pipes of ended stages that background processes hold.
    pub(super) leftovers: Vec<Pipe>,
    rule: Rule,
    next_client: u64,
    left: Option<Presence>,
    leaving: Option<Leaving>,
    paused: Option<Moment>,
    stranger: Option<Stranger>,
    buffer: FrameBuffer,
    _alive: Option<Alive>,
}

/// What a hub is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub options: ServeOptions,
    pub me: Identity,
    pub bin: Option<PathBuf>,
    pub slot: Slot,
    pub signals: SignalFd,
    pub listener: UnixListener,
    pub rule: Rule,
    pub alive: Option<Alive>,
}

impl Hub {
    pub fn new(parts: Parts, now: Moment) -> Self {
        let Parts { options, me, bin, slot, signals, listener, rule, alive } = parts;
        Self {
            orphan: OrphanClock::new(now, options.orphan_ms, options.failed_orphan_ms),
            options,
            me,
            bin,
            slot,
            signals,
            listener,
            clients: BTreeMap::new(),
            stage: None,
            book: Book::default(),
            leftovers: Vec::new(),
            rule,
            next_client: 0,
            left: None,
            leaving: None,
            paused: None,
            stranger: None,
            buffer: spool::frame_buffer(),
            _alive: alive,
        }
    }

    /// Does what follows from what has happened, until nothing does. The exit code, if that is the end.
    pub fn settle(&mut self, now: Moment) -> Option<u8> {
        self.paused = self.paused.filter(|until| *until > now);
        if let Some(stage) = &mut self.stage {
            stage.tick(now);
        }
        if let Some(stage) = self.stage.take_if(|stage| stage.is_over()) {
            self.end_stage(stage.into_remains());
        }
        self.start_queued(now);
        // The other container knows of a client before the client gets an answer.
        self.leave_word(now);
        self.deliver(now);
        self.clients.retain(|_, client| !client.gone);
        self.leave_word(now);
        self.farewell(now).or_else(|| self.look_for_orphan(now))
    }

    /// When [`settle`](Self::settle) has to be called although nothing happens.
    pub fn deadline(&self) -> Option<Moment> {
        let clients = self.clients.values().map(|client| match client.role {
            Role::Silent { until } => Some(until),
            Role::Leaving => None,
            _ if client.more || client.eof => None,
            _ => Some(client.last_sent.plus(self.options.heartbeat_ms)),
        });
        let own = [
            self.stage.as_ref().and_then(Stage::deadline),
            self.orphan.deadline().filter(|_| self.keeps_clock()),
            self.leaving.and_then(|leaving| leaving.at),
            self.paused,
        ];
        clock::earliest(clients.chain(own))
    }

    /// Whether connections are taken at the moment.
    pub fn is_listening(&self) -> bool {
        self.paused.is_none()
    }

    /// Whether the pipes of the stage are to be read: not while too much waits for delivery.
    pub fn is_reading(&self) -> bool {
        let unacked = self.stage.as_ref().map(|stage| stage.spool().positions().unacked());
        unacked.is_some_and(|bytes| bytes < self.options.spool_bytes)
    }

    /// How long the script may still take where the container is being ended. At least 1, for 0 means nothing.
    pub fn leaving_ms(&self, now: Moment) -> Option<u64> {
        let leaving = self.leaving.filter(|_| self.stage.is_some())?;
        Some(leaving.kill.since(now).max(1))
    }

    /// Whether the container is being ended.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    pub fn stage_of(&mut self, attempt: &str) -> Option<&mut Stage> {
        self.stage.as_mut().filter(|stage| stage.run.attempt == attempt)
    }

    pub fn spool_of(&mut self, attempt: &str) -> Option<&mut Spool> {
        match self.stage.as_mut().filter(|stage| stage.run.attempt == attempt) {
            Some(stage) => Some(stage.spool_mut()),
            None => self.book.spool_mut(attempt),
        }
    }

    pub fn on_signals(&mut self, now: Moment) {
        while let Some(wish) = signals::next(&self.signals) {
            match wish {
                Wish::Reap => reap::reap(self.stage.as_mut(), now, &mut self.buffer),
                Wish::End(code) if self.leaving.is_none() => {
                    log::say(format_args!("the container is being ended"));
                    let grace_ms = scripts_part(self.options.grace_ms);
                    self.leaving = Some(Leaving { code, kill: now.plus(grace_ms), at: None });
                    if let Some(stage) = &mut self.stage {
                        stage.leave(now, grace_ms);
                    }
                }
                Wish::End(_) | Wish::Nothing => {}
            }
        }
    }

    pub fn on_connections(&mut self, now: Moment) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.on_connection(stream, now),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.paused = Some(now.plus(PAUSE_MS));
                    return;
                }
            }
        }
    }

    fn on_connection(&mut self, stream: UnixStream, now: Moment) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let admitted = peer::of(&stream)
            .ok_or(Stranger::Unknown)
            .and_then(|peer| peer::admit(peer, self.rule, peer::parent));
        let mut client = Client::new(stream, now, PATIENCE_MS);
        if let Err(stranger) = admitted {
            client.refuse(&refusal(RefusalReason::Peer, stranger.to_string()));
            client.flush(now);
            // Once: a script could fill the log with it.
            if self.stranger.replace(stranger).is_none() {
                log::say(format_args!("refused a connection: {stranger}"));
            }
        } else if self.clients.len() >= CLIENTS {
            client.refuse(&refusal(RefusalReason::Start, "the agent has too many clients"));
            client.flush(now);
        } else {
            self.next_client += 1;
            self.clients.insert(self.next_client, client);
        }
    }

    /// A client has said something, or has gone (`closed`).
    pub fn on_client(&mut self, id: u64, closed: bool, now: Moment) {
        // Out of the map, so that everything else can be changed on its behalf.
        let Some(mut client) = self.clients.remove(&id) else { return };
        let ended = client.eof || client.hear() == Heard::End;
        if let Err(refusal) = self.on_words(&mut client, now) {
            conversation::log_refusal(&refusal);
            client.refuse(&refusal);
        }
        if ended {
            // A client may have said its last and still listen; one that has not got its script across
            // has nothing to listen for.
            client.gone |=
                closed || matches!(client.role, Role::Silent { .. } | Role::Upload(_) | Role::Queued(_));
            if matches!(client.role, Role::Probe) {
                client.role = Role::Leaving;
            }
        }
        self.clients.insert(id, client);
    }

    fn on_words(&mut self, client: &mut Client, now: Moment) -> Result<(), Refusal> {
        let heard = client.heard();
        if matches!(client.role, Role::Leaving) {
            return Ok(());
        }
        let mut used = 0;
        while let Some(rest) = heard.get(used..) {
            match frame::decode(rest) {
                Ok(Some((frame, len))) => {
                    used += len;
                    self.on_frame(client, frame, now)?;
                }
                Ok(None) => break,
                Err(error) => return Err(refusal(RefusalReason::Protocol, error.to_string())),
            }
        }
        client.unused(heard, used);
        Ok(())
    }

    pub fn on_pipe(&mut self, pipe: usize) {
        if let Some(stage) = &mut self.stage {
            stage.take(pipe, &mut self.buffer);
        }
    }

    /// Background processes may go on writing; nobody wants it any more, but they are not to be blocked
    /// or killed by it.
    pub fn on_leftover(&mut self, pipe: usize) {
        if let Some(pipe) = self.leftovers.get_mut(pipe) {
            // Once: a writer that keeps up must not keep the loop from everything else.
            pipe.take(&mut self.buffer[..]);
        }
    }

    fn start_queued(&mut self, now: Moment) {
        loop {
            let queued = |client: &&mut Client| matches!(client.role, Role::Queued(_)) && !client.gone;
            let Some(client) = self.clients.values_mut().find(queued) else { return };
            if let Some(stage) = &mut self.stage {
                stage.kill();
                return;
            }
            let Role::Queued(queued) = std::mem::replace(&mut client.role, Role::Leaving) else { return };
            let (run, script) = *queued;
            let (attempt, name) = (run.attempt.clone(), run.stage.clone());
            if self.leaving.is_some() || !self.book.start(&attempt) {
                client.refuse(&refusal(RefusalReason::Start, "the container is being ended"));
                continue;
            }
            let setting = Setting {
                bin: self.bin.as_deref(),
                foreign_checkout: self.options.container == labels::BUILD_CONTAINER,
            };
            let started = Spool::create(&self.options.spool_dir, &attempt)
                .map_err(|error| format!("the output cannot be stored: {error}"))
                .and_then(|spool| {
                    let shell = tools::shell(&run.shell, tools::is_program).ok_or("there is no shell")?;
                    Stage::start(run, &shell, (&script, &mut self.slot), setting, spool, now)
                        .map_err(|error| format!("the script could not be started: {error}"))
                });
            match started {
                Ok(stage) => {
                    self.stage = Some(stage);
                    client.signal(Kind::Started);
                    client.role = Role::Follow(Follow { attempt, sent: 0, exit_sent: false, warned: false });
                    log::say(format_args!("stage {name:?} started"));
                }
                Err(message) => {
                    self.book.not_started();
                    let _ = std::fs::remove_file(spool::spool_path(&self.options.spool_dir, &attempt));
                    log::say(format_args!("stage {name:?}: {message}"));
                    client.refuse(&refusal(RefusalReason::Start, message));
                }
            }
        }
    }

    fn end_stage(&mut self, remains: Remains) {
        let Remains { run, record, spool, pipes } = remains;
        if run.reap {
            process::kill_descendants();
        }
        self.leftovers.extend(pipes);
        log::say(format_args!(
            "stage {:?} ended: code {:?}, signal {:?}, {} bytes, {} ms",
            run.stage, record.code, record.signal, record.spool_bytes, record.wall_ms,
        ));
        let dir = &self.options.spool_dir;
        // It is kept in memory anyway.
        let _ = spool::leave_record(dir, &record);
        // gitlab-runner has attempts for checkout, caches and artifacts only, and none for what it stopped.
        // A step in this container was started by hand.
        let repeated = self.options.container == labels::HELPER_CONTAINER && !run.stage.starts_with("step_");
        self.orphan.stage_ended(repeated && !record.stopped && record.code != Some(0));
        for ended in self.book.end(record, spool) {
            spool::remove_record(dir, &ended.record.attempt);
            ended.spool.into_iter().for_each(Spool::remove);
        }
        let gone = self.book.shrink(self.options.spool_bytes, |spool| spool.positions().kept());
        gone.into_iter().for_each(Spool::remove);
    }

    fn keeps_clock(&self) -> bool {
        self.options.container == labels::HELPER_CONTAINER
    }

    /// Tells the other container about clients, when that changes.
    fn leave_word(&mut self, now: Moment) {
        self.orphan.clients(self.clients.values().any(Client::is_present), now);
        let presence = self.orphan.presence();
        if !self.keeps_clock() && self.left != Some(presence) {
            if let Err(error) = presence::leave(&self.options.spool_dir, presence) {
                log::say(format_args!("cannot leave word of a client: {error}"));
            }
            self.left = Some(presence);
        }
    }

    fn look_for_orphan(&mut self, now: Moment) -> Option<u8> {
        if !self.keeps_clock() || self.orphan.deadline().is_none_or(|deadline| now < deadline) {
            return None;
        }
        let dir = &self.options.build_spool_dir;
        // Of a dead agent's client only the end was not told.
        let other =
            presence::read(dir).filter(|word| *word != Presence::Connected || presence::is_alive(dir));
        match self.orphan.check(now, other) {
            Verdict::Kept => None,
            Verdict::Orphaned => {
                log::say(format_args!("no client came for {} ms", self.orphan.allowed_ms()));
                u8::try_from(labels::ORPHANED_EXIT_CODE).ok()
            }
        }
    }

    /// The end that was wanted from outside: when the stage is over and clients have read that. With
    /// this process the relays end at once, so what was sent is not enough.
    fn farewell(&mut self, now: Moment) -> Option<u8> {
        if self.stage.is_some() {
            return None;
        }
        let reading =
            self.clients.values().any(|client| matches!(client.role, Role::Follow(_)) && !client.eof);
        let leaving = self.leaving.as_mut()?;
        let at = *leaving.at.get_or_insert(now.plus(FAREWELL_MS));
        (!reading || at <= now).then_some(leaving.code)
    }
}

/// What a script has of its container's grace.
fn scripts_part(grace_ms: u64) -> u64 {
    grace_ms - FAREWELL_MS.min(grace_ms / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_of_a_scripts_end_has_its_part_of_the_grace() {
        for (grace_ms, script_ms) in
            [(0, 0), (1_000, 500), (4_000, 2_000), (10_000, 8_000), (240_000, 238_000)]
        {
            assert_eq!(scripts_part(grace_ms), script_ms);
        }
    }
}
