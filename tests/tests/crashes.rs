//! Tests that a daemon with a panicking component ends at once under traffic, and that the next
//! process finds everything as it was.
#![cfg(feature = "cluster")]

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_lab::Part;
use mesh_lab::client::http;
use mesh_lab::client::load::LoadGenerator;
use mesh_lab::cluster::{Cluster, TaskRow, eventually};
use mesh_lab::component::Component;
use mesh_lab::record::NodeRecord;
use mesh_tests::{PATIENCE, Service, cluster, lab};

/// How long a process may live on after one of its components panicked.
const END_MAX: Duration = Duration::from_secs(1);

/// Makes a component of a daemon panic, waits for the daemon's end, and restarts it as its
/// supervisor would.
fn panic_and_restart(
    cluster: &Cluster,
    node: &NodeRecord,
    daemon: Component,
    admin: u16,
    part: &str,
) -> Result<()> {
    let door = SocketAddrV4::new(node.ip, admin);
    let client = cluster.client();
    let answer = client.run(|| http::post(door, "/debug/panic", part, http::DEADLINE));
    // The process may end before its answer is sent.
    if let Ok(answer) = answer {
        ensure!(answer.status == 202, "{part}: {} {}", answer.status, answer.text());
    }
    let asked = Instant::now();
    eventually(&format!("the end of {daemon} after {part} panicked"), END_MAX, || {
        let answer = client.run(|| Ok(http::get(door, "/healthz", END_MAX).is_ok()))?;
        ensure!(!answer, "it still answers");
        Ok(())
    })?;
    eprintln!("{daemon} on {} ended {:?} after {part} panicked", node.name, asked.elapsed());
    lab::kill(cluster, &node.name, Part::One(daemon))?;
    lab::start(cluster, &node.name, Part::One(daemon))
}

fn ids(rows: &[TaskRow]) -> BTreeSet<&str> {
    rows.iter().map(|row| row.id.as_str()).collect()
}

/// Waits until the cluster shows exactly these tasks as running, and all nodes as Ready.
fn as_it_was(cluster: &Cluster, service: &Service, before: &[TaskRow]) -> Result<()> {
    let docker = cluster.docker()?;
    eventually("every node to be Ready", PATIENCE, || {
        let rows = docker.run(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        ensure!(rows.lines().all(|row| row.ends_with(" Ready")), "nodes: {rows}");
        Ok(())
    })?;
    let after = cluster.wait_running(service.name(), before.len(), PATIENCE)?;
    ensure!(ids(before) == ids(&after), "before {before:#?}, after {after:#?}");
    Ok(())
}

#[test]
fn a_panicking_component_ends_the_manager_and_costs_no_connection() -> Result<()> {
    let cluster = cluster()?;
    let manager = cluster.record.nodes.iter().find(|node| node.manager).context("no manager")?.clone();
    let service = Service::create(&cluster, "calm", &["--replicas", "3", "-p", "8070:80", "whoami"])?;
    let before = cluster.wait_running(service.name(), 3, PATIENCE)?;
    let load = LoadGenerator::start(&cluster.client(), &cluster.everywhere(8070), "/", 100);
    for part in ["the planners' driver", "the watch on etcd"] {
        panic_and_restart(&cluster, &manager, Component::Control, 9465, part)?;
        as_it_was(&cluster, &service, &before)?;
    }
    let report = load.stop()?;
    ensure!(report.failures.is_empty(), "connections failed: {:?}", report.failures);
    ensure!(report.answered() >= 20, "expected load to go on, saw {} answers", report.answered());
    // The planners run again.
    cluster.docker()?.run(&["service", "scale", "--detach", &format!("{}=4", service.name())])?;
    cluster.wait_running(service.name(), 4, PATIENCE).map(drop)
}

#[test]
fn a_panicking_component_ends_the_agent_and_costs_no_connection() -> Result<()> {
    let cluster = cluster()?;
    let ingress = cluster.record.nodes.last().context("the lab has no node")?.clone();
    let service = Service::create(&cluster, "steadfast", &["--replicas", "3", "-p", "8071:80", "whoami"])?;
    let before = cluster.wait_running(service.name(), 3, PATIENCE)?;
    let containers = cluster.containers(service.name())?;
    // In userspace the proxy is part of the agent: its node doesn't answer in the meantime.
    let servers: Vec<SocketAddrV4> = if cluster.record.datapath == "userspace" {
        cluster.everywhere(8071).into_iter().filter(|server| *server.ip() != ingress.ip).collect()
    } else {
        cluster.everywhere(8071)
    };
    let load = LoadGenerator::start(&cluster.client(), &servers, "/", 100);
    for part in ["task worker", "proxy"] {
        panic_and_restart(&cluster, &ingress, Component::Agent, 9464, part)?;
        as_it_was(&cluster, &service, &before)?;
    }
    let report = load.stop()?;
    if cluster.record.datapath != "userspace" {
        ensure!(report.failures.is_empty(), "connections failed: {:?}", report.failures);
    }
    ensure!(report.answered() >= 20, "expected load to go on, saw {} answers", report.answered());
    ensure!(cluster.containers(service.name())? == containers, "containers were replaced");
    Ok(())
}
