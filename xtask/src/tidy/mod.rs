//! The house rules that neither the compiler nor clippy knows: sizes, names, module docs, which crate and which module may use
//! which, and which modules are pure.
//!
//! Every rule is a pure function from a source file, or from the packages' dependencies, to findings; only [`check`] reads files.

mod dependencies;
mod floors;
mod imports;
mod source;

use std::fs;

use anyhow::{Context, Result, bail};
use mesh_checkout::command::Program;
use mesh_checkout::workspace;

use self::source::SourceFile;

/// A place that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    /// Path in the checkout, with a line where there is one.
    place: String,
    /// What is wrong, and what to do.
    message: String,
}

/// Checks every rule on every source file that is or could be committed.
///
/// # Errors
/// When a rule is broken (all findings are printed), or a file can't be read.
pub fn check() -> Result<()> {
    let mut findings = dependencies::findings(&package_dependencies()?);
    for path in source_paths()? {
        let text = match fs::read_to_string(workspace::root().join(&path)) {
            Ok(text) => text,
            // Deleted, but not yet committed so.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e).with_context(|| format!("read {path}")),
        };
        let file = SourceFile { path: &path, text: &text };
        findings.extend(source::findings(&file));
        findings.extend(floors::findings(&file));
    }
    for finding in &findings {
        eprintln!("{}: {}", finding.place, finding.message);
    }
    if findings.is_empty() { Ok(()) } else { bail!("{} places break the house rules", findings.len()) }
}

fn source_paths() -> Result<Vec<String>> {
    let listed = Program::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "--", "*.rs"])
        .current_dir(workspace::root())
        .output()?;
    Ok(listed.lines().map(str::to_owned).collect())
}

fn package_dependencies() -> Result<Vec<dependencies::Package>> {
    let text = Program::cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(workspace::root())
        .output()?;
    dependencies::parse(&text).context("understand cargo metadata")
}
