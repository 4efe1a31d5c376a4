//! The frame codec: pure, no input or output of its own.
//!
//! ```text
//!  0      1      2        4          8             16        20
//!  ┌──────┬──────┬────────┬──────────┬─────────────┬─────────┬─────────┄
//!  │ 0x52 │ kind │ 0 , 0  │ len: u32 │ offset: u64 │ crc: u32│ payload
//!  └──────┴──────┴────────┴──────────┴─────────────┴─────────┴─────────┄
//! ```
//! Numbers are little-endian. The checksum is CRC-32 (IEEE) of the first 16 bytes and the payload.

use thiserror::Error;

/// Length of a frame's header in bytes.
pub const HEADER_LEN: usize = 20;

/// Longest payload of a frame in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;

const MAGIC: u8 = 0x52;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Shim: [`super::message::Open`] as JSON. The first frame of a connection.
    Open = 1,
    /// Shim: a piece of the script; `offset` is its place in the script.
    Script = 2,
    /// Shim: [`super::message::Stop`] as JSON: end the script.
    Stop = 3,
    /// Shim: everything before the spool position in `offset` has been written out. No payload.
    Ack = 4,
    /// Shim: the exit record has arrived; the attempt can be forgotten. No payload.
    Close = 5,
    /// Agent: [`super::message::Hello`] as JSON. The answer to Open.
    Hello = 16,
    /// Agent: the script runs (or ran, where the attempt was known). No payload.
    Started = 17,
    /// Agent: output; `offset` is its place in standard output.
    Stdout = 18,
    /// Agent: output; `offset` is its place in standard error.
    Stderr = 19,
    /// Agent: [`super::message::ExitRecord`] as JSON.
    Exit = 20,
    /// Agent: [`super::message::Refusal`] as JSON. Nothing follows.
    Refused = 21,
    /// Agent: it is alive. No payload. `offset` is 0, or the milliseconds that the script may still take where the
    /// container is being ended from outside.
    Heartbeat = 22,
}

impl Kind {
    fn from_u8(byte: u8) -> Option<Self> {
        [
            Self::Open,
            Self::Script,
            Self::Stop,
            Self::Ack,
            Self::Close,
            Self::Hello,
            Self::Started,
            Self::Stdout,
            Self::Stderr,
            Self::Exit,
            Self::Refused,
            Self::Heartbeat,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// The first [`HEADER_LEN`] bytes of a frame, checked for form but not against the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the payload is.
    pub kind: Kind,
    /// Length of the payload in bytes, at most [`MAX_PAYLOAD`].
    pub len: usize,
    /// Meaning depends on the kind; 0 where it has none.
    pub offset: u64,
    crc: u32,
}

/// A whole frame whose checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the payload is.
    pub kind: Kind,
    /// Meaning depends on the kind; 0 where it has none.
    pub offset: u64,
    /// The payload.
    pub payload: &'a [u8],
}

/// Why bytes are not a frame. There is no way on from it but a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The stream is not at the start of a frame, or the other side speaks something else.
    #[error("expected a frame, found byte 0x{0:02x}")]
    Magic(u8),
    /// The reserved bytes are not zero.
    #[error("a frame has reserved bytes set")]
    Reserved,
    /// A kind that this version does not know.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// The length exceeds [`MAX_PAYLOAD`].
    #[error("a frame of {0} bytes exceeds the limit of {MAX_PAYLOAD}")]
    TooLong(u32),
    /// The checksum does not fit.
    #[error("checksum mismatch in a {0:?} frame")]
    Checksum(Kind),
}

