//! Rules for one source file.

use super::Finding;

const LINES_MAX: usize = 400;
/// The most lines of code in a function's body.
const FUNCTION_LINES_MAX: usize = 70;
/// The widest line of a comment; rustfmt limits the width of code.
const COMMENT_COLUMNS_MAX: usize = 100;

/// Meaningless names of files, directories and modules.
const EMPTY_NAMES: [&str; 8] = ["util", "utils", "common", "helper", "helpers", "manager", "misc", "stuff"];

/// Words that don't count in docs.
const ARTICLES: [&str; 8] = ["The", "A", "An", "Its", "Their", "All", "Every", "Each"];

/// Concatenated so that this file doesn't break its own rule.
const UNFINISHED: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Crates that only certain places may use.
const DOORS: &[(&str, &str, &[&str])] = &[
    ("aya", "mesh-agent/src/", &["mesh-agent/src/datapath/", "mesh-agent/src/datapath.rs"]),
    ("bollard", "mesh-agent/src/", &["mesh-agent/src/task/docker", "mesh-agent/src/docker_api"]),
    ("etcd_client", "control/", &["control/state/src/store/etcd"]),
];

/// A file of the checkout.
pub(super) struct SourceFile<'a> {
    /// Path from the checkout's root.
    pub(super) path: &'a str,
    /// The text of the whole file.
    pub(super) text: &'a str,
}

/// Everything that breaks a rule in one file.
pub(super) fn findings(file: &SourceFile<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(too_long(file));
    found.extend(undocumented(file));
    found.extend(empty_name(file));
    found.extend(wrong_doors(file));
    found.extend(bad_lines(file));
    found.extend(wide_comments(file));
    found.extend(empty_docs(file));
    found.extend(long_functions(file));
    found
}

fn too_long(file: &SourceFile<'_>) -> Option<Finding> {
    let lines = file.text.lines().count();
    let message = format!("{lines} lines; split it below {LINES_MAX}");
    (lines > LINES_MAX).then(|| Finding { place: file.path.to_owned(), message })
}

/// A module without docs: `//!` must come first, or after inner attributes.
fn undocumented(file: &SourceFile<'_>) -> Option<Finding> {
    let first = file.text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with("#!["));
    let documented = first.is_some_and(|line| line.starts_with("//!"));
    let message =
        "no module docs; begin with `//!`: purpose, invariants, what it leaves to others".to_owned();
    (!documented).then(|| Finding { place: file.path.to_owned(), message })
}

fn empty_name(file: &SourceFile<'_>) -> Option<Finding> {
    let names = file.path.trim_end_matches(".rs").split('/');
    // As a noun of its own, a manager is a node of the control plane, and tests may simulate one.
    let is_noun = |name: &str| name == "manager" && !file.path.contains("/src/");
    let bad = names.into_iter().find(|name| EMPTY_NAMES.contains(name) && !is_noun(name))?;
    let message = format!("`{bad}` says nothing; name it after what it does");
    Some(Finding { place: file.path.to_owned(), message })
}

fn wrong_doors(file: &SourceFile<'_>) -> Vec<Finding> {
    let guarded = DOORS.iter().filter(|(_, room, _)| file.path.starts_with(room));
    let closed = guarded.filter(|(_, _, doors)| !doors.iter().any(|door| file.path.starts_with(door)));
    closed
        .filter_map(|(name, _, doors)| {
            let (number, _) = code_lines(file).find(|(_, line)| names_crate(line, name))?;
            let message = format!("only {} may use {name}", doors[0]);
            Some(Finding { place: format!("{}:{number}", file.path), message })
        })
        .collect()
}

fn bad_lines(file: &SourceFile<'_>) -> Vec<Finding> {
    let at = |number: usize, message: String| Finding { place: format!("{}:{number}", file.path), message };
    let mut found = Vec::new();
    for (number, line) in numbered(file) {
        if let Some(mark) = UNFINISHED.iter().find(|mark| has_word(line, mark)) {
            found.push(at(number, format!("{mark}: finish it, or open an issue")));
        }
        if let Some(name) = declared_function(line)
            && name.starts_with("handle_")
        {
            found.push(at(number, format!("`{name}`: name it after what it does")));
        }
    }
    found
}

