//! Prepares a Debian machine: finds what is missing to build, run and test mesh, and installs
//! exactly that.
//!
//! Idempotent, and quick when nothing is missing, so every command that needs the tools calls
//! [`ensure`] first. It starts no daemon: labs start their own.

mod bpf_linker;
pub mod cargo_deb;
pub mod cargo_deny;
pub mod hooks;
mod packages;

use anyhow::Result;

/// Installs everything that is missing; prints what it does, and nothing if nothing is missing.
///
/// # Errors
/// A package or bpf-linker can't be installed; the message names the next step.
pub fn ensure() -> Result<()> {
    packages::ensure()?;
    bpf_linker::ensure()
}
