//! Tasks' logs: the interface to their source, and parsing of the engine's log stream. The parsing
//! is pure.
//!
//! Invariants: a stream may break anywhere: a frame is delivered whole or not at all; buffers are
//! bounded whatever bytes come ([`FRAME_BYTES_MAX`], [`LINE_BYTES_MAX`]).
//!
//! Left to others: asking the engine ([`super::docker`]), sending lines to managers
//! ([`crate::control_link`]).

use async_trait::async_trait;
use bytes::{Buf as _, Bytes, BytesMut};
use futures::stream::BoxStream;
use mesh_state::Timestamp;
use mesh_state::ids::TaskId;

use super::runtime::RuntimeError;

/// The most bytes of one frame. Engines cut a container's output after 16 KiB; some log drivers
/// join it again.
const FRAME_BYTES_MAX: usize = 4 << 20;
/// The most bytes of a terminal's line, which has no frame; a longer one is cut.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Length of a frame's header: stream, three zeroes, length (Docker's API, "Attach to a
/// container").
const HEAD_BYTES: usize = 8;

/// The part of a task's log that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRequest {
    /// Whether to send what the task wrote to stdout.
    pub stdout: bool,
    /// Whether to send what the task wrote to stderr.
    pub stderr: bool,
    /// Whether to send later lines as well.
    pub follow: bool,
    /// The earliest time, `seconds[.nanoseconds]`; empty: from the beginning.
    pub since: String,
    /// The most past lines; absent: all.
    pub tail: Option<u64>,
}

/// A line, or a piece of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Whether it was written to stderr.
    pub stderr: bool,
    /// The time of the line in Unix nanoseconds.
    pub unix_ns: i64,
    /// Details from the log driver, `key=value,…`; usually empty.
    pub details: String,
    /// The line's bytes, with the newline if there is one.
    pub data: Bytes,
}

/// A task's lines, as they come.
pub type LogStream = BoxStream<'static, Result<LogLine, RuntimeError>>;

/// A source of the logs of this node's tasks.
#[async_trait]
pub trait LogSource: Send + Sync + 'static {
    /// A task's log; absent if the task has no container here.
    async fn task_log(&self, task: &TaskId, request: &LogRequest) -> Result<Option<LogStream>, RuntimeError>;
}

/// Parses an engine's log stream that was requested with times and details.
#[derive(Debug)]
pub(super) struct LogDecoder {
    /// A terminal's stream consists of lines, any other of frames.
    terminal: bool,
    buffer: BytesMut,
    /// The time of the last line that had one.
    last_ns: i64,
}

impl LogDecoder {
    pub(super) fn new(terminal: bool) -> Self {
        Self { terminal, buffer: BytesMut::new(), last_ns: 0 }
    }

    /// Adds bytes of the stream.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line, if it has come.
    ///
    /// # Errors
    /// The bytes are no log stream, or the engine sent an error: nothing more can be read.
    pub(super) fn line(&mut self) -> Result<Option<LogLine>, RuntimeError> {
        if self.terminal { Ok(self.terminal_line()) } else { self.framed_line() }
    }

    /// The rest when the stream has ended: a terminal's last line may have no newline.
    pub(super) fn rest(&mut self) -> Option<LogLine> {
        let rest = self.buffer.split().freeze();
        (self.terminal && !rest.is_empty()).then(|| self.read(false, rest))
    }

