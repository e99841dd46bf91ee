//! Bounds logs: the length of lines, and the number of repeated ones.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::figures::LOG_LINE_BYTES;

/// Limits how often a repeated event is logged. Pure: the time is an argument.
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
    /// A throttle that has let nothing pass yet.
    pub fn new(every: Duration) -> Self {
        Self { every, said_at: None, unsaid: 0 }
    }

    /// Counts an occurrence. Returns `Some` if it is to be logged now, with the number of
    /// occurrences since the last one that was.
    pub fn happened(&mut self, now: Instant) -> Option<u64> {
        if self.said_at.is_some_and(|said| now.saturating_duration_since(said) < self.every) {
            self.unsaid += 1;
            return None;
        }
        self.said_at = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// A writer to stderr that cuts long lines, so that every line is bounded, whatever its fields
/// hold.
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
    fn a_frequent_event_is_logged_now_and_then_with_its_count() {
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
