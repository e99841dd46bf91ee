//! `cargo xtask swarm-diff`. `xtask` builds and starts this program; no work happens here.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mesh_swarm_diff::SwarmDiffArgs;

#[derive(Parser)]
#[command(bin_name = "xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the same docker commands against a real Swarm and against mesh; fails on a difference
    /// without a listed reason
    SwarmDiff(SwarmDiffArgs),
}

fn main() -> ExitCode {
    let Verb::SwarmDiff(args) = Cli::parse().verb;
    match mesh_swarm_diff::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
