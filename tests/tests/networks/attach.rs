//! Containers that are attached to a cluster network by hand.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use mesh_lab::cluster::{Cluster, Docker, eventually};
use mesh_tests::{PATIENCE, Service, cluster};

use crate::dns::Question;
use crate::names::finds;
use crate::shop::{self, Network};
use crate::task::{self, Task, Way};

/// A container that is removed when the test ends.
struct Container {
    docker: Docker,
    name: &'static str,
}

impl Container {
    /// Runs a container of `whoami` on a network of the engine's or the cluster's.
    fn run(cluster: &Cluster, node: &str, network: &str, name: &'static str) -> Result<Self> {
        let container = Self { docker: Docker::towards(&cluster.node(node)?.mesh_host), name };
        container.docker.run(&["run", "--detach", "--network", network, "--name", name, "whoami"])?;
        Ok(container)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Err(error) = self.docker.run(&["rm", "--force", self.name]) {
            eprintln!("remove container {}: {error:#}", self.name);
        }
    }
}

/// `docker run --network` on an attachable network: the container finds the network's services by
/// name, reaches them and is reached by them by its name.
#[test]
fn a_container_is_attached_to_an_attachable_network() -> Result<()> {
    let cluster = cluster()?;
    if cluster.record.datapath == "userspace" {
        return Ok(());
    }
    let docker = cluster.docker()?;
    let network = Network::create(&cluster, "open", &["--attachable"])?;
    let hall = Service::create(
        &cluster,
        "hall",
        &["--detach", "--constraint=node.hostname==node-2", "--network", network.name(), "whoami"],
    )?;
    cluster.wait_running(hall.name(), 1, PATIENCE)?;
    let virtual_ip = shop::virtual_ip(&docker, hall.name(), network.name())?;
    let task = task::of_service(&cluster, hall.name())?.remove("node-2").context("no hall on node-2")?;
    for node in ["node-2", "node-3"] {
        let container = Container::run(&cluster, node, network.name(), "guest")?;
        let guest = task::of_container(&cluster, node, container.name)?;
        let address = guest.address(network.name())?;
        guest.address("bridge").context("a guest has a way out")?;
        finds(&guest, hall.name(), &[virtual_ip])?;
        is_found(&task, "guest", address)?;
        for way in Way::ALL {
            for there in [virtual_ip, task.address(network.name())?] {
                ensure!(guest.reaches(way, there)?, "a guest on {node}: {there} doesn't answer over {way:?}");
            }
            ensure!(
                task.reaches(way, address)?,
                "a guest on {node} at {address} doesn't answer over {way:?}"
            );
        }
        let refusal = docker.refused(&["network", "rm", network.name()])?;
        ensure!(refusal.message.contains("in use"), "network rm with a guest said: {}", refusal.message);
        drop(container);
        is_forgotten(&task, "guest")?;
    }
    connects_and_disconnects(&cluster, &network, &task)
}

/// `docker network connect` and `disconnect` of a container that runs.
fn connects_and_disconnects(cluster: &Cluster, network: &Network, task: &Task) -> Result<()> {
    let caller = Container::run(cluster, "node-3", "bridge", "caller")?;
    let taken = format!("--ip={}", task.address(network.name())?);
    let mut chosen = task.address(network.name())?.octets();
    chosen[3] = 200;
    let chosen = Ipv4Addr::from(chosen);
    for (address, expected) in
        [("--ip=192.0.2.3", "requested address is out of range"), (taken.as_str(), "Address already in use")]
    {
        let refusal = caller.docker.refused(&["network", "connect", address, network.name(), "caller"])?;
        ensure!(refusal.message.contains(expected), "with {address}: {}", refusal.message);
    }
    let wanted = format!("--ip={chosen}");
    caller.docker.run(&["network", "connect", &wanted, "--alias=ringer", network.name(), "caller"])?;
    let guest = task::of_container(cluster, "node-3", "caller")?;
    let address = guest.address(network.name())?;
    ensure!(address == chosen, "expected the chosen address {chosen}, saw {address}");
    for name in ["caller", "ringer", guest.short_id()] {
        is_found(task, name, address)?;
    }
    ensure!(task.reaches(Way::Tcp, address)?, "a connected container at {address} doesn't answer");
    caller.docker.run(&["network", "disconnect", network.name(), "caller"])?;
    is_forgotten(task, "caller")
}

/// The table reaches the task's node a moment after the container's own.
fn is_found(task: &Task, name: &str, address: Ipv4Addr) -> Result<()> {
    eventually("the name of a container that has come", PATIENCE, || finds(task, name, &[address]))
}

fn is_forgotten(task: &Task, name: &str) -> Result<()> {
    eventually("the name of a container that has left to go", PATIENCE, || {
        let reply = task.ask(Question::A(name))?;
        ensure!(reply.addresses.is_empty(), "{name} is still {reply:?}");
        Ok(())
    })
}

#[test]
fn a_container_is_refused_by_other_networks() -> Result<()> {
    let cluster = cluster()?;
    let network = Network::create(&cluster, "closed", &[])?;
    for node in &cluster.record.nodes {
        let docker = Docker::towards(&node.mesh_host);
        let words = ["run", "--rm", "--network", network.name(), "busybox", "true"];
        let refusal = docker.refused(&words)?;
        ensure!(
            refusal.message.contains("not manually attachable"),
            "{}: expected `not manually attachable`, saw: {}",
            node.name,
            refusal.message
        );
    }
    Ok(())
}

/// `docker-compose` on a manager's socket: containers of a project join an attachable network, find
/// each other and the network's services by name, and reach them.
#[test]
fn docker_compose_joins_an_attachable_network() -> Result<()> {
    let cluster = cluster()?;
    if cluster.record.datapath == "userspace" {
        return Ok(());
    }
    let network = Network::create(&cluster, "composed", &["--attachable"])?;
    let arguments = ["--detach", "--network", network.name(), "whoami"];
    let porter = Service::create(&cluster, "porter", &arguments)?;
    let virtual_ip = eventually("a virtual IP", PATIENCE, || {
        shop::virtual_ip(&cluster.docker()?, porter.name(), network.name())
    })?;
    cluster.wait_running(porter.name(), 1, PATIENCE)?;
    let docker = cluster.docker()?;
    let node = cluster.record.nodes.iter().find(|node| node.manager).context("no manager")?;
    let compose = |words: &[&str]| -> Result<()> {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/networks/compose.yml");
        let mut command = std::process::Command::new("docker-compose");
        let output =
            command.env("DOCKER_HOST", docker.host()).args(["-p", "project", "-f", file]).args(words);
        let output = output.output().context("start docker-compose")?;
        ensure!(output.status.success(), "compose {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let checked = compose(&["up", "-d"]).and_then(|()| {
        let left = task::of_container(&cluster, &node.name, "project_left_1")?;
        let right = task::of_container(&cluster, &node.name, "project_right_1")?;
        finds(&left, porter.name(), &[virtual_ip])?;
        finds(&left, "right", &[right.address(network.name())?])?;
        for there in [virtual_ip, right.address(network.name())?] {
            ensure!(left.reaches(Way::Tcp, there)?, "{there} doesn't answer a container of compose");
        }
        Ok(())
    });
    compose(&["down"])?;
    checked
}
