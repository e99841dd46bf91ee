//! Updates, scaling, the drain of a node and a dead control plane, under connections to a virtual
//! IP from every node: no connection fails, no download is cut.
//!
//! On each node a container that is attached to the service's network opens new connections at a
//! steady rate, and downloads slowly. These clients are no tasks, as the drain of a node would move
//! a task; their packets take the same way.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use mesh_checkout::setup;

use super::rolling;
use crate::artifacts::{self, Binaries};
use crate::client::downloads::{Downloads, Seen};
use crate::client::load::{LoadGenerator, Report};
use crate::cluster::{Cluster, Docker, eventually};
use crate::component::Component;
use crate::layout::{LabName, Layout};
use crate::netns::Netns;
use crate::record::NodeRecord;
use crate::{Datapath, Lab, Part, UpOptions};

const NETWORK: &str = "back";
const SERVICE: &str = "behind";
const CLIENT: &str = "asker";
const HTTP: u16 = 80;
/// The replicas between scaling down and up again.
const FEWER: usize = 3;
/// How long each download is planned to take.
const LASTING: Duration = Duration::from_secs(6);
/// The deadline of an answer: a busy machine is slow, and a slow answer is no lost connection.
const SLOW: Duration = Duration::from_secs(30);
/// How long the control plane is dead.
const DEAD: Duration = Duration::from_secs(10);
/// How long connections are opened over loopback, for comparison.
const FLOOR: Duration = Duration::from_secs(10);
/// The time in which a state of the cluster must be reached.
const PATIENCE: Duration = Duration::from_mins(2);
/// The deadline of an update: every batch of tasks waits for its downloads.
const UPDATE_PATIENCE: Duration = Duration::from_mins(10);
/// Failures that are printed in full.
const SHOWN: usize = 20;

/// Arguments of `cargo xtask soak virtual-ips`.
#[derive(Debug, Args)]
pub(super) struct VirtualIpsArgs {
    /// The lab's name
    #[arg(long, default_value = "soak-vips")]
    name: LabName,
    /// The agents' data path
    #[arg(long, value_enum, default_value_t = Datapath::Tc)]
    datapath: Datapath,
    /// Tasks behind the virtual IP
    #[arg(long, default_value_t = 10)]
    replicas: usize,
    /// New connections per second on each node
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Downloads at a time on each node
    #[arg(long, default_value_t = 4)]
    downloads: usize,
}

/// Makes a lab, changes the service under traffic, and removes the lab if every check held.
///
/// # Errors
/// A connection failed or a download was cut; the lab is kept for inspection then.
pub(super) fn run(args: &VirtualIpsArgs) -> Result<()> {
    ensure!(args.datapath != Datapath::Userspace, "--datapath userspace carries no networks");
    ensure!(args.replicas > FEWER, "--replicas must be more than {FEWER}");
    setup::ensure()?;
    let binaries = artifacts::build()?;
    let layout = Layout::new(args.name.clone());
    Lab::up(&layout, &UpOptions::usual(args.datapath), &binaries).context("make the lab")?;
    let cluster = Cluster::open(layout.clone())?;
    hold(&cluster, args, &binaries).with_context(|| {
        format!("the lab is kept for inspection; then: cargo xtask lab --name {} down", args.name)
    })?;
    Lab::down(&layout).context("remove the lab")
}

