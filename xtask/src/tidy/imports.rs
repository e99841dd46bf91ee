//! The paths of its own crate that a source file uses, in `use` trees and in expressions.
//!
//! Limits: it reads text, not syntax trees. A path in a string counts, one that a macro makes does
//! not, and a module with a body counts as the file that contains it.

/// A path of the crate, from its root.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Import {
    /// The line on which the path, or the `use` around it, begins.
    pub(super) line: usize,
    /// The parts of the path; `*` for everything, and no last part for `self`.
    pub(super) path: Vec<String>,
}

/// A file's text up to its module of tests, if that has a body in the file.
pub(super) fn before_tests(text: &str) -> &str {
    let tests = text.match_indices("#[cfg(test)]").find(|(at, mark)| {
        let after = text[at + mark.len()..].trim_start().lines().next().unwrap_or_default();
        after.starts_with("mod ") && after.ends_with('{')
    });
    tests.map_or(text, |(at, _)| &text[..at])
}

/// All paths that begin with `crate::` or `super::`, in a file of the module `module`.
pub(super) fn of(text: &str, module: &[&str]) -> Vec<Import> {
    let code = without_comments(text);
    let mut found = Vec::new();
    for root in ["crate::", "super::"] {
        for (at, _) in code.match_indices(root).filter(|(at, _)| begins_a_path(&code[..*at])) {
            let line = code[..at].lines().count().max(1) + usize::from(code[..at].ends_with('\n'));
            let (base, tree) = climb(&code[at..], module);
            found.extend(
                leaves(tree).into_iter().map(|rest| Import { line, path: [base.clone(), rest].concat() }),
            );
        }
    }
    found
}

/// The text with the contents of comment lines removed, so that lines keep their numbers.
fn without_comments(text: &str) -> String {
    let kept = text.lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line });
    kept.flat_map(|line| [line, "\n"]).collect()
}

fn begins_a_path(before: &str) -> bool {
    before.chars().next_back().is_none_or(|c| !c.is_alphanumeric() && !['_', ':', '$'].contains(&c))
}

/// The module at which a path starts, and the rest of the path: `crate::` is the root, each
/// `super::` a module further up.
fn climb<'a>(path: &'a str, module: &[&str]) -> (Vec<String>, &'a str) {
    if let Some(rest) = path.strip_prefix("crate::") {
        return (Vec::new(), rest);
    }
    let (mut rest, mut depth) = (path, module.len());
    while let Some(shorter) = rest.strip_prefix("super::") {
        (rest, depth) = (shorter, depth.saturating_sub(1));
    }
    (module[..depth].iter().map(|part| (*part).to_owned()).collect(), rest)
}

/// The paths in a `use` tree: `a::{b, c::d}` has `a::b` and `a::c::d`.
fn leaves(tree: &str) -> Vec<Vec<String>> {
    let mut path = Vec::new();
    let mut rest = tree.trim_start();
    loop {
        if let Some(group) = rest.strip_prefix('{') {
            let inner = items(group).into_iter().flat_map(leaves);
            return inner.map(|leaf| [path.clone(), leaf].concat()).collect();
        }
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*').unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        if !part.is_empty() && part != "self" {
            path.push(part.to_owned());
        }
        match after.strip_prefix("::") {
            Some(more) if !part.is_empty() => rest = more,
            _ => return if path.is_empty() && part != "self" { Vec::new() } else { vec![path] },
        }
    }
}

/// The items of a group, after its opening brace.
fn items(group: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut items) = (0usize, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&group[begin..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&group[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, module: &[&str], expected: &[(usize, &str)]) {
        let mut seen: Vec<(usize, String)> =
            of(text, module).into_iter().map(|import| (import.line, import.path.join("::"))).collect();
        seen.sort();
        let expected: Vec<(usize, String)> =
            expected.iter().map(|(line, path)| (*line, (*path).to_owned())).collect();
        assert_eq!(seen, expected, "paths in {text:?}");
    }

    #[test]
    fn use_trees_are_split_into_paths() {
        check("use crate::a::b;\n", &[], &[(1, "a::b")]);
        check(
            "use crate::a::{self, b::{C, d as e}, f::*};\n",
            &[],
            &[(1, "a"), (1, "a::b::C"), (1, "a::b::d"), (1, "a::f::*")],
        );
        check("\nuse crate::{\n    a,\n    b::c,\n};\n", &[], &[(2, "a"), (2, "b::c")]);
        check("pub(crate) use crate::a::B;\n", &[], &[(1, "a::B")]);
    }

    #[test]
    fn paths_in_expressions_count_and_comments_do_not() {
        check("fn f() {\n    crate::a::run(1)\n}\n", &[], &[(2, "a::run")]);
        check("/// See [`crate::a::run`].\n    // crate::b\n", &[], &[]);
        check("use mycrate::a;\nlet b = $crate::a;\n", &[], &[]);
    }

    #[test]
    fn super_climbs_from_the_files_own_module() {
        check("use super::c;\n", &["a", "b"], &[(1, "a::c")]);
        check("use super::super::{c, d::E};\n", &["a", "b"], &[(1, "c"), (1, "d::E")]);
        check("use super::c;\n", &["a"], &[(1, "c")]);
    }

    #[test]
    fn only_a_module_of_tests_with_a_body_ends_the_product_code() {
        assert_eq!(before_tests("a\n#[cfg(test)]\nmod tests {\n}\n"), "a\n");
        let declared = "a\n#[cfg(test)]\nmod tests;\nb\n";
        assert_eq!(before_tests(declared), declared);
    }
}
