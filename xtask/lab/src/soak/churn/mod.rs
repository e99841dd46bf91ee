//! Services, tasks and nodes come and go for a long time under steady load: no connection fails,
//! and memory, descriptors and the store don't grow.

mod acts;
mod figures;

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use mesh_checkout::setup;
use rand::SeedableRng;
use rand::rngs::StdRng;

use self::acts::{Act, REPLICAS};
use self::figures::{Samples, Trend};
use crate::artifacts;
use crate::client::http;
use crate::client::load::LoadGenerator;
use crate::cluster::{Cluster, eventually, samples};
use crate::component::{Component, ETCD_HEALTH_PORT};
use crate::layout::{LabName, Layout};
use crate::netns::Netns;
use crate::record::Record;
use crate::{Datapath, Lab, UpOptions};

/// The service that is under load, and its port.
const SERVICE: &str = "steady";
const PORT: u16 = 8080;
/// New connections per second, to the nodes in turn.
const RATE: u32 = 60;
/// The deadline of an answer on a busy machine.
const ANSWER: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_mins(2);
/// Failures that are printed.
const SHOWN: usize = 10;

/// Arguments of `cargo xtask soak` and `cargo xtask soak churn`.
#[derive(Debug, Clone, Args)]
pub(super) struct ChurnArgs {
    /// How long the cluster changes under load, minutes
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// What the choice of nodes follows from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The agents' data path
    #[arg(long, value_enum, default_value_t = Datapath::Tc)]
    datapath: Datapath,
    /// The lab's name
    #[arg(long, default_value = "soak-churn")]
    name: LabName,
}

/// Makes a lab, changes it for the given time, and removes it if every check held.
///
/// # Errors
/// A connection failed, or a figure grew; the lab is kept for inspection then.
pub(super) fn run(args: &ChurnArgs) -> Result<()> {
    setup::ensure()?;
    let binaries = artifacts::build()?;
    let layout = Layout::new(args.name.clone());
    let lab = Lab::up(&layout, &UpOptions::usual(args.datapath), &binaries).context("make the lab")?;
    hold(&lab, args)
        .with_context(|| format!("the lab is kept: cargo xtask lab --name {} down", args.name))?;
    Lab::down(&layout).context("remove the lab")
}

fn hold(lab: &Lab, args: &ChurnArgs) -> Result<()> {
    let cluster = Cluster::open(lab.layout().clone())?;
    let docker = cluster.docker()?;
    let (publish, replicas) = (format!("{PORT}:80"), format!("--replicas={REPLICAS}"));
    let flags = ["service", "create", "--quiet", "--detach", "--no-resolve-image", "--name", SERVICE];
    docker
        .run(&[&flags[..], &[&replicas, "--publish", &publish, "--update-monitor=1s", "whoami"]].concat())?;
    // The last node leaves the cluster now and then.
    let mut servers = cluster.everywhere(PORT);
    servers.pop();
    for server in &servers {
        eventually(&format!("{server} to answer"), PATIENCE, || cluster.ask(*server, "/").map(drop))?;
    }
    let load = LoadGenerator::start_patient(&cluster.client(), &servers, "/", RATE, ANSWER);
    let mut taken = Samples::new();
    let changed = change(lab, &cluster, args, &mut taken);
    let report = load.stop()?;
    let trends = figures::trends(&taken);
    print!("{}", table(&trends));
    println!("{} answered, {} failed", report.answered(), report.failures.len());
    changed?;
    ensure!(report.answered() > 0, "no request was sent");
    let failures = &report.failures[..report.failures.len().min(SHOWN)];
    ensure!(failures.is_empty(), "{} connections failed: {failures:#?}", report.failures.len());
    let grown: Vec<&Trend> = trends.iter().filter(|trend| !trend.is_flat()).collect();
    ensure!(grown.is_empty(), "these figures grew: {grown:#?}");
    Ok(())
}

/// One act after the other until the time is over, with a sample of all figures after each cycle:
/// all acts leave the cluster as they found it.
fn change(lab: &Lab, cluster: &Cluster, args: &ChurnArgs, taken: &mut Samples) -> Result<()> {
    let (begun, lasting) = (Instant::now(), Duration::from_secs(60 * args.minutes));
    let mut random = StdRng::seed_from_u64(args.seed);
    for cycle in 1.. {
        for act in Act::ALL {
            act.perform(cluster, &mut random, cycle).with_context(|| format!("{act:?} in cycle {cycle}"))?;
        }
        sample(lab, taken)?;
        println!("cycle {cycle}, after {:.0} s", begun.elapsed().as_secs_f64());
        if begun.elapsed() >= lasting {
            break;
        }
    }
    Ok(())
}

/// Adds a sample of each daemon's memory and descriptors, and of the store's size.
fn sample(lab: &Lab, taken: &mut Samples) -> Result<()> {
    let record = Record::load(&lab.layout().record_file())?;
    let mut add = |name: String, value: f64| taken.entry(name).or_default().push(value);
    for node in &record.nodes {
        for component in [Component::Agent, Component::Control] {
            let Some(pid) = node.pids.get(component) else { continue };
            add(format!("{component} on {}: resident KiB", node.name), resident(pid)?);
            add(format!("{component} on {}: descriptors", node.name), descriptors(pid)?);
        }
        if node.pids.get(Component::Etcd).is_some() {
            let text = Netns::named(&node.netns)
                .run(|| http::get((Ipv4Addr::LOCALHOST, ETCD_HEALTH_PORT), "/metrics", http::DEADLINE))?
                .text();
            let name = "etcd_mvcc_db_total_size_in_use_in_bytes";
            let [bytes] = samples(&text, name, &[])[..] else { bail!("etcd shows no single {name}") };
            add(format!("etcd on {}: KiB in use", node.name), bytes / 1024.0);
        }
    }
    Ok(())
}

fn resident(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib =
        line.and_then(|line| line.trim().strip_suffix(" kB")).with_context(|| format!("VmRSS in {path}"))?;
    kib.trim().parse().with_context(|| format!("VmRSS in {path}: {kib}"))
}

#[expect(clippy::cast_precision_loss, reason = "a few thousand")]
fn descriptors(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&path).with_context(|| format!("list {path}"))?.count() as f64)
}

fn table(trends: &[Trend]) -> String {
    let row = |trend: &Trend| {
        let word = if trend.is_flat() { "flat" } else { "grew" };
        format!("| {} | {:.0} | {:.0} | {word} |\n", trend.name, trend.early, trend.late)
    };
    let head = "| figure | after the warm-up | at the end | |\n|---|---|---|---|\n".to_owned();
    head + &trends.iter().map(row).collect::<String>()
}
