//! The demo's steps under load: a container is killed, the policy is switched.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_checkout::command::Program;

use super::acts::{PORT, SERVICE, docker};
use super::told::{seen, step, typed};
use crate::artifacts::Binaries;
use crate::client::load::LoadGenerator;
use crate::cluster::{Cluster, Docker, eventually, samples};

/// New connections per second during a step.
const RATE: u32 = 100;

/// How long after a task's death new connections may still fail.
const TABLE_LAG_MAX: Duration = Duration::from_secs(1);

pub(super) fn kill_a_container(cluster: &Cluster) -> Result<()> {
    step(&format!("Kill a container while {RATE} connections a second come in"));
    let (node, (container, task)) = cluster
        .containers(SERVICE)?
        .into_iter()
        .find_map(|(node, tasks)| tasks.into_iter().next().map(|first| (node, first)))
        .context("no container to kill")?;
    let load = LoadGenerator::start(&cluster.client(), &cluster.everywhere(PORT), "/", RATE);
    std::thread::sleep(Duration::from_secs(1));
    let killed_at = load.elapsed();
    typed(&format!(
        "DOCKER_HOST={} docker rm -f {container}    # {task} on {node}",
        cluster.node(&node)?.mesh_host
    ));
    Docker::towards(&cluster.node(&node)?.mesh_host).run(&["rm", "-f", &container])?;
    let begun = Instant::now();
    let slot_name = task.rsplit_once('.').map_or(task.as_str(), |(slot, _)| slot).to_owned();
    eventually("the death in the task's history", Duration::from_secs(10), || {
        let rows = cluster.docker()?.tasks(SERVICE)?;
        let dead =
            rows.iter().any(|row| row.error.contains("non-zero exit (137)") && row.name.contains(&slot_name));
        ensure!(dead, "tasks: {rows:#?}");
        Ok(())
    })?;
    cluster.wait_running(SERVICE, 4, Duration::from_secs(20))?;
    seen(&format!("a replacement runs after {:.1} s (restart delay 5 s)", begun.elapsed().as_secs_f64()));
    let report = load.stop()?;
    docker(&cluster.docker()?, &["service", "ps", SERVICE])?;
    let late = report.failures_after(killed_at + TABLE_LAG_MAX);
    ensure!(late.is_empty(), "connections failed later than {TABLE_LAG_MAX:?} after the kill: {late:?}");
    seen(&format!(
        "{} requests answered, {} failed, none later than {TABLE_LAG_MAX:?} after the kill",
        report.answered(),
        report.failures.len()
    ));
    Ok(())
}

pub(super) fn switch_policy(cluster: &Cluster, binaries: &Binaries) -> Result<()> {
    step(&format!("Switch the policy while {RATE} connections a second come in"));
    let before = running_ids(cluster)?;
    let load = LoadGenerator::start(&cluster.client(), &cluster.everywhere(PORT), "/", RATE);
    std::thread::sleep(Duration::from_secs(1));
    for policy in ["least-connections", "round-robin"] {
        typed(&format!("mesh policy set {SERVICE} {policy}"));
        let host = cluster.docker()?.host().to_owned();
        let said = Program::new(binaries.mesh())
            .args(["--host", &host, "policy", "set", SERVICE, policy])
            .output()?;
        seen(&said);
        let begun = Instant::now();
        eventually(&format!("{policy} in force on every node"), Duration::from_secs(1), || {
            for node in &cluster.record.nodes {
                let labels = [("service", SERVICE), ("policy", policy)];
                let in_force = samples(&cluster.metrics(node)?, "mesh_lb_policy_info", &labels);
                ensure!(in_force == [1.0], "{} has {in_force:?}", node.name);
            }
            Ok(())
        })?;
        seen(&format!(
            "in force on every node {} ms after the command's return",
            begun.elapsed().as_millis()
        ));
        std::thread::sleep(Duration::from_secs(1));
    }
    let report = load.stop()?;
    ensure!(report.failures.is_empty(), "connections failed: {:?}", report.failures);
    ensure!(running_ids(cluster)? == before, "the switch replaced tasks");
    seen(&format!("{} requests answered, none failed; the same tasks run", report.answered()));
    Ok(())
}

fn running_ids(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let rows = cluster.docker()?.tasks(SERVICE)?;
    Ok(rows.into_iter().filter(crate::cluster::TaskRow::is_running).map(|row| row.id).collect())
}
