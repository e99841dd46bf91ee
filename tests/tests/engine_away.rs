//! Tests a node whose engine is gone: its tasks run elsewhere, and nothing moves back when it
//! returns.
#![cfg(feature = "cluster")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::Part;
use mesh_lab::cluster::{TaskRow, eventually};
use mesh_lab::component::Component;
use mesh_tests::lab::PowerCut;
use mesh_tests::{PATIENCE, Service, cluster};

/// A missing engine is noticed after a few seconds, and its node is down after three heartbeats of
/// 5 s.
const DOWN_WITHIN: Duration = Duration::from_mins(1);

#[test]
fn tasks_of_a_node_without_an_engine_run_elsewhere_and_stay_there() -> Result<()> {
    let cluster = cluster()?;
    let docker = cluster.docker()?;
    let lost =
        cluster.record.nodes.iter().rfind(|node| !node.manager).context("no worker to lose")?.name.clone();
    let service = Service::create(
        &cluster,
        "sturdy",
        &["--replicas=3", "--stop-signal=SIGKILL", "busybox", "sleep", "600"],
    )?;
    let spread = nodes(&cluster.wait_running(service.name(), 3, PATIENCE)?);
    ensure!(spread.contains_key(&lost), "{lost} runs no task: {spread:?}");

    let engine = PowerCut::of_part(&cluster, &lost, Part::One(Component::Dockerd))?;
    eventually("the node to be Down", DOWN_WITHIN, || {
        let rows = docker.run(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        ensure!(rows.lines().any(|row| row == format!("{lost} Down")), "nodes: {rows}");
        Ok(())
    })?;
    let moved = cluster.wait_running(service.name(), 3, PATIENCE)?;
    ensure!(!nodes(&moved).contains_key(&lost), "tasks still on {lost}: {moved:#?}");

    engine.restore(&cluster)?;
    let after = cluster.wait_running(service.name(), 3, PATIENCE)?;
    ensure!(ids(&moved) == ids(&after), "expected nothing to move back; before {moved:#?}, after {after:#?}");
    eventually("the old container to be gone", PATIENCE, || {
        let left = cluster.containers(service.name())?.remove(&lost).unwrap_or_default();
        ensure!(left.is_empty(), "containers on {lost}: {left:?}");
        Ok(())
    })?;

    docker.run(&["service", "scale", "--detach", &format!("{}=1", service.name())])?;
    cluster.wait_running(service.name(), 1, PATIENCE)?;
    docker.run(&["service", "scale", "--detach", &format!("{}=4", service.name())])?;
    let spread = nodes(&cluster.wait_running(service.name(), 4, PATIENCE)?);
    ensure!(spread.len() == cluster.record.nodes.len(), "expected tasks on every node, saw {spread:?}");
    Ok(())
}

fn nodes(rows: &[TaskRow]) -> BTreeMap<String, usize> {
    let mut nodes = BTreeMap::new();
    for row in rows {
        *nodes.entry(row.node.clone()).or_default() += 1;
    }
    nodes
}

fn ids(rows: &[TaskRow]) -> BTreeSet<&str> {
    rows.iter().map(|row| row.id.as_str()).collect()
}
