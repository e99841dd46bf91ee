//! `cargo xtask bench`: measures mesh, and writes what it saw into `BENCHMARKS.md` with plots
//! beside it.
//!
//! Purpose: [`packet`] tells what the XDP program costs a packet, against the least that an XDP
//! program can do; [`memory`] what a flow takes; [`peers`] what clients get through mesh and
//! through others; [`services`] how long a service takes to be there, against a real Swarm. Those
//! that compare do so in turns, and report medians of ratios within one round: machines that others
//! use too are slow at times, but not within a second.
//!
//! In reading order: [`objects`] compiles the kernel programs, [`maps`] fills theirs, [`samples`]
//! takes medians, [`report`] and [`plot`] write, [`leftovers`] cleans up after runs that were
//! killed.

mod leftovers;
mod maps;
mod memory;
mod objects;
mod packet;
mod peers;
mod plot;
mod report;
mod samples;
mod services;

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};

/// Arguments of `cargo xtask bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    subject: Subject,
    /// Only see that everything runs: little load, one round, no report
    #[arg(long, global = true)]
    quick: bool,
}

/// What to measure.
#[derive(Debug, Clone, Subcommand)]
enum Subject {
    /// What mesh's XDP program costs a packet, as a multiple of a bare XDP_TX
    Packet {
        /// Only what has this in its name, and no report: for work on the program
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
    },
    /// What remembering a flow takes of the kernel's memory; part of `packet` too
    Memory,
    /// What clients get through mesh and through others: connections and requests a second, bulk
    Peers {
        /// Only these ways, by the names that the report has, and no report: for work on one of
        /// them
        #[arg(long, value_name = "WAY,WAY", value_delimiter = ',')]
        only: Vec<String>,
    },
    /// What a service takes to be there, and to be scaled up, on mesh and on a real Swarm
    Services,
}

/// Measures, and writes `BENCHMARKS.md`.
///
/// # Errors
/// Without root, and when something to be measured can't be set up or does not do its work.
pub fn run(args: &BenchArgs) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "benchmarks need root: they make network namespaces");
    match &args.subject {
        Subject::Packet { only } => {
            packet::run(args.quick, only.as_deref())?;
            if only.is_none() { memory::run(args.quick) } else { Ok(()) }
        }
        Subject::Memory => memory::run(args.quick),
        Subject::Peers { only } => peers::run(args.quick, only),
        Subject::Services => services::run(args.quick),
    }
}

/// A quick look at everything, for a test that it runs.
///
/// # Errors
/// As [`run`].
pub fn quick() -> Result<()> {
    packet::run(true, None)?;
    memory::run(true)?;
    peers::run(true, &[])
}
