//! Keeps logs from being filled: lines are bounded in length, and repeated lines in number.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::figures::LOG_LINE_BYTES;

/// Says now and then what happens often. Pure: the time is given.
///
/// ```
/// use std::time::{Duration, Instant};
///
/// use mesh_admission::log::Throttle;
///
/// let (mut throttle, now) = (Throttle::new(Duration::from_secs(10)), Instant::now());
/// assert_eq!(throttle.happened(now), Some(0), "the first is logged");
/// assert_eq!(throttle.happened(now), None, "and the next is not");
/// assert_eq!(throttle.happened(now + Duration::from_secs(10)), Some(1), "but counted");
/// ```
#[derive(Debug)]
pub struct Throttle {
    every: Duration,
    said_at: Option<Instant>,
    unsaid: u64,
}

impl Throttle {
    /// Nothing was said yet.
    pub fn new(every: Duration) -> Self {
        Self { every, said_at: None, unsaid: 0 }
    }

    /// It happened. `Some` if it is to be said now, with how often it happened unsaid since it was
    /// said last.
    pub fn happened(&mut self, now: Instant) -> Option<u64> {
        if self.said_at.is_some_and(|said| now.saturating_duration_since(said) < self.every) {
            self.unsaid += 1;
            return None;
        }
        self.said_at = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// Writes each line whole to stderr, or as much of a long one as is allowed: whatever its fields
/// hold, a line is bounded.
pub fn bounded_stderr() -> BoundedLines<io::Stderr> {
    BoundedLines(io::stderr())
}

/// See [`bounded_stderr`].
#[derive(Debug)]
pub struct BoundedLines<W>(W);

impl<W: Write> Write for BoundedLines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if line.len() <= LOG_LINE_BYTES {
            self.0.write_all(line)?;
        } else {
            self.0.write_all(line[..LOG_LINE_BYTES].trim_ascii_end())?;
            writeln!(self.0, "… ({} more bytes)", line.len() - LOG_LINE_BYTES)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_often_is_said_now_and_then_with_its_count() {
        let (mut throttle, start) = (Throttle::new(Duration::from_secs(10)), Instant::now());
        assert_eq!(throttle.happened(start), Some(0));
        assert_eq!([1, 2, 9].map(|after| throttle.happened(start + Duration::from_secs(after))), [None; 3]);
        assert_eq!(throttle.happened(start + Duration::from_secs(10)), Some(3));
        assert_eq!(throttle.happened(start + Duration::from_secs(20)), Some(0));
    }

    #[test]
    fn long_lines_are_cut() {
        let mut written = Vec::new();
        let mut lines = BoundedLines(&mut written);
        lines.write_all(b"short\n").unwrap();
        lines.write_all(&vec![b'x'; 4 << 20]).unwrap();
        assert!(written.len() < LOG_LINE_BYTES + 64, "{} bytes were written", written.len());
        assert!(written.starts_with(b"short\n") && written.ends_with(b"more bytes)\n"));
    }
}
