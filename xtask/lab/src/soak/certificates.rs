//! Certificates that live for two minutes, and a CA that is replaced twice, under requests to a
//! published port and to every manager's API: none may fail.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use mesh_checkout::setup;

use super::managers;
use super::polling::Polling;
use crate::artifacts;
use crate::client::http;
use crate::client::load::LoadGenerator;
use crate::cluster::{Cluster, eventually, samples};
use crate::layout::{LabName, Layout};
use crate::{Datapath, Lab, UpOptions};

/// The life of certificates, as the CLI takes it.
const LIFE: &str = "2m";
/// The longest time between two renewals: four fifths of a life of two minutes that begins a moment
/// earlier, and the agent's look at the clock.
const RENEWAL_MAX: Duration = Duration::from_secs(106);
/// Requests per second to the published port.
const RATE: u32 = 100;
/// The pause between two calls to a manager's API.
const CALL_PAUSE: Duration = Duration::from_millis(200);
/// How long a rotation of the CA may take.
const ROTATION_MAX: Duration = Duration::from_mins(2);
const PATIENCE: Duration = Duration::from_mins(1);
const PORT: u16 = 8080;

/// Arguments of `cargo xtask soak certificates`.
#[derive(Debug, Args)]
pub(super) struct CertificatesArgs {
    /// The lab's name
    #[arg(long, default_value = "soak-certs")]
    name: LabName,
    /// How long it lasts
    #[arg(long, default_value_t = 60)]
    minutes: u64,
}

/// Makes a lab of three managers, renews and rotates under load, and removes the lab if every check
/// held.
///
/// # Errors
/// A request or a call failed, a certificate was not renewed, or a rotation did not end.
pub(super) fn run(args: &CertificatesArgs) -> Result<()> {
    setup::ensure()?;
    let layout = Layout::new(args.name.clone());
    let binaries = artifacts::build()?;
    Lab::up(&layout, &UpOptions { managers: 3, ..UpOptions::usual(Datapath::Tc) }, &binaries)?;
    let cluster = Cluster::open(layout.clone())?;
    let docker = cluster.docker()?;
    let publish = format!("{PORT}:80");
    let create = ["service", "create", "--detach", "--no-resolve-image", "--name", "web"];
    docker.run(&[&create[..], &["--replicas", "3", "-p", &publish, "whoami"]].concat())?;
    cluster.wait_running("web", 3, PATIENCE)?;
    let servers = cluster.everywhere(PORT);
    for server in &servers {
        eventually(&format!("{server} answers"), PATIENCE, || cluster.ask(*server, "/"))?;
    }
    let load = LoadGenerator::start(&cluster.client(), &servers, "/", RATE);
    let names: Vec<&str> =
        cluster.record.nodes.iter().filter(|node| node.manager).map(|node| node.name.as_str()).collect();
    let polling = Polling::start(managers::sockets(&cluster, &names)?, CALL_PAUSE);
    let held = hold(&cluster, Duration::from_secs(60 * args.minutes));
    let polled = polling.stop()?;
    let report = load.stop()?;
    let made: u64 = polled.iter().map(|one| one.answered).sum();
    let failed: Vec<&String> = polled.iter().flat_map(|one| &one.failures).collect();
    println!(
        "{} requests answered, {} failed; {made} calls of the API answered, {} failed",
        report.answered(),
        report.failures.len(),
        failed.len()
    );
    held?;
    ensure!(report.failures.is_empty(), "requests failed: {:?}", report.failures.first());
    ensure!(failed.is_empty() && made > 0, "calls of the API failed: {:?}", failed.first());
    Lab::down(&layout)
}

fn hold(cluster: &Cluster, duration: Duration) -> Result<()> {
    let docker = cluster.docker()?;
    docker.run(&["swarm", "update", "--cert-expiry", LIFE])?;
    // Nodes have certificates of 90 days: those of a new CA have the new life.
    rotate(cluster)?;
    let begun = Instant::now();
    let before = renewals(cluster)?;
    thread::sleep(duration / 2);
    rotate(cluster)?;
    thread::sleep(duration.saturating_sub(begun.elapsed()));
    let after = renewals(cluster)?;
    let least = begun.elapsed().as_secs() / RENEWAL_MAX.as_secs();
    for ((node, what, before), (_, _, after)) in before.iter().zip(&after) {
        println!("{node}: {what} was renewed {} times, {least} or more were due", after - before);
        ensure!(
            after - before >= f64::from(u32::try_from(least)?),
            "{what} of {node} was not renewed in time"
        );
    }
    let rows = docker.run(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
    ensure!(rows.lines().all(|row| row.ends_with(" Ready")), "a node is not Ready: {rows}");
    Ok(())
}

/// Replaces the CA, as an operator does, and waits for the CLI's progress bars to end.
fn rotate(cluster: &Cluster) -> Result<()> {
    let docker = cluster.docker()?;
    let (begun, before) = (Instant::now(), docker.run(&["swarm", "ca"])?);
    let shown = docker.run(&["swarm", "ca", "--rotate"])?;
    let took = begun.elapsed();
    ensure!(took < ROTATION_MAX, "the rotation took {took:?}");
    ensure!(docker.run(&["swarm", "ca"])? != before, "the CA is the one of before: {shown}");
    println!("the CA was replaced in {:.1} s", took.as_secs_f64());
    Ok(())
}

/// How often each certificate was renewed, with its node and its use.
fn renewals(cluster: &Cluster) -> Result<Vec<(String, &'static str, f64)>> {
    let mut all = Vec::new();
    for node in &cluster.record.nodes {
        let of_node = samples(&cluster.metrics(node)?, "mesh_certificate_renewals_total", &[]);
        all.push((node.name.clone(), "the certificate", *of_node.first().context("a counter of renewals")?));
        if node.manager {
            let server = std::net::SocketAddrV4::new(node.ip, 9465);
            let text = cluster.client().run(|| http::get(server, "/metrics", http::DEADLINE))?.text();
            let made = samples(&text, "mesh_certificates_issued_total", &[("purpose", "server")]);
            all.push((node.name.clone(), "the server's certificate", *made.first().context("a counter")?));
        }
    }
    Ok(all)
}
