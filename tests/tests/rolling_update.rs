//! Updates, scaling, draining a node and rolling back under traffic: no connection fails, none is cut.
#![cfg(feature = "cluster")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::downloads::Downloads;
use mesh_tests::{PATIENCE, Service, cluster};
use xtask::client::load::Load;
use xtask::cluster::{Cluster, eventually};

const PORT: u16 = 8100;
const REPLICAS: usize = 4;
/// New connections a second.
const RATE: u32 = 100;
/// Downloads at a time, and how long each takes.
const DOWNLOADS: usize = 6;
const DOWNLOAD: Duration = Duration::from_secs(3);

#[test]
fn nothing_that_changes_a_service_costs_a_connection() -> Result<()> {
    let cluster = cluster()?;
    let service = Service::create(
        &cluster,
        "rolling",
        &[
            "--replicas=4",
            "--publish=8100:80",
            "--update-parallelism=2",
            "--update-monitor=1s",
            "--rollback-parallelism=2",
            "--rollback-monitor=1s",
            "--label=mesh.lb.drain-timeout=1m",
            "whoami",
        ],
    )?;
    let servers = cluster.everywhere(PORT);
    let load = Load::start(&cluster.client(), &servers, "/", RATE);
    let downloads = Downloads::start(&cluster.client(), &servers, DOWNLOADS, DOWNLOAD);
    let changed = change_everything(&cluster, service.name());
    let seen = downloads.finish()?;
    let report = load.stop()?;
    println!("{} answered, {} downloads whole", report.answered(), seen.whole);
    changed?;
    ensure!(report.failures.is_empty(), "connections failed: {:?}", report.failures);
    ensure!(seen.cut.is_empty(), "downloads were cut: {:?}", seen.cut);
    ensure!(report.answered() > u64::from(RATE), "expected traffic to flow, saw {}", report.answered());
    ensure!(seen.whole >= DOWNLOADS as u64, "expected {DOWNLOADS} downloads or more, saw {}", seen.whole);
    Ok(())
}

fn change_everything(cluster: &Cluster, service: &str) -> Result<()> {
    let docker = cluster.docker()?;
    let update = |what: &str, end: &str, args: &[&str]| -> Result<()> {
        let begun = Instant::now();
        docker.run(&[&["service", "update", "--detach"][..], args, &[service]].concat())?;
        eventually(what, PATIENCE * 3, || {
            let format = "{{.UpdateStatus.State}} {{.UpdateStatus.Message}}";
            let status = docker.run(&["service", "inspect", "--format", format, service])?;
            ensure!(status.trim() == end, "the update's status: {status}");
            Ok(())
        })?;
        cluster.wait_running(service, REPLICAS, PATIENCE)?;
        println!("{what}: {:?}", begun.elapsed());
        Ok(())
    };
    update("stop-first update", "completed update completed", &["--env-add=V=1"])?;
    update(
        "start-first update",
        "completed update completed",
        &["--update-order=start-first", "--env-add=V=2"],
    )?;
    update("rollback", "rollback_completed rollback completed", &["--rollback"])?;

    let begun = Instant::now();
    docker.run(&["service", "scale", "--detach", &format!("{service}=2")])?;
    cluster.wait_running(service, 2, PATIENCE)?;
    docker.run(&["service", "scale", "--detach", &format!("{service}={REPLICAS}")])?;
    cluster.wait_running(service, REPLICAS, PATIENCE)?;
    println!("down and up: {:?}", begun.elapsed());

    let begun = Instant::now();
    let node = &cluster.record.nodes.last().map(|node| node.name.clone()).unwrap_or_default();
    docker.run(&["node", "update", "--availability", "drain", node])?;
    let drained = eventually("the drained node without tasks", PATIENCE * 3, || {
        let left = cluster.containers(service)?.remove(node).unwrap_or_default();
        ensure!(left.is_empty(), "containers on {node}: {left:?}");
        Ok(())
    });
    docker.run(&["node", "update", "--availability", "active", node])?;
    drained?;
    cluster.wait_running(service, REPLICAS, PATIENCE)?;
    println!("drain of {node}: {:?}", begun.elapsed());
    Ok(())
}
