//! Puts a Debian machine in order: finds what is missing to build, run and test mesh, and installs
//! exactly that.
//!
//! Idempotent, and quick when nothing is missing, so every verb that needs the tools calls
//! [`ensure`] first. No daemon is started by it: labs start their own.

mod bpf_linker;
pub mod cargo_deny;
pub mod hooks;
mod packages;

use anyhow::Result;

/// Installs whatever is missing; says what it does, and nothing when there is nothing to do.
///
/// # Errors
/// When a package or bpf-linker can't be installed; the message names the next step.
pub fn ensure() -> Result<()> {
    packages::ensure()?;
    bpf_linker::ensure()
}
