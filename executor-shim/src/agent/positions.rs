//! Where the frames of one attempt are in its spool: pure.
//!
//! A position is a count of bytes of the spool. It is one that a client can go on from if a frame
//! begins there or the spool ends there, and if the bytes from there on are still kept.

use std::collections::VecDeque;
use std::ops::Range;

use crate::wire::frame::{self, HEADER_LEN, Kind};

/// Distance between the frame borders that are remembered, and with it the least that is given back
/// to the file system at once.
pub(super) const STEP: u64 = 1024 * 1024;

/// One of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl Stream {
    /// The kind of the frames that carry it.
    pub fn kind(self) -> Kind {
        match self {
            Self::Out => Kind::Stdout,
            Self::Err => Kind::Stderr,
        }
    }
}

/// What is known of a spool without looking into it.
#[derive(Clone, Debug)]
pub(super) struct Positions {
    len: u64,
    out: u64,
    err: u64,
    acked: u64,
    /// Frame borders, ascending, about one per [`STEP`]. What lies before the first one is gone.
    borders: VecDeque<u64>,
}

impl Default for Positions {
    fn default() -> Self {
        Self { len: 0, out: 0, err: 0, acked: 0, borders: VecDeque::from([0]) }
    }
}

impl Positions {
    /// Length of the spool: the position after the last frame.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Bytes of a stream so far: the offset of its next frame.
    pub fn offset(&self, stream: Stream) -> u64 {
        match stream {
            Stream::Out => self.out,
            Stream::Err => self.err,
        }
    }

    /// Bytes that nobody has acknowledged.
    pub fn unacked(&self) -> u64 {
        self.len.saturating_sub(self.acked)
    }

    /// Bytes that still take space.
    pub fn kept(&self) -> u64 {
        self.len.saturating_sub(self.first())
    }

    /// A frame with that much payload has been appended.
    pub fn appended(&mut self, stream: Stream, payload: u64) {
        match stream {
            Stream::Out => self.out += payload,
            Stream::Err => self.err += payload,
        }
        self.len += HEADER_LEN as u64 + payload;
        if self.borders.back().is_none_or(|last| self.len - last >= STEP) {
            self.borders.push_back(self.len);
        }
    }

    /// Everything before `position` has arrived. Answers with the bytes that nobody needs any more,
    /// if they are worth giving back.
    pub fn acked(&mut self, position: u64) -> Option<Range<u64>> {
        self.acked = self.acked.max(position.min(self.len));
        let first = self.first();
        while self.borders.get(1).is_some_and(|second| *second <= self.acked) {
            self.borders.pop_front();
        }
        (self.first() > first).then(|| first..self.first())
    }

    /// A frame border at or before `position` from which frames can be walked to it; `None` where
    /// the position is not kept, or beyond the end.
    pub fn anchor(&self, position: u64) -> Option<u64> {
        if position > self.len {
            return None;
        }
        if position == self.len {
            return Some(position);
        }
        self.borders.iter().rev().find(|border| **border <= position).copied()
    }

    fn first(&self) -> u64 {
        self.borders.front().copied().unwrap_or(0)
    }
}

/// Walks along frames without looking at their payloads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    /// Position of the next header.
    pub at: u64,
    /// Where the walk ends: it does not step over a frame that ends behind it.
    pub end: u64,
}

