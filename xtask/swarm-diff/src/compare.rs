//! Compares the answers: equal, different for a listed reason, or different.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use similar::{Algorithm, DiffTag, capture_diff_slices};

use super::Answers;
use super::accepted::Accepted;
use super::normalise;
use super::script::Section;
use super::side::Outcome;

/// The result of the comparison.
#[derive(Debug, Default)]
pub(super) struct Report {
    commands: usize,
    equal: usize,
    explained: usize,
    unexplained: Vec<String>,
    /// Reasons that explained no difference.
    stale: Vec<String>,
}

/// A line of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    Both(String),
    Swarm { text: String, is_explained: bool },
    Mesh { text: String, is_explained: bool },
}

impl Report {
    /// Compares both sides' answers to the sections' commands.
    ///
    /// # Errors
    /// A side has not answered all of them.
    pub(super) fn new(
        sections: &[Section],
        swarm: &Answers,
        mesh: &Answers,
        accepted: &Accepted,
    ) -> Result<Self> {
        let mut report = Self::default();
        let mut used = BTreeSet::new();
        for section in sections {
            let swarm = answered(section, swarm).context("Swarm's answers")?;
            let mesh = answered(section, mesh).context("mesh's answers")?;
            for (swarm, mesh) in swarm.iter().zip(mesh) {
                report.judge(section, swarm, mesh, accepted, &mut used);
            }
        }
        let unused = accepted.differences.iter().enumerate().filter(|(index, _)| !used.contains(index));
        report.stale = unused.map(|(_, difference)| difference.reason.clone()).collect();
        Ok(report)
    }

    fn judge(
        &mut self,
        section: &Section,
        swarm: &Outcome,
        mesh: &Outcome,
        accepted: &Accepted,
        used: &mut BTreeSet<usize>,
    ) {
        self.commands += 1;
        let comparable = |outcome| comparable(outcome, section.shows_nodes, accepted);
        let lines = compare(&swarm.command, &comparable(swarm), &comparable(mesh), accepted, used);
        let differs = lines.iter().any(|line| !matches!(line, Line::Both(_)));
        let is_explained = lines.iter().all(|line| match line {
            Line::Both(_) => true,
            Line::Swarm { is_explained, .. } | Line::Mesh { is_explained, .. } => *is_explained,
        });
        match (differs, is_explained) {
            (false, _) => self.equal += 1,
            (true, true) => self.explained += 1,
            (true, false) => self.unexplained.push(shown(section, swarm, &lines)),
        }
    }

    /// The number of commands that differ without a reason.
    pub(super) fn unexplained(&self) -> usize {
        self.unexplained.len()
    }

    /// The report as text; stale reasons are listed only if all sections ran.
    pub(super) fn text(&self, whole_suite: bool) -> String {
        let mut text = self.unexplained.concat();
        for reason in self.stale.iter().filter(|_| whole_suite) {
            // Writing to a String can't fail.
            writeln!(text, "explains nothing any more, take it out of accepted.toml: {reason}").ok();
        }
        let (all, equal, explained) = (self.commands, self.equal, self.explained);
        let open = self.unexplained.len();
        writeln!(
            text,
            "{all} commands: {equal} answered alike, {explained} different for a listed reason, {open} different"
        )
        .ok();
        text
    }
}

/// The outcomes of a section, one for each of its commands.
fn answered<'a>(section: &Section, answers: &'a Answers) -> Result<&'a [Outcome]> {
    let outcomes = answers.get(&section.name).map(Vec::as_slice).unwrap_or_default();
    let same = section.commands().map(|(_, command)| command).eq(outcomes.iter().map(|o| o.command.as_str()));
    ensure!(
        same,
        "section {} was changed since it last ran there; next: cargo xtask swarm-diff {}",
        section.name,
        section.name
    );
    Ok(outcomes)
}

fn comparable(outcome: &Outcome, shows_nodes: bool, accepted: &Accepted) -> Vec<String> {
    let mut lines = vec![format!("exit {}", outcome.code)];
    lines.extend(normalise::lines(&outcome.stdout, shows_nodes, &accepted.rewrites));
    let errors = normalise::lines(&outcome.stderr, shows_nodes, &accepted.rewrites);
    lines.extend(errors.into_iter().map(|line| format!("! {line}")));
    lines
}

