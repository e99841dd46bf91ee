//! The figures that a soak measured, with their bounds, as one table.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};

/// Failures that are printed in full.
const SHOWN: usize = 10;

/// The figures of a soak, in the order in which they were measured.
#[derive(Debug, Default)]
pub(super) struct Measured {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    figure: String,
    seen: String,
    /// What was expected; empty for a figure that is only told.
    bound: String,
    held: bool,
    details: Vec<String>,
}

impl Measured {
    /// Adds a figure without a bound.
    pub(super) fn tell(&mut self, figure: &str, seen: impl Into<String>) {
        self.add(figure, seen.into(), String::new(), true, Vec::new());
    }

    /// Adds a time that must be shorter than `limit`.
    pub(super) fn below(&mut self, figure: &str, seen: Duration, limit: Duration) {
        let text = |time: Duration| format!("{:.2} s", time.as_secs_f64());
        self.add(figure, text(seen), format!("< {}", text(limit)), seen < limit, Vec::new());
    }

    /// Adds a count of failures, of which there must be none.
    pub(super) fn none(&mut self, figure: &str, failures: &[String]) {
        let details = failures.iter().take(SHOWN).cloned().collect();
        self.add(figure, failures.len().to_string(), "0".to_owned(), failures.is_empty(), details);
    }

    /// Adds a count that must be more than zero, so that the other figures mean something.
    pub(super) fn some(&mut self, figure: &str, count: u64) {
        self.add(figure, count.to_string(), "> 0".to_owned(), count > 0, Vec::new());
    }

    fn add(&mut self, figure: &str, seen: String, bound: String, held: bool, details: Vec<String>) {
        self.rows.push(Row { figure: figure.to_owned(), seen, bound, held, details });
    }

    /// Prints the table, then fails if `outcome` did or a bound was not held.
    ///
    /// # Errors
    /// See above; the message names what was expected and seen.
    pub(super) fn conclude(self, outcome: Result<()>) -> Result<()> {
        print!("{}", self.table());
        outcome?;
        let broken: Vec<String> = self.rows.iter().filter(|row| !row.held).map(Row::complaint).collect();
        ensure!(broken.is_empty(), "{}", broken.join("; "));
        Ok(())
    }

    fn table(&self) -> String {
        let mut text = "\n| figure | measured | expected | |\n|---|---|---|---|\n".to_owned();
        for row in &self.rows {
            let word = match (row.bound.is_empty(), row.held) {
                (true, _) => "",
                (false, true) => "held",
                (false, false) => "BROKEN",
            };
            // Writing to a String can't fail.
            _ = writeln!(text, "| {} | {} | {} | {word} |", row.figure, row.seen, row.bound);
        }
        text
    }
}

impl Row {
    fn complaint(&self) -> String {
        let first = format!("{}: expected {}, saw {}", self.figure, self.bound, self.seen);
        [&[first][..], &self.details].concat().join("\n    ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_bound_is_shown_and_fails() {
        let mut measured = Measured::default();
        measured.tell("replicas", "6");
        measured.below("a new leader", Duration::from_millis(2500), Duration::from_secs(5));
        measured.none("failed", &["node-2: reset".to_owned()]);
        let table = measured.table();
        assert!(
            table.contains("| replicas | 6 |  |  |\n| a new leader | 2.50 s | < 5.00 s | held |"),
            "{table}"
        );
        let error = measured.conclude(Ok(())).unwrap_err().to_string();
        assert_eq!(error, "failed: expected 0, saw 1\n    node-2: reset");
    }

    #[test]
    fn held_bounds_pass() {
        let mut measured = Measured::default();
        measured.some("answered", 7);
        measured.none("failed", &[]);
        measured.conclude(Ok(())).unwrap();
    }
}
