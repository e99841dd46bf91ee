//! 200 days in a few minutes: sets the clocks of agents and control planes forward in steps while
//! clients send requests.
//!
//! Certificates are valid for 90 days, so each has to be renewed twice or more. Then a node without
//! its agent stays away past the expiry of its certificate, and comes back as the member that it
//! was.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use mesh_checkout::setup;

use crate::client::http;
use crate::client::load::LoadGenerator;
use crate::cluster::{Cluster, eventually};
use crate::component::Component;
use crate::layout::{LabName, Layout};
use crate::record::NodeRecord;
use crate::{Datapath, Lab, Part, UpOptions};

use crate::artifacts;

const DAY: Duration = Duration::from_hours(24);
/// How far the clocks are set forward under traffic …
const DAYS: u32 = 200;
/// … in steps of this many days: no more than the time between the latest renewal of a certificate
/// and its expiry.
const STEP: u32 = 10;
/// A certificate with fewer days left than this should have been renewed: a fifth of its validity.
const DAYS_LEFT_MIN: f64 = 18.0;
/// How long renewals may take after a step.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long the cluster is watched after a step: silent nodes go down within it.
const WATCH: Duration = Duration::from_secs(3);
/// Requests per second.
const RATE: u32 = 50;
const PORT: u16 = 8080;
const SERVICE: &str = "clock";

/// Arguments of `cargo xtask soak clocks`.
#[derive(Debug, Args)]
pub(super) struct ClocksArgs {
    /// The lab's name
    #[arg(long, default_value = "soak-clocks")]
    name: LabName,
}

/// Makes a lab, sets its clocks forward, and removes the lab if every check held.
///
/// # Errors
/// A certificate was not renewed, a node went down, or a request failed.
pub(super) fn run(args: &ClocksArgs) -> Result<()> {
    setup::ensure()?;
    let layout = Layout::new(args.name.clone());
    let binaries = artifacts::build()?;
    let options = UpOptions { turnable_clock: true, ..UpOptions::usual(Datapath::Tc) };
    let mut lab = Lab::up(&layout, &options, &binaries)?;
    let cluster = Cluster::open(layout.clone())?;
    let docker = cluster.docker()?;
    let publish = format!("{PORT}:80");
    docker.run(&[
        "service",
        "create",
        "--detach",
        "--name",
        SERVICE,
        "--replicas",
        "3",
        "-p",
        &publish,
        "whoami",
    ])?;
    let servers = cluster.everywhere(PORT);
    for server in &servers {
        eventually(&format!("{server} answers"), PATIENCE, || cluster.ask(*server, "/"))?;
    }
    let load = LoadGenerator::start(&cluster.client(), &servers, "/", RATE);
    let turned = (1..=DAYS / STEP).try_for_each(|step| turn(&lab, &cluster, step * STEP));
    let report = load.stop()?;
    turned?;
    println!("{DAYS} days: {} requests answered, {} failed", report.answered(), report.failures.len());
    ensure!(report.failures.is_empty(), "requests failed: {:?}", report.failures);
    ensure!(report.answered() > 0, "no request was sent");
    sleeps_past_its_end(&mut lab, &cluster, &binaries)?;
    Lab::down(&layout)
}

/// One step of the clocks: all certificates are renewed in time, and no node is lost.
fn turn(lab: &Lab, cluster: &Cluster, day: u32) -> Result<()> {
    lab.turn_clock(DAY * day)?;
    thread::sleep(WATCH);
    for node in &cluster.record.nodes {
        fresh(cluster, node, 9464, "node", day)?;
        if node.manager {
            fresh(cluster, node, 9465, "server", day)?;
        }
        ready(cluster, &node.name)?;
    }
    println!("day {day}: every certificate is fresh, every node is Ready");
    Ok(())
}

/// Waits until a certificate has more than a fifth of its validity left.
fn fresh(cluster: &Cluster, node: &NodeRecord, port: u16, certificate: &str, day: u32) -> Result<()> {
    eventually(&format!("a fresh {certificate} certificate on {} on day {day}", node.name), PATIENCE, || {
        let left = days_left(cluster, node, port, certificate)?;
        ensure!(left > DAYS_LEFT_MIN, "{left:.1} days are left");
        Ok(())
    })
}

/// Days until a certificate expires, by its holder's own metrics.
fn days_left(cluster: &Cluster, node: &NodeRecord, port: u16, certificate: &str) -> Result<f64> {
    let server = std::net::SocketAddrV4::new(node.ip, port);
    let text = cluster.client().run(|| http::get(server, "/metrics", http::DEADLINE))?.text();
    let name = format!("mesh_certificate_seconds_left{{certificate=\"{certificate}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    let seconds: f64 = line.with_context(|| format!("{server} has no {name}"))?.parse()?;
    Ok(seconds / DAY.as_secs_f64())
}

fn ready(cluster: &Cluster, name: &str) -> Result<()> {
    let rows = cluster.docker()?.run(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
    ensure!(rows.lines().any(|row| row == format!("{name} Ready")), "{name} isn't Ready: {rows}");
    Ok(())
}

/// An agent that was away past the expiry of its certificate renews it, and its node is the same
/// member.
fn sleeps_past_its_end(lab: &mut Lab, cluster: &Cluster, binaries: &artifacts::Binaries) -> Result<()> {
    const SLEEPER: &str = "node-3";
    let node = cluster.node(SLEEPER)?;
    let members = || cluster.docker()?.run(&["node", "ls", "--format", "{{.ID}}"]);
    let before = members()?;
    let left = days_left(cluster, node, 9464, "node")?;
    lab.kill(SLEEPER, Part::One(Component::Agent))?;
    let others: Vec<_> = cluster.record.nodes.iter().filter(|other| other.name != SLEEPER).collect();
    let (mut day, mut slept) = (DAYS, 0);
    while f64::from(slept) <= left {
        // Small steps: renewal has a grace of a week.
        day += STEP / 2;
        slept += STEP / 2;
        lab.turn_clock(DAY * day)?;
        // Until every component has seen the new time.
        thread::sleep(WATCH);
        for other in &others {
            fresh(cluster, other, 9464, "node", day)?;
        }
    }
    lab.start(SLEEPER, Part::One(Component::Agent), binaries)?;
    fresh(cluster, node, 9464, "node", day)?;
    eventually(&format!("{SLEEPER} is Ready"), PATIENCE, || ready(cluster, SLEEPER))?;
    let after = members()?;
    ensure!(after == before, "members were {before}, and are {after}");
    println!(
        "{SLEEPER} slept {slept} days past a certificate of {left:.0}, renewed it, and is the same member"
    );
    Ok(())
}
