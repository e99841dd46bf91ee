//! Managers come and go while rolling updates run under load: demote, promote, `leave --force`, rm.
//! etcd's members follow, the last manager can't be lost by accident, no request fails.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use mesh_checkout::setup;

use super::managers::{self, etcd};
use super::measured::Measured;
use super::rolling;
use super::traffic::Traffic;
use crate::artifacts;
use crate::cluster::{Cluster, Docker, eventually};
use crate::layout::{LabName, Layout};
use crate::{Datapath, Lab, UpOptions};

/// The nodes: three managers and a worker at the beginning.
const FIRST: &str = "node-1";
const LEAVES: &str = "node-2";
const DEMOTED: &str = "node-3";
const PROMOTED: &str = "node-4";
const SERVICE: &str = "web";
const REPLICAS: usize = 6;
const PORT: u16 = 8080;
/// How long a connection that stays open is used: less than the drain of its task takes.
const KEPT_LIFE: Duration = Duration::from_secs(5);
/// How long a state of the cluster may take to come.
const PATIENCE: Duration = Duration::from_mins(2);
const UPDATE_PATIENCE: Duration = Duration::from_mins(5);

/// Arguments of `cargo xtask soak members`.
#[derive(Debug, Args)]
pub(super) struct MembersArgs {
    /// The lab's name
    #[arg(long, default_value = "soak-members")]
    name: LabName,
    /// Requests per second to the ports of the nodes that stay, a quarter of them over connections
    /// that stay open
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// The agents' data path
    #[arg(long, value_enum, default_value_t = Datapath::Tc)]
    datapath: Datapath,
}

/// Makes a lab, changes its managers, and removes the lab if every bound was held.
///
/// # Errors
/// A bound was broken; the lab is kept for inspection then.
pub(super) fn run(args: &MembersArgs) -> Result<()> {
    setup::ensure()?;
    let binaries = artifacts::build()?;
    let layout = Layout::new(args.name.clone());
    let options = UpOptions { nodes: 4, managers: 4, empty: true, ..UpOptions::usual(args.datapath) };
    let lab = Lab::up(&layout, &options, &binaries).context("make the lab")?;
    let mut measured = Measured::default();
    let outcome = hold(&lab, args, &mut measured);
    measured
        .conclude(outcome)
        .with_context(|| format!("the lab is kept: cargo xtask lab --name {} down", args.name))?;
    Lab::down(&layout).context("remove the lab")
}

fn hold(lab: &Lab, args: &MembersArgs, measured: &mut Measured) -> Result<()> {
    let cluster = Cluster::open(lab.layout().clone())?;
    managers::form(&cluster, &[FIRST, LEAVES, DEMOTED], &[PROMOTED])?;
    etcd::follows(lab, FIRST, &[FIRST, LEAVES, DEMOTED])?;
    let docker = cluster.docker()?;
    let (publish, replicas) = (format!("{PORT}:80"), format!("--replicas={REPLICAS}"));
    let flags = ["service", "create", "--quiet", "--detach", "--no-resolve-image", "--name", SERVICE];
    let pace =
        ["--update-parallelism=1", "--update-delay=1s", "--update-monitor=1s", "--update-order=start-first"];
    docker.run(&[&flags[..], &pace, &[&replicas, "--publish", &publish, "whoami"]].concat())?;
    docker.wait_running(SERVICE, REPLICAS, PATIENCE)?;
    // The node that leaves answers on no port any more.
    let servers: Vec<SocketAddrV4> = [FIRST, DEMOTED, PROMOTED]
        .iter()
        .map(|name| Ok(SocketAddrV4::new(cluster.node(name)?.ip, PORT)))
        .collect::<Result<_>>()?;
    for server in &servers {
        eventually(&format!("{server} to answer"), PATIENCE, || cluster.ask(*server, "/").map(drop))?;
    }
    let traffic = Traffic::start(&cluster.client(), &servers, args.rate, Some(KEPT_LIFE));
    let changed = change(lab, &cluster, measured);
    let outcome = traffic.stop()?;
    measured.some("answers on new connections", outcome.answered[0]);
    measured.some("answers on connections that stay open", outcome.answered[1]);
    measured.tell("answers per second", format!("{:.0}", outcome.rate()));
    measured.tell("the slowest answer", format!("{:.1} s", outcome.slowest.as_secs_f64()));
    measured.tell("connections closed between two requests", outcome.closed.len().to_string());
    measured.none("requests failed", &outcome.failed());
    changed
}

