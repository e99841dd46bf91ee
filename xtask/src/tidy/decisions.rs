//! Rules for decision records (`docs/adr`): every page has a title and a status, the index repeats
//! both, and citations are of pages that exist and still apply.

use std::collections::BTreeMap;

use super::{Checkout, Finding};

/// The directory of the pages.
const DIRECTORY: &str = "docs/adr/";
/// The index of all pages, by area.
pub(super) const INDEX: &str = "docs/adr/README.md";
/// The prefixes of a page's number in citations, in code and in prose.
const CITED_AS: [&str; 3] = ["ADR ", "ADR-", "adr/"];
const DIGITS: usize = 4;

/// The pages of decisions, by number.
type Pages<'a> = BTreeMap<&'a str, Page<'a>>;

/// The parts of a page that the index repeats.
#[derive(Debug)]
struct Page<'a> {
    /// The file name, below [`DIRECTORY`].
    file: &'a str,
    title: &'a str,
    status: &'a str,
}

impl Page<'_> {
    fn is_superseded(&self) -> bool {
        self.status.split("; ").any(|part| part.starts_with("Superseded by"))
    }

    /// The page's line in the index. Numbers in the status are links on the page, and plain text
    /// here.
    fn line(&self, number: &str) -> String {
        format!("- [{number}]({}) {} — {}", self.file, self.title, without_links(self.status))
    }
}

/// Everything that breaks a rule for decisions.
pub(super) fn findings(checkout: &Checkout) -> Vec<Finding> {
    let (pages, mut found) = pages(checkout);
    match checkout.text(INDEX) {
        Some(text) => found.extend(wrong_index(text, &pages)),
        None => found.push(Finding { place: INDEX.to_owned(), message: "the index is missing".to_owned() }),
    }
    for (path, text) in checkout.texts() {
        found.extend(wrong_citations(path, text, &pages));
    }
    found
}

/// The index as generated from the pages: its headings and prose stay.
pub(super) fn index(checkout: &Checkout) -> Option<String> {
    Some(indexed(checkout.text(INDEX)?, &pages(checkout).0))
}

/// Parses the pages; one that can't be parsed is a finding.
fn pages(checkout: &Checkout) -> (Pages<'_>, Vec<Finding>) {
    let (mut pages, mut found) = (Pages::new(), Vec::new());
    for (path, text) in checkout.texts() {
        let Some(file) = path.strip_prefix(DIRECTORY).filter(|_| path != INDEX) else { continue };
        match page(file, text) {
            Ok((number, page)) => {
                if let Some(other) = pages.insert(number, page) {
                    let message = format!("{number} is {}'s number already; take another one", other.file);
                    found.push(Finding { place: path.to_owned(), message });
                }
            }
            Err(message) => found.push(Finding { place: path.to_owned(), message: message.to_owned() }),
        }
    }
    (pages, found)
}

/// The number, title and status of `0113-flow-table.md`.
fn page<'a>(file: &'a str, text: &'a str) -> Result<(&'a str, Page<'a>), &'static str> {
    let number =
        leading_number(file).filter(|_| file[DIGITS..].starts_with('-') && super::kind(file) == Some("md"));
    let number = number.ok_or("name it by four digits, what it decides, and `.md`, as 0113-flow-table.md")?;
    let mut lines = text.lines().filter(|line| !line.is_empty());
    let title =
        lines.next().and_then(|line| line.strip_prefix("# ")?.strip_prefix(number)?.strip_prefix(": "));
    let title =
        title.ok_or("begin it with `# NUMBER: what is decided`, with the number of the file's name")?;
    let status = lines.next().and_then(|line| line.strip_prefix("Status: "));
    let status =
        status.filter(|status| status.starts_with("Accepted, ") || status.starts_with("Superseded by ["));
    let status = status.ok_or(
        "say below the title `Status: Accepted, DATE` or `Status: Superseded by [NUMBER](FILE), DATE`",
    )?;
    Ok((number, Page { file, title, status }))
}

