//! What the agent answers.

use super::book::Standing;
use super::client::{Client, Follow, Role};
use super::clock::Moment;
use super::collect;
use super::hub::Hub;
use super::log;
use super::script::{ScriptError, Upload};
use super::spool;
use super::tools;
use crate::wire::PROTOCOL;
use crate::wire::frame::{Frame, Kind};
use crate::wire::message::{Collect, Hello, Open, Refusal, RefusalReason, Run, Stop, Work};

/// Who this agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// UID of the pod.
    pub pod_uid: String,
    /// Random id of this run.
    pub boot_id: String,
    /// Name of the container.
    pub container: String,
}

/// A refusal with its sentence.
pub(super) fn refusal(reason: RefusalReason, message: impl Into<String>) -> Refusal {
    Refusal { reason, message: message.into() }
}

/// Reads a client's first words, and whether it means this agent: pure.
pub(super) fn understand(payload: &[u8], me: &Identity) -> Result<Open, Refusal> {
    // The version comes first: another one may have other fields.
    #[derive(serde::Deserialize)]
    struct Version {
        protocol: u32,
    }
    let no_words = |_| refusal(RefusalReason::Protocol, "the client's first words cannot be understood");
    let version: Version = serde_json::from_slice(payload).map_err(no_words)?;
    if version.protocol != PROTOCOL {
        let message =
            format!("the client speaks protocol {}, the agent in the pod {PROTOCOL}", version.protocol);
        return Err(refusal(RefusalReason::Protocol, message));
    }
    let open: Open = serde_json::from_slice(payload).map_err(no_words)?;
    if open.pod_uid != me.pod_uid {
        let message = format!("pod {} was meant, this is pod {}", open.pod_uid, me.pod_uid);
        return Err(refusal(RefusalReason::WrongPod, message));
    }
    if open.boot_id.as_ref().is_some_and(|boot| *boot != me.boot_id) {
        let message = format!("container {} was restarted since it was first spoken to", me.container);
        return Err(refusal(RefusalReason::WrongPod, message));
    }
    match &open.work {
        Work::Run(Run { attempt, .. }) | Work::Collect(Collect { attempt, .. }) if !is_name(attempt) => {
            Err(refusal(RefusalReason::Protocol, "an attempt's name has 32 hexadecimal digits"))
        }
        _ => Ok(open),
    }
}

/// An attempt's name is a part of file names.
fn is_name(attempt: &str) -> bool {
    attempt.len() == 32 && attempt.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn out_of_place(kind: Kind) -> Refusal {
    refusal(RefusalReason::Protocol, format!("a frame {kind:?} is out of place"))
}

fn script_refusal(error: ScriptError) -> Refusal {
    let reason = match error {
        ScriptError::Memory(_) => RefusalReason::Start,
        _ => RefusalReason::Script,
    };
    refusal(reason, error.to_string())
}

impl Hub {
    /// Takes one frame of a client.
    pub(super) fn on_frame(
        &mut self,
        client: &mut Client,
        frame: Frame<'_>,
        now: Moment,
    ) -> Result<(), Refusal> {
        match (frame.kind, &mut client.role) {
            (_, Role::Leaving) => Ok(()),
            (Kind::Open, Role::Silent { .. }) => self.on_open(client, frame.payload),
            (Kind::Script, Role::Upload(upload)) => {
                upload.1.piece(frame.offset, frame.payload).map_err(script_refusal)?;
                finish_upload(client)
            }
            (Kind::Stop, Role::Upload(_) | Role::Queued(_)) => {
                Err(refusal(RefusalReason::Script, "the script was stopped before it was started"))
            }
            (Kind::Stop, Role::Follow(follow)) => {
                let stop: Stop =
                    serde_json::from_slice(frame.payload).map_err(|_| out_of_place(Kind::Stop))?;
                if let Some(stage) = self.stage_of(&follow.attempt) {
                    stage.stop(now, stop.grace_ms);
                }
                Ok(())
            }
            (Kind::Ack, Role::Follow(follow)) if frame.offset <= follow.sent => {
                if let Some(spool) = self.spool_of(&follow.attempt) {
                    spool.acked(frame.offset);
                }
                Ok(())
            }
            (Kind::Close, Role::Follow(follow)) if follow.exit_sent => {
                if let Some(spool) = self.book.close(&follow.attempt) {
                    spool.remove();
                }
                spool::remove_record(&self.options.spool_dir, &follow.attempt);
                client.role = Role::Leaving;
                Ok(())
            }
            // What the other container has left is not this agent's to change.
            (Kind::Ack, Role::Collect(collected)) if frame.offset <= collected.sent => Ok(()),
            (Kind::Close, Role::Collect(collected)) if collected.exit_sent => {
                client.role = Role::Leaving;
                Ok(())
            }
            (kind, _) => Err(out_of_place(kind)),
        }
    }

    fn on_open(&mut self, client: &mut Client, payload: &[u8]) -> Result<(), Refusal> {
        let open = understand(payload, &self.me)?;
        self.orphan.opened(open.orphan_ms);
        match open.work {
            Work::Probe { shell } => {
                client.role = Role::Probe;
                let mut hello = self.hello(false);
                hello.tools = Some(tools::tools(&shell, self.bin.as_deref()));
                client.say(Kind::Hello, &hello);
                Ok(())
            }
            Work::Run(run) => self.on_run(client, run),
            Work::Collect(wanted) => {
                let collected = collect::open(&self.options.build_spool_dir, &wanted)?;
                client.say(Kind::Hello, &self.hello(true));
                client.role = Role::Collect(Box::new(collected));
                Ok(())
            }
        }
    }

    fn on_run(&mut self, client: &mut Client, run: Run) -> Result<(), Refusal> {
        // The older connection may be half-open; it does not know.
        for other in self.clients.values_mut().filter(|other| other.attempt() == Some(&run.attempt)) {
            other.gone = true;
        }
        let accepted = match self.book.standing(&run.attempt) {
            Standing::Unknown => return self.on_new_run(client, run),
            Standing::Running => self.stage.as_ref().is_some_and(|stage| stage.spool().accepts(run.position)),
            Standing::Ended(ended) => match &ended.spool {
                Some(spool) => spool.accepts(run.position),
                None => ended.record.spool_bytes == run.position,
            },
            Standing::Forgotten => false,
        };
        if !accepted {
            let message = format!("the output from byte {} on is not there any more", run.position);
            return Err(refusal(RefusalReason::Position, message));
        }
        client.say(Kind::Hello, &self.hello(true));
        client.signal(Kind::Started);
        client.role = Role::Follow(Follow {
            attempt: run.attempt,
            sent: run.position,
            exit_sent: false,
            warned: false,
        });
        Ok(())
    }

    fn on_new_run(&mut self, client: &mut Client, run: Run) -> Result<(), Refusal> {
        if run.position != 0 {
            let message = "the attempt that was to be gone on with was never started here";
            return Err(refusal(RefusalReason::Position, message));
        }
        if self.is_leaving() {
            return Err(refusal(RefusalReason::Start, "the container is being ended"));
        }
        if tools::shell(&run.shell, tools::is_program).is_none() {
            let message = format!(
                "container {} has no shell for scripts ({}): use an image that has one",
                self.me.container,
                if run.shell == "bash" { "bash or sh" } else { run.shell.as_str() },
            );
            return Err(refusal(RefusalReason::NoShell, message));
        }
        let upload = Upload::new(run.script_len, run.script_crc, &self.slot).map_err(script_refusal)?;
        client.say(Kind::Hello, &self.hello(false));
        client.role = Role::Upload(Box::new((run, upload)));
        finish_upload(client)
    }

    fn hello(&self, known: bool) -> Hello {
        Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pod_uid: self.me.pod_uid.clone(),
            boot_id: self.me.boot_id.clone(),
            container: self.me.container.clone(),
            known,
            tools: None,
        }
    }
}