fn hold(cluster: &Cluster, args: &VirtualIpsArgs, binaries: &Binaries) -> Result<()> {
    let docker = cluster.docker()?;
    docker.run(&["network", "create", "--driver", "overlay", "--attachable", NETWORK])?;
    let replicas = format!("--replicas={}", args.replicas);
    docker.run(&[
        "service",
        "create",
        "--detach",
        "--no-resolve-image",
        // The tasks print a line for each request, and the engine would spend more on a line than
        // the task on its answer.
        "--log-driver=none",
        "--name",
        SERVICE,
        "--network",
        NETWORK,
        &replicas,
        "--update-parallelism=2",
        "--update-monitor=1s",
        "--label=mesh.lb.drain-timeout=1m",
        "whoami",
    ])?;
    cluster.wait_running(SERVICE, args.replicas, PATIENCE)?;
    let server = SocketAddrV4::new(virtual_ip(&docker)?, HTTP);
    let clients: Vec<Client> =
        cluster.record.nodes.iter().map(|node| Client::attach(cluster, node)).collect::<Result<_>>()?;
    for client in &clients {
        eventually(&format!("{server} to answer on {}", client.node), PATIENCE, || client.ask(server))?;
    }

    let before = drops(cluster)?;
    let traffic: Vec<Traffic> = clients.iter().map(|client| Traffic::start(client, server, args)).collect();
    let changed = change_everything(cluster, args.replicas, binaries);
    let (mut failed, mut cut) = (Vec::new(), Vec::new());
    for one in traffic {
        let node = one.node.clone();
        let (report, seconds, seen) = one.stop()?;
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let rate = report.answered() as f64 / seconds;
        println!(
            "{node}: {} answered in {seconds:.0} s ({:.0} a second), the slowest after {:.1?}, {} failed; {} downloads whole, {} cut",
            report.answered(),
            rate,
            report.slowest,
            report.failures.len(),
            seen.whole,
            seen.cut.len()
        );
        ensure!(report.answered() > 0 && seen.whole > 0, "no traffic from {node}");
        failed.extend(report.failures.into_iter().map(|(at, why)| format!("{node} at {at:.1?}: {why}")));
        cut.extend(seen.cut.into_iter().map(|why| format!("{node}: {why}")));
    }
    for (reason, count) in &drops(cluster)? {
        let more = count - before.get(reason).copied().unwrap_or_default();
        if more > 0.0 {
            println!("dropped: {reason} {more}");
        }
    }
    changed?;
    ensure!(failed.is_empty(), "{} connections failed: {:#?}", failed.len(), first(&failed));
    ensure!(cut.is_empty(), "{} downloads were cut: {:#?}", cut.len(), first(&cut));
    print_floor(&clients, args.rate)
}

/// Prints what the same clients reach on this machine without a network: each opens connections to
/// a server in its own container, at the same rate. A lower rate than asked for is the machine's
/// then.
fn print_floor(clients: &[Client], per_second: u32) -> Result<()> {
    let own = SocketAddrV4::new(Ipv4Addr::LOCALHOST, HTTP);
    let loads: Vec<LoadGenerator> = clients
        .iter()
        .map(|client| LoadGenerator::start_patient(&client.netns, &[own], "/", per_second, SLOW))
        .collect();
    thread::sleep(FLOOR);
    for (client, load) in clients.iter().zip(loads) {
        let seconds = load.elapsed().as_secs_f64();
        let report = load.stop()?;
        ensure!(report.failures.is_empty(), "over loopback: {:?}", report.failures.first());
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let rate = report.answered() as f64 / seconds;
        println!("{}: {rate:.0} a second over loopback, without mesh", client.node);
    }
    Ok(())
}

fn first(errors: &[String]) -> &[String] {
    &errors[..errors.len().min(SHOWN)]
}

/// The service's address on the network.
fn virtual_ip(docker: &Docker) -> Result<Ipv4Addr> {
    let format = "{{(index .Endpoint.VirtualIPs 0).Addr}}";
    let text = docker.run(&["service", "inspect", "--format", format, SERVICE])?;
    let address = text.trim().split('/').next().unwrap_or_default();
    address.parse().with_context(|| format!("the virtual IP of {SERVICE}: {text}"))
}

/// A container on the network, from whose namespace connections are opened.
struct Client {
    node: String,
    netns: Netns,
}

impl Client {
    fn attach(cluster: &Cluster, node: &NodeRecord) -> Result<Self> {
        let mesh = Docker::towards(&node.mesh_host);
        let name = ["--network", NETWORK, "--name", CLIENT];
        mesh.run(&[&["run", "--detach", "--log-driver=none"], &name[..], &["whoami"]].concat())?;
        let engine = Docker::towards(&cluster.node(&node.name)?.docker_host);
        let pid = engine.run(&["inspect", "--format", "{{.State.Pid}}", CLIENT])?;
        let pid = pid.trim().parse().with_context(|| format!("the process of {CLIENT}: {pid}"))?;
        Ok(Self { node: node.name.clone(), netns: Netns::of_process(pid) })
    }

    fn ask(&self, server: SocketAddrV4) -> Result<()> {
        self.netns.run(|| crate::client::load::ask(server, "/").map(drop))
    }
}

/// The connections from one node.
struct Traffic {
    node: String,
    load: LoadGenerator,
    downloads: Downloads,
}

