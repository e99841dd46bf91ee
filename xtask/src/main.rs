//! `cargo xtask`: parses the command line and calls the library. No work happens here.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{artifacts, bench, demo, fuzz, lab, lint, setup, soak, swarm_diff, test, tidy};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Every developer command of mesh", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what is missing to build, run and test mesh (Debian packages, bpf-linker)
    Setup,
    /// Build mesh-agent, mesh-control, mesh and whoami for the lab
    Build,
    /// A cluster on this machine: a network namespace per node, each with its own Docker engine
    Lab(lab::cli::LabArgs),
    /// Make a cluster and tell the story of a service, step by step; exits with 0 only if every step held
    Demo {
        /// What the agents forward packets with
        #[arg(long, value_enum, default_value_t = lab::Datapath::Auto)]
        datapath: lab::Datapath,
    },
    /// Everything a clean checkout must pass, the quickest first
    Test(test::TestArgs),
    /// The same docker commands against a real Swarm and against mesh; fails on a difference without a listed reason
    SwarmDiff(swarm_diff::SwarmDiffArgs),
    /// Measure mesh, and write BENCHMARKS.md and its plots
    Bench(bench::BenchArgs),
    /// Look for packets that break the pipeline, with cargo-fuzz (installed if missing)
    Fuzz(fuzz::FuzzArgs),
    /// What takes too long for the test run, each in a lab of its own
    Soak(soak::SoakArgs),
    /// Formatter, house rules, cargo-deny, clippy
    Lint,
    /// The house rules alone: sizes, names, module docs, dependencies
    Tidy,
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
        Verb::Setup => setup::ensure(),
        Verb::Build => {
            setup::ensure()?;
            let binaries = artifacts::build()?;
            println!("built {}", binaries.directory().display());
            Ok(())
        }
        Verb::Lab(args) => lab::cli::run(args),
        Verb::Demo { datapath } => demo::run(*datapath),
        Verb::Test(args) => test::run(args),
        Verb::SwarmDiff(args) => {
            setup::ensure()?;
            swarm_diff::run(args)
        }
        Verb::Bench(args) => {
            setup::ensure()?;
            bench::run(args)
        }
        Verb::Fuzz(args) => fuzz::run(args),
        Verb::Soak(args) => soak::run(args),
        Verb::Lint => {
            setup::ensure()?;
            lint::check()
        }
        Verb::Tidy => tidy::check(),
    }
}
