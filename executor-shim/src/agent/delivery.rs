//! Sending: output as it is in the spool, the exit record after its last byte, and heartbeats.

use nix::errno::Errno;

use super::book::Standing;
use super::client::{Client, Role};
use super::clock::Moment;
use super::hub::Hub;
use super::spool::{self, Spool};
use super::stage::Stage;
use crate::wire::frame::Kind;
use crate::wire::message::ExitRecord;

/// How often a client is sent to before others have their turn.
const TURNS: usize = 4;

impl Hub {
    /// Sends every client what it has not got, as far as its socket takes it.
    pub(super) fn deliver(&mut self, now: Moment) {
        let mut clients = std::mem::take(&mut self.clients);
        for client in clients.values_mut() {
            if let Role::Silent { until } = client.role {
                client.gone |= until <= now;
            }
            if !client.gone {
                client.more = !self.serve_client(client, now);
            }
        }
        self.clients = clients;
    }

    /// Sends to one client; whether it has got everything.
    fn serve_client(&mut self, client: &mut Client, now: Moment) -> bool {
        for _ in 0..TURNS {
            if !client.flush(now) {
                return false;
            }
            let sent = match &mut client.role {
                Role::Silent { .. } => return true,
                Role::Leaving => {
                    client.gone = true;
                    return true;
                }
                Role::Follow(follow) => {
                    let (spool, record) = self.output(&follow.attempt);
                    let end = spool.map(|spool| spool.positions().len());
                    let end = end.or(record.map(|record| record.spool_bytes)).unwrap_or(0);
                    match (spool, record) {
                        (Some(spool), _) if follow.sent < end => {
                            spool.send(follow.sent, &client.stream).map(|len| {
                                follow.sent += len;
                                Some(len)
                            })
                        }
                        (_, Some(record)) if follow.sent == end && !follow.exit_sent => {
                            follow.exit_sent = true;
                            let record = record.clone();
                            client.say(Kind::Exit, &record);
                            continue;
                        }
                        // More than is kept any more, and perhaps in the middle of a frame. Coming back, the
                        // client is told.
                        (None, _) if follow.sent < end || record.is_none() => {
                            client.gone = true;
                            return true;
                        }
                        _ => Ok(None),
                    }
                }
                Role::Collect(collected) if collected.sent < collected.end => {
                    spool::send(&collected.file, collected.sent, collected.end, &client.stream).map(|len| {
                        collected.sent += len;
                        Some(len)
                    })
                }
                Role::Collect(collected) if !collected.exit_sent => {
                    collected.exit_sent = true;
                    let record = collected.record.clone();
                    client.say(Kind::Exit, &record);
                    continue;
                }
                Role::Probe | Role::Upload(_) | Role::Queued(_) | Role::Collect(_) => Ok(None),
            };
            match sent {
                Ok(None) => {
                    // Everything is sent, so this is between two frames.
                    if client.eof && has_all(client) {
                        client.gone = true;
                        return true;
                    }
                    if let Some(left) = self.leaving_ms(now)
                        && let Role::Follow(follow) = &mut client.role
                        && !std::mem::replace(&mut follow.warned, true)
                    {
                        client.warn(left);
                        continue;
                    }
                    if now.since(client.last_sent) < self.options.heartbeat_ms {
                        return true;
                    }
                    client.signal(Kind::Heartbeat);
                }
                Ok(Some(0)) => {
                    // Somebody has cut the file. What is missing will not come back.
                    if let Some(stage) =
                        client.attempt().map(ToOwned::to_owned).and_then(|a| self.stage_of(&a))
                    {
                        stage.fail("the stored output was cut by another process".to_owned());
                    }
                    client.gone = true;
                    return true;
                }
                Ok(Some(_)) => client.last_sent = now,
                Err(Errno::EAGAIN) => return false,
                Err(_) => {
                    client.gone = true;
                    return true;
                }
            }
        }
        false
    }

    /// Output of an attempt, and its exit record once it has ended.
    fn output(&self, attempt: &str) -> (Option<&Spool>, Option<&ExitRecord>) {
        match self.book.standing(attempt) {
            Standing::Running => (self.stage.as_ref().map(Stage::spool), None),
            Standing::Ended(ended) => (ended.spool.as_ref(), Some(&ended.record)),
            Standing::Unknown | Standing::Forgotten => (None, None),
        }
    }
}

/// Whether a client with nothing left to be sent has nothing to wait for either.
fn has_all(client: &Client) -> bool {
    match &client.role {
        Role::Follow(follow) => follow.exit_sent,
        Role::Collect(collected) => collected.exit_sent,
        _ => true,
    }
}
