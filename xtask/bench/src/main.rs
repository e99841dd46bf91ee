//! `cargo xtask bench`. `xtask` builds and starts this program; no work happens here.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mesh_bench::BenchArgs;

#[derive(Parser)]
#[command(bin_name = "xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Measure mesh, and write BENCHMARKS.md and its plots
    Bench(BenchArgs),
}

fn main() -> ExitCode {
    let Verb::Bench(args) = Cli::parse().verb;
    match mesh_bench::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
