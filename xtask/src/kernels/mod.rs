//! `cargo xtask kernels`: runs the tests of kernel programs on Debian's stock kernels, each in a
//! virtual machine.
//!
//! The machine is emulated (qemu's TCG), so it needs no KVM and no root. It has no disk: kernel
//! and tests come with an initramfs, made from this checkout's test binaries and this machine's
//! tools. Packages of kernels are kept below `target/kernels`.
//!
//! Code map: [`packages`] gets kernels, [`contents`] gathers what is in a machine, [`modules`]
//! the modules it loads, [`archive`] writes the initramfs, [`machine`] boots it and reads what the
//! jobs say, [`lab`] makes a machine that runs a whole lab instead of tests.

mod archive;
mod contents;
mod lab;
mod machine;
mod modules;
mod packages;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use mesh_checkout::{setup, workspace};

use contents::Tests;
use machine::{Job, Machine};
use packages::Kernel;

/// Arguments of `cargo xtask kernels`.
#[derive(Debug, Clone, Args)]
pub struct KernelsArgs {
    /// Also the tests that take minutes under emulation: walks of packets between nodes, and the
    /// agent's data plane with its restarts
    #[arg(long)]
    full: bool,
    /// Instead of the tests, make a lab of three nodes in each machine, publish a port, and ask
    /// every node (5 to 15 minutes each on an idle machine; needs root)
    #[arg(long, conflicts_with = "full")]
    lab: bool,
    /// Only this kernel, instead of both
    #[arg(long, value_enum)]
    kernel: Option<Series>,
}

/// A kernel of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Series {
    /// Debian 12's: the oldest that mesh runs on; no tcx links
    #[value(name = "6.1")]
    Bookworm,
    /// Debian 13's
    #[value(name = "6.12")]
    Trixie,
}

impl Series {
    fn version(self) -> &'static str {
        match self {
            Self::Bookworm => "6.1",
            Self::Trixie => "6.12",
        }
    }
}

/// What a clean checkout must pass: every fixture, and the verifier's figures, on both kernels.
///
/// # Errors
/// A machine can't be made or doesn't end in time, or a test fails.
pub fn check() -> Result<()> {
    run(&KernelsArgs { full: false, lab: false, kernel: None })
}

/// Boots the kernels, and runs the tests on each at the same time, or a lab on one after the other.
///
/// # Errors
/// As for [`check`].
pub fn run(args: &KernelsArgs) -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("these machines are x86-64 ones: run this on x86-64");
    }
    setup::ensure()?;
    let directory = workspace::target_dir().join("kernels");
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    let tests = if args.lab { None } else { Some(Tests::build(args.full)?) };
    if args.lab {
        lab::build()?;
    }
    let jobs = if args.lab { vec![lab::JOB] } else { jobs(args.full) };
    let limit = Duration::from_mins(match (args.full, args.lab) {
        (true, _) => 180,
        (_, true) => 60,
        _ => 12,
    });
    let chosen = |series: &Series| args.kernel.is_none_or(|only| only == *series);
    let mut machines = Vec::new();
    for series in Series::value_variants().iter().filter(|series| chosen(series)) {
        let kernel = Kernel::get(series.version(), &directory)?;
        machines.push(prepare(series.version(), &kernel, tests.as_ref(), &jobs, &directory)?);
    }
    // A lab needs all CPUs, or its managers lose their leases.
    let outcomes = if args.lab {
        machines.iter().map(|machine| machine.run(&jobs, limit)).collect()
    } else {
        run_beside_each_other(&machines, &jobs, limit)
    };
    let failures: Vec<String> =
        outcomes.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{}", failures.join("\n"))
}

/// Runs all machines at the same time.
fn run_beside_each_other(machines: &[Machine], jobs: &[Job], limit: Duration) -> Vec<Result<()>> {
    thread::scope(|scope| {
        let start = |machine| scope.spawn(move || Machine::run(machine, jobs, limit));
        let running: Vec<_> = machines.iter().map(start).collect();
        let ended = running.into_iter().map(thread::ScopedJoinHandle::join);
        ended.map(|outcome| outcome.unwrap_or_else(|_| bail!("the thread of a machine panicked"))).collect()
    })
}

/// The tests that a machine runs, one after the other.
fn jobs(full: bool) -> Vec<Job> {
    let mut jobs = vec![Job { name: "programs", arguments: "--nocapture" }];
    if full {
        jobs.push(Job { name: "walk", arguments: "--test-threads 1" });
        // `capacity` starts the agent's own binary, whose first scrape is too slow here.
        jobs.push(Job { name: "datapath", arguments: "--test-threads 1 --skip capacity" });
    }
    jobs
}

/// Makes a machine that runs the tests, or a lab without them.
fn prepare(
    version: &'static str,
    kernel: &Kernel,
    tests: Option<&Tests>,
    jobs: &[Job],
    directory: &std::path::Path,
) -> Result<Machine> {
    let initramfs: PathBuf = directory.join(format!("{version}.initramfs"));
    let contents = match tests {
        Some(tests) => contents::gather(kernel, tests, jobs)?,
        None => lab::gather(kernel, directory)?,
    };
    fs::write(&initramfs, contents).with_context(|| format!("write {}", initramfs.display()))?;
    Ok(Machine {
        name: version,
        kernel: kernel.image()?,
        initramfs,
        log: directory.join(format!("{version}.log")),
        memory: if tests.is_some() { "2G" } else { "6G" },
        devices: if tests.is_some() { Vec::new() } else { lab::share().into() },
        shown: if tests.is_some() { machine::figures } else { lab::told },
    })
}
