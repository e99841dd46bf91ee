//! A cluster of three managers is lost with its machines, and made anew on three others from a
//! backup: services, secrets, configs, networks and join tokens must be there, every node must
//! answer.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use mesh_checkout::{setup, workspace};

use super::machines::{self, DOCKER, answers};
use crate::artifacts;
use crate::cluster::eventually;
use crate::images;
use crate::installed::{Machine, Wire};

/// What the names of the machines begin with that are lost, and of those that replace them.
const PREFIXES: [&str; 2] = ["mesh-lost", "mesh-rebuilt"];
/// Machines of each cluster, all of them managers.
const MACHINES: u8 = 3;
/// Where a machine has the packages, the passphrase and the backup.
const PACKAGES: &str = "/tmp/packages";
const PASSPHRASE: &str = "/root/passphrase";
const BACKUP: &str = "/root/one.mesh-backup";
/// What the secret holds.
const PASSWORD: &str = "hunter2";
/// How long a step may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// Arguments of `cargo xtask soak rebuild`.
#[derive(Debug, Args)]
pub(super) struct RebuildArgs {
    /// Lock the lost cluster's managers before the backup (`docker swarm update --autolock=true`)
    #[arg(long)]
    autolock: bool,
}

/// Makes the first cluster, loses it, makes the second one from its backup, and compares the two.
///
/// # Errors
/// The new cluster is not as the lost one, or a node doesn't answer.
pub(super) fn run(args: &RebuildArgs) -> Result<()> {
    setup::ensure()?;
    let directory = workspace::root().join("target/dist");
    let packages = machines::packages(&directory, "first run cargo xtask dist --profile dev")?;
    let archive = images::make(&artifacts::build_whoami()?, PREFIXES[0])?;
    let boot = |prefix| {
        let wire = Wire::make(prefix)?;
        let machines = machines::boot(prefix, MACHINES, &wire, &archive)?;
        machines.iter().try_for_each(|machine| machines::give(machine, &packages, PACKAGES))?;
        machines::install_all(&machines, MACHINES.into(), PACKAGES)?;
        Ok::<_, anyhow::Error>((wire, machines))
    };

    let (lost_wire, lost) = boot(PREFIXES[0])?;
    machines::form(&lost, MACHINES.into())?;
    fill(&lost_wire, &lost)?;
    if args.autolock {
        lost[0].run(&format!("{DOCKER} swarm update --autolock=true"))?;
    }
    let before = state(&lost[0])?;
    set_passphrase(&lost[0])?;
    lost[0].run(&format!("mesh backup save {BACKUP} --passphrase-file {PASSPHRASE}"))?;
    let kept = workspace::target_dir().join("machines/rebuild.mesh-backup");
    let saved = lost[0].attempt(&format!("cat {BACKUP}"), Stdio::null())?;
    ensure!(saved.status.success(), "read the backup: {}", String::from_utf8_lossy(&saved.stderr));
    fs::write(&kept, &saved.stdout).with_context(|| format!("write {}", kept.display()))?;
    drop((lost, lost_wire));

    let (wire, rebuilt) = boot(PREFIXES[1])?;
    let begun = Instant::now();
    let (first, others) = rebuilt.split_first().context("a machine")?;
    first.copy(&kept, BACKUP)?;
    set_passphrase(first)?;
    println!("{}", first.run(&format!("mesh backup restore {BACKUP} --passphrase-file {PASSPHRASE}"))?);
    eventually("the first node's manager", PATIENCE, || first.run(&format!("{DOCKER} node ls")))?;
    let token = first.run(&format!("{DOCKER} swarm join-token --quiet manager"))?;
    for machine in others {
        machine.run(&format!("{DOCKER} swarm join --token {token} {}:2377", first.address()))?;
    }
    eventually("the state of the backup", PATIENCE, || {
        let now = state(first)?;
        ensure!(now == before, "expected:\n{before}\nsaw:\n{now}");
        Ok(())
    })?;
    for machine in &rebuilt {
        eventually(&format!("an answer of {}", machine.name()), PATIENCE, || answers(&wire, machine))?;
    }
    is_usable(first)?;
    println!("rebuilt on three machines in {:.1} s", begun.elapsed().as_secs_f64());
    fs::remove_file(&kept).with_context(|| format!("remove {}", kept.display()))
}

/// Writes the passphrase of backups, readable for root alone.
fn set_passphrase(machine: &Machine) -> Result<()> {
    let write = format!("install -m 600 /dev/null {PASSPHRASE} && echo correct horse battery > {PASSPHRASE}");
    machine.run(&write).map(drop)
}

/// Makes what a backup holds: a service that publishes a port, and has a secret, a config and a
/// network.
fn fill(wire: &Wire, machines: &[Machine]) -> Result<()> {
    let first = &machines[0];
    first.run(&format!("{DOCKER} network create --driver overlay back"))?;
    first.run(&format!("printf {PASSWORD} | {DOCKER} secret create password -"))?;
    first.run(&format!("printf on | {DOCKER} config create settings -"))?;
    first.run(&format!(
        "{DOCKER} service create --detach --quiet --no-resolve-image --name web --replicas {MACHINES} -p 80:80 \
         --network back --secret password --config settings --label mesh.lb.policy=least-connections whoami"
    ))?;
    for machine in machines {
        eventually(&format!("an answer of {}", machine.name()), PATIENCE, || answers(wire, machine))?;
    }
    eventually("all replicas", PATIENCE, || all_run(first, MACHINES))
}

/// Checks that the service has so many replicas, and all of them run.
fn all_run(machine: &Machine, replicas: u8) -> Result<()> {
    let rows = machine.run(&format!("{DOCKER} service ls --format '{{{{.Replicas}}}}'"))?;
    ensure!(rows == format!("{replicas}/{replicas}"), "replicas: {rows}");
    Ok(())
}

/// What the operator asked for, and the tokens.
fn state(machine: &Machine) -> Result<String> {
    machine.run(&format!(
        "{DOCKER} service ls --format '{{{{.ID}}}} {{{{.Name}}}} {{{{.Replicas}}}} {{{{.Ports}}}}'; \
         {DOCKER} service inspect --format '{{{{json .Spec}}}}' web; \
         {DOCKER} secret ls --format '{{{{.ID}}}} {{{{.Name}}}}'; \
         {DOCKER} config ls --format '{{{{.ID}}}} {{{{.Name}}}}'; \
         {DOCKER} network ls --filter driver=overlay --format '{{{{.ID}}}} {{{{.Name}}}}'; \
         {DOCKER} swarm join-token -q worker; {DOCKER} swarm join-token -q manager"
    ))
}

/// The secret opens in the containers of the new cluster, and the cluster takes writes.
fn is_usable(machine: &Machine) -> Result<()> {
    eventually("the secret in a task", PATIENCE, || {
        let container =
            machine.run("docker ps -q --filter label=com.docker.swarm.service.name=web | head -n 1")?;
        ensure!(!container.is_empty(), "no container of web on {}", machine.name());
        let pid = machine.run(&format!("docker inspect --format '{{{{.State.Pid}}}}' {container}"))?;
        let opened = machine.run(&format!("cat /proc/{pid}/root/run/secrets/password"))?;
        ensure!(opened == PASSWORD, "expected {PASSWORD}, saw {opened}");
        Ok(())
    })?;
    machine.run(&format!("{DOCKER} service scale --detach web={}", MACHINES + 1))?;
    eventually("one replica more", PATIENCE, || all_run(machine, MACHINES + 1))
}