fn compare(
    command: &str,
    swarm: &[String],
    mesh: &[String],
    accepted: &Accepted,
    used: &mut BTreeSet<usize>,
) -> Vec<Line> {
    let mut explained = |line: &String, is_swarms: bool| {
        let mut differences = accepted.differences.iter();
        let found = differences.position(|difference| difference.explains(command, line, is_swarms));
        used.extend(found);
        found.is_some()
    };
    let mut lines = Vec::new();
    for operation in capture_diff_slices(Algorithm::Myers, swarm, mesh) {
        let (tag, ours, theirs) = operation.as_tag_tuple();
        if tag == DiffTag::Equal {
            lines.extend(swarm[ours].iter().cloned().map(Line::Both));
            continue;
        }
        for text in &swarm[ours] {
            lines.push(Line::Swarm { text: text.clone(), is_explained: explained(text, true) });
        }
        for text in &mesh[theirs] {
            lines.push(Line::Mesh { text: text.clone(), is_explained: explained(text, false) });
        }
    }
    lines
}

/// Lines shown around a difference.
const CONTEXT: usize = 2;

fn shown(section: &Section, outcome: &Outcome, lines: &[Line]) -> String {
    let is_open = |line: &Line| match line {
        Line::Both(_) => false,
        Line::Swarm { is_explained, .. } | Line::Mesh { is_explained, .. } => !is_explained,
    };
    let mut text = format!("{}.cmds:{}: $ {}\n", section.name, outcome.line, outcome.command);
    let mut was_skipped = false;
    for (index, line) in lines.iter().enumerate() {
        let around = index.saturating_sub(CONTEXT)..(index + CONTEXT + 1).min(lines.len());
        if !lines[around].iter().any(is_open) {
            was_skipped = true;
            continue;
        }
        if std::mem::take(&mut was_skipped) {
            text.push_str("   …\n");
        }
        let (mark, line) = match line {
            Line::Both(line) => (' ', line),
            Line::Swarm { text, is_explained: false } => ('-', text),
            Line::Mesh { text, is_explained: false } => ('+', text),
            Line::Swarm { text, .. } | Line::Mesh { text, .. } => ('~', text),
        };
        writeln!(text, " {mark} {line}").ok();
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(stdout: &str, code: i32) -> Outcome {
        Outcome { line: 1, command: "docker x".into(), code, stdout: stdout.into(), stderr: String::new() }
    }

    fn report(swarm: Outcome, mesh: Outcome, accepted: &str) -> Report {
        let section = Section::parse("s", "$ docker x\n").unwrap();
        let answers = |outcome| Answers::from([("s".to_owned(), vec![outcome])]);
        let accepted = Accepted::parse(accepted).unwrap();
        Report::new(&[section], &answers(swarm), &answers(mesh), &accepted).unwrap()
    }

    #[test]
    fn equal_answers_are_equal_and_different_ones_are_shown() {
        let same = report(outcome("a\n", 0), outcome("a\n", 0), "");
        assert_eq!((same.equal, same.unexplained()), (1, 0));
        let other = report(outcome("a\nb\n", 0), outcome("a\nc\n", 1), "");
        assert_eq!(other.unexplained(), 1);
        let text = other.text(true);
        for line in ["s.cmds:1: $ docker x", " - exit 0", " + exit 1", " - b", " + c"] {
            assert!(text.contains(line), "expected {line:?} in:\n{text}");
        }
    }

    #[test]
    fn a_reason_explains_its_lines_only_and_goes_stale() {
        let reason = "[[difference]]\nswarm='b'\nmesh='c'\nreason='so'\n";
        let explained = report(outcome("b\n", 0), outcome("c\n", 0), reason);
        assert_eq!((explained.explained, explained.unexplained()), (1, 0));
        let open = report(outcome("b\n", 0), outcome("d\n", 0), reason);
        assert_eq!(open.unexplained(), 1);
        let stale = report(outcome("b\n", 0), outcome("b\n", 0), reason);
        assert!(stale.text(true).contains("take it out"), "a stale reason is not reported");
        assert!(
            !stale.text(false).contains("take it out"),
            "a stale reason is reported though only a part of the suite ran"
        );
    }

    #[test]
    fn a_changed_section_is_not_compared_with_old_answers() {
        let section = Section::parse("s", "$ docker y\n").unwrap();
        let answers = Answers::from([("s".to_owned(), vec![outcome("", 0)])]);
        let error = Report::new(&[section], &answers, &answers, &Accepted::default()).unwrap_err();
        assert!(format!("{error:#}").contains("was changed"), "saw: {error:#}");
    }
}