fn wide_comments(file: &SourceFile<'_>) -> Vec<Finding> {
    let comments = numbered(file).filter(|(_, line)| line.trim_start().starts_with("//"));
    comments
        .filter_map(|(number, line)| {
            let columns = line.chars().count();
            let message = format!("a comment of {columns} columns; break it at {COMMENT_COLUMNS_MAX}");
            let place = format!("{}:{number}", file.path);
            (columns > COMMENT_COLUMNS_MAX).then_some(Finding { place, message })
        })
        .collect()
}

/// Docs of one word, with or without an article ("The path."): the item's name says as much.
fn empty_docs(file: &SourceFile<'_>) -> Vec<Finding> {
    let doc = |line: &&str| line.trim_start().strip_prefix("/// ").map(str::to_owned);
    let lines: Vec<&str> = file.text.lines().collect();
    let is_alone = |index: usize| {
        let above = index.checked_sub(1).and_then(|above| lines.get(above)).and_then(doc);
        above.is_none() && lines.get(index + 1).and_then(doc).is_none()
    };
    let is_empty = |text: &str| {
        let words: Vec<&str> = text.split_whitespace().filter(|word| !ARTICLES.contains(word)).collect();
        matches!(words[..], [word] if word.ends_with('.'))
    };
    let docs = lines.iter().enumerate().filter_map(|(index, line)| Some((index, doc(line)?)));
    docs.filter(|(index, text)| is_empty(text) && is_alone(*index))
        .map(|(index, text)| Finding {
            place: format!("{}:{}", file.path, index + 1),
            message: format!("`{text}` says nothing; say what it is for, or what it may be"),
        })
        .collect()
}

/// Functions with too many lines of code. Relies on rustfmt's layout: a body ends at the brace that
/// is indented like its `fn`. Clippy counts alike, and takes much longer.
fn long_functions(file: &SourceFile<'_>) -> Vec<Finding> {
    let lines: Vec<&str> = file.text.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let is_code = |line: &&&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = declared_function(line) else { continue };
        let depth = indent(line);
        let ends = |line: &&str| indent(line) == depth && line.trim_start().starts_with('}');
        // A declaration without a body ends earlier, at a semicolon.
        let declares = |line: &&str| indent(line) == depth && line.trim_end().ends_with(';');
        let Some(length) = lines[index..].iter().position(|line| ends(line) || declares(line)) else {
            continue;
        };
        let begins = lines[index..index + length].iter().position(|line| line.trim_end().ends_with('{'));
        let body = &lines[index + begins.map_or(length, |begins| begins + 1)..index + length];
        let count = body.iter().filter(is_code).count();
        if count > FUNCTION_LINES_MAX {
            let place = format!("{}:{}", file.path, index + 1);
            let message = format!("`{name}` has {count} lines; split it below {FUNCTION_LINES_MAX}");
            found.push(Finding { place, message });
        }
    }
    found
}

fn numbered<'a>(file: &SourceFile<'a>) -> impl Iterator<Item = (usize, &'a str)> {
    file.text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

fn code_lines<'a>(file: &SourceFile<'a>) -> impl Iterator<Item = (usize, &'a str)> {
    numbered(file).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// True for `use name::…`, `name::…` and `use name;`, not for a longer name that ends like it.
fn names_crate(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = &line[at + name.len()..];
        let begins = before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':' && c != '"');
        begins
            && (after.starts_with("::") || (line.trim_start().starts_with("use ") && after.starts_with(';')))
    })
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|part| part == word)
}

