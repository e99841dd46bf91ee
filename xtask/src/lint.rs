//! Formatter, linter, house rules, and cargo-deny.

use anyhow::{Context, Result};
use mesh_checkout::command::Program;
use mesh_checkout::{setup, workspace};

use crate::tidy;

/// Everything that can be said of the sources without running them, the quickest first.
///
/// # Errors
/// When one of them finds something; it has told what on the terminal.
pub fn check() -> Result<()> {
    format()?;
    tidy::check()?;
    dependencies()?;
    clippy()
}

/// rustfmt would change nothing.
pub(crate) fn format() -> Result<()> {
    cargo(&["fmt", "--all", "--check"]).context("next: cargo fmt --all")
}

/// clippy is silent on all targets.
pub(crate) fn clippy() -> Result<()> {
    cargo(&[
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--keep-going",
        "--",
        "--deny",
        "warnings",
    ])
}

/// Licences, sources and bans of what we depend on. Advisories need the network, and are no property of a checkout:
/// `cargo deny check advisories` is for whoever releases.
pub(crate) fn dependencies() -> Result<()> {
    setup::cargo_deny::ensure()?;
    cargo(&["deny", "--log-level", "error", "check", "bans", "licenses", "sources"])
}

fn cargo(args: &[&str]) -> Result<()> {
    Program::cargo().args(args).current_dir(workspace::root()).run_shown()
}
