//! `cargo xtask soak NAME`: tests that take too long for the test run, each in a lab of its own.

mod certificates;
mod churn;
mod clocks;
mod forged_tunnel;
mod install;
mod leader;
mod listeners;
mod machines;
mod managers;
mod measured;
mod members;
mod polling;
mod rebuild;
mod restore;
mod rolling;
mod traffic;
mod upgrade;
mod virtual_ips;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Arguments of `cargo xtask soak`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct SoakArgs {
    #[command(subcommand)]
    soak: Option<Soak>,
    /// Without a name: churn
    #[command(flatten)]
    churn: churn::ChurnArgs,
}

#[derive(Debug, Subcommand)]
enum Soak {
    /// Scale, update, drain, let services and a node come and go under steady load: no connection
    /// may fail; memory, descriptors and etcd must not grow (needs root)
    Churn(churn::ChurnArgs),
    /// Forge tunnel packets from a client, with all VNIs and random cookies, beside requests: none
    /// may reach a task (needs root)
    ForgedTunnel(forged_tunnel::ForgedTunnelArgs),
    /// Install the packages of `cargo xtask dist` on machines with systemd, form a cluster, kill
    /// the manager, remove the packages: every node must answer within a minute (needs root)
    Install(install::InstallArgs),
    /// Kill the leader's machine during rolling updates under load, then two of three etcd: another
    /// manager must act within 5 s, the API of the others must go on, no request may fail (needs
    /// root)
    Leader(leader::LeaderArgs),
    /// Open silent, half and false connections by the thousand on every listener: the API must
    /// answer, logs must stay small (needs root)
    Listeners(listeners::ListenersArgs),
    /// Set clocks forward by 200 days under traffic: certificates must be renewed, no node may go
    /// down, no request may fail (needs root)
    Clocks(clocks::ClocksArgs),
    /// Renew certificates of two minutes and replace the CA, under requests and calls of every
    /// manager's API: none may fail (needs root)
    Certificates(certificates::CertificatesArgs),
    /// Demote, promote, remove managers and let one leave during rolling updates under load: etcd's
    /// members must follow, no request may fail (needs root)
    Members(members::MembersArgs),
    /// Restore a backup onto its cluster, and into a new etcd after the control plane's data is
    /// lost, under requests and downloads: none may fail, none may be cut (needs root)
    Restore(restore::RestoreArgs),
    /// Make a cluster anew on three machines with systemd from a backup, after all machines of the
    /// old one are lost: services, secrets and tokens must be there, every node must answer (needs
    /// root)
    Rebuild(rebuild::RebuildArgs),
    /// Upgrade the packages of an earlier commit to this checkout's on machines with systemd, one
    /// after the other, under requests and long downloads: none may fail, none may be cut (needs
    /// root)
    Upgrade(upgrade::UpgradeArgs),
    /// Update, scale and drain a service under connections to its virtual IP from every node, and
    /// kill the control plane: none may fail, none may be cut (needs root)
    VirtualIps(virtual_ips::VirtualIpsArgs),
}

/// Runs one of them.
///
/// # Errors
/// A check failed.
pub fn run(args: &SoakArgs) -> Result<()> {
    match args.soak.as_ref().unwrap_or(&Soak::Churn(args.churn.clone())) {
        Soak::Churn(args) => churn::run(args),
        Soak::ForgedTunnel(args) => forged_tunnel::run(args),
        Soak::Install(args) => install::run(args),
        Soak::Leader(args) => leader::run(args),
        Soak::Listeners(args) => listeners::run(args),
        Soak::Members(args) => members::run(args),
        Soak::Rebuild(args) => rebuild::run(args),
        Soak::Upgrade(args) => upgrade::run(args),
        Soak::Clocks(args) => clocks::run(args),
        Soak::Certificates(args) => certificates::run(args),
        Soak::Restore(args) => restore::run(args),
        Soak::VirtualIps(args) => virtual_ips::run(args),
    }
}
