//! Formatter, linter, rustdoc, house rules, and cargo-deny.

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
    clippy()?;
    documentation()
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

/// rustdoc is silent: links in doc comments lead somewhere. Private items count, as readers of this
/// code see them.
pub(crate) fn documentation() -> Result<()> {
    let options = ["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"];
    let cargo = Program::cargo()
        .args(options)
        .env("RUSTDOCFLAGS", "--deny warnings --allow rustdoc::private_intra_doc_links");
    cargo.current_dir(workspace::root()).run_shown()
}

/// Licences, sources and bans of what we depend on. Advisories need the network, and are no
/// property of a checkout: `cargo deny check advisories` is for whoever releases.
pub(crate) fn dependencies() -> Result<()> {
    setup::cargo_deny::ensure()?;
    cargo(&["deny", "--log-level", "error", "check", "bans", "licenses", "sources"])
}

fn cargo(args: &[&str]) -> Result<()> {
    Program::cargo().args(args).current_dir(workspace::root()).run_shown()
}
