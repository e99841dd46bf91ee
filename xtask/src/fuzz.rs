//! `cargo xtask fuzz`: fuzzes what takes bytes from outside with libFuzzer, through cargo-fuzz.
//!
//! A run begins with the real packets in the directory `seeds` beside the targets, and with what
//! earlier runs have found. It uses the project's stable toolchain, with `RUSTC_BOOTSTRAP`, as
//! cargo-fuzz's instrumentation flags are unstable.

use std::time::Duration;
use std::{fs, iter};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use mesh_checkout::command::Program;
use mesh_checkout::workspace;

/// What is fuzzed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// The packet pipeline
    Pipeline,
    /// What answers neighbour requests on overlay networks, and lets only a task's own frames pass
    Neighbours,
    /// The name server: its decoder and its answers
    Names,
}

impl Target {
    /// The name of the binary.
    fn name(self) -> &'static str {
        match self {
            Self::Pipeline => "pipeline",
            Self::Neighbours => "neighbours",
            Self::Names => "names",
        }
    }

    /// The package whose directory `fuzz` holds it.
    fn package(self) -> &'static str {
        match self {
            Self::Pipeline | Self::Neighbours => "mesh-ebpf",
            Self::Names => "mesh-agent",
        }
    }

    /// Bytes of the longest input that is tried: of a packet, all headers and some data; of a
    /// question, more names than one may have.
    fn longest(self) -> u32 {
        match self {
            Self::Pipeline | Self::Neighbours => 400,
            Self::Names => 600,
        }
    }
}

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, Args)]
pub struct FuzzArgs {
    /// What to fuzz
    #[arg(value_enum, default_value = "pipeline")]
    target: Target,
    /// How long to look for input that breaks it
    #[arg(long, default_value_t = 600)]
    seconds: u32,
}

/// Fuzzes a target; installs cargo-fuzz first if it is missing.
///
/// # Errors
/// An input breaks the target; cargo-fuzz prints the input, and how to reproduce it.
pub fn run(args: &FuzzArgs) -> Result<()> {
    if !Program::cargo().args(["fuzz", "--version"]).succeeds() {
        println!("cargo-fuzz is missing: installing it");
        Program::cargo().args(["install", "--quiet", "cargo-fuzz"]).run_shown()?;
    }
    let (name, home) = (args.target.name(), workspace::root().join(args.target.package()).join("fuzz"));
    let found = workspace::target_dir().join("fuzz").join(name);
    fs::create_dir_all(&found).with_context(|| format!("make {}", found.display()))?;
    let seeds = Some(home.join("seeds").join(name)).filter(|seeds| seeds.is_dir());
    Program::cargo()
        .args(["fuzz", "run", "--sanitizer", "none", name])
        .args(iter::once(found).chain(seeds))
        .arg("--")
        .args([format!("-max_total_time={}", args.seconds), format!("-max_len={}", args.target.longest())])
        .env("RUSTC_BOOTSTRAP", "1")
        .current_dir(&home)
        .run_shown_within(Duration::from_secs(u64::from(args.seconds)) + Duration::from_mins(10))
}
