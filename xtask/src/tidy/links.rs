//! Rules for Markdown: relative links lead to a file of the checkout and, if they name a heading,
//! to one in that file; and the architecture's page stays short.

use super::{Checkout, Finding};

const ARCHITECTURE: &str = "ARCHITECTURE.md";
/// Short enough for one sitting; what doesn't fit becomes a page in `docs/`.
const ARCHITECTURE_LINES_MAX: usize = 250;

/// Everything that breaks a rule for Markdown.
pub(super) fn findings(checkout: &Checkout) -> Vec<Finding> {
    let mut found: Vec<Finding> = checkout.text(ARCHITECTURE).and_then(too_long).into_iter().collect();
    for (path, text) in checkout.texts().filter(|(path, _)| is_markdown(path)) {
        for (number, target) in links(text) {
            if let Some(message) = broken(checkout, path, target) {
                found.push(Finding { place: format!("{path}:{number}"), message });
            }
        }
    }
    found
}

fn too_long(text: &str) -> Option<Finding> {
    let lines = text.lines().count();
    let message = format!("{lines} lines; move something to docs/, and stay below {ARCHITECTURE_LINES_MAX}");
    (lines >= ARCHITECTURE_LINES_MAX).then(|| Finding { place: ARCHITECTURE.to_owned(), message })
}

/// Why a link of the page at `path` is broken; `None` if it isn't.
fn broken(checkout: &Checkout, path: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, heading) =
        target.split_once('#').map_or((target, None), |(file, heading)| (file, Some(heading)));
    let file = if file.is_empty() { Some(path.to_owned()) } else { resolved(path, file) };
    let Some(file) = file.filter(|file| checkout.holds(file)) else {
        return Some(format!("the link `{target}` leads to no file of the checkout"));
    };
    let heading = heading.filter(|_| is_markdown(&file))?;
    let known = headings(checkout.text(&file)?).any(|known| known == heading);
    (!known).then(|| format!("the link `{target}` leads to no heading of {file}"))
}

fn is_markdown(path: &str) -> bool {
    super::kind(path) == Some("md")
}

/// A relative target as a path from the checkout's root; `None` if it leaves the checkout.
fn resolved(page: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in target.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The lines of a page with their numbers, without blocks of code.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        (!in_code && !is_fence).then_some((index + 1, line))
    })
}

/// The targets of all links and images, with their lines.
fn links(text: &str) -> impl Iterator<Item = (usize, &str)> {
    prose(text).flat_map(|(number, line)| {
        let inline = outside_code(line).into_iter().filter_map(|at| {
            let target = line[at..].strip_prefix("](")?.split_once(')')?.0;
            target.split_whitespace().next()
        });
        let defined = line.starts_with('[').then(|| line.split_once("]: ")).flatten();
        let defined = defined.and_then(|(_, target)| target.split_whitespace().next());
        inline.chain(defined).map(move |target| (number, target)).collect::<Vec<_>>()
    })
}

/// The positions of `]` in a line, outside of `code`.
fn outside_code(line: &str) -> Vec<usize> {
    let mut in_code = false;
    let mut found = Vec::new();
    for (at, c) in line.char_indices() {
        match c {
            '`' => in_code = !in_code,
            ']' if !in_code => found.push(at),
            _ => {}
        }
    }
    found
}

/// The anchors of a page's headings.
fn headings(text: &str) -> impl Iterator<Item = String> {
    prose(text).filter(|(_, line)| line.starts_with('#')).map(|(_, line)| {
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        let title = line.trim_start_matches('#').trim().to_lowercase();
        title.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let other = "# Other\n\n## Labels, and `lb`\n\n```sh\n# no heading\n```\n";
        let files = [("docs/page.md", text), ("docs/other.md", other), ("a/src/lib.rs", "//! A.\n")];
        let checkout = Checkout::of(files.map(|(path, text)| (path.to_owned(), text.to_owned())));
        let seen = findings(&checkout);
        if expected.is_empty() {
            assert!(seen.is_empty(), "expected no finding in {text:?}, saw {seen:?}");
        } else {
            let message = |f: &Finding| format!("{}: {}", f.place, f.message);
            assert!(
                seen.iter().any(|f| message(f).contains(expected)),
                "expected `{expected}`, saw {seen:?}"
            );
        }
    }

    #[test]
    fn relative_links_lead_to_files() {
        check("[a](other.md), [b](./other.md), [c](../a/src/lib.rs), ![d](../a/src), [e](..)\n", "");
        check("# A\n\n[a](https://example.org/x), [b](mailto:a@example.org), [c](#a)\n", "");
        check("# A\n\nsee [a](missing.md)\n", "docs/page.md:3: the link `missing.md` leads to no file");
        check("[a](../../outside.md)\n", "leads to no file");
        check("[a](other.md), [b](/a/src/lib.rs)\n", "leads to no file");
        check("[a]: missing.md\n", "leads to no file");
    }

    #[test]
    fn links_lead_to_headings() {
        check("[a](other.md#labels-and-lb)\n", "");
        check("[a](../a/src/lib.rs#L1)\n", "");
        check("[a](other.md#policies)\n", "leads to no heading of docs/other.md");
        check("[a](other.md#no-heading)\n", "leads to no heading");
        check("[a](#nowhere)\n", "leads to no heading of docs/page.md");
    }

    #[test]
    fn code_holds_no_links() {
        check("`[a](missing.md)`\n\n```\n[a](missing.md)\n```\n", "");
    }

    #[test]
    fn the_architecture_stays_short() {
        assert_eq!(too_long(&"\n".repeat(ARCHITECTURE_LINES_MAX - 1)), None, "below the limit");
        let found = too_long(&"\n".repeat(ARCHITECTURE_LINES_MAX)).unwrap();
        assert!(found.message.contains("250 lines"), "saw {found:?}");
    }
}
