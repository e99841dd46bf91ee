//! Tests of `mesh why` and of the problems that `mesh status` lists.
#![cfg(feature = "cluster")]

use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_lab::artifacts::Binaries;
use mesh_lab::cluster::{Cluster, eventually};
use mesh_tests::lab::PowerCut;
use mesh_tests::{PATIENCE, Service, cluster};

/// What `mesh` prints on the first node, which is a manager, and its exit code.
fn mesh(cluster: &Cluster, words: &[&str]) -> Result<(String, Option<i32>)> {
    let output = Command::new(Binaries::expected().mesh())
        .args(words)
        .env("MESH_HOST", &cluster.record.nodes[0].mesh_host)
        .output()
        .context("start mesh")?;
    let said = [output.stdout, output.stderr].concat();
    Ok((String::from_utf8_lossy(&said).into_owned(), output.status.code()))
}

/// Waits until `mesh` prints all of these.
fn tells(cluster: &Cluster, words: &[&str], expected: &[&str]) -> Result<()> {
    eventually(&format!("mesh {} to tell {expected:?}", words.join(" ")), PATIENCE, || {
        let (said, _) = mesh(cluster, words)?;
        let missing: Vec<_> = expected.iter().filter(|text| !said.contains(**text)).collect();
        ensure!(missing.is_empty(), "{missing:?} is missing in\n{said}");
        Ok(())
    })
}

#[test]
fn a_task_that_finds_no_node_names_every_reason_with_the_nodes() -> Result<()> {
    let cluster = cluster()?;
    let constraints =
        ["--detach", "--replicas=2", "--constraint=node.labels.zone==mars", "busybox", "sleep", "600"];
    let service = Service::create(&cluster, "nowhere", &constraints)?;
    let name = service.name();
    let reason = "3 nodes: constraint node.labels.zone==mars is not met";
    tells(&cluster, &["why", name], &["0 of 2 tasks run", reason, "(node-1, node-2, node-3)"])?;
    tells(
        &cluster,
        &["status"],
        &[&format!("× service {name} 0 of 2 tasks run: no node for it ({reason})")],
    )?;
    let (said, code) = mesh(&cluster, &["status", "--wait", "1s"])?;
    ensure!(code == Some(6), "expected exit code 6 of mesh status --wait, saw {code:?}: {said}");
    let (said, code) = mesh(&cluster, &["why", &format!("{name}.9")])?;
    ensure!(code == Some(3), "expected exit code 3 of a slot that there isn't, saw {code:?}: {said}");
    Ok(())
}

#[test]
fn a_crash_loop_shows_its_exit_codes_and_last_lines() -> Result<()> {
    let cluster = cluster()?;
    let command = ["--detach", "--restart-delay=1s", "busybox", "sh", "-c", "echo out of paper; exit 7"];
    let service = Service::create(&cluster, "crashing", &command)?;
    let name = service.name();
    tells(&cluster, &["why", name], &["exit code 7", "last lines of its log:\n    out of paper"])?;
    let loops = format!("{name}.1 failed ");
    tells(&cluster, &["status"], &[&format!("service {name} 0 of 1 task runs: {loops}"), "non-zero exit (7)"])
}

#[test]
fn a_node_without_power_is_a_problem_until_it_is_back() -> Result<()> {
    let cluster = cluster()?;
    let node = &cluster.record.nodes[2].name;
    let cut = PowerCut::of(&cluster, node)?;
    tells(&cluster, &["status"], &[&format!("‼ node {node} is silent")])?;
    tells(&cluster, &["status"], &[&format!("× node {node} is down")])?;
    cut.restore(&cluster)?;
    let (said, code) = mesh(&cluster, &["status", "--wait", "30s"])?;
    ensure!(code == Some(0), "expected all to be well again, saw exit code {code:?}: {said}");
    Ok(())
}
