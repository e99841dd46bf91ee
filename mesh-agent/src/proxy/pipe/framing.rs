//! Marks where a session ends on a connection between nodes, so that the connection can carry the
//! next one.
//!
//! A frame is a length (4 bytes, network order) and that many bytes. Length 0 ends the session's
//! direction. Length [`PLAIN`] says that everything that follows on the connection belongs to the
//! session: a direction that carries much pays for no more frames, and the connection isn't used
//! again.
//!
//! Invariants: pure; a frame that was begun is written whole; nothing behind a session's end is
//! delivered.
//!
//! Left to others: reading and writing ([`super::ends`]), what precedes the frames
//! ([`crate::proxy::preamble`]).

use thiserror::Error;

const HEADER_LENGTH: usize = 4;
/// The length that ends the framing instead of the session.
const PLAIN: u32 = u32::MAX;
/// Payload bytes of a direction after which it goes on without frames.
const FRAMED_MAX: u64 = 64 << 10;

/// Why bytes can't belong to the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum FramingError {
    /// The other node sent bytes after it had ended the session's direction.
    #[error("{0} bytes follow a session's end")]
    Excess(usize),
}

/// How far a direction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Framed,
    Plain,
    Ended,
}

/// The frames of one direction, on the writing side.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    stage: Stage,
    header: [u8; HEADER_LENGTH],
    /// Bytes of the header that are still to be written.
    unsent: usize,
    /// Payload bytes that the current frame still needs.
    owed: usize,
    /// Payload bytes of all frames.
    total: u64,
}

impl Outgoing {
    /// Begins a frame for `length` bytes, unless one is being written.
    pub(super) fn announce(&mut self, length: usize) {
        if self.stage != Stage::Framed || self.unsent > 0 || self.owed > 0 {
            return;
        }
        match u32::try_from(length) {
            Ok(announced) if announced < PLAIN && self.total < FRAMED_MAX => {
                self.put(announced);
                self.owed = length;
                self.total += u64::from(announced);
            }
            _ => {
                self.put(PLAIN);
                self.stage = Stage::Plain;
            }
        }
    }

    /// Ends the session's direction; without frames, it ends with the connection only.
    pub(super) fn end(&mut self) {
        if self.stage == Stage::Framed {
            self.put(0);
            self.stage = Stage::Ended;
        }
    }

    /// The header bytes that must be written before payload.
    pub(super) fn ahead(&self) -> &[u8] {
        &self.header[HEADER_LENGTH - self.unsent..]
    }

    /// Payload bytes that may follow.
    pub(super) fn room(&self) -> usize {
        if self.stage == Stage::Plain { usize::MAX } else { self.owed }
    }

    /// Records that `count` bytes were written, header first; returns how many were payload.
    pub(super) fn wrote(&mut self, count: usize) -> usize {
        let of_header = count.min(self.unsent);
        self.unsent -= of_header;
        let payload = count - of_header;
        self.owed = self.owed.saturating_sub(payload);
        payload
    }

    /// Whether the session goes on without frames.
    pub(super) fn is_plain(&self) -> bool {
        self.stage == Stage::Plain
    }

    /// Whether the session's direction ended while the connection goes on.
    pub(super) fn has_ended(&self) -> bool {
        self.stage == Stage::Ended && self.unsent == 0
    }

    fn put(&mut self, header: u32) {
        self.header = header.to_be_bytes();
        self.unsent = HEADER_LENGTH;
    }
}

/// The frames of one direction, on the reading side.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    stage: Stage,
    header: [u8; HEADER_LENGTH],
    /// Bytes of the next header that were read.
    held: usize,
    /// Payload bytes that are still to come in the current frame.
    owed: usize,
}

