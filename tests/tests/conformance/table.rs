//! The results of all cells, and their output.

use std::fmt;

use anyhow::{Result, bail};

use crate::behaviour::{Family, Placed};

/// The result of one cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The behaviour holds.
    Held,
    /// The behaviour can't be checked here, for this reason.
    LeftOut(&'static str),
    /// The behaviour doesn't hold.
    Failed(String),
}

type Cell = (Family, Placed, Outcome);

/// The results so far.
#[derive(Debug)]
pub(crate) struct Table {
    datapath: String,
    rows: Vec<(&'static str, Vec<Cell>)>,
}

impl Table {
    /// An empty table of a lab on this data path.
    pub(crate) fn new(datapath: &str) -> Self {
        Self { datapath: datapath.to_owned(), rows: Vec::new() }
    }

    /// Adds a result.
    pub(crate) fn note(&mut self, behaviour: &'static str, family: Family, placed: Placed, outcome: Outcome) {
        let cell = (family, placed, outcome);
        match self.rows.last_mut() {
            Some((name, cells)) if *name == behaviour => cells.push(cell),
            _ => self.rows.push((behaviour, vec![cell])),
        }
    }

    /// Checks that no cell failed.
    ///
    /// # Errors
    /// Every failed cell, with its error.
    pub(crate) fn check(&self) -> Result<()> {
        let failed: Vec<String> = self
            .cells()
            .filter_map(|(name, family, placed, outcome)| match outcome {
                Outcome::Failed(why) => Some(format!("{name}, {family} {placed}: {why}")),
                Outcome::Held | Outcome::LeftOut(_) => None,
            })
            .collect();
        if failed.is_empty() {
            return Ok(());
        }
        bail!("{} cells failed on {}:\n{}", failed.len(), self.datapath, failed.join("\n"))
    }

    fn cells(&self) -> impl Iterator<Item = (&'static str, Family, Placed, &Outcome)> {
        self.rows.iter().flat_map(|(name, cells)| {
            cells.iter().map(move |(family, placed, outcome)| (*name, *family, *placed, outcome))
        })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nconformance on {}", self.datapath)?;
        write!(f, "{:<40}", "")?;
        for family in Family::ALL {
            for placed in Placed::ALL {
                write!(f, " {:>12}", format!("{family} {placed}"))?;
            }
        }
        let mut reasons: Vec<&str> = Vec::new();
        for (name, cells) in &self.rows {
            write!(f, "\n{name:<40}")?;
            for (_, _, outcome) in cells {
                let word = match outcome {
                    Outcome::Held => "held".to_owned(),
                    Outcome::Failed(_) => "FAILED".to_owned(),
                    Outcome::LeftOut(why) => {
                        let number = reasons.iter().position(|reason| reason == why).unwrap_or_else(|| {
                            reasons.push(why);
                            reasons.len() - 1
                        });
                        format!("left out {}", number + 1)
                    }
                };
                write!(f, " {word:>12}")?;
            }
        }
        for (number, reason) in reasons.iter().enumerate() {
            write!(f, "\n{}: {reason}", number + 1)?;
        }
        Ok(())
    }
}
