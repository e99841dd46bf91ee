//! Finds circles of imports between the files of a daemon.
//!
//! A module and the modules inside it may import one another; no other two files may, not even
//! through a third one, so that a reader can begin with a file that depends on no other.
//!
//! Limits: those of [`super::imports`]; an item that a module re-exports counts as that module's.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use super::imports;

/// The source directories that are checked.
const HOUSES: [&str; 2] = ["control/src/", "mesh-agent/src/"];

type Module = Vec<String>;

/// The circles among files, given by path and text.
pub(super) fn findings(files: &[(&str, &str)]) -> Vec<Finding> {
    HOUSES.into_iter().flat_map(|house| circles_in(house, files)).collect()
}

fn circles_in(house: &str, files: &[(&str, &str)]) -> Vec<Finding> {
    let modules: BTreeMap<Module, (&str, &str)> = files
        .iter()
        .filter_map(|&(path, text)| Some((module_of(path.strip_prefix(house)?)?, (path, text))))
        .collect();
    let edges: BTreeMap<&Module, BTreeSet<&Module>> =
        modules.iter().map(|(module, (_, text))| (module, imported(module, text, &modules))).collect();
    let mut told = BTreeSet::new();
    let mut found = Vec::new();
    for module in modules.keys() {
        let Some(circle) = circle_of(module, &edges).filter(|circle| told.is_disjoint(circle)) else {
            continue;
        };
        let names: Vec<&str> = circle.iter().map(|module| modules[*module].0).collect();
        let message =
            format!("files import one another in a circle: {}; move what they share", names.join(", "));
        found.push(Finding { place: modules[module].0.to_owned(), message });
        told.extend(circle);
    }
    found
}

/// The path of a file's module; `None` for tests and for binaries, which are crates of their own.
fn module_of(path: &str) -> Option<Module> {
    let mut module: Module = path.strip_suffix(".rs")?.split('/').map(str::to_owned).collect();
    let is_test = |part: &String| part == "tests" || part.ends_with("_tests") || part == "testing";
    if module.first().is_some_and(|first| first == "bin") || module.iter().any(is_test) {
        return None;
    }
    if module.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        module.pop();
    }
    Some(module)
}

/// The files that one file imports from, except for those around it and inside it.
fn imported<'a>(
    module: &Module,
    text: &str,
    modules: &'a BTreeMap<Module, (&str, &str)>,
) -> BTreeSet<&'a Module> {
    let own: Vec<&str> = module.iter().map(String::as_str).collect();
    let paths = imports::of(imports::before_tests(text), &own);
    let files = paths.iter().filter_map(|import| {
        (1..=import.path.len()).rev().find_map(|length| modules.get_key_value(&import.path[..length]))
    });
    files
        .map(|(file, _)| file)
        .filter(|file| !file.starts_with(module) && !module.starts_with(file))
        .collect()
}

/// The files that reach `module` and are reached from it, if it is part of a circle.
fn circle_of<'a>(
    module: &'a Module,
    edges: &BTreeMap<&'a Module, BTreeSet<&'a Module>>,
) -> Option<BTreeSet<&'a Module>> {
    let ahead = reached(module, edges);
    let circle: BTreeSet<&Module> =
        ahead.iter().copied().filter(|other| reached(other, edges).contains(module)).collect();
    (!circle.is_empty()).then_some(circle)
}

fn reached<'a>(from: &'a Module, edges: &BTreeMap<&'a Module, BTreeSet<&'a Module>>) -> BTreeSet<&'a Module> {
    let (mut seen, mut ahead) = (BTreeSet::new(), vec![from]);
    while let Some(module) = ahead.pop() {
        for next in edges.get(module).into_iter().flatten() {
            if seen.insert(*next) {
                ahead.push(next);
            }
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(files: &[(&str, &str)], circles: usize) {
        let found = findings(files);
        assert_eq!(found.len(), circles, "{found:?}");
    }

    #[test]
    fn a_circle_is_named_once_with_all_its_files() {
        let files = [
            ("control/src/a.rs", "use crate::b::B;\n"),
            ("control/src/b.rs", "use crate::c::C;\n"),
            ("control/src/c.rs", "use crate::a::A;\n"),
            ("control/src/d.rs", "use crate::a::A;\n"),
        ];
        check(&files, 1);
        let message = &findings(&files)[0].message;
        for name in ["a.rs", "b.rs", "c.rs"] {
            assert!(message.contains(name), "{name} is missing in {message}");
        }
        assert!(!message.contains("d.rs"), "d.rs is in no circle: {message}");
    }

    #[test]
    fn a_module_and_what_is_inside_it_may_import_one_another() {
        check(&[("control/src/a/mod.rs", "use self::b::B;\n"), ("control/src/a/b.rs", "use super::A;\n")], 0);
        check(
            &[("control/src/a.rs", "use crate::b::B;\n"), ("mesh-agent/src/b.rs", "use crate::a::A;\n")],
            0,
        );
    }

    #[test]
    fn tests_may_import_what_they_like() {
        let with_tests = "pub struct A;\n#[cfg(test)]\nmod tests {\n    use crate::b::B;\n}\n";
        check(&[("control/src/a.rs", with_tests), ("control/src/b.rs", "use crate::a::A;\n")], 0);
    }
}