impl Incoming {
    /// Strips frame headers: moves the payload in `bytes` to the front and returns its length.
    ///
    /// # Errors
    /// Bytes follow the session's end.
    pub(super) fn take(&mut self, bytes: &mut [u8]) -> Result<usize, FramingError> {
        let (mut read, mut payload) = (0, 0);
        while read < bytes.len() {
            let left = bytes.len() - read;
            if self.stage == Stage::Ended {
                return Err(FramingError::Excess(left));
            }
            let length = if self.stage == Stage::Plain { left } else { self.owed.min(left) };
            if length == 0 {
                self.header[self.held] = bytes[read];
                self.held += 1;
                read += 1;
                self.understand();
                continue;
            }
            bytes.copy_within(read..read + length, payload);
            self.owed = self.owed.saturating_sub(length);
            read += length;
            payload += length;
        }
        Ok(payload)
    }

    /// Whether the session goes on without frames, and so ends with the connection.
    pub(super) fn is_plain(&self) -> bool {
        self.stage == Stage::Plain
    }

    /// Whether the session's direction ended while the connection goes on.
    pub(super) fn has_ended(&self) -> bool {
        self.stage == Stage::Ended
    }

    fn understand(&mut self) {
        if self.held < HEADER_LENGTH {
            return;
        }
        self.held = 0;
        match u32::from_be_bytes(self.header) {
            0 => self.stage = Stage::Ended,
            PLAIN => self.stage = Stage::Plain,
            length => self.owed = length as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Writes `bytes`, at most `step` at a time.
    fn write(frames: &mut Outgoing, bytes: &[u8], step: usize, wire: &mut Vec<u8>) {
        let mut left = bytes;
        while !left.is_empty() {
            frames.announce(left.len());
            let allowed = left.len().min(frames.room());
            let all = [frames.ahead(), &left[..allowed]].concat();
            let written = all.len().min(step);
            wire.extend_from_slice(&all[..written]);
            left = &left[frames.wrote(written)..];
        }
    }

    fn read(frames: &mut Incoming, wire: &[u8], step: usize) -> Result<Vec<u8>, FramingError> {
        let mut payload = Vec::new();
        for piece in wire.chunks(step) {
            let mut piece = piece.to_vec();
            let length = frames.take(&mut piece)?;
            payload.extend_from_slice(&piece[..length]);
        }
        Ok(payload)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..20),
            write_step in 1_usize..50,
            read_step in 1_usize..50,
        ) {
            let (mut out, mut wire) = (Outgoing::default(), Vec::new());
            for piece in &pieces {
                write(&mut out, piece, write_step, &mut wire);
            }
            out.end();
            prop_assert!(!out.has_ended(), "its end is still to be written");
            wire.extend_from_slice(out.ahead());
            out.wrote(HEADER_LENGTH);
            prop_assert!(out.has_ended());
            let mut into = Incoming::default();
            prop_assert_eq!(read(&mut into, &wire, read_step), Ok(pieces.concat()));
            prop_assert!(into.has_ended());
        }
    }

    #[test]
    fn a_long_way_goes_on_plainly() {
        let bytes: Vec<u8> = (0..=255).cycle().take(200_000).collect();
        let (mut out, mut wire) = (Outgoing::default(), Vec::new());
        for piece in bytes.chunks(10_000) {
            write(&mut out, piece, 7_000, &mut wire);
        }
        assert!(out.is_plain(), "after {} bytes", bytes.len());
        assert_eq!(
            wire.len(),
            bytes.len() + 8 * HEADER_LENGTH,
            "seven frames of 10 000 bytes and the word to go on"
        );
        out.end();
        assert!(out.ahead().is_empty() && !out.has_ended(), "its end is the connection's");
        let mut into = Incoming::default();
        assert_eq!(read(&mut into, &wire, 9_999), Ok(bytes));
        assert!(into.is_plain() && !into.has_ended());
    }

    #[test]
    fn nothing_may_follow_the_end() {
        let mut into = Incoming::default();
        assert_eq!(into.take(&mut [0, 0, 0, 1, b'x', 0, 0, 0, 0]), Ok(1));
        assert!(into.has_ended());
        assert_eq!(into.take(&mut [0, 0]), Err(FramingError::Excess(2)));
        assert_eq!(Incoming::default().take(&mut [0, 0, 0, 0, 9]), Err(FramingError::Excess(1)));
    }
}
