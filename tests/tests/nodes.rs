//! Tests of nodes with the unmodified CLI: labels, availability, roles, removal, and their
//! description.
#![cfg(feature = "cluster")]

use anyhow::{Context, Result, ensure};
use mesh_lab::cluster::{Cluster, Docker, eventually};
use mesh_tests::{PATIENCE, Service, cluster};

/// The name of a worker.
fn worker(cluster: &Cluster) -> Result<String> {
    let worker = cluster.record.nodes.iter().find(|node| !node.manager);
    Ok(worker.context("the lab has no worker")?.name.clone())
}

/// A node whose spec is restored when the test ends.
struct Changed<'a> {
    docker: &'a Docker,
    node: String,
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        let back = ["node", "update", "--availability", "active", "--role", "worker", &self.node];
        let unlabelled = ["node", "update", "--label-rm", "zone", &self.node];
        for arguments in [&back[..], &unlabelled[..]] {
            if let Err(error) = self.docker.run(arguments) {
                eprintln!("can't restore {}: {error:#}", self.node);
            }
        }
    }
}

#[test]
fn labels_availability_and_role_change_and_placement_follows() -> Result<()> {
    let cluster = cluster()?;
    let docker = cluster.docker()?;
    let name = worker(&cluster)?;
    let changed = Changed { docker: &docker, node: name.clone() };
    docker.run(&["node", "update", "--label-add", "zone=a", &name])?;
    let labelled =
        docker.run(&["node", "ls", "--filter", "node.label=zone=a", "--format", "{{.Hostname}}"])?;
    ensure!(labelled.trim() == name, "by label: {labelled}");
    let service = Service::create(
        &cluster,
        "zoned",
        &[
            "--replicas",
            "2",
            "--constraint",
            "node.labels.zone==a",
            "--stop-grace-period=1s",
            "busybox",
            "sleep",
            "1000",
        ],
    )?;
    let format = "{{.Name}} {{.DesiredState}}";
    let tasks =
        docker.run(&["node", "ps", "--filter", "desired-state=running", "--format", format, &name])?;
    let own = tasks.lines().filter(|line| line.starts_with("zoned.") && line.ends_with(" Running")).count();
    ensure!(own == 2, "node ps said: {tasks}");
    let containers = Docker::towards(&cluster.node(&name)?.mesh_host);
    let listed = containers.run(&["ps", "--filter", "is-task=true", "--format", "{{.Names}}"])?;
    ensure!(
        listed.lines().filter(|line| line.starts_with("zoned.")).count() == 2,
        "docker ps said: {listed}"
    );
    drop(service);

    docker.run(&["node", "promote", &name])?;
    let managers = docker.run(&["node", "ls", "--filter", "role=manager", "--format", "{{.Hostname}}"])?;
    ensure!(managers.lines().any(|line| line == name), "managers: {managers}");
    docker.run(&["node", "demote", &name])?;
    let role = docker.run(&["node", "inspect", "--format", "{{.Spec.Role}}", &name])?;
    ensure!(role.trim() == "worker", "after demote: {role}");
    docker.run(&["node", "update", "--availability", "pause", &name])?;
    let row =
        docker.run(&["node", "ls", "--filter", &format!("name={name}"), "--format", "{{.Availability}}"])?;
    ensure!(row.trim() == "Pause", "node ls said: {row}");
    drop(changed);
    Ok(())
}

#[test]
fn a_node_is_described_correctly() -> Result<()> {
    let cluster = cluster()?;
    let docker = cluster.docker()?;
    let pretty = docker.run(&["node", "inspect", "--pretty", "self"])?;
    let engine = docker.run(&["version", "--format", "{{.Server.Version}}"])?;
    for expected in [
        "Hostname:              \tnode-1",
        " State:\t\t\tReady",
        " Availability:         \tActive",
        " Leader:\t\tYes",
        "Plugins:",
        "TLS Info:",
        &format!(" Engine Version:\t{}", engine.trim()),
    ] {
        ensure!(squeezed(&pretty).contains(&squeezed(expected)), "expected `{expected}` in: {pretty}");
    }
    let info = docker.run(&["info"])?;
    for expected in [
        "Swarm: active",
        "Is Manager: true",
        "Task History Retention Limit: 5",
        "Heartbeat Period: 5 seconds",
    ] {
        ensure!(info.contains(expected), "expected `{expected}` in: {info}");
    }
    let nodes = format!("Nodes: {}", cluster.record.nodes.len());
    ensure!(info.contains(&nodes), "expected `{nodes}` in: {info}");
    docker.run(&["system", "df"])?;
    Ok(())
}

fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_swarm_shows_its_state_and_refuses_what_mesh_cannot_do() -> Result<()> {
    let cluster = cluster()?;
    let docker = cluster.docker()?;
    let again = docker.refused(&["swarm", "init"])?;
    ensure!(again.message.contains("This node is already part of a swarm."), "said: {}", again.message);
    let name = worker(&cluster)?;
    let on_worker = Docker::towards(&cluster.node(&name)?.mesh_host);
    let joined = on_worker.refused(&["swarm", "init"])?;
    ensure!(joined.message.contains("This node is already part of a swarm."), "said: {}", joined.message);
    let token = docker.run(&["swarm", "join-token", "worker"])?;
    ensure!(token.contains("docker swarm join --token SWMTKN-1-"), "join-token said: {token}");
    let ca = docker.run(&["swarm", "ca"])?;
    ensure!(ca.starts_with("-----BEGIN CERTIFICATE-----"), "swarm ca said: {ca}");
    let running = docker.refused(&["node", "rm", &name])?;
    ensure!(running.message.contains("is not down and can't be removed"), "said: {}", running.message);
    let last = docker.refused(&["node", "demote", "node-1"])?;
    ensure!(last.message.contains("attempting to demote the last manager"), "said: {}", last.message);
    eventually("a ready node", PATIENCE, || {
        let rows = docker.run(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        ensure!(rows.contains(&format!("{name} Ready")), "nodes: {rows}");
        Ok(())
    })
}
