//! Installs cargo-deny, which checks our dependencies. Only the lint needs it, so only the lint
//! installs it.

use anyhow::{Context, Result};

use crate::command::Program;

/// Installs cargo-deny unless a version is installed.
///
/// # Errors
/// cargo can't install it.
pub fn ensure() -> Result<()> {
    if Program::cargo().args(["deny", "--version"]).succeeds() {
        return Ok(());
    }
    println!("setup: installing cargo-deny (none found); this takes about a minute");
    // Without optimisation: it runs for a second, and optimising it takes minutes.
    Program::cargo()
        .args(["install", "cargo-deny", "--locked", "--debug", "--quiet"])
        .without_env("CARGO_TARGET_DIR")
        .without_env("RUSTFLAGS")
        .run_shown()
        .context("next: see that the machine reaches crates.io, then run `cargo install cargo-deny`")
}
