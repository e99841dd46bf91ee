//! `cargo xtask fuzz`: the packet pipeline under libFuzzer, by cargo-fuzz.
//!
//! The toolchain is the project's own stable one: cargo-fuzz's instrumentation flags are unstable,
//! so it is told to take them.

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use mesh_checkout::command::Program;
use mesh_checkout::workspace;

/// Longest packet that is tried: all headers, and some data.
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
/// When a packet was found that breaks it; cargo-fuzz says which, and how to try it again.
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
