//! `cargo xtask bench`: measures mesh, and writes the results to `BENCHMARKS.md` with plots beside
//! it.
//!
//! Purpose: [`packet`] measures the XDP program's cost per packet, against the least that an XDP
//! program can do; [`memory`] the memory of a flow; [`peers`] what clients get through mesh and
//! through other load balancers; [`services`] how long it takes to create and scale a service,
//! against a real Swarm; [`starts`] what networks cost at a task's start; [`networks`] what the
//! next network costs in a cluster that has many. Comparisons alternate, and report medians of
//! ratios within one round: a shared machine is slow at times, but not within a second.
//!
//! In reading order: [`objects`] compiles the kernel programs, [`programs`] finds them, [`maps`]
//! fills theirs, [`samples`]
//! takes medians, [`report`] and [`plot`] write, [`leftovers`] cleans up after runs that were
//! killed.

mod api;
mod leftovers;
mod maps;
mod memory;
mod networks;
mod objects;
mod packet;
mod peers;
mod plot;
mod programs;
mod report;
mod samples;
mod services;
mod starts;

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};

/// Arguments of `cargo xtask bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    subject: Subject,
    /// Only check that everything runs: little load, one round, no report
    #[arg(long, global = true)]
    quick: bool,
}

/// A subject to measure.
#[derive(Debug, Clone, Subcommand)]
enum Subject {
    /// Measure the cost of mesh's XDP program per packet, as a multiple of a bare XDP_TX
    Packet {
        /// Only cases with this in their names, and no report: for work on the program
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
    },
    /// Measure the kernel memory of a flow; also part of `packet`
    Memory,
    /// Measure what clients get through mesh and through others: connections and requests per
    /// second, bulk
    Peers {
        /// Only these ways, by their names in the report, or `published` or `networks` for a group
        /// of them; the report is written for groups of which all are measured
        #[arg(long, value_name = "WAY,WAY", value_delimiter = ',')]
        only: Vec<String>,
    },
    /// Measure how long it takes to create and scale a service, on mesh and on a real Swarm
    Services,
    /// Measure a task's start on two networks against its start on none
    Starts,
    /// Measure the creation of networks and services in a cluster with 200 networks
    Networks,
}

/// Measures, and writes `BENCHMARKS.md`.
///
/// # Errors
/// We aren't root, or a measured system can't be set up or doesn't work.
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
        Subject::Starts => starts::run(args.quick),
        Subject::Networks => networks::run(args.quick),
    }
}

/// Checks quickly that everything runs, for a test.
///
/// # Errors
/// As for [`run`].
pub fn quick() -> Result<()> {
    packet::run(true, None)?;
    memory::run(true)?;
    peers::run(true, &[])
}
