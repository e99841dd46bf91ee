//! The benchmarks run; what they measure is for a quiet machine.
//!
//! Needs root; `cargo xtask test lab` runs it where that is.

use anyhow::Result;

#[test]
fn a_quick_look_ends_well() -> Result<()> {
    mesh_bench::quick()
}
