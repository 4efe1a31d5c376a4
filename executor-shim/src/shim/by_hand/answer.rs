//! The JSON object that answers, and the exit code with it. Pure.

use serde::Serialize;

use super::output::Tail;
use super::request::Mistake;
use crate::shim::exit::{End, Failure, SIGNAL_BASE};
use roadstead_crds::reason::Blame;

/// Exit code where no script's own is there to be handed on.
mod code {
    /// The request cannot be fulfilled as it is.
    pub const REQUEST: u8 = 2;
    /// Roadstead, the cluster or this machine failed.
    pub const SYSTEM: u8 = 3;
    /// As shells show a process that Ctrl-C has ended.
    pub const INTERRUPTED: u8 = 130;
}

/// Why there is no exit code of a script. It tells a script that exits with 2 from a request that
/// is wrong.
#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// The request is wrong, or asks for what is not there: another one may work.
    Request,
    /// Roadstead, the cluster or this machine failed: the same one may work later.
    System,
    /// A signal ended the call.
    Interrupted,
}

/// Why there is no exit code of a script, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// In a word.
    pub kind: Kind,
    /// In a sentence.
    pub sentence: String,
}

impl Trouble {
    /// Another request may work.
    pub fn request(sentence: impl Into<String>) -> Self {
        Self { kind: Kind::Request, sentence: sentence.into() }
    }

    /// The same request may work later.
    pub fn system(sentence: impl Into<String>) -> Self {
        Self { kind: Kind::System, sentence: sentence.into() }
    }

    /// A signal ended the call. `what` was left behind by it.
    pub fn interrupted(sentence: impl Into<String>) -> Self {
        Self { kind: Kind::Interrupted, sentence: sentence.into() }
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        match failure.blame {
            Blame::User => Self::request(failure.sentence),
            Blame::System => Self::system(failure.sentence),
        }
    }
}

/// What is answered. Absent fields are left out.
#[derive(Serialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<&'static str>,
    /// Name of the CiJob.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Namespace of the CiJob.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Name of the JobClass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Image of the container `build`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// For how long the pod is kept without a client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_seconds: Option<i64>,
    /// For how long it is kept at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i64>,
    /// Exit code of the script; 128 and the signal's number where a signal ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended the script.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The end of what the script wrote to both streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Whether there was more before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_truncated: Option<bool>,
    /// How long the script ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<i64>,
    /// What went wrong, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What went wrong, in a word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
}

impl Answer {
    /// An answer to that command.
    pub fn to(command: &'static str) -> Self {
        Self { command: Some(command), ..Self::default() }
    }

    /// The same with what went wrong.
    pub fn failed(self, trouble: Trouble) -> Self {
        Self { error: Some(trouble.sentence), kind: Some(trouble.kind), ..self }
    }

    /// The same with what a script wrote and how long it ran.
    pub fn with_output(self, output: &Tail, duration_ms: i64) -> Self {
        Self {
            output: Some(output.text()),
            output_truncated: Some(output.is_truncated()),
            duration_ms: Some(duration_ms),
            ..self
        }
    }

    /// The same with how a script ended.
    pub fn with_end(self, end: End) -> Self {
        match end {
            End::Done => Self { exit_code: Some(0), ..self },
            End::ScriptExited(code) => Self { exit_code: Some(code), ..self },
            End::ScriptKilled(signal) => {
                Self { exit_code: Some(SIGNAL_BASE.saturating_add(signal)), signal: Some(signal), ..self }
            }
            End::Interrupted => {
                self.failed(Trouble::interrupted("the script was stopped, because the call was interrupted"))
            }
            // The kernel ended the script's container: there is an exit code, and more to say.
            End::Failed(Failure { exit_code: Some(code), sentence, .. }) => {
                Self { exit_code: Some(code), error: Some(sentence), ..self }
            }
            End::Failed(failure) => self.failed(failure.into()),
        }
    }

    /// Exit code of this process.
    pub fn exit(&self) -> u8 {
        match (self.exit_code, self.kind) {
            (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
            (None, Some(Kind::Request)) => code::REQUEST,
            (None, Some(Kind::System)) => code::SYSTEM,
            (None, Some(Kind::Interrupted)) => code::INTERRUPTED,
            (None, None) => 0,
        }
    }

    /// The object itself, in one line.
    pub fn text(&self) -> String {
        // Strings and numbers only: there is nothing that could fail.
        let text = serde_json::to_string(self).unwrap_or_default();
        format!("{text}\n")
    }
}

impl From<Mistake> for Answer {
    fn from(mistake: Mistake) -> Self {
        let answer = Self { command: mistake.command, ..Self::default() };
        answer.failed(Trouble::request(mistake.sentence))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn json(answer: &Answer) -> Value {
        let text = answer.text();
        assert_eq!(text.matches('\n').count(), 1, "one line");
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn every_end_has_its_exit_code_and_says_what_it_was() {
        let oom = Failure { exit_code: Some(137), ..Failure::user("out of memory") };
        for (end, exit, expected) in [
            (End::Done, 0, json!({"exitCode": 0})),
            (End::ScriptExited(7), 7, json!({"exitCode": 7})),
            (End::ScriptExited(2), 2, json!({"exitCode": 2})),
            (End::ScriptExited(130), 130, json!({"exitCode": 130})),
            (End::ScriptKilled(9), 137, json!({"exitCode": 137, "signal": 9})),
            (oom.into(), 137, json!({"exitCode": 137, "error": "out of memory"})),
            (Failure::user("no shell").into(), 2, json!({"error": "no shell", "kind": "request"})),
            (Failure::system("no node").into(), 3, json!({"error": "no node", "kind": "system"})),
            (
                End::Interrupted,
                130,
                json!({"error": "the script was stopped, because the call was interrupted", "kind": "interrupted"}),
            ),
        ] {
            let mut expected = expected;
            expected["command"] = json!("run");
            let answer = Answer::to("run").with_end(end.clone());
            assert_eq!((json(&answer), answer.exit()), (expected, exit), "{end:?}");
        }
    }

    #[test]
    fn a_mistake_is_answered_as_such() {
        let mistake = Mistake { command: None, sentence: "it is wrong".into() };
        let answer = Answer::from(mistake);
        assert_eq!((json(&answer), answer.exit()), (json!({"error": "it is wrong", "kind": "request"}), 2));
    }

    #[test]
    fn an_answer_to_a_script_has_its_output() {
        let answer = Answer { job: Some("cij-0-0123456789".into()), ..Answer::to("run") };
        let answer = answer.with_output(&Tail::default(), 12).with_end(End::Done);
        let expected = json!({"command": "run", "job": "cij-0-0123456789", "exitCode": 0, "output": "",
            "outputTruncated": false, "durationMs": 12});
        assert_eq!(json(&answer), expected);
    }
}
