//! Tests that the benchmarks run; measuring needs a quiet machine.
//!
//! Needs root; `cargo xtask test lab` runs it where that is available.

use anyhow::Result;

#[test]
fn a_quick_run_succeeds() -> Result<()> {
    mesh_bench::quick()
}
