//! The intended differences, each with its reason: `tests/swarm-diff/accepted.toml`.
//!
//! Invariant: no entry without a reason.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use regex::Regex;
use serde::Deserialize;

/// All entries of the file.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    /// Applied to the answers of both sides.
    pub(super) rewrites: Vec<Rewrite>,
    /// Checked line by line.
    pub(super) differences: Vec<Difference>,
}

/// A replacement of one spelling by another of the same meaning.
#[derive(Debug)]
pub(super) struct Rewrite {
    pattern: Regex,
    replacement: String,
}

/// Lines that may appear on one side only.
#[derive(Debug)]
pub(super) struct Difference {
    /// The commands that it applies to; `None`: all.
    command: Option<Regex>,
    swarm: Option<Regex>,
    mesh: Option<Regex>,
    /// Why the difference is intended.
    pub(super) reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rewrite: Vec<RewriteEntry>,
    #[serde(default)]
    difference: Vec<DifferenceEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RewriteEntry {
    pattern: String,
    replacement: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DifferenceEntry {
    /// A regular expression for the command.
    command: Option<String>,
    /// A regular expression for the whole of a line that only Swarm prints.
    swarm: Option<String>,
    /// The same for a line that only mesh prints.
    mesh: Option<String>,
    reason: String,
}

impl Accepted {
    /// Reads the file.
    ///
    /// # Errors
    /// It can't be read, or an entry is malformed or has no reason.
    pub(super) fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("parse {}", path.display()))
    }

    /// Parses the file's text.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let file: File = toml::from_str(text)?;
        let rewrites = file.rewrite.into_iter().map(|entry| {
            ensure!(!entry.reason.trim().is_empty(), "rewrite of {:?} has no reason", entry.pattern);
            Ok(Rewrite { pattern: Regex::new(&entry.pattern)?, replacement: entry.replacement })
        });
        let differences = file.difference.into_iter().map(|entry| {
            let shown = [&entry.command, &entry.swarm, &entry.mesh];
            ensure!(!entry.reason.trim().is_empty(), "difference {shown:?} has no reason");
            ensure!(
                entry.swarm.is_some() || entry.mesh.is_some(),
                "difference {:?} names neither a line of swarm's nor one of mesh's",
                entry.reason
            );
            Ok(Difference {
                command: entry.command.as_deref().map(Regex::new).transpose()?,
                swarm: entry.swarm.as_deref().map(whole_line).transpose()?,
                mesh: entry.mesh.as_deref().map(whole_line).transpose()?,
                reason: entry.reason,
            })
        });
        Ok(Self {
            rewrites: rewrites.collect::<Result<_>>()?,
            differences: differences.collect::<Result<_>>()?,
        })
    }
}

fn whole_line(pattern: &str) -> Result<Regex> {
    Ok(Regex::new(&format!("^(?:{pattern})$"))?)
}

impl Rewrite {
    /// The text with all rewrites applied.
    pub(super) fn apply(&self, text: &str) -> String {
        self.pattern.replace_all(text, self.replacement.as_str()).into_owned()
    }
}

impl Difference {
    /// Whether an entry explains `line` in the answer to `command`, on Swarm's side or on mesh's.
    pub(super) fn explains(&self, command: &str, line: &str, is_swarms: bool) -> bool {
        let pattern = if is_swarms { &self.swarm } else { &self.mesh };
        self.command.as_ref().is_none_or(|command_pattern| command_pattern.is_match(command))
            && pattern.as_ref().is_some_and(|pattern| pattern.is_match(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_needs_a_reason_and_a_line() {
        for bad in [
            "[[difference]]\nswarm='x'\nreason=''\n",
            "[[difference]]\nreason='why'\n",
            "[[difference]]\nswarm='x'\n",
            "[[difference]]\nswarm='('\nreason='why'\n",
            "[[difference]]\nswarn='x'\nreason='why'\n",
            "[[rewrite]]\npattern='x'\nreplacement=''\nreason=' '\n",
        ] {
            assert!(Accepted::parse(bad).is_err(), "expected this to be refused:\n{bad}");
        }
    }

    #[test]
    fn an_entry_explains_whole_lines_of_its_command_and_side() {
        let accepted =
            Accepted::parse("[[difference]]\ncommand='node ls'\nswarm='a.c'\nreason='why'\n").unwrap();
        let entry = &accepted.differences[0];
        assert!(entry.explains("docker node ls -q", "abc", true));
        assert!(!entry.explains("docker node ls", "abcd", true), "only part of the line");
        assert!(!entry.explains("docker node ls", "abc", false), "the other side");
        assert!(!entry.explains("docker service ls", "abc", true), "another command");
    }
}
