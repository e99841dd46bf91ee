//! `cargo xtask fuzz`: fuzzes the packet pipeline with libFuzzer, through cargo-fuzz.
//!
//! It uses the project's stable toolchain, with `RUSTC_BOOTSTRAP`, as cargo-fuzz's instrumentation
//! flags are unstable.

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use mesh_checkout::command::Program;
use mesh_checkout::workspace;

/// The longest packet that is tried: all headers, and some data.
const PACKET_MAX: u32 = 400;

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, Args)]
pub struct FuzzArgs {
    /// How long to look for a packet that breaks the pipeline
    #[arg(long, default_value_t = 600)]
    seconds: u32,
}

/// Fuzzes the pipeline; installs cargo-fuzz first if it is missing.
///
/// # Errors
/// A packet breaks the pipeline; cargo-fuzz prints the packet, and how to reproduce it.
pub fn run(args: &FuzzArgs) -> Result<()> {
    if !Program::cargo().args(["fuzz", "--version"]).succeeds() {
        println!("cargo-fuzz is missing: installing it");
        Program::cargo().args(["install", "--quiet", "cargo-fuzz"]).run_shown()?;
    }
    Program::cargo()
        .args(["fuzz", "run", "--sanitizer", "none", "pipeline", "--"])
        .args([format!("-max_total_time={}", args.seconds), format!("-max_len={PACKET_MAX}")])
        .env("RUSTC_BOOTSTRAP", "1")
        .current_dir(&workspace::root().join("mesh-ebpf").join("fuzz"))
        .run_shown_within(Duration::from_secs(u64::from(args.seconds)) + Duration::from_mins(10))
}