/// Queues a script that is whole.
fn finish_upload(client: &mut Client) -> Result<(), Refusal> {
    match std::mem::replace(&mut client.role, Role::Leaving) {
        Role::Upload(upload) if upload.1.is_whole() => {
            let (run, upload) = *upload;
            let script = upload.seal().map_err(script_refusal)?;
            client.role = Role::Queued(Box::new((run, script)));
        }
        other => client.role = other,
    }
    Ok(())
}

/// Tells the log of a refusal, without names that open anything.
pub(super) fn log_refusal(refusal: &Refusal) {
    log::say(format_args!("refused a client: {}", refusal.message));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Identity {
        Identity { pod_uid: "pod".into(), boot_id: "boot".into(), container: "build".into() }
    }

    fn open(change: impl FnOnce(&mut Open)) -> Vec<u8> {
        let mut open = Open {
            protocol: PROTOCOL,
            pod_uid: "pod".into(),
            boot_id: None,
            work: Work::Probe { shell: "sh".into() },
            orphan_ms: 1,
        };
        change(&mut open);
        serde_json::to_vec(&open).unwrap()
    }

    fn reason(payload: &[u8]) -> Option<RefusalReason> {
        understand(payload, &me()).err().map(|refusal| refusal.reason)
    }

    fn collect(attempt: &str) -> Work {
        Work::Collect(Collect { attempt: attempt.into(), position: 0 })
    }

    #[test]
    fn only_who_means_this_agent_is_heard() {
        assert_eq!(reason(&open(|_| {})), None);
        assert_eq!(reason(&open(|open| open.boot_id = Some("boot".into()))), None);
        assert_eq!(reason(&open(|open| open.pod_uid = "other".into())), Some(RefusalReason::WrongPod));
        assert_eq!(reason(&open(|open| open.boot_id = Some("old".into()))), Some(RefusalReason::WrongPod));
        assert_eq!(reason(&open(|open| open.protocol += 1)), Some(RefusalReason::Protocol));
        assert_eq!(reason(br#"{"protocol":99}"#), Some(RefusalReason::Protocol));
        assert_eq!(reason(b"{}"), Some(RefusalReason::Protocol));
        assert_eq!(reason(b"\xff"), Some(RefusalReason::Protocol));
    }

    #[test]
    fn an_attempts_name_can_be_no_path() {
        assert_eq!(reason(&open(|open| open.work = collect("0123456789abcdef0123456789abcdef"))), None);
        for name in ["", "../../../../../../../../../../etc", "0123456789ABCDEF0123456789ABCDEF", "0123"] {
            let words = open(|open| open.work = collect(name));
            assert_eq!(reason(&words), Some(RefusalReason::Protocol), "{name}");
        }
    }
}
