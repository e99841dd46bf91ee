//! Installs bpf-linker, which turns rustc's bitcode into the kernel's object.
//!
//! Its LLVM must be no older than that of the rustc that makes the bitcode (Debian's rustc-web), so
//! version and LLVM are pinned here, and nowhere else.

use std::env;

use anyhow::{Context, Result};

use crate::command::Program;

const VERSION: &str = "0.13.0";
const LLVM_FEATURE: &str = "llvm-22";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// Installs bpf-linker unless the pinned version is installed.
///
/// # Errors
/// cargo can't install it.
pub(super) fn ensure() -> Result<()> {
    let found = Program::new("bpf-linker").arg("--version").output().ok();
    if found.as_deref().is_some_and(is_pinned) {
        return Ok(());
    }
    let why = found.map_or_else(|| "none found".to_owned(), |version| format!("found {}", version.trim()));
    println!("setup: installing bpf-linker {VERSION} ({why}); this takes about half a minute");
    // Without optimisation, which takes minutes: LLVM does the work, and the objects are the same
    // to the byte.
    Program::cargo()
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--no-default-features",
            "--features",
            LLVM_FEATURE,
        ])
        .args(["--debug", "--quiet", "--force"])
        .env("LLVM_PREFIX", LLVM_PREFIX)
        .env("PATH", llvm_first())
        .without_env("CARGO_TARGET_DIR")
        .without_env("RUSTFLAGS")
        .run_shown()
        .context("next: see that the machine reaches crates.io, then run `cargo xtask setup` again")
}

fn is_pinned(version_line: &str) -> bool {
    version_line.split_whitespace().nth(1) == Some(VERSION)
}

fn llvm_first() -> String {
    format!("{LLVM_PREFIX}/bin:{}", env::var("PATH").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pinned_version_is_accepted() {
        assert!(is_pinned("bpf-linker 0.13.0\n"), "the pinned version is accepted");
        assert!(!is_pinned("bpf-linker 0.13.01"), "a longer version is another one");
        assert!(!is_pinned(""), "empty output is no version");
    }
}
