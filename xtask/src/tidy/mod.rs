//! The house rules that neither the compiler nor clippy checks: for source files and modules, for
//! pages, and for dependencies between packages.
//!
//! Every rule is a pure function from the checkout's files, or from the packages' dependencies, to
//! findings; only [`run`] reads and writes files.

mod circles;
mod decisions;
mod dependencies;
mod floors;
mod imports;
mod links;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result, bail};
use clap::Args;
use mesh_checkout::command::Program;
use mesh_checkout::workspace;

use self::source::SourceFile;

/// The extensions of files whose text is checked.
const READ: [&str; 5] = ["rs", "md", "toml", "proto", "yml"];

/// Arguments of `cargo xtask tidy`.
#[derive(Debug, Args)]
pub struct TidyArgs {
    /// First write generated files: the index of decisions
    #[arg(long)]
    write: bool,
}

/// A violation of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    /// Path in the checkout, with a line where there is one.
    place: String,
    /// What is wrong, and what to do about it.
    message: String,
}

/// The files that are or could be committed.
#[derive(Debug, Default)]
struct Checkout {
    /// The texts of files with an extension in [`READ`], by path from the checkout's root.
    texts: BTreeMap<String, String>,
    /// The paths of all files, and of all directories that contain one.
    paths: BTreeSet<String>,
}

impl Checkout {
    /// A checkout of these files and their texts.
    #[cfg(test)]
    fn of(files: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut checkout = Self::default();
        for (path, text) in files {
            checkout.add(&path);
            checkout.texts.insert(path, text);
        }
        checkout
    }

    /// Adds a file, and the directories that contain it; the checkout's root is the empty path.
    fn add(&mut self, path: &str) {
        self.paths.insert(path.to_owned());
        let ends = path.match_indices('/').map(|(at, _)| at);
        self.paths.extend(ends.chain([0]).map(|end| path[..end].to_owned()));
    }

    fn holds(&self, path: &str) -> bool {
        self.paths.contains(path)
    }

    fn text(&self, path: &str) -> Option<&str> {
        self.texts.get(path).map(String::as_str)
    }

    fn texts(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        self.texts.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }
}

/// Checks every rule, after writing generated files if asked to.
///
/// # Errors
/// As for [`check`], and if a file can't be written.
pub fn run(args: &TidyArgs) -> Result<()> {
    if args.write
        && let Some(index) = decisions::index(&read()?)
    {
        fs::write(workspace::root().join(decisions::INDEX), index)
            .with_context(|| format!("write {}", decisions::INDEX))?;
    }
    check()
}

/// Checks every rule on every file that is or could be committed.
///
/// # Errors
/// A rule is broken (all findings are printed), or a file can't be read.
pub fn check() -> Result<()> {
    let checkout = read()?;
    let mut findings = dependencies::findings(&package_dependencies()?);
    let sources: Vec<_> = checkout.texts().filter(|(path, _)| kind(path) == Some("rs")).collect();
    for &(path, text) in &sources {
        let file = SourceFile { path, text };
        findings.extend(source::findings(&file));
        findings.extend(floors::findings(&file));
    }
    findings.extend(circles::findings(&sources));
    findings.extend(decisions::findings(&checkout));
    findings.extend(links::findings(&checkout));
    for finding in &findings {
        eprintln!("{}: {}", finding.place, finding.message);
    }
    if findings.is_empty() { Ok(()) } else { bail!("{} places break the house rules", findings.len()) }
}

/// The extension: `rs` of `src/lib.rs`.
fn kind(path: &str) -> Option<&str> {
    path.rsplit_once('.').map(|(_, kind)| kind)
}

fn read() -> Result<Checkout> {
    let listed = Program::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(workspace::root())
        .output()?;
    let mut checkout = Checkout::default();
    for path in listed.lines() {
        let file = workspace::root().join(path);
        if !kind(path).is_some_and(|kind| READ.contains(&kind)) {
            // Files that are deleted, but not yet in the index, are listed too.
            if file.exists() {
                checkout.add(path);
            }
            continue;
        }
        match fs::read_to_string(&file) {
            Ok(text) => {
                checkout.add(path);
                checkout.texts.insert(path.to_owned(), text);
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("read {path}")),
        }
    }
    Ok(checkout)
}

fn package_dependencies() -> Result<Vec<dependencies::Package>> {
    let text = Program::cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(workspace::root())
        .output()?;
    dependencies::parse(&text).context("parse the output of cargo metadata")
}
