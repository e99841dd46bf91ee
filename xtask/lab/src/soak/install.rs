//! Installs the packages on machines with systemd, makes a cluster by `docker swarm init` and
//! `join`, and measures the time from `dpkg --install` to the first answer of every node. No file
//! is edited. Then the manager is killed, and the packages are removed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use mesh_checkout::{setup, workspace};

use super::machines::{self, DOCKER, answers};
use crate::artifacts;
use crate::cluster::eventually;
use crate::images;
use crate::installed::{Machine, Wire};

/// What every machine's name begins with.
const PREFIX: &str = "mesh-install";
/// Where a machine has the packages.
const PACKAGES: &str = "/tmp/packages";
/// How long a step may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// Arguments of `cargo xtask soak install`.
#[derive(Debug, Args)]
pub(super) struct InstallArgs {
    /// Machines; the first one is the manager
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// The longest time from installation to the answer of every node, in seconds
    #[arg(long, default_value_t = 60)]
    limit: u64,
}

/// Runs it.
pub(super) fn run(args: &InstallArgs) -> Result<()> {
    setup::ensure()?;
    let directory = workspace::root().join("target/dist");
    let packages = machines::packages(&directory, "first run cargo xtask dist --profile dev")?;
    let archive = images::make(&artifacts::build_whoami()?, PREFIX)?;
    let wire = Wire::make(PREFIX)?;
    let machines = machines::boot(PREFIX, args.nodes, &wire, &archive)?;
    machines.iter().try_for_each(|machine| machines::give(machine, &packages, PACKAGES))?;

    let begun = Instant::now();
    machines::install_all(&machines, 1, PACKAGES)?;
    let installed = begun.elapsed();
    machines::form(&machines, 1)?;
    let formed = begun.elapsed();
    machines[0].run(&format!(
        "{DOCKER} service create --detach --quiet --no-resolve-image --name web --replicas {} -p 80:80 whoami",
        machines.len()
    ))?;
    for machine in &machines {
        eventually(&format!("an answer of {}", machine.name()), PATIENCE, || answers(&wire, machine))?;
    }
    let answered = begun.elapsed();
    println!(
        "installed after {:.1} s, a cluster after {:.1} s, every node answers after {:.1} s",
        installed.as_secs_f64(),
        formed.as_secs_f64(),
        answered.as_secs_f64()
    );
    ensure!(answered.as_secs() < args.limit, "slower than {} s", args.limit);

    is_in_order(&machines[0])?;
    outlives_its_manager(&wire, &machines[0])?;
    removes(machines.last().context("a machine")?)?;
    println!("the manager was killed and came back, the packages were removed");
    Ok(())
}

/// systemd and `mesh check` find no fault.
fn is_in_order(machine: &Machine) -> Result<()> {
    machine.run("systemctl is-active mesh-agent.service mesh-control.service")?;
    let units = "/usr/lib/systemd/system/mesh-agent.service /usr/lib/systemd/system/mesh-control.service";
    let verified =
        machine.run(&format!("systemd-analyze verify --man=no {units} 2>&1 | grep mesh || true"))?;
    ensure!(verified.is_empty(), "systemd-analyze verify: {verified}");
    machine.run("mesh check --wait 60s")?;
    Ok(())
}

/// A killed manager is started again, and traffic goes on meanwhile.
fn outlives_its_manager(wire: &Wire, machine: &Machine) -> Result<()> {
    machine.run("systemctl kill --kill-whom=all --signal=KILL mesh-control.service")?;
    answers(wire, machine)?;
    eventually("a manager that is back", PATIENCE, || machine.run(&format!("{DOCKER} service ls")))?;
    answers(wire, machine)
}

/// A removal takes the data plane away even where no policy lets it stop the agent; a purge leaves
/// no file.
fn removes(machine: &Machine) -> Result<()> {
    machine
        .run("printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d")?;
    machine.run("dpkg --remove mesh-agent")?;
    let left = machine.run("pgrep -x mesh-agent || true; ip -o link show type vxlan; ls -I '*.debug' /sys/fs/bpf; nft list tables | grep mesh || true")?;
    ensure!(left.is_empty(), "left after the removal: {left}");
    machine.run("dpkg --purge mesh-agent mesh-control mesh")?;
    let left =
        machine.run("ls -d /var/lib/mesh /etc/mesh /run/mesh /run/mesh-control 2>/dev/null || true")?;
    ensure!(left.is_empty(), "left after the purge: {left}");
    Ok(())
}
