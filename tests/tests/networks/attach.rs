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
    let chosen = caller.docker.refused(&["network", "connect", "--ip=10.1.2.3", network.name(), "caller"])?;
    ensure!(chosen.message.contains("leave the address out"), "with --ip: {}", chosen.message);
    caller.docker.run(&["network", "connect", "--alias=ringer", network.name(), "caller"])?;
    let guest = task::of_container(cluster, "node-3", "caller")?;
    let address = guest.address(network.name())?;
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
