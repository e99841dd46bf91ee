//! A worker leaves its cluster and joins it again, by the unmodified CLI on its own socket.
#![cfg(feature = "cluster")]

use anyhow::{Context, Result, ensure};
use mesh_lab::Part;
use mesh_lab::cluster::{Cluster, Docker, eventually};
use mesh_lab::component::Component;
use mesh_lab::record::NodeRecord;
use mesh_tests::{PATIENCE, Service, answering_task, cluster, lab};

/// The worker's own view of its membership.
fn local_state(docker: &Docker) -> Result<String> {
    let said = docker.run(&["info", "--format", "{{.Swarm.LocalNodeState}} {{.Swarm.NodeID}}"])?;
    Ok(said.trim().to_owned())
}

/// A worker that is a member again when the test ends.
struct Member<'a> {
    cluster: &'a Cluster,
    node: &'a NodeRecord,
}

impl Member<'_> {
    fn join(&self) -> Result<String> {
        let token = self.cluster.docker()?.run(&["swarm", "join-token", "-q", "worker"])?;
        let manager = self.cluster.record.nodes.iter().find(|node| node.manager).context("a manager")?;
        let docker = Docker::towards(&self.node.mesh_host);
        docker.run(&["swarm", "join", "--token", token.trim(), &format!("{}:2377", manager.ip)])
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        let docker = Docker::towards(&self.node.mesh_host);
        let is_member = local_state(&docker).is_ok_and(|state| state.starts_with("active"));
        if !is_member && let Err(error) = self.join() {
            eprintln!("can't bring {} back: {error:#}", self.node.name);
        }
    }
}

/// The swarm calls of a node in no cluster, and joins that must fail.
fn refuses(worker: &Docker, manager: &NodeRecord, token: &str) -> Result<()> {
    let listed = worker.refused(&["service", "ls"])?;
    ensure!(
        listed.message.contains("This node is not a swarm manager. Use \"docker swarm init\""),
        "{listed:?}"
    );
    let again = worker.refused(&["swarm", "leave"])?;
    ensure!(again.message.contains("This node is not part of a swarm"), "{again:?}");
    let address = format!("{}:2377", manager.ip);
    let (cluster_part, secret) = token.rsplit_once('-').context("a token")?;
    let other_secret = format!("{cluster_part}-{}", "a".repeat(secret.len()));
    let other_ca = format!("SWMTKN-1-{}-{secret}", "0f".repeat(32));
    let nobody = format!("{}:2399", manager.ip);
    for (token, address, expected) in [
        (other_secret.as_str(), &address, "A valid join token is necessary to join this cluster"),
        (&other_ca, &address, "remote CA does not match fingerprint. Expected: 0f0f"),
        (token, &nobody, "connect: connection refused"),
    ] {
        let refused = worker.refused(&["swarm", "join", "--token", token, address])?;
        ensure!(refused.message.contains(expected), "expected {expected:?}, saw {refused:?}");
        let state = local_state(worker)?;
        ensure!(state == "inactive", "after a failed join: {state}");
    }
    Ok(())
}

#[test]
fn a_worker_leaves_and_joins_again() -> Result<()> {
    let cluster = cluster()?;
    let docker = cluster.docker()?;
    let node = cluster.record.nodes.iter().rfind(|node| !node.manager).context("a worker")?;
    let manager = cluster.record.nodes.iter().find(|node| node.manager).context("a manager")?;
    let worker = Docker::towards(&node.mesh_host);
    let token = docker.run(&["swarm", "join-token", "-q", "worker"])?;
    let service = Service::create(&cluster, "wanderer", &["--mode", "global", "-p", "8077:80", "whoami"])?;
    let before = local_state(&worker)?.replace("active ", "");

    let refused = docker.refused(&["swarm", "leave"])?;
    ensure!(refused.message.contains("participating as a manager. Removing the last manager"), "{refused:?}");
    let member = Member { cluster: &cluster, node };
    let said = worker.run(&["swarm", "leave"])?;
    ensure!(said.trim() == "Node left the swarm.", "docker swarm leave said: {said}");
    ensure!(local_state(&worker)? == "inactive", "docker info says: {}", local_state(&worker)?);
    let left = worker.run(&["ps", "-aq", "--filter", "label=com.docker.swarm.node.id"])?;
    ensure!(left.trim().is_empty(), "containers of tasks stayed: {left}");
    let networks = worker.run(&["network", "ls", "-q", "--filter", "label=mesh.network"])?;
    ensure!(networks.trim().is_empty(), "networks of mesh stayed: {networks}");
    let links = lab::on_machine(&cluster, &node.name, &["ip", "-o", "link"])?;
    ensure!(!links.contains("mesh"), "links of mesh stayed: {links}");
    let row = docker.run(&["node", "ls", "--format", "{{.ID}} {{.Status}}"])?;
    ensure!(row.lines().any(|row| row == format!("{before} Down")), "nodes: {row}");
    refuses(&worker, manager, token.trim())?;

    let said = member.join()?;
    ensure!(said.trim() == "This node joined a swarm as a worker.", "docker swarm join said: {said}");
    let state = local_state(&worker)?;
    let id = state.strip_prefix("active ").context("it is a member")?.to_owned();
    ensure!(id != before, "it is a new node");
    docker.run(&["node", "rm", &before])?;
    cluster.wait_running(service.name(), cluster.record.nodes.len(), PATIENCE)?;
    eventually("the node to answer again", PATIENCE, || {
        let address = std::net::SocketAddrV4::new(node.ip, 8077);
        cluster.client().run(|| answering_task(address)).map(drop)
    })?;

    // Its flags name a token, too; what it joined by its client's call counts.
    lab::kill(&cluster, &node.name, Part::One(Component::Agent))?;
    lab::start(&cluster, &node.name, Part::One(Component::Agent))?;
    let state = local_state(&worker)?;
    ensure!(state == format!("active {id}"), "after a restart: {state}");
    Ok(())
}
