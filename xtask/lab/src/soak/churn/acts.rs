//! What changes in the cluster while it is under load.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::rngs::StdRng;

use super::SERVICE;
use crate::cluster::{Cluster, Docker, eventually};
use crate::soak::rolling;

/// The service's tasks, and how many they are scaled up to.
pub(super) const REPLICAS: usize = 6;
const MORE: usize = 9;
/// The deadline of each change.
const PATIENCE: Duration = Duration::from_mins(3);

/// A change of the cluster, which is undone or complete when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Scale up and down.
    Scale,
    /// A rolling update.
    Update,
    /// A service on a network of its own, with a secret, comes and goes.
    ComeAndGo,
    /// A node's tasks move away; then it takes tasks again.
    Drain,
    /// The last node leaves the cluster and joins again.
    LeaveAndJoin,
}

impl Act {
    /// All of them, in the order of a cycle.
    pub(super) const ALL: [Self; 5] =
        [Self::Scale, Self::Update, Self::ComeAndGo, Self::Drain, Self::LeaveAndJoin];

    /// Does it; `cycle` makes names and values differ from those of other cycles.
    ///
    /// # Errors
    /// A command is refused, or its effect doesn't show in time.
    pub(super) fn perform(self, cluster: &Cluster, random: &mut StdRng, cycle: usize) -> Result<()> {
        let docker = cluster.docker()?;
        let nodes = &cluster.record.nodes;
        match self {
            Self::Scale => {
                for count in [MORE, REPLICAS] {
                    docker.run(&["service", "scale", "--detach", &format!("{SERVICE}={count}")])?;
                    cluster.wait_running(SERVICE, count, PATIENCE)?;
                }
                Ok(())
            }
            Self::Update => update(cluster, &docker, cycle),
            Self::ComeAndGo => come_and_go(cluster, &docker, cycle),
            Self::Drain => {
                let node = nodes.get(random.random_range(0..nodes.len())).context("a node")?;
                empty(cluster, &docker, &node.name)?;
                docker.run(&["node", "update", "--availability", "active", &node.name])?;
                cluster.wait_running(SERVICE, REPLICAS, PATIENCE).map(drop)
            }
            Self::LeaveAndJoin => leave_and_join(cluster, &docker),
        }
    }
}

fn update(cluster: &Cluster, docker: &Docker, cycle: usize) -> Result<()> {
    let value = format!("--env-add=CYCLE={cycle}");
    rolling::begin(docker, SERVICE, &["--update-order=start-first", &value])?;
    rolling::wait_until(docker, SERVICE, "completed", PATIENCE)?;
    cluster.wait_running(SERVICE, REPLICAS, PATIENCE).map(drop)
}

fn come_and_go(cluster: &Cluster, docker: &Docker, cycle: usize) -> Result<()> {
    let (service, network, secret) =
        (format!("guest{cycle}"), format!("net{cycle}"), format!("secret{cycle}"));
    docker.run(&["network", "create", "--driver", "overlay", &network])?;
    docker.run(&["secret", "create", &secret, "/proc/sys/kernel/ostype"])?;
    let flags = ["service", "create", "--quiet", "--detach", "--no-resolve-image", "--replicas=3"];
    let about =
        ["--name", &service, "--network", &network, "--secret", &secret, "--publish=9000:80", "whoami"];
    docker.run(&[&flags[..], &about].concat())?;
    cluster.wait_running(&service, 3, PATIENCE)?;
    docker.run(&["service", "rm", &service])?;
    // Both are in use until the last task is gone.
    for kind in [["network", "rm", &network], ["secret", "rm", &secret]] {
        eventually(&format!("docker {}", kind.join(" ")), PATIENCE, || docker.run(&kind).map(drop))?;
    }
    Ok(())
}

/// Drains a node.
fn empty(cluster: &Cluster, docker: &Docker, node: &str) -> Result<()> {
    docker.run(&["node", "update", "--availability", "drain", node])?;
    eventually(&format!("{node} without tasks"), PATIENCE, || {
        let left = cluster.containers(SERVICE)?.remove(node).unwrap_or_default();
        ensure!(left.is_empty(), "containers on {node}: {left:?}");
        Ok(())
    })?;
    cluster.wait_running(SERVICE, REPLICAS, PATIENCE).map(drop)
}

/// The last node, which gets no connections from clients, leaves and joins again as a new member.
fn leave_and_join(cluster: &Cluster, docker: &Docker) -> Result<()> {
    let last = cluster.record.nodes.last().context("a node")?;
    let manager = cluster.record.nodes.first().context("a manager")?;
    empty(cluster, docker, &last.name)?;
    let node = docker.run(&["node", "ls", "--quiet", "--filter", &format!("name={}", last.name)])?;
    let token = docker.run(&["swarm", "join-token", "--quiet", "worker"])?;
    let own = Docker::towards(&last.mesh_host);
    own.run(&["swarm", "leave"])?;
    docker.run(&["node", "rm", "--force", node.trim()])?;
    own.run(&["swarm", "join", "--token", token.trim(), &format!("{}:2377", manager.ip)])?;
    eventually(&format!("{} to be Ready", last.name), PATIENCE, || {
        let rows = docker.run(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        ensure!(rows.lines().any(|row| row == format!("{} Ready", last.name)), "nodes: {rows}");
        Ok(())
    })
}
