//! `cargo xtask soak NAME`: what takes too long for the test run, each in a lab of its own.

mod listeners;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Arguments of `cargo xtask soak`.
#[derive(Debug, Args)]
pub struct SoakArgs {
    #[command(subcommand)]
    soak: Soak,
}

#[derive(Debug, Subcommand)]
enum Soak {
    /// Silent, half and false clients by the thousand on every listener: the API answers, logs stay small (needs root)
    Listeners(listeners::ListenersArgs),
}

/// Runs one of them.
///
/// # Errors
/// When something doesn't hold.
pub fn run(args: &SoakArgs) -> Result<()> {
    match &args.soak {
        Soak::Listeners(args) => listeners::run(args),
    }
}
