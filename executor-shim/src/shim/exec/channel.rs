//! The channels of an exec stream (`v5.channel.k8s.io`). Pure.
//!
//! Every binary WebSocket message starts with the number of its channel. Version 5 adds a message
//! that closes one channel, so that standard input can end before the rest does.

use tokio_tungstenite::tungstenite::Bytes;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const CLOSE: u8 = 255;

/// What one message from the server carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// Standard output of the command.
    Stdout(Bytes),
    /// Standard error of the command, or of what should have started it.
    Stderr(Bytes),
    /// How the command ended, as a `metav1.Status` in JSON.
    Status(Bytes),
    /// Nothing that matters: an empty message (the server opens each channel with one), the end of
    /// a channel, a channel that the shim does not use.
    Nothing,
}

/// Reads one message without copying its content.
pub fn decode(mut message: Bytes) -> Received {
    if message.len() < 2 {
        return Received::Nothing;
    }
    let channel = message.split_to(1);
    match channel.first() {
        Some(&STDOUT) => Received::Stdout(message),
        Some(&STDERR) => Received::Stderr(message),
        Some(&STATUS) => Received::Status(message),
        _ => Received::Nothing,
    }
}

/// A message with a piece of standard input.
pub fn stdin(parts: &[&[u8]]) -> Bytes {
    let mut message = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    message.push(STDIN);
    for part in parts {
        message.extend_from_slice(part);
    }
    message.into()
}

/// The message that ends standard input.
pub fn end_of_stdin() -> Bytes {
    Bytes::from_static(&[CLOSE, STDIN])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_server() {
        for (message, received) in [
            (&b""[..], Received::Nothing),
            (b"\x01", Received::Nothing),
            (b"\x01out", Received::Stdout(Bytes::from_static(b"out"))),
            (b"\x02err", Received::Stderr(Bytes::from_static(b"err"))),
            (b"\x03{}", Received::Status(Bytes::from_static(b"{}"))),
            (b"\xff\x01", Received::Nothing),
            (b"\x00in", Received::Nothing),
            (b"\x09?", Received::Nothing),
        ] {
            assert_eq!(decode(Bytes::copy_from_slice(message)), received, "{message:?}");
        }
    }

    #[test]
    fn messages_of_the_shim() {
        assert_eq!(stdin(&[b"ab", b"", b"c"]), &b"\x00abc"[..]);
        assert_eq!(end_of_stdin(), &b"\xff\x00"[..]);
    }
}
