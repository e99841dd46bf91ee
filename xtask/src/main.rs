//! `cargo xtask`: parses the command line and calls the library, or starts a nested package's
//! program. No work happens here.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use xtask::nested::Nested;
use xtask::{dist, fuzz, kernels, lint, test, tidy};

use mesh_checkout::setup;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Every developer command of mesh", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install what is missing to build, run and test mesh (Debian packages, bpf-linker)
    Setup(SetupArgs),
    /// Build mesh-agent, mesh-control, mesh and whoami for the lab
    #[command(disable_help_flag = true)]
    Build(Passed),
    /// Manage a cluster on this machine: a network namespace per node, each with its own Docker
    /// engine
    #[command(disable_help_flag = true)]
    Lab(Passed),
    /// Make a cluster and demonstrate the life of a service, step by step; exits with 0 only if
    /// every step succeeded
    #[command(disable_help_flag = true)]
    Demo(Passed),
    /// Run everything that a clean checkout must pass, the quickest first
    Test(test::TestArgs),
    /// Run the tests of the kernel programs on Debian's stock kernels, in virtual machines
    Kernels(kernels::KernelsArgs),
    /// Run the same docker commands against a real Swarm and against mesh; fails on a difference
    /// without a listed reason
    #[command(disable_help_flag = true)]
    SwarmDiff(Passed),
    /// Measure mesh, and write BENCHMARKS.md and its plots
    #[command(disable_help_flag = true)]
    Bench(Passed),
    /// Look for input that breaks the pipeline, the neighbour responder or the name server, with
    /// cargo-fuzz (installed if missing)
    Fuzz(fuzz::FuzzArgs),
    /// Make the Debian packages mesh-agent, mesh-control and mesh in target/dist, and check them
    Dist(dist::DistArgs),
    /// Run the tests that take too long for the test run, each in a lab of its own
    #[command(disable_help_flag = true)]
    Soak(Passed),
    /// Make faults on a lab's nodes under load, and check after each what must hold of the cluster
    #[command(disable_help_flag = true)]
    Faults(Passed),
    /// Run formatter, house rules, cargo-deny, clippy, rustdoc
    Lint,
    /// Check the house rules alone: sizes, names, module docs, dependencies, decisions, links
    Tidy(tidy::TidyArgs),
}

#[derive(Debug, Args)]
struct SetupArgs {
    /// Also install git's pre-commit hook of this checkout: format and house rules
    #[arg(long)]
    hooks: bool,
}

/// Arguments for a nested package's program, `--help` among them. The program gets them as they
/// were typed ([`typed`]).
#[derive(Debug, Args)]
struct Passed {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _args: Vec<OsString>,
}

fn main() -> ExitCode {
    match run(&Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: &Verb) -> Result<()> {
    match verb {
        Verb::Setup(args) => set_up(args),
        Verb::Build(_) | Verb::Lab(_) | Verb::Demo(_) | Verb::Soak(_) | Verb::Faults(_) => {
            Nested::Lab.exec(typed())
        }
        Verb::SwarmDiff(_) => {
            setup::ensure()?;
            Nested::SwarmDiff.exec(typed())
        }
        Verb::Bench(_) => {
            setup::ensure()?;
            Nested::Bench.exec(typed())
        }
        Verb::Test(args) => test::run(args),
        Verb::Kernels(args) => kernels::run(args),
        Verb::Fuzz(args) => fuzz::run(args),
        Verb::Dist(args) => dist::run(args),
        Verb::Lint => {
            setup::ensure()?;
            lint::check()
        }
        Verb::Tidy(args) => tidy::run(args),
    }
}

fn set_up(args: &SetupArgs) -> Result<()> {
    setup::ensure()?;
    if args.hooks {
        println!("installed {}", setup::hooks::install()?.display());
    }
    Ok(())
}

/// The command and its arguments as they were typed; clap would remove a `--`.
fn typed() -> impl Iterator<Item = OsString> {
    env::args_os().skip(1)
}