    fn terminal_line(&mut self) -> Option<LogLine> {
        let end = self.buffer.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b'\n');
        let cut = (self.buffer.len() >= LINE_BYTES_MAX).then_some(LINE_BYTES_MAX);
        let length = end.map(|end| end + 1).or(cut)?;
        let line = self.buffer.split_to(length).freeze();
        Some(self.read(false, line))
    }

    fn framed_line(&mut self) -> Result<Option<LogLine>, RuntimeError> {
        let Some(head) = self.buffer.get(..HEAD_BYTES) else { return Ok(None) };
        let stream = head[0];
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if stream > 3 || length > FRAME_BYTES_MAX {
            return Err(RuntimeError::Refused("the engine's log stream can't be read".to_owned()));
        }
        if self.buffer.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(HEAD_BYTES);
        let payload = self.buffer.split_to(length).freeze();
        if stream == 3 {
            return Err(RuntimeError::Refused(String::from_utf8_lossy(&payload).trim().to_owned()));
        }
        Ok(Some(self.read(stream == 2, payload)))
    }

    /// Strips time and details. A line without a time is the rest of a cut one.
    fn read(&mut self, stderr: bool, mut data: Bytes) -> LogLine {
        let mut details = String::new();
        if let Some((at, unix_ns)) = word(&data).and_then(|at| Some((at, nanoseconds(&data[..at])?))) {
            self.last_ns = unix_ns;
            data.advance(at + 1);
            if let Some(at) = word(&data) {
                details = String::from_utf8_lossy(&data[..at]).into_owned();
                data.advance(at + 1);
            }
        }
        LogLine { stderr, unix_ns: self.last_ns, details, data }
    }
}

/// The end of the first word.
fn word(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b' ')
}

/// Parses RFC 3339 to Unix nanoseconds.
fn nanoseconds(text: &[u8]) -> Option<i64> {
    let at: Timestamp = std::str::from_utf8(text).ok()?.parse().ok()?;
    at.timestamp_nanos_opt()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: &str = "2023-11-14T22:13:20.000000042Z";
    const AT_NS: i64 = 1_700_000_000_000_000_042;

    fn frame(stream: u8, text: &str) -> Vec<u8> {
        let mut bytes = vec![stream, 0, 0, 0];
        bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        bytes.extend(text.as_bytes());
        bytes
    }

    /// Every line in `bytes`, which come in pieces of `piece`.
    fn decoded(terminal: bool, bytes: &[u8], piece: usize) -> Result<Vec<LogLine>, RuntimeError> {
        let mut decoder = LogDecoder::new(terminal);
        let mut lines = Vec::new();
        for piece in bytes.chunks(piece) {
            decoder.push(piece);
            while let Some(line) = decoder.line()? {
                lines.push(line);
            }
        }
        lines.extend(decoder.rest());
        Ok(lines)
    }

    fn line(stderr: bool, details: &str, data: &str) -> LogLine {
        let data = Bytes::copy_from_slice(data.as_bytes());
        LogLine { stderr, unix_ns: AT_NS, details: details.to_owned(), data }
    }

    #[test]
    fn frames_are_lines_however_they_come() {
        let bytes =
            [frame(1, &format!("{AT}  a b\n")), frame(2, &format!("{AT} x=1,y=2 c")), frame(1, "")].concat();
        let expected = vec![line(false, "", "a b\n"), line(true, "x=1,y=2", "c"), line(false, "", "")];
        for piece in [1, 3, 8, 1000] {
            assert_eq!(decoded(false, &bytes, piece).unwrap(), expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_terminals_stream_is_cut_into_lines() {
        let bytes = format!("{AT}  one\r\n{AT} k=v two").into_bytes();
        let expected = vec![line(false, "", "one\r\n"), line(false, "k=v", "two")];
        assert_eq!(decoded(true, &bytes, 5).unwrap(), expected);
        let endless = format!("{AT}  {}", "x".repeat(3 * LINE_BYTES_MAX)).into_bytes();
        let pieces = decoded(true, &endless, 1000).unwrap();
        assert_eq!(pieces.len(), 4, "a line without an end was not cut");
        assert!(pieces.iter().all(|piece| piece.unix_ns == AT_NS), "a piece has no time");
    }

    #[test]
    fn the_engines_own_error_and_noise_end_the_stream() {
        let error = decoded(false, &frame(3, "Error grabbing logs: EOF\n"), 100).unwrap_err().to_string();
        assert_eq!(error, "Error grabbing logs: EOF");
        for noise in [&b"\x07\0\0\0\0\0\0\x01x"[..], b"\x01\0\0\0\xff\xff\xff\xff"] {
            let error = decoded(false, noise, 100).unwrap_err().to_string();
            assert!(error.contains("can't be read"), "{noise:?} was answered {error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..2000), terminal: bool) {
            let mut decoder = LogDecoder::new(terminal);
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.line() {}
            drop(decoder.rest());
        }
    }
}
