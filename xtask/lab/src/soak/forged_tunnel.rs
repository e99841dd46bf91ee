//! An outsider forges tunnel packets beside normal traffic: nothing reaches a task, each refusal is
//! counted, no request fails.
//!
//! The outsider is the lab's client: it knows every address, uses a member's as its own, tries
//! every VNI, and guesses cookies. It sees none of the members' traffic.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use mesh_checkout::setup;

use crate::artifacts;
use crate::client::forged::{Forged, Forger, VNI_DIRECT, VNI_REPLY, VNI_TASKS};
use crate::client::load::LoadGenerator;
use crate::cluster::{Cluster, Docker, eventually, samples};
use crate::layout::Layout;
use crate::netns::Netns;
use crate::{Datapath, Lab, UpOptions};

const LAB: &str = "forged";
const PATIENCE: Duration = Duration::from_mins(1);
/// Requests per second to the service that is open to anyone.
const REQUESTS: u32 = 100;
/// An address that nothing in the lab has, and no service allows.
const STRANGER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);

/// Arguments of `cargo xtask soak forged-tunnel`.
#[derive(Debug, Args)]
pub(super) struct ForgedTunnelArgs {
    /// How long to forge packets
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// The agents' data path
    #[arg(long, value_enum, default_value_t = Datapath::Tc)]
    datapath: Datapath,
}

/// Makes a lab, forges packets, and removes the lab.
///
/// # Errors
/// A check failed; the lab is kept for inspection then.
pub(super) fn run(args: &ForgedTunnelArgs) -> Result<()> {
    setup::ensure()?;
    let binaries = artifacts::build()?;
    let layout = Layout::new(LAB.parse()?);
    Lab::up(&layout, &UpOptions::usual(args.datapath), &binaries).context("make the lab")?;
    let cluster = Cluster::open(layout.clone())?;
    hold(&cluster, Duration::from_secs(60 * args.minutes)).with_context(|| {
        format!("the lab is kept for inspection; then: cargo xtask lab down --name {LAB}")
    })?;
    Lab::down(&layout).context("remove the lab")
}

fn hold(cluster: &Cluster, duration: Duration) -> Result<()> {
    let docker = cluster.docker()?;
    let create = ["service", "create", "--detach", "--no-resolve-image", "--name"];
    docker.run(&[&create[..], &["web", "--replicas", "3", "-p", "8080:80", "whoami"]].concat())?;
    let closed =
        ["closed", "--replicas", "3", "-p", "8081:80", "--label", "mesh.lb.allow=10.99.0.0/16", "whoami"];
    docker.run(&[&create[..], &closed].concat())?;
    cluster.wait_running("web", 3, PATIENCE)?;
    cluster.wait_running("closed", 3, PATIENCE)?;
    let servers = cluster.everywhere(8080);
    eventually("every node to answer", PATIENCE, || {
        servers.iter().try_for_each(|server| cluster.ask(*server, "/").map(drop))
    })?;
    let victims = victims(cluster, "closed")?;
    await_cookies(cluster, &victims)?;

    let before = received(&victims)?;
    let load = LoadGenerator::start(&cluster.client(), &servers, "/", REQUESTS);
    let forging = Forging::start(cluster, &victims);
    std::thread::sleep(duration);
    let sent = forging.stop()?;
    let report = load.stop()?;
    let after = received(&victims)?;

    println!("{sent} forged packets beside {} requests", report.answered());
    for node in &cluster.record.nodes {
        let metrics = cluster.metrics(node)?;
        for line in metrics.lines().filter(|line| line.starts_with("mesh_dropped_packets_total")) {
            if !line.ends_with(" 0") {
                println!("{}: {line}", node.name);
            }
        }
    }
    ensure!(
        report.failures.is_empty(),
        "{} requests failed: {:?}",
        report.failures.len(),
        report.failures.first()
    );
    ensure!(
        before == after,
        "segments received by the tasks that no client may reach: {before:?}, then {after:?}"
    );
    let refused: f64 = dropped(cluster, "bad_cookie")?;
    // Queues may lose some packets of a flood, even in a lab.
    ensure!(
        refused * 2.0 >= f64::from(u32::try_from(sent).unwrap_or(u32::MAX)),
        "{sent} sent, {refused} refused"
    );
    Ok(())
}

/// A task that no client in the lab may reach: its node, its process, its address.
#[derive(Debug, Clone)]
struct Victim {
    node: Ipv4Addr,
    pid: String,
    address: Ipv4Addr,
}