impl Traffic {
    fn start(client: &Client, server: SocketAddrV4, args: &VirtualIpsArgs) -> Self {
        Self {
            node: client.node.clone(),
            load: LoadGenerator::start_patient(&client.netns, &[server], "/", args.rate, SLOW),
            downloads: Downloads::start(&client.netns, &[server], args.downloads, LASTING),
        }
    }

    /// The outcomes of the connections, how many seconds they were opened for, and the outcomes of
    /// the downloads.
    fn stop(self) -> Result<(Report, f64, Seen)> {
        let seen = self.downloads.finish()?;
        let seconds = self.load.elapsed().as_secs_f64();
        Ok((self.load.stop()?, seconds, seen))
    }
}

fn change_everything(cluster: &Cluster, replicas: usize, binaries: &Binaries) -> Result<()> {
    let docker = cluster.docker()?;
    timed("stop-first update", || update(cluster, &docker, replicas, &["--env-add=V=1"]))?;
    timed("start-first update", || {
        update(cluster, &docker, replicas, &["--update-order=start-first", "--env-add=V=2"])
    })?;
    timed("scaling down and up", || {
        docker.run(&["service", "scale", "--detach", &format!("{SERVICE}={FEWER}")])?;
        cluster.wait_running(SERVICE, FEWER, UPDATE_PATIENCE)?;
        docker.run(&["service", "scale", "--detach", &format!("{SERVICE}={replicas}")])?;
        cluster.wait_running(SERVICE, replicas, UPDATE_PATIENCE).map(drop)
    })?;
    let worker = cluster.record.nodes.iter().find(|node| !node.manager).context("the lab has no worker")?;
    timed(&format!("drain of {}", worker.name), || drain(cluster, &docker, &worker.name, replicas))?;
    timed("control plane dead and back", || outlive_the_control_plane(cluster, binaries))
}

fn timed(what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    work().with_context(|| what.to_owned())?;
    println!("{what}: {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

fn update(cluster: &Cluster, docker: &Docker, replicas: usize, flags: &[&str]) -> Result<()> {
    rolling::begin(docker, SERVICE, flags)?;
    rolling::wait_until(docker, SERVICE, "completed", UPDATE_PATIENCE)?;
    cluster.wait_running(SERVICE, replicas, PATIENCE).map(drop)
}

fn drain(cluster: &Cluster, docker: &Docker, node: &str, replicas: usize) -> Result<()> {
    docker.run(&["node", "update", "--availability", "drain", node])?;
    eventually("the drained node without tasks", UPDATE_PATIENCE, || {
        let left = cluster.containers(SERVICE)?.remove(node).unwrap_or_default();
        ensure!(left.is_empty(), "containers on {node}: {left:?}");
        Ok(())
    })?;
    docker.run(&["node", "update", "--availability", "active", node])?;
    cluster.wait_running(SERVICE, replicas, UPDATE_PATIENCE).map(drop)
}

/// Kills every manager's mesh-control and etcd, and starts them again some time later.
fn outlive_the_control_plane(cluster: &Cluster, binaries: &Binaries) -> Result<()> {
    let mut lab = Lab::open(&cluster.layout)?;
    let managers = || cluster.record.nodes.iter().filter(|node| node.manager);
    for component in [Component::Control, Component::Etcd] {
        for manager in managers() {
            lab.kill(&manager.name, Part::One(component))?;
        }
    }
    thread::sleep(DEAD);
    for component in [Component::Etcd, Component::Control] {
        for manager in managers() {
            lab.start(&manager.name, Part::One(component), binaries)?;
        }
    }
    let docker = cluster.docker()?;
    eventually("every node to be Ready", PATIENCE, || {
        let rows = docker.run(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        ensure!(rows.lines().all(|row| row.ends_with(" Ready")), "nodes: {rows}");
        Ok(())
    })
}

/// The packets that the programs of all nodes dropped, by reason.
fn drops(cluster: &Cluster) -> Result<BTreeMap<String, f64>> {
    let mut all = BTreeMap::new();
    for node in &cluster.record.nodes {
        for line in cluster.metrics(node)?.lines() {
            let Some(sample) = line.strip_prefix("mesh_dropped_packets_total{") else { continue };
            let Some((labels, count)) = sample.split_once("} ") else { bail!("a sample: {line}") };
            let count: f64 = count.trim().parse().with_context(|| format!("a sample: {line}"))?;
            *all.entry(labels.to_owned()).or_default() += count;
        }
    }
    Ok(all)
}
