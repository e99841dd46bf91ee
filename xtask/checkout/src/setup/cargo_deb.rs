//! Installs cargo-deb, which makes our Debian packages. Only `cargo xtask dist` needs it, so only
//! that installs it.

use anyhow::{Context, Result};

use crate::command::Program;

const VERSION: &str = "3.8.0";

/// Installs cargo-deb unless the pinned version is installed.
///
/// # Errors
/// cargo can't install it.
pub fn ensure() -> Result<()> {
    let found = Program::cargo().args(["deb", "--version"]).output().ok();
    if found.as_deref().is_some_and(is_pinned) {
        return Ok(());
    }
    println!("setup: installing cargo-deb {VERSION}; this takes about a minute");
    // Without optimisation: what it does most, compression, xz does.
    Program::cargo()
        .args(["install", "cargo-deb", "--version", VERSION, "--locked", "--debug", "--quiet", "--force"])
        .without_env("CARGO_TARGET_DIR")
        .without_env("RUSTFLAGS")
        .run_shown()
        .context("next: see that the machine reaches crates.io, then run `cargo xtask dist` again")
}

fn is_pinned(version: &str) -> bool {
    version.split_whitespace().any(|word| word == VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pinned_version_is_accepted() {
        assert!(is_pinned("3.8.0\n"), "cargo-deb prints the number alone");
        assert!(is_pinned("cargo-deb 3.8.0\n"));
        assert!(!is_pinned("3.8.01"));
    }
}