fn victims(cluster: &Cluster, service: &str) -> Result<Vec<Victim>> {
    let mut victims = Vec::new();
    for (node, containers) in cluster.containers(service)? {
        let record = cluster.node(&node)?;
        for (id, _) in containers {
            let format = "{{.State.Pid}} {{(index .NetworkSettings.Networks \"mesh\").IPAddress}}";
            let said = Docker::towards(&record.mesh_host).run(&["inspect", "--format", format, &id])?;
            let (pid, address) = said.trim().split_once(' ').context("a process and an address")?;
            let address = address.parse().with_context(|| format!("the address of {id}: {said}"))?;
            victims.push(Victim { node: record.ip, pid: pid.to_owned(), address });
        }
    }
    ensure!(!victims.is_empty(), "no task of {service} runs");
    Ok(victims)
}

/// The TCP segments that each of these tasks has received.
fn received(victims: &[Victim]) -> Result<Vec<u64>> {
    victims
        .iter()
        .map(|victim| {
            let output = Command::new("nsenter")
                .args(["-t", &victim.pid, "-n", "cat", "/proc/net/snmp"])
                .output()
                .context("read from a task's namespace")?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let mut tcp = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
            let (names, values) = (tcp.next().context("names")?, tcp.next().context("values")?);
            let at = names.split(' ').position(|name| name == "InSegs").context("InSegs")?;
            values.split(' ').nth(at).context("a value")?.parse().context("a number")
        })
        .collect()
}

fn dropped(cluster: &Cluster, reason: &str) -> Result<f64> {
    let mut sum = 0.0;
    for node in &cluster.record.nodes {
        let found = samples(&cluster.metrics(node)?, "mesh_dropped_packets_total", &[("reason", reason)]);
        sum += found.iter().sum::<f64>();
    }
    Ok(sum)
}

/// A packet to `victim` that seems to come from another member.
fn forged(cluster: &Cluster, victim: &Victim, vni: u32, cookie: u32) -> Result<Forged> {
    let member = cluster.record.nodes.iter().map(|node| node.ip).find(|ip| *ip != victim.node);
    let destination = SocketAddrV4::new(victim.address, 80);
    let member = member.context("another node")?;
    Ok(Forged {
        member,
        node: victim.node,
        vni,
        cookie,
        source: SocketAddrV4::new(STRANGER, 40_000),
        destination,
    })
}

/// Waits until members demand cookies: each learns a moment after it joined that all send them.
fn await_cookies(cluster: &Cluster, victims: &[Victim]) -> Result<()> {
    eventually("cookies to be demanded", PATIENCE, || {
        for victim in victims {
            let before = dropped(cluster, "bad_cookie")?;
            let packet = forged(cluster, victim, VNI_REPLY, 0)?;
            cluster.client().run(|| Forger::open()?.send(&packet))?;
            ensure!(dropped(cluster, "bad_cookie")? > before, "{} accepts a packet without one", victim.node);
        }
        Ok(())
    })
}

/// A thread that sends forged packets until it is stopped.
struct Forging {
    stop: Arc<AtomicBool>,
    worker: JoinHandle<Result<u64>>,
}

impl Forging {
    fn start(cluster: &Cluster, victims: &[Victim]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (client, stopping, cluster, victims) =
            (cluster.client(), Arc::clone(&stop), cluster.clone(), victims.to_vec());
        let worker = std::thread::spawn(move || forge(&client, &cluster, &victims, &stopping));
        Self { stop, worker }
    }

    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.worker.join().map_err(|_| anyhow!("the forger panicked"))?
    }
}

/// Tries all VNIs, over and over: towards tasks, with a request for direct replies, back to
/// clients, between tasks. Each packet has another cookie.
fn forge(client: &Netns, cluster: &Cluster, victims: &[Victim], stop: &AtomicBool) -> Result<u64> {
    const VNIS: u64 = 1 << 24;
    /// An odd step visits all numbers.
    const STEP: u64 = 0x009e_3779;
    client.run(|| {
        let forger = Forger::open()?;
        let (begun, mut sent) = (Instant::now(), 0_u64);
        while !stop.load(Ordering::Relaxed) {
            for victim in victims {
                let walked = u32::try_from(sent.wrapping_mul(STEP) % VNIS).unwrap_or_default();
                // Every other packet has a VNI that a forger would gain most from.
                let vni = match sent % 4 {
                    1 => VNI_TASKS,
                    3 => VNI_DIRECT | walked & 0xffff,
                    _ => walked,
                };
                let cookie =
                    u32::try_from(sent & u64::from(u32::MAX)).unwrap_or_default().wrapping_mul(0x9e37_79b1);
                forger.send(&forged(cluster, victim, vni, cookie)?)?;
                sent += 1;
            }
            // A steady flood that leaves the lab's two CPUs some time.
            if sent % 1024 < victims.len() as u64 {
                let due = Duration::from_micros(sent * 100);
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
            }
        }
        Ok(sent)
    })
}
