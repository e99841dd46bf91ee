//! `cargo xtask soak NAME`: what takes too long for the test run, each in a lab of its own.

mod clocks;
mod forged_tunnel;
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
    /// Forged tunnel packets from a client, all VNIs and random cookies, beside requests: none
    /// reaches a task (needs root)
    ForgedTunnel(forged_tunnel::ForgedTunnelArgs),
    /// Silent, half and false clients by the thousand on every listener: the API answers, logs stay
    /// small (needs root)
    Listeners(listeners::ListenersArgs),
    /// Clocks go on by 200 days under traffic: certificates are renewed, no node is down, no
    /// request fails (needs root)
    Clocks(clocks::ClocksArgs),
}

/// Runs one of them.
///
/// # Errors
/// When something doesn't hold.
pub fn run(args: &SoakArgs) -> Result<()> {
    match &args.soak {
        Soak::ForgedTunnel(args) => forged_tunnel::run(args),
        Soak::Listeners(args) => listeners::run(args),
        Soak::Clocks(args) => clocks::run(args),
    }
}