/// Differences between the index and the generated one, and pages outside of every section's range.
fn wrong_index(text: &str, pages: &Pages<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    let expected = indexed(text, pages);
    let differs = text.lines().zip(expected.lines()).position(|(is, should)| is != should);
    let shorter = text.lines().count().min(expected.lines().count());
    if text != expected {
        let number = differs.unwrap_or(shorter) + 1;
        let message = "not what the pages say; next: cargo xtask tidy --write".to_owned();
        found.push(Finding { place: format!("{INDEX}:{number}"), message });
    }
    for (number, page) in pages {
        if !expected.contains(&page.line(number)) {
            let message = format!("no section of {INDEX} has room for {number}; its headings name ranges");
            found.push(Finding { place: format!("{DIRECTORY}{}", page.file), message });
        }
    }
    found
}

/// The index's text with the lists of all sections generated again.
fn indexed(text: &str, pages: &Pages<'_>) -> String {
    let mut made: Vec<String> = Vec::new();
    let mut range: Option<(&str, &str)> = None;
    let end_section = |made: &mut Vec<String>, range: Option<(&str, &str)>| {
        let Some((first, last)) = range else { return };
        while made.last().is_some_and(String::is_empty) {
            made.pop();
        }
        made.push(String::new());
        made.extend(pages.range(first..=last).map(|(number, page)| page.line(number)));
        made.push(String::new());
    };
    for line in text.lines() {
        if line.starts_with("## ") {
            end_section(&mut made, range);
            range = range_of(line);
        }
        let listed =
            range.is_some() && line.strip_prefix("- [").is_some_and(|rest| leading_number(rest).is_some());
        if !listed {
            made.push(line.to_owned());
        }
    }
    end_section(&mut made, range);
    made.join("\n").trim_end().to_owned() + "\n"
}

/// The range of a heading such as `## Agent (0200–0299)`; `None` for other headings.
fn range_of(heading: &str) -> Option<(&str, &str)> {
    let (first, last) = heading.rsplit_once('(')?.1.strip_suffix(')')?.split_once('–')?;
    let is_number = |text: &str| text.len() == DIGITS && leading_number(text).is_some();
    (is_number(first) && is_number(last) && first <= last).then_some((first, last))
}

/// Citations of pages that don't exist, and, outside of the pages, of superseded ones.
fn wrong_citations(path: &str, text: &str, pages: &Pages<'_>) -> Vec<Finding> {
    let is_a_page = path.starts_with(DIRECTORY);
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut numbers = cited(line);
        numbers.dedup();
        for number in numbers {
            let message = match pages.get(number) {
                None => format!("ADR {number} doesn't exist; see {INDEX}"),
                Some(page) if page.is_superseded() && !is_a_page => {
                    format!("ADR {number} no longer holds: {}; cite that", without_links(page.status))
                }
                Some(_) => continue,
            };
            found.push(Finding { place: format!("{path}:{}", index + 1), message });
        }
    }
    found
}

/// The numbers that a line cites, in order.
fn cited(line: &str) -> Vec<&str> {
    let after = |mark: &&str| line.match_indices(*mark).map(|(at, mark)| at + mark.len()).collect::<Vec<_>>();
    let mut numbers: Vec<&str> =
        CITED_AS.iter().flat_map(after).filter_map(|at| leading_number(&line[at..])).collect();
    numbers.sort_unstable();
    numbers
}

/// The leading four digits of a text, unless more digits follow.
fn leading_number(text: &str) -> Option<&str> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (digits == DIGITS).then(|| &text[..DIGITS])
}

/// Replaces links by their text: `[0104](0104-file.md)` becomes `0104`.
fn without_links(text: &str) -> String {
    let (mut plain, mut rest) = (String::new(), text);
    while let Some((before, inner, after)) = first_link(rest) {
        plain.push_str(before);
        plain.push_str(inner);
        rest = after;
    }
    plain + rest
}

