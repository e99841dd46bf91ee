//! Tests updates, scaling, draining a node and rolling back under traffic: no connection fails,
//! none is cut.
//!
//! `MESH_TRAFFIC=full` in the environment sets more traffic than a run of all tests has time for.
#![cfg(feature = "cluster")]

use std::env;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use mesh_lab::client::downloads::Downloads;
use mesh_lab::client::load::LoadGenerator;
use mesh_lab::cluster::{Cluster, eventually};
use mesh_tests::deposit::Deposit;
use mesh_tests::{PATIENCE, Service, cluster};

const PORT: u16 = 8100;
/// The deadline of an update: every batch of tasks waits for its downloads.
const UPDATE_PATIENCE: Duration = Duration::from_mins(5);

/// The traffic during the changes.
#[derive(Debug, Clone, Copy)]
struct Traffic {
    replicas: usize,
    /// The replicas between scaling down and up again.
    fewer: usize,
    /// New connections per second.
    rate: u32,
    /// Downloads at a time, and how long each takes.
    downloads: usize,
    lasting: Duration,
}

impl Traffic {
    const USUAL: Self =
        Self { replicas: 4, fewer: 2, rate: 100, downloads: 6, lasting: Duration::from_secs(3) };
    const FULL: Self =
        Self { replicas: 10, fewer: 3, rate: 500, downloads: 50, lasting: Duration::from_secs(6) };

    fn wanted() -> Result<Self> {
        match env::var("MESH_TRAFFIC").as_deref() {
            Err(_) => Ok(Self::USUAL),
            Ok("full") => Ok(Self::FULL),
            Ok(other) => bail!("MESH_TRAFFIC is {other}: set it to `full`, or leave it unset"),
        }
    }
}

#[test]
fn nothing_that_changes_a_service_costs_a_connection() -> Result<()> {
    let (cluster, traffic) = (cluster()?, Traffic::wanted()?);
    let old = Deposit::secret(&cluster, "rolling-1", b"first")?;
    let new = Deposit::secret(&cluster, "rolling-2", b"second")?;
    let service = Service::create(
        &cluster,
        "rolling",
        &[
            &format!("--replicas={}", traffic.replicas),
            "--publish=8100:80",
            "--update-parallelism=2",
            "--update-monitor=1s",
            "--rollback-parallelism=2",
            "--rollback-monitor=1s",
            "--label=mesh.lb.drain-timeout=1m",
            &format!("--secret=source={},target=word", old.name()),
            "whoami",
        ],
    )?;
    let servers = cluster.everywhere(PORT);
    let load = LoadGenerator::start(&cluster.client(), &servers, "/", traffic.rate);
    let downloads = Downloads::start(&cluster.client(), &servers, traffic.downloads, traffic.lasting);
    let changed = change_everything(&cluster, service.name(), &traffic, [&old, &new]);
    let seen = downloads.finish()?;
    let report = load.stop()?;
    println!("{} answered, {} downloads whole", report.answered(), seen.whole);
    changed?;
    ensure!(report.failures.is_empty(), "connections failed: {:?}", report.failures);
    ensure!(seen.cut.is_empty(), "downloads were cut: {:?}", seen.cut);
    ensure!(
        report.answered() > u64::from(traffic.rate),
        "expected traffic to flow, saw {}",
        report.answered()
    );
    let least = traffic.downloads as u64;
    ensure!(seen.whole >= least, "expected {least} downloads or more, saw {}", seen.whole);
    Ok(())
}

fn change_everything(
    cluster: &Cluster,
    service: &str,
    traffic: &Traffic,
    [old, new]: [&Deposit; 2],
) -> Result<()> {
    let Traffic { replicas, fewer, .. } = *traffic;
    let docker = cluster.docker()?;
    let update = |what: &str, end: &str, args: &[&str]| -> Result<()> {
        let begun = Instant::now();
        docker.run(&[&["service", "update", "--detach"][..], args, &[service]].concat())?;
        eventually(what, UPDATE_PATIENCE, || {
            let format = "{{.UpdateStatus.State}} {{.UpdateStatus.Message}}";
            let status = docker.run(&["service", "inspect", "--format", format, service])?;
            ensure!(status.trim() == end, "the update's status: {status}");
            Ok(())
        })?;
        cluster.wait_running(service, replicas, PATIENCE)?;
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
    let added = format!("source={},target=word", new.name());
    let rotation = ["--update-order=start-first", "--secret-rm", old.name(), "--secret-add", &added];
    update("secret rotation", "completed update completed", &rotation)?;

    let begun = Instant::now();
    docker.run(&["service", "scale", "--detach", &format!("{service}={fewer}")])?;
    cluster.wait_running(service, fewer, UPDATE_PATIENCE)?;
    docker.run(&["service", "scale", "--detach", &format!("{service}={replicas}")])?;
    cluster.wait_running(service, replicas, PATIENCE)?;
    println!("down and up: {:?}", begun.elapsed());

    let begun = Instant::now();
    let node = &cluster.record.nodes.last().map(|node| node.name.clone()).unwrap_or_default();
    docker.run(&["node", "update", "--availability", "drain", node])?;
    let drained = eventually("the drained node without tasks", UPDATE_PATIENCE, || {
        let left = cluster.containers(service)?.remove(node).unwrap_or_default();
        ensure!(left.is_empty(), "containers on {node}: {left:?}");
        Ok(())
    });
    docker.run(&["node", "update", "--availability", "active", node])?;
    drained?;
    cluster.wait_running(service, replicas, PATIENCE)?;
    println!("drain of {node}: {:?}", begun.elapsed());
    Ok(())
}
