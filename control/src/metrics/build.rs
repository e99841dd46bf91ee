//! The metric of this build's version.

use mesh_state::origin;
use prometheus::{IntGaugeVec, Opts, Registry};

/// Registers `mesh_build_info`, always 1. The control plane loads no programs, so its `bpf_abi` is
/// `none`.
///
/// # Errors
/// A family of the same name is already registered.
pub fn register(registry: &Registry) -> Result<(), prometheus::Error> {
    let options = Opts::new("mesh_build_info", "The build of this process; always 1.");
    let info = IntGaugeVec::new(options, &["version", "revision", "rustc", "bpf_abi"])?;
    info.with_label_values(&[env!("CARGO_PKG_VERSION"), origin::REVISION, origin::RUSTC, "none"]).set(1);
    registry.register(Box::new(info))
}
