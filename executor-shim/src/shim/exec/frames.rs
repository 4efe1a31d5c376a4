//! Frames out of a stream that arrives in pieces of any size.

use tokio_tungstenite::tungstenite::Bytes;

use crate::wire::frame::{self, FrameError, HEADER_LEN, Kind};

/// A whole frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// What the payload is.
    pub kind: Kind,
    /// Meaning depends on the kind.
    pub offset: u64,
    /// The payload.
    pub payload: Bytes,
}

impl Incoming {
    /// Length of the frame with its header.
    pub fn whole_len(&self) -> u64 {
        (HEADER_LEN + self.payload.len()) as u64
    }
}

/// Puts frames together. A frame that arrives in one piece is not copied.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// What has arrived and was not looked at yet.
    fresh: Bytes,
    /// The beginning of a frame whose end has not arrived yet.
    partial: Vec<u8>,
}

impl FrameReader {
    /// Adds a piece of the stream. All frames of the one before must have been taken.
    pub fn push(&mut self, piece: Bytes) {
        debug_assert!(self.fresh.is_empty(), "a piece was added before the last one was used up");
        self.fresh = piece;
    }

    /// Takes the next frame; `None` where more of the stream is needed first.
    pub fn take(&mut self) -> Result<Option<Incoming>, FrameError> {
        if self.partial.is_empty() {
            if let Some((frame, len)) = frame::decode(&self.fresh)? {
                let (kind, offset) = (frame.kind, frame.offset);
                let payload = self.fresh.split_to(len).split_off(HEADER_LEN);
                return Ok(Some(Incoming { kind, offset, payload }));
            }
            if self.fresh.is_empty() {
                return Ok(None);
            }
        }
        self.fill(HEADER_LEN);
        let Some(header) = frame::decode_header(&self.partial)? else { return Ok(None) };
        self.fill(HEADER_LEN + header.len);
        if self.partial.len() < HEADER_LEN + header.len {
            return Ok(None);
        }
        let whole = Bytes::from(std::mem::take(&mut self.partial));
        let Some((frame, _)) = frame::decode(&whole)? else { return Ok(None) };
        let (kind, offset) = (frame.kind, frame.offset);
        Ok(Some(Incoming { kind, offset, payload: whole.slice(HEADER_LEN..) }))
    }

    /// Moves as much of the fresh piece to the partial frame as makes it `len` bytes long.
    fn fill(&mut self, len: usize) {
        let missing = len.saturating_sub(self.partial.len());
        self.partial.reserve_exact(missing);
        let moved = self.fresh.split_to(missing.min(self.fresh.len()));
        self.partial.extend_from_slice(&moved);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = Vec<(Kind, u64, Vec<u8>)>> {
        let kind =
            prop_oneof![Just(Kind::Stdout), Just(Kind::Stderr), Just(Kind::Heartbeat), Just(Kind::Exit)];
        prop::collection::vec((kind, any::<u64>(), prop::collection::vec(any::<u8>(), 0..300)), 0..12)
    }

    fn read(stream: &[u8], cuts: &[usize]) -> Result<Vec<Incoming>, FrameError> {
        let mut reader = FrameReader::default();
        let mut frames = Vec::new();
        let mut rest = stream;
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let (piece, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            rest = later;
            reader.push(Bytes::copy_from_slice(piece));
            while let Some(frame) = reader.take()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(frames in frames(), cuts in prop::collection::vec(1usize..400, 1..20)) {
            let mut stream = Vec::new();
            for (kind, offset, payload) in &frames {
                frame::encode(&mut stream, *kind, *offset, payload);
            }
            let read = read(&stream, &cuts).unwrap();
            let read: Vec<_> = read.into_iter().map(|f| (f.kind, f.offset, f.payload.to_vec())).collect();
            prop_assert_eq!(read, frames);
        }

        #[test]
        fn a_flipped_bit_ends_the_stream_before_its_frame(
            frames in frames(), cuts in prop::collection::vec(1usize..400, 1..20), at: prop::sample::Index, bit in 0u8..8,
        ) {
            let mut stream = Vec::new();
            let mut ends = Vec::new();
            for (kind, offset, payload) in &frames {
                frame::encode(&mut stream, *kind, *offset, payload);
                ends.push(stream.len());
            }
            prop_assume!(!stream.is_empty());
            let at = at.index(stream.len());
            stream[at] ^= 1 << bit;
            let intact = ends.iter().filter(|end| **end <= at).count();
            // A longer length may only mean that the stream waits for more.
            if let Ok(read) = read(&stream, &cuts) {
                prop_assert_eq!(read.len(), intact);
            }
        }

        #[test]
        fn any_stream_is_read_without_panic(stream in prop::collection::vec(any::<u8>(), 0..600), cuts in prop::collection::vec(1usize..99, 1..9)) {
            let _ = read(&stream, &cuts);
        }
    }

    #[test]
    fn a_frame_in_one_piece_is_not_copied() {
        let mut stream = Vec::new();
        frame::encode(&mut stream, Kind::Stdout, 0, b"payload");
        let piece = Bytes::from(stream);
        let mut reader = FrameReader::default();
        reader.push(piece.clone());
        let frame = reader.take().unwrap().unwrap();
        assert_eq!(frame.payload.as_ptr(), piece[HEADER_LEN..].as_ptr());
        assert_eq!(frame.whole_len(), piece.len() as u64);
    }

    #[test]
    fn what_is_no_frame_is_refused_at_its_first_byte() {
        let mut reader = FrameReader::default();
        reader.push(Bytes::from_static(b"sh: stage-agent: not found\n"));
        assert_eq!(reader.take(), Err(FrameError::Magic(b's')));
    }
}