/// The text before, in, and after the first link of a text.
fn first_link(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once('[')?;
    let (inner, rest) = rest.split_once("](")?;
    Some((before, inner, rest.split_once(')')?.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: &str = "# Decisions\n\nProse.\n\n## Low (0000–0099)\n\n## High (0100–0199)\n";
    const FIRST: (&str, &str) = ("0007-one.md", "# 0007: One thing\n\nStatus: Accepted, 2026-11-22\n");
    const OLD: (&str, &str) =
        ("0100-old.md", "# 0100: Old thing\n\nStatus: Superseded by [0007](0007-one.md), 2026-11-23\n");

    const AMENDED: (&str, &str) = (
        "0101-older.md",
        "# 0101: Older thing\n\nStatus: Accepted, 2026-11-22; Superseded by [0007](0007-one.md)\n",
    );

    /// Files without a directory are pages of decisions: their full path would be a citation here.
    fn checkout(files: &[(&str, &str)]) -> Checkout {
        let path =
            |path: &str| if path.contains('/') { path.to_owned() } else { format!("{DIRECTORY}{path}") };
        Checkout::of(files.iter().map(|(name, text)| (path(name), (*text).to_owned())))
    }

    /// All pages, a correct index, and one more file.
    fn with(path: &str, text: &str) -> Checkout {
        let index = index(&checkout(&[FIRST, OLD, AMENDED, (INDEX, HEADS)])).unwrap();
        checkout(&[FIRST, OLD, AMENDED, (INDEX, &index), (path, text)])
    }

    #[track_caller]
    fn check(checkout: &Checkout, expected: &str) {
        let seen = findings(checkout);
        if expected.is_empty() {
            assert!(seen.is_empty(), "expected no finding, saw {seen:?}");
        } else {
            assert!(seen.iter().any(|f| f.message.contains(expected)), "expected `{expected}`, saw {seen:?}");
        }
    }

    #[test]
    fn the_index_is_made_of_titles_and_statuses() {
        let made = index(&checkout(&[FIRST, OLD, (INDEX, HEADS)])).unwrap();
        let expected = "# Decisions\n\nProse.\n\n## Low (0000–0099)\n\n- [0007](0007-one.md) One thing — Accepted, 2026-11-22\n\n\
            ## High (0100–0199)\n\n- [0100](0100-old.md) Old thing — Superseded by 0007, 2026-11-23\n";
        assert_eq!(made, expected);
        let again = index(&checkout(&[FIRST, OLD, (INDEX, &made)])).unwrap();
        assert_eq!(again, made, "a second generation changes the index");
    }

    #[test]
    fn an_outdated_index_is_found() {
        check(&with("a/b.md", ""), "");
        check(&checkout(&[FIRST, OLD, (INDEX, HEADS)]), "not what the pages say");
        let stale = index(&checkout(&[FIRST, (INDEX, HEADS)])).unwrap().replace("One", "Another");
        check(&checkout(&[FIRST, (INDEX, &stale)]), "not what the pages say");
        check(
            &checkout(&[("0300-high.md", "# 0300: A\n\nStatus: Accepted, X\n"), (INDEX, HEADS)]),
            "has room",
        );
        check(&checkout(&[FIRST]), "the index is missing");
    }

    #[test]
    fn a_page_has_a_title_and_a_status() {
        check(&with("0008-a.md", "# 0009: A\n\nStatus: Accepted, X\n"), "begin it with");
        check(&with("0008-a.md", "# 0008: A\n\nContext\n"), "say below the title");
        check(&with("0008-a.md", "# 0008: A\n\nStatus: Maybe\n"), "say below the title");
        check(&with("some.md", "# 0008: A\n"), "name it by four digits");
        check(&with("0007-two.md", "# 0007: A\n\nStatus: Accepted, X\n"), "number already");
    }

    #[test]
    fn a_citation_is_of_a_page_that_exists_and_applies() {
        for mark in CITED_AS {
            check(&with("a/src/b.rs", &format!("//! See {mark}0007.\n")), "");
            check(&with("a/src/b.rs", &format!("//! See {mark}0042.\n")), "0042 doesn't exist");
            check(&with("a/b.md", &format!("See {mark}0100.\n")), "0100 no longer holds: Superseded by 0007");
            check(&with("a/b.md", &format!("See {mark}0101.\n")), "0101 no longer holds");
            check(&with("a/b.md", &format!("See {mark}01000 and {mark}x.\n")), "");
        }
        let citing = format!("# 0008: A\n\nStatus: Accepted, X\n\nUnlike {}0100.\n", CITED_AS[0]);
        let pages = [FIRST, OLD, ("0008-a.md", &citing), (INDEX, HEADS)];
        let index = index(&checkout(&pages)).unwrap();
        check(&checkout(&[pages[0], pages[1], pages[2], (INDEX, &index)]), "");
    }
}
