//! The commands of `cargo xtask` that need a lab. `xtask` builds and starts this program; no work
//! happens here.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use mesh_checkout::setup;
use mesh_lab::{Datapath, artifacts, cli, demo, faults, soak};

#[derive(Parser)]
#[command(bin_name = "xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build mesh-agent, mesh-control, mesh and whoami for the lab
    Build,
    /// Manage a cluster on this machine: a network namespace per node, each with its own Docker
    /// engine
    Lab(cli::LabArgs),
    /// Make a cluster and demonstrate the life of a service, step by step; exits with 0 only if
    /// every step succeeded
    Demo {
        /// The agents' data path
        #[arg(long, value_enum, default_value_t = Datapath::Auto)]
        datapath: Datapath,
    },
    /// Run the tests that take too long for the test run, each in a lab of its own
    Soak(soak::SoakArgs),
    /// Make faults on a lab's nodes under load, and check after each what must hold of the cluster
    Faults(faults::FaultsArgs),
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
        Verb::Build => {
            setup::ensure()?;
            let binaries = artifacts::build()?;
            println!("built {}", binaries.directory().display());
            Ok(())
        }
        Verb::Lab(args) => cli::run(args),
        Verb::Demo { datapath } => demo::run(*datapath),
        Verb::Soak(args) => soak::run(args),
        Verb::Faults(args) => faults::run(args),
    }
}