fn change(lab: &Lab, cluster: &Cluster, measured: &mut Measured) -> Result<()> {
    let docker = managers::docker(cluster, FIRST)?;
    let mut step = |what: &str, left: &[&str], act: &dyn Fn() -> Result<()>| {
        during_an_update(lab, &docker, what, left, act)
            .with_context(|| what.to_owned())
            .map(|took| measured.tell(&format!("{what}: managers and etcd's members followed"), took))
    };
    step("demote of a manager", &[FIRST, LEAVES], &|| {
        docker.run(&["node", "demote", DEMOTED])?;
        becomes_a_worker(&managers::docker(cluster, DEMOTED)?)
    })?;
    step("promote of a worker", &[FIRST, LEAVES, PROMOTED], &|| {
        docker.run(&["node", "promote", PROMOTED])?;
        let own = managers::docker(cluster, PROMOTED)?;
        eventually("the promoted manager to answer", PATIENCE, || own.run(&["node", "ls"]).map(drop))
    })?;
    step("leave --force and rm of a manager", &[FIRST, PROMOTED], &|| {
        leave_and_be_removed(cluster, &docker)
    })?;
    step("demote of the last but one", &[FIRST], &|| {
        refuses_to_leave(&managers::docker(cluster, PROMOTED)?, "Without a Raft quorum")?;
        docker.run(&["node", "demote", PROMOTED])?;
        becomes_a_worker(&managers::docker(cluster, PROMOTED)?)
    })?;
    step("the last manager stays", &[FIRST], &|| {
        refuses_to_leave(&docker, "Removing the last manager erases all current state of the swarm.")?;
        let refused = docker.refused(&["node", "demote", FIRST])?.message;
        ensure!(refused.contains("attempting to demote the last manager of the swarm"), "demote: {refused}");
        for words in [&["node", "rm", FIRST][..], &["node", "rm", "--force", FIRST]] {
            let refused = docker.refused(words)?.message;
            ensure!(refused.contains("must be demoted to worker before removal"), "{words:?}: {refused}");
        }
        Ok(())
    })?;
    step("promote back", &[FIRST, DEMOTED], &|| docker.run(&["node", "promote", DEMOTED]).map(drop))
}

/// Begins an update, changes a manager while it runs, and waits until `docker node ls` and etcd
/// show the managers that are left, and until the update is complete. Returns how long the managers
/// took.
fn during_an_update(
    lab: &Lab,
    docker: &Docker,
    what: &str,
    left: &[&str],
    act: &dyn Fn() -> Result<()>,
) -> Result<String> {
    rolling::begin(docker, SERVICE, &[&format!("--env-add=STEP={what}")])?;
    rolling::wait_until(docker, SERVICE, "updating", PATIENCE)?;
    let begun = Instant::now();
    act()?;
    managers::shows(docker, left)?;
    etcd::follows(lab, FIRST, left)?;
    let took = begun.elapsed();
    rolling::wait_until(docker, SERVICE, "completed", UPDATE_PATIENCE)?;
    docker.wait_running(SERVICE, REPLICAS, PATIENCE)?;
    println!("{what}: {:.1} s", took.as_secs_f64());
    Ok(format!("{:.1} s", took.as_secs_f64()))
}

fn becomes_a_worker(own: &Docker) -> Result<()> {
    eventually("the demoted manager to be a worker", PATIENCE, || {
        let info = own.run(&["info", "--format", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}"])?;
        ensure!(info.trim() == "active false", "docker info: {info}");
        Ok(())
    })
}

fn refuses_to_leave(own: &Docker, expected: &str) -> Result<()> {
    let refused = own.refused(&["swarm", "leave"])?.message;
    let begins = "You are attempting to leave the swarm on a node that is participating as a manager.";
    ensure!(refused.contains(begins) && refused.contains(expected), "docker swarm leave: {refused}");
    Ok(())
}

/// A manager's node is drained, as leaving ends its tasks; then it leaves, is demoted, and removed.
fn leave_and_be_removed(cluster: &Cluster, docker: &Docker) -> Result<()> {
    let own = managers::docker(cluster, LEAVES)?;
    refuses_to_leave(&own, "The only way to restore a swarm that has lost consensus")?;
    let early = docker.refused(&["node", "rm", "--force", LEAVES])?.message;
    ensure!(early.contains("must be demoted to worker before removal"), "node rm of a manager: {early}");
    docker.run(&["node", "update", "--availability", "drain", LEAVES])?;
    eventually("the drained node without tasks", UPDATE_PATIENCE, || {
        let left = cluster.containers(SERVICE)?.remove(LEAVES).unwrap_or_default();
        ensure!(left.is_empty(), "containers: {left:?}");
        Ok(())
    })?;
    let left = own.run(&["swarm", "leave", "--force"])?;
    ensure!(left.trim() == "Node left the swarm.", "docker swarm leave said: {left}");
    let state = own.run(&["info", "--format", "{{.Swarm.LocalNodeState}}"])?;
    ensure!(state.trim() == "inactive", "the node that left is {state}");
    eventually("the node that left to be removed", PATIENCE, || {
        // It is a manager in the record until it is demoted.
        docker.run(&["node", "demote", LEAVES])?;
        docker.run(&["node", "rm", LEAVES]).map(drop)
    })
}
