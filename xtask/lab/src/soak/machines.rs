//! Machines with systemd that become a cluster from Debian packages, as an operator's do.

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::client::http;
use crate::installed::{Machine, Wire};

/// The packages of a node, and of a manager beside these.
const NODE_PACKAGES: [&str; 2] = ["mesh-agent", "mesh"];
const MANAGER_PACKAGE: &str = "mesh-control";
/// The docker command, as after `mesh context --use`.
pub(super) const DOCKER: &str = "docker --host unix:///run/mesh/docker.sock";

/// The packages in a directory.
///
/// # Errors
/// They are not all there; the message has `next`.
pub(super) fn packages(directory: &Path, next: &str) -> Result<Vec<PathBuf>> {
    let missing = || format!("no packages in {}: {next}", directory.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(missing)? {
        let path = entry.with_context(missing)?.path();
        found.extend(path.extension().is_some_and(|extension| extension == "deb").then_some(path));
    }
    ensure!(found.len() > NODE_PACKAGES.len(), missing());
    Ok(found)
}

/// Boots so many machines, whose names begin with `prefix`, and gives them what an operator's have
/// before the installation: an engine with the images of `archive`, and the service of Debian's
/// etcd.
///
/// # Errors
/// One doesn't boot, or its engine refuses the images.
pub(super) fn boot(prefix: &str, count: u8, wire: &Wire, archive: &Path) -> Result<Vec<Machine>> {
    let machines: Vec<Machine> =
        (1..=count).map(|number| Machine::boot(prefix, number, wire)).collect::<Result<_>>()?;
    for machine in &machines {
        machine.run("systemctl start docker.service etcd.service")?;
        machine.copy(archive, "/tmp/images.tar")?;
        machine.run("docker load --quiet --input /tmp/images.tar && rm /tmp/images.tar")?;
    }
    println!("{} machines with systemd and an engine", machines.len());
    Ok(machines)
}

/// Copies packages into a directory of the machine.
///
/// # Errors
/// One can't be copied.
pub(super) fn give(machine: &Machine, packages: &[PathBuf], directory: &str) -> Result<()> {
    machine.run(&format!("mkdir -p {directory}"))?;
    for package in packages {
        let name = package.file_name().unwrap_or_default().to_string_lossy();
        machine.copy(package, &format!("{directory}/{name}"))?;
    }
    Ok(())
}

/// Installs the packages in `directory`; those of a manager on the first `managers` machines. On
/// all machines at once, as a tool that manages hosts does it.
///
/// # Errors
/// dpkg fails, or a node is in a cluster already.
pub(super) fn install_all(machines: &[Machine], managers: usize, directory: &str) -> Result<()> {
    thread::scope(|scope| {
        let install = |machine: &Machine, is_manager: bool| -> Result<()> {
            install(machine, is_manager, directory)?;
            let state = machine.run(&format!("{DOCKER} info --format '{{{{.Swarm.LocalNodeState}}}}'"))?;
            ensure!(state == "inactive", "{} is {state} after the installation", machine.name());
            Ok(())
        };
        let spawn = |(number, machine)| scope.spawn(move || install(machine, number < managers));
        let installs: Vec<_> = machines.iter().enumerate().map(spawn).collect();
        installs.into_iter().try_for_each(|one| {
            one.join().unwrap_or_else(|_| Err(anyhow!("installing on a machine panicked")))
        })
    })
}

/// Installs or upgrades the packages in `directory`.
///
/// # Errors
/// dpkg fails.
pub(super) fn install(machine: &Machine, is_manager: bool, directory: &str) -> Result<()> {
    let manager = is_manager.then_some(MANAGER_PACKAGE);
    let files: Vec<String> =
        NODE_PACKAGES.into_iter().chain(manager).map(|name| format!("{directory}/{name}_*.deb")).collect();
    machine.run(&format!("dpkg --install {}", files.join(" "))).map(drop)
}

/// Makes a cluster of the machines, of which the first `managers` are managers.
///
/// # Errors
/// A command is refused.
pub(super) fn form(machines: &[Machine], managers: usize) -> Result<()> {
    let (first, others) = machines.split_first().context("a machine")?;
    let address = first.address();
    first.run(&format!("{DOCKER} swarm init --advertise-addr {address}"))?;
    for (number, machine) in others.iter().enumerate() {
        let role = if number + 1 < managers { "manager" } else { "worker" };
        let token = first.run(&format!("{DOCKER} swarm join-token --quiet {role}"))?;
        machine.run(&format!("{DOCKER} swarm join --token {token} {address}:2377"))?;
        if role == "worker" {
            let refused = machine.attempt(&format!("{DOCKER} node ls"), Stdio::null())?;
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            ensure!(
                said.contains("This node is not a swarm manager. Worker nodes"),
                "node ls on a worker: {said}"
            );
        }
    }
    Ok(())
}

/// Checks that the published port 80 answers on the machine.
///
/// # Errors
/// It doesn't.
pub(super) fn answers(wire: &Wire, machine: &Machine) -> Result<()> {
    let server = SocketAddrV4::new(machine.address(), 80);
    let answer = wire.clients().run(|| http::get(server, "/", Duration::from_secs(2)))?;
    ensure!(answer.status == 200, "{server} answered {}", answer.status);
    Ok(())
}