/// Encodes the header that belongs in front of `payload`, which must not exceed [`MAX_PAYLOAD`]
/// (longer payloads are refused by every decoder).
pub fn header(kind: Kind, offset: u64, payload: &[u8]) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[0] = MAGIC;
    bytes[1] = kind as u8;
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    bytes[4..8].copy_from_slice(&len.to_le_bytes());
    bytes[8..16].copy_from_slice(&offset.to_le_bytes());
    let crc = checksum(&bytes, payload);
    bytes[16..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Appends a whole frame to `out`.
pub fn encode(out: &mut Vec<u8>, kind: Kind, offset: u64, payload: &[u8]) {
    out.extend_from_slice(&header(kind, offset, payload));
    out.extend_from_slice(payload);
}

/// Reads a header from the front of `bytes`; `None` where there are not enough bytes yet.
pub fn decode_header(bytes: &[u8]) -> Result<Option<Header>, FrameError> {
    let Some(&magic) = bytes.first() else { return Ok(None) };
    if magic != MAGIC {
        return Err(FrameError::Magic(magic));
    }
    let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let [_, kind, r0, r1, l0, l1, l2, l3, o0, o1, o2, o3, o4, o5, o6, o7, c0, c1, c2, c3] = *bytes;
    if (r0, r1) != (0, 0) {
        return Err(FrameError::Reserved);
    }
    let kind = Kind::from_u8(kind).ok_or(FrameError::Kind(kind))?;
    let declared = u32::from_le_bytes([l0, l1, l2, l3]);
    let len = usize::try_from(declared).ok().filter(|len| *len <= MAX_PAYLOAD);
    Ok(Some(Header {
        kind,
        len: len.ok_or(FrameError::TooLong(declared))?,
        offset: u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
        crc: u32::from_le_bytes([c0, c1, c2, c3]),
    }))
}

/// Reads one frame from the front of `bytes` and says how many bytes it took; `None` where the
/// frame is not complete yet.
pub fn decode(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some(header) = decode_header(bytes)? else { return Ok(None) };
    let end = HEADER_LEN + header.len;
    let (Some(head), Some(payload)) = (bytes.first_chunk::<HEADER_LEN>(), bytes.get(HEADER_LEN..end)) else {
        return Ok(None);
    };
    if checksum(head, payload) != header.crc {
        return Err(FrameError::Checksum(header.kind));
    }
    Ok(Some((Frame { kind: header.kind, offset: header.offset, payload }, end)))
}

fn checksum(header: &[u8; HEADER_LEN], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..16]);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kinds() -> impl Strategy<Value = Kind> {
        (0u8..=30).prop_filter_map("a known kind", Kind::from_u8)
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(kind in kinds(), offset: u64, payload in prop::collection::vec(any::<u8>(), 0..2000), rest in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut bytes = Vec::new();
            encode(&mut bytes, kind, offset, &payload);
            let taken = bytes.len();
            bytes.extend(rest);
            let decoded = decode(&bytes).unwrap().unwrap();
            prop_assert_eq!(decoded, (Frame { kind, offset, payload: &payload }, taken));
        }

        #[test]
        fn a_part_of_a_frame_is_not_a_frame(payload in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..220) {
            let mut bytes = Vec::new();
            encode(&mut bytes, Kind::Stdout, 7, &payload);
            prop_assume!(cut < bytes.len());
            prop_assert_eq!(decode(&bytes[..cut]).unwrap(), None);
        }

        #[test]
        fn a_flipped_bit_never_passes(payload in prop::collection::vec(any::<u8>(), 0..200), bit in 0usize..1760) {
            let mut bytes = Vec::new();
            encode(&mut bytes, Kind::Stderr, 7, &payload);
            prop_assume!(bit / 8 < bytes.len());
            bytes[bit / 8] ^= 1 << (bit % 8);
            // A longer length may only mean that more bytes are awaited; nothing wrong is delivered.
            prop_assert!(!matches!(decode(&bytes), Ok(Some(_))));
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn a_frame_longer_than_the_limit_is_refused_at_its_header() {
        let mut bytes = Vec::new();
        encode(&mut bytes, Kind::Stdout, 0, &vec![0; MAX_PAYLOAD + 1]);
        assert_eq!(decode(&bytes[..HEADER_LEN]), Err(FrameError::TooLong(65_537)));
    }

    #[test]
    fn output_that_is_no_frame_is_refused_at_its_first_byte() {
        assert_eq!(decode(b"sh: not found\n"), Err(FrameError::Magic(b's')));
    }
}
