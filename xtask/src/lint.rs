//! Formatter, linter, rustdoc, house rules, and cargo-deny.

use anyhow::{Context, Result};
use mesh_checkout::command::Program;
use mesh_checkout::{setup, workspace};

use crate::tidy;

/// Runs all static checks, the quickest first.
///
/// # Errors
/// A check found something; it has printed what.
pub fn check() -> Result<()> {
    format()?;
    tidy::check()?;
    dependencies()?;
    clippy()?;
    documentation()
}

/// Checks that rustfmt would change nothing.
pub(crate) fn format() -> Result<()> {
    cargo(&["fmt", "--all", "--check"]).context("next: cargo fmt --all")
}

/// Checks that clippy finds nothing on any target.
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

/// Checks that rustdoc finds nothing: links in doc comments must resolve, those of private items
/// too, as the readers of this code follow them.
pub(crate) fn documentation() -> Result<()> {
    let options = ["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"];
    let cargo = Program::cargo()
        .args(options)
        .env("RUSTDOCFLAGS", "--deny warnings --allow rustdoc::private_intra_doc_links");
    cargo.current_dir(workspace::root()).run_shown()
}

/// Checks licences, sources and bans of our dependencies. Advisories need the network, and don't
/// depend on the checkout alone: run `cargo deny check advisories` before a release.
pub(crate) fn dependencies() -> Result<()> {
    setup::cargo_deny::ensure()?;
    cargo(&["deny", "--log-level", "error", "check", "bans", "licenses", "sources"])
}

fn cargo(args: &[&str]) -> Result<()> {
    Program::cargo().args(args).current_dir(workspace::root()).run_shown()
}
