//! A worker leaves its cluster and joins it again, the CA is replaced, and a manager is unlocked,
//! by the unmodified CLI on nodes' own sockets.
#![cfg(feature = "cluster")]

use std::io::Write as _;
use std::process::Stdio;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use mesh_lab::Part;
use mesh_lab::client::load::LoadGenerator;
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

/// Turns autolock off when the test ends.
struct Autolock<'a>(&'a Docker);

impl Drop for Autolock<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.run(&["swarm", "update", "--autolock=false"]) {
            eprintln!("can't turn autolock off: {error:#}");
        }
    }
}

/// `docker swarm unlock` with this key on its standard input.
fn unlock(docker: &Docker, key: &str) -> Result<String> {
    let mut child = docker.command(&["swarm", "unlock"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("an input")?;
    input.write_all(format!("{key}\n").as_bytes()).context("give the key")?;
    drop(input);
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "docker swarm unlock: {said}");
    Ok(said)
}

#[test]
fn the_ca_is_replaced_and_a_manager_waits_for_its_key_under_load() -> Result<()> {
    let cluster = cluster()?;
    let docker = cluster.docker()?;
    let service = Service::create(&cluster, "trusted", &["--replicas", "2", "-p", "8078:80", "whoami"])?;
    let load = LoadGenerator::start(&cluster.client(), &cluster.everywhere(8078), "/", 50);

    let (before, token) =
        (docker.run(&["swarm", "ca"])?, docker.run(&["swarm", "join-token", "-q", "worker"])?);
    docker.run(&["swarm", "ca", "--rotate", "--detach"])?;
    let shown = ["info", "--format", "{{.Swarm.Cluster.RootRotationInProgress}}"];
    eventually("the end of the rotation", PATIENCE, || {
        ensure!(docker.run(&shown)?.trim() == "false", "nodes: {}", docker.run(&["node", "ls"])?);
        Ok(())
    })?;
    ensure!(docker.run(&["swarm", "ca"])? != before, "the CA is the one of before");
    ensure!(docker.run(&["swarm", "join-token", "-q", "worker"])? != token, "tokens name the former CA");
    // What the CLI counts: every node trusts the new CA, and no other.
    let nodes = ["node", "ls", "-q"];
    let ids: Vec<_> = docker.run(&nodes)?.lines().map(str::to_owned).collect();
    let root = docker.run(&["swarm", "ca"])?;
    eventually("every node to trust the new CA alone", PATIENCE, || {
        for id in &ids {
            let trusted =
                docker.run(&["node", "inspect", "--format", "{{.Description.TLSInfo.TrustRoot}}", id])?;
            ensure!(trusted.trim() == root.trim(), "{id} trusts {trusted}");
        }
        Ok(())
    })?;

    docker.run(&["swarm", "update", "--autolock=true"])?;
    let autolock = Autolock(&docker);
    let key = docker.run(&["swarm", "unlock-key", "-q"])?;
    let manager = cluster.record.nodes.iter().find(|node| node.manager).context("a manager")?;
    let own = Docker::towards(&manager.mesh_host);
    lab::kill(&cluster, &manager.name, Part::One(Component::Control))?;
    thread::scope(|scope| {
        // It is ready once it is unlocked.
        let starting = scope.spawn(|| lab::start(&cluster, &manager.name, Part::One(Component::Control)));
        eventually("a locked manager", PATIENCE, || {
            let state = local_state(&own)?;
            ensure!(state.starts_with("locked "), "the state is {state}");
            Ok(())
        })?;
        let refused = own.refused(&["service", "ls"])?;
        ensure!(refused.message.contains("Swarm is encrypted and needs to be unlocked"), "{refused:?}");
        let wrong = unlock(&own, &format!("SWMKEY-1-{}", "A".repeat(43))).err().context("a wrong key")?;
        ensure!(format!("{wrong:#}").contains("invalid key provided"), "{wrong:#}");
        unlock(&own, key.trim())?;
        starting.join().map_err(|_| anyhow!("the start panicked"))?
    })?;
    ensure!(local_state(&own)?.starts_with("active "), "after unlock: {}", local_state(&own)?);
    drop(autolock);
    eventually("the service to be listed", PATIENCE, || docker.run(&["service", "ps", service.name()]))?;

    let report = load.stop()?;
    ensure!(
        report.failures.is_empty() && report.answered() > 0,
        "requests failed: {:?}",
        report.failures.first()
    );
    Ok(())
}
