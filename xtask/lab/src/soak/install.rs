//! Installs the packages on machines with systemd, makes a cluster by `docker swarm init` and
//! `join`, and measures the time from `dpkg --install` to the first answer of every node. No file
//! is edited. Then the manager is killed, and the packages are removed.

use std::fs;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use mesh_checkout::{setup, workspace};

use crate::artifacts;
use crate::client::http;
use crate::cluster::eventually;
use crate::images;
use crate::installed::{Machine, Wire};

/// What every machine's name begins with.
const PREFIX: &str = "mesh-install";
/// The packages of a node, and of a manager beside these.
const NODE_PACKAGES: [&str; 2] = ["mesh-agent", "mesh"];
const MANAGER_PACKAGE: &str = "mesh-control";
/// How long a step may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);
/// The docker command, as after `mesh context --use`.
const DOCKER: &str = "docker --host unix:///run/mesh/docker.sock";

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
    let packages = packages()?;
    let archive = images::make(&artifacts::build_whoami()?, PREFIX)?;
    let wire = Wire::make(PREFIX)?;
    let machines: Vec<Machine> =
        (1..=args.nodes).map(|number| Machine::boot(PREFIX, number, &wire)).collect::<Result<_>>()?;
    for machine in &machines {
        prepare(machine, &archive, &packages)?;
    }
    println!("{} machines with systemd and an engine", machines.len());

    let begun = Instant::now();
    install_all(&machines)?;
    let installed = begun.elapsed();
    form(&machines)?;
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

/// The packages that `cargo xtask dist` has made.
fn packages() -> Result<Vec<PathBuf>> {
    let directory = workspace::root().join("target/dist");
    let next = || format!("no packages in {}: first run cargo xtask dist --profile dev", directory.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(&directory).with_context(next)? {
        let path = entry.with_context(next)?.path();
        found.extend(path.extension().is_some_and(|extension| extension == "deb").then_some(path));
    }
    ensure!(found.len() > NODE_PACKAGES.len(), next());
    Ok(found)
}

/// Gives a machine what an operator's has before the installation: an engine with the service's
/// image, the service of Debian's etcd, and the packages.
fn prepare(machine: &Machine, archive: &std::path::Path, packages: &[PathBuf]) -> Result<()> {
    machine.run("systemctl start docker.service etcd.service")?;
    machine.copy(archive, "/tmp/images.tar")?;
    machine
        .run("docker load --quiet --input /tmp/images.tar && rm /tmp/images.tar && mkdir /tmp/packages")?;
    for package in packages {
        let name = package.file_name().unwrap_or_default().to_string_lossy();
        machine.copy(package, &format!("/tmp/packages/{name}"))?;
    }
    Ok(())
}

/// On all machines at once, as a tool that manages hosts does it.
fn install_all(machines: &[Machine]) -> Result<()> {
    thread::scope(|scope| {
        let spawn = |(number, machine)| scope.spawn(move || install(machine, number == 0));
        let installs: Vec<_> = machines.iter().enumerate().map(spawn).collect();
        installs.into_iter().try_for_each(|one| {
            one.join().unwrap_or_else(|_| Err(anyhow!("installing on a machine panicked")))
        })
    })
}

fn install(machine: &Machine, is_manager: bool) -> Result<()> {
    let manager = is_manager.then_some(MANAGER_PACKAGE);
    let files: Vec<String> =
        NODE_PACKAGES.into_iter().chain(manager).map(|name| format!("/tmp/packages/{name}_*.deb")).collect();
    machine.run(&format!("dpkg --install {}", files.join(" ")))?;
    let state = machine.run(&format!("{DOCKER} info --format '{{{{.Swarm.LocalNodeState}}}}'"))?;
    ensure!(state == "inactive", "{} is {state} after the installation", machine.name());
    Ok(())
}

/// Makes a cluster of the machines.
fn form(machines: &[Machine]) -> Result<()> {
    let (manager, workers) = machines.split_first().context("a machine")?;
    let address = manager.address();
    manager.run(&format!("{DOCKER} swarm init --advertise-addr {address}"))?;
    let token = manager.run(&format!("{DOCKER} swarm join-token --quiet worker"))?;
    for worker in workers {
        worker.run(&format!("{DOCKER} swarm join --token {token} {address}:2377"))?;
        let refused = worker.attempt(&format!("{DOCKER} node ls"), std::process::Stdio::null())?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(
            said.contains("This node is not a swarm manager. Worker nodes"),
            "node ls on a worker: {said}"
        );
    }
    Ok(())
}

fn answers(wire: &Wire, machine: &Machine) -> Result<()> {
    let server = SocketAddrV4::new(machine.address(), 80);
    let answer = wire.clients().run(|| http::get(server, "/", Duration::from_secs(2)))?;
    ensure!(answer.status == 200, "{server} answered {}", answer.status);
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