impl Walk {
    /// Steps over every frame of which `bytes` has the header. `bytes` begins at position
    /// `base`; what lies before the walk is skipped. `false` where something else than output lies
    /// on the way.
    pub fn over(&mut self, base: u64, bytes: &[u8]) -> bool {
        loop {
            let Some(rest) =
                usize::try_from(self.at.saturating_sub(base)).ok().and_then(|skip| bytes.get(skip..))
            else {
                return true;
            };
            match frame::decode_header(rest) {
                Ok(None) => return true,
                Ok(Some(header)) if matches!(header.kind, Kind::Stdout | Kind::Stderr) => {
                    let next = self.at + (HEADER_LEN + header.len) as u64;
                    if next > self.end {
                        return true;
                    }
                    self.at = next;
                }
                Ok(Some(_)) | Err(_) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A spool of frames with payloads of these lengths, and its borders.
    fn spool(lengths: &[(bool, usize)]) -> (Vec<u8>, Positions, Vec<u64>) {
        let (mut bytes, mut positions, mut borders) = (Vec::new(), Positions::default(), vec![0]);
        for (out, len) in lengths {
            let stream = if *out { Stream::Out } else { Stream::Err };
            frame::encode(&mut bytes, stream.kind(), positions.offset(stream), &vec![b'x'; *len]);
            positions.appended(stream, *len as u64);
            borders.push(bytes.len() as u64);
        }
        (bytes, positions, borders)
    }

    fn lands_on(bytes: &[u8], positions: &Positions, position: u64) -> bool {
        let Some(anchor) = positions.anchor(position) else { return false };
        let mut walk = Walk { at: anchor, end: position };
        let range = usize::try_from(anchor).unwrap()..usize::try_from(position).unwrap();
        walk.over(anchor, &bytes[range]) && walk.at == position
    }

    fn lengths() -> impl Strategy<Value = Vec<(bool, usize)>> {
        let len = prop_oneof![4 => 1usize..200, 1 => 30_000usize..=65_536];
        prop::collection::vec((any::<bool>(), len), 0..120)
    }

    proptest! {
        #[test]
        fn exactly_the_borders_can_be_gone_on_from(lengths in lengths(), near in any::<prop::sample::Index>(), off in 0u64..30) {
            let (bytes, positions, borders) = spool(&lengths);
            prop_assert_eq!(positions.len(), bytes.len() as u64);
            let border = borders[near.index(borders.len())];
            prop_assert!(lands_on(&bytes, &positions, border));
            let other = border + off;
            prop_assert_eq!(lands_on(&bytes, &positions, other), borders.contains(&other));
        }

        #[test]
        fn an_acknowledged_part_is_given_back_once_and_the_rest_stays(lengths in lengths(), acks in prop::collection::vec(any::<prop::sample::Index>(), 1..8)) {
            let (bytes, mut positions, borders) = spool(&lengths);
            let (mut gone, mut highest) = (0, 0);
            for ack in acks {
                let ack = borders[ack.index(borders.len())];
                highest = highest.max(ack);
                if let Some(range) = positions.acked(ack) {
                    prop_assert_eq!(range.start, gone);
                    prop_assert!(range.end <= highest);
                    prop_assert!(range.end - range.start >= STEP);
                    gone = range.end;
                }
                prop_assert_eq!(positions.unacked(), positions.len() - highest);
                prop_assert_eq!(positions.kept(), positions.len() - gone);
            }
            for border in borders {
                let kept = border >= gone || border == positions.len();
                prop_assert_eq!(lands_on(&bytes, &positions, border), kept);
            }
        }

        #[test]
        fn a_walk_over_pieces_ends_where_a_walk_over_all_does(lengths in lengths(), piece in 100usize..5000) {
            let (bytes, positions, _) = spool(&lengths);
            let mut walk = Walk { at: 0, end: bytes.len() as u64 };
            // Pieces begin at the header that is next, as a reader of a file would have it.
            while walk.at < bytes.len() as u64 {
                let base = usize::try_from(walk.at).unwrap();
                let end = bytes.len().min(base + piece);
                prop_assert!(walk.over(base as u64, &bytes[base..end]));
            }
            prop_assert_eq!(walk.at, positions.len());
        }
    }

    #[test]
    fn what_is_no_output_is_not_walked_over() {
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, Kind::Exit, 0, b"{}");
        assert!(!Walk { at: 0, end: 100 }.over(0, &bytes));
        assert!(!Walk { at: 0, end: 100 }.over(0, &[0; 40]), "a punched hole");
    }

    #[test]
    fn an_acknowledgement_beyond_the_end_counts_as_the_end() {
        let mut positions = Positions::default();
        positions.appended(Stream::Out, 10);
        assert_eq!(positions.acked(9000), None);
        assert_eq!(positions.unacked(), 0);
        assert_eq!(positions.anchor(31), None);
        assert_eq!(positions.anchor(30), Some(30));
    }
}
