//! A cluster of several managers that run their etcd, as `docker swarm init`, `join` and `promote`
//! make it in a lab without a cluster.

pub(super) mod api;
pub(super) mod etcd;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, Docker, eventually};

/// How long a manager may take to be one.
const PATIENCE: Duration = Duration::from_mins(2);

/// The docker CLI with a node's socket.
///
/// # Errors
/// There is no such node.
pub(super) fn docker(cluster: &Cluster, node: &str) -> Result<Docker> {
    Ok(Docker::towards(&cluster.node(node)?.mesh_host))
}

/// The names and sockets of these nodes.
///
/// # Errors
/// There is no such node.
pub(super) fn sockets(cluster: &Cluster, nodes: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let of = |node: &&str| Ok(((*node).to_owned(), api::socket(cluster, node)?));
    nodes.iter().map(of).collect()
}

/// Makes a cluster of the managers, in all the ways: the first by `docker swarm init`, the second
/// joins as a manager, the others join as workers and are promoted; then the workers join.
///
/// # Errors
/// A command is refused, or has no effect in time.
pub(super) fn form(cluster: &Cluster, managers: &[&str], workers: &[&str]) -> Result<()> {
    let (first, others) = managers.split_first().context("a manager")?;
    let address = format!("{}:2377", cluster.node(first)?.ip);
    let init = docker(cluster, first)?;
    init.run(&["swarm", "init"])?;
    let token = |role: &str| init.run(&["swarm", "join-token", "--quiet", role]);
    let join = |node: &str, token: &str| -> Result<()> {
        docker(cluster, node)?.run(&["swarm", "join", "--token", token.trim(), &address]).map(drop)
    };
    let (manager, worker) = (token("manager")?, token("worker")?);
    for (number, node) in others.iter().enumerate() {
        if number == 0 {
            join(node, &manager)?;
        } else {
            join(node, &worker)?;
            init.run(&["node", "promote", node])?;
        }
        shows(&init, &managers[..number + 2])?;
    }
    workers.iter().try_for_each(|node| join(node, &worker))
}

/// Waits until `docker node ls` shows exactly these managers, all of them reachable and one of them
/// as the leader.
///
/// # Errors
/// It doesn't in time.
pub(super) fn shows(docker: &Docker, expected: &[&str]) -> Result<()> {
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    eventually(&format!("the managers {expected:?}"), PATIENCE, || {
        let rows = docker.run(&["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"])?;
        let known: Vec<(&str, &str)> = rows.lines().filter_map(|row| row.trim().split_once(' ')).collect();
        let mut seen: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        seen.sort_unstable();
        ensure!(seen == expected, "managers: {known:?}");
        let leaders = known.iter().filter(|(_, status)| *status == "Leader").count();
        let reachable = known.iter().filter(|(_, status)| *status == "Reachable").count();
        ensure!(leaders == 1 && leaders + reachable == expected.len(), "managers: {known:?}");
        Ok(())
    })
}