fn declared_function(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let declares = before.split_whitespace().all(|word| {
        word.starts_with("pub")
            || ["async", "const", "unsafe", "extern", "\"C\""].contains(&word)
            || word.ends_with(')')
    });
    declares.then(|| after.split(|c: char| !c.is_alphanumeric() && c != '_').next()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<String> {
        findings(&SourceFile { path, text })
            .into_iter()
            .map(|f| format!("{}: {}", f.place, f.message))
            .collect()
    }

    #[track_caller]
    fn check(path: &str, text: &str, expected: &str) {
        let seen = messages(path, text);
        if expected.is_empty() {
            assert!(seen.is_empty(), "expected no finding in {path}, saw {seen:?}");
        } else {
            assert!(
                seen.iter().any(|m| m.contains(expected)),
                "expected `{expected}` of {path}, saw {seen:?}"
            );
        }
    }

    #[test]
    fn length_is_limited() {
        check("a.rs", &("//! A.\n".to_owned() + &"\n".repeat(LINES_MAX)), "401 lines");
        check("a.rs", &("//! A.\n".to_owned() + &"\n".repeat(LINES_MAX - 1)), "");
    }

    #[test]
    fn modules_are_documented() {
        check("a.rs", "use std::fs;\n", "no module docs");
        check("a.rs", "", "no module docs");
        check("a.rs", "#![no_std]\n\n//! A.\n", "");
    }

    #[test]
    fn names_say_something() {
        check("control/src/utils.rs", "//! A.\n", "`utils` says nothing");
        check("control/src/common/a.rs", "//! A.\n", "`common` says nothing");
        check("control/src/commonplace.rs", "//! A.\n", "");
        check("control/src/task/manager.rs", "//! A.\n", "`manager` says nothing");
        check("control/tests/manager.rs", "//! A.\n", "");
        check("a.rs", "//! A.\npub(crate) async fn handle_it() {}\n", "a.rs:2: `handle_it`");
        check("a.rs", "//! A.\nlet a = handle_it();\n", "");
    }

    #[test]
    fn crates_are_used_behind_their_doors() {
        check(
            "mesh-agent/src/lb/tables.rs",
            "//! A.\nuse aya::maps::Array;\n",
            "only mesh-agent/src/datapath/ may use aya",
        );
        check("mesh-agent/src/datapath/apply.rs", "//! A.\nuse aya::maps::Array;\n", "");
        check("mesh-agent/src/lb/tables.rs", "//! Not aya::maps.\nuse maya::x;\n", "");
        check(
            "control/src/leader.rs",
            "//! A.\nlet c = etcd_client::Client::connect();\n",
            "may use etcd_client",
        );
        check("control/state/src/store/etcd.rs", "//! A.\nuse etcd_client::Client;\n", "");
        check("mesh-agent/tests/kernel.rs", "//! A.\nuse aya::Ebpf;\n", "");
    }

    #[test]
    fn comments_are_narrow() {
        let of = |mark: &str, columns: usize| {
            format!("//! A.\n    {mark} {}\n", "é".repeat(columns - 5 - mark.len()))
        };
        for mark in ["//", "///", "//!"] {
            check("a.rs", &of(mark, COMMENT_COLUMNS_MAX), "");
            check("a.rs", &of(mark, COMMENT_COLUMNS_MAX + 1), "a.rs:2: a comment of 101 columns");
        }
        check("a.rs", &format!("//! A.\nlet a = \"{}\"; // and so on\n", "b".repeat(100)), "");
    }

    #[test]
    fn docs_of_one_word_are_found() {
        check("a.rs", "//! A.\n/// The path.\npath: PathBuf,\n", "a.rs:2: `The path.` says nothing");
        check("a.rs", "//! A.\n    /// Transport.\n    protocol: u8,\n", "a.rs:2");
        check("a.rs", "//! A.\n/// The path of the\n/// file.\npath: PathBuf,\n", "");
        check("a.rs", "//! A.\n/// The file's path.\npath: PathBuf,\n", "");
    }

    #[test]
    fn unfinished_work_is_found() {
        for mark in UNFINISHED {
            check("a.rs", &format!("//! A.\n// {mark}: later\n"), mark);
        }
    }

    #[test]
    fn a_function_of_more_than_70_lines_is_named() {
        let of = |lines: usize| {
            format!(
                "//! A.\n\n    fn long(\n        a: u8,\n    ) {{\n{}    }}\n",
                "        a();\n".repeat(lines)
            )
        };
        check("a.rs", &of(FUNCTION_LINES_MAX + 1), "a.rs:3: `long` has 71 lines");
        let fits = of(FUNCTION_LINES_MAX).replace("    }\n", "\n        // A comment.\n    }\n");
        assert_eq!(
            findings(&SourceFile { path: "a.rs", text: &fits }),
            [],
            "comments and empty lines are free"
        );
    }
}
