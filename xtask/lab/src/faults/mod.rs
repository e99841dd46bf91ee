//! `cargo xtask faults`: makes faults on the nodes of a lab under load, one after the other, and
//! checks after each what must hold of the cluster.
//!
//! A seed gives the order of the faults and the nodes that have them, so that a run can be
//! repeated. During each fault the number of tasks of a service is changed, so that the cluster has
//! something to do.

mod fault;
mod inflict;
mod invariants;
mod observe;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use mesh_checkout::setup;

use self::fault::{Bound, Fault, Round, Span};
use self::invariants::{Breach, Invariant};
use crate::artifacts::{self, Binaries};
use crate::client::load::{LoadGenerator, Report};
use crate::cluster::{Cluster, eventually};
use crate::layout::{LabName, Layout};
use crate::{Datapath, Lab, UpOptions};

/// A replicated service, whose number of tasks changes between these two.
const REPLICATED: &str = "web";
const REPLICAS: [usize; 2] = [5, 6];
/// A service with a task on each node.
const GLOBAL: &str = "each";
/// Their published ports.
const PORTS: [(&str, u16); 2] = [(REPLICATED, 8080), (GLOBAL, 8081)];
/// New connections per second to each node, to its ports in turn.
const RATE: u32 = 20;
/// The deadline of an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// The time within which the cluster is as it should be after a fault.
const SETTLING: Duration = Duration::from_mins(2);
/// Breaches of a round that are printed in full.
const SHOWN: usize = 8;

/// Arguments of `cargo xtask faults`.
#[derive(Debug, Args)]
pub struct FaultsArgs {
    /// What the order of the faults and their nodes follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Faults to make
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// Make these faults only; may be given several times
    #[arg(long, value_enum)]
    only: Vec<Fault>,
    /// Nodes of the lab; three of them are managers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..))]
    nodes: u8,
    /// The agents' data path
    #[arg(long, value_enum, default_value_t = Datapath::Tc)]
    datapath: Datapath,
    /// The lab's name
    #[arg(long, default_value = "faults")]
    name: LabName,
}

/// Makes a lab, its faults, and the table of faults and invariants; removes the lab if every
/// invariant held.
///
/// # Errors
/// An invariant was broken; the lab is kept for inspection then.
pub fn run(args: &FaultsArgs) -> Result<()> {
    setup::ensure()?;
    let binaries = artifacts::build()?;
    let layout = Layout::new(args.name.clone());
    let options = UpOptions {
        nodes: args.nodes,
        managers: 3,
        turnable_clock: true,
        small_disks: true,
        ..UpOptions::usual(args.datapath)
    };
    let mut lab = Lab::up(&layout, &options, &binaries).context("make the lab")?;
    let rounds = fault::plan(args.seed, args.rounds, usize::from(args.nodes), &args.only);
    let outcomes = make_all(&mut lab, &binaries, &rounds).with_context(|| {
        format!("seed {}; the lab is kept: cargo xtask lab --name {} down", args.seed, args.name)
    })?;
    print!("{}", table(&outcomes));
    let broken = outcomes.iter().filter(|(_, breaches)| !breaches.is_empty()).count();
    ensure!(
        broken == 0,
        "{broken} of {} rounds broke an invariant (--seed {}); the lab is kept: cargo xtask lab --name {} down",
        outcomes.len(),
        args.seed,
        args.name
    );
    Lab::down(&layout).context("remove the lab")
}

/// The fault of each round, with what it broke.
type Outcomes = Vec<(Fault, Vec<Breach>)>;

fn make_all(lab: &mut Lab, binaries: &Binaries, rounds: &[Round]) -> Result<Outcomes> {
    let cluster = Cluster::open(lab.layout().clone())?;
    let docker = cluster.docker()?;
    for (service, port) in PORTS {
        let (publish, replicas) = (format!("{port}:80"), format!("--replicas={}", REPLICAS[0]));
        let mode = if service == GLOBAL { "--mode=global" } else { replicas.as_str() };
        let flags = ["service", "create", "--quiet", "--detach", "--no-resolve-image", "--name", service];
        docker.run(&[&flags[..], &[mode, "--publish", &publish, "whoami"]].concat())?;
    }
    let mut wanted = BTreeMap::from([
        (REPLICATED.to_owned(), REPLICAS[0]),
        (GLOBAL.to_owned(), cluster.record.nodes.len()),
    ]);
    settle(&cluster, &wanted).context("before the first fault")?;
    let mut outcomes = Outcomes::new();
    for (number, round) in rounds.iter().enumerate() {
        let replicas = REPLICAS[(number + 1) % REPLICAS.len()];
        wanted.insert(REPLICATED.to_owned(), replicas);
        let breaches = one_round(lab, binaries, &cluster, *round, &wanted)
            .with_context(|| format!("round {} ({:?})", number + 1, round.fault))?;
        for (invariant, text) in breaches.iter().take(SHOWN) {
            println!("    {}: {text}", invariant.title());
        }
        outcomes.push((round.fault, breaches));
    }
    Ok(outcomes)
}

/// Makes one fault under load. Its breaches: invariants that don't hold once the cluster has had
/// its time to settle, and connections that failed beyond the fault's bound.
fn one_round(
    lab: &mut Lab,
    binaries: &Binaries,
    cluster: &Cluster,
    round: Round,
    wanted: &BTreeMap<String, usize>,
) -> Result<Vec<Breach>> {
    let docker = cluster.docker()?;
    let mut node = cluster.record.nodes.get(round.node).context("a node of the lab")?.name.clone();
    if round.fault == Fault::LeaderCutOff {
        node = eventually("a leader", SETTLING, || inflict::leader(&docker))?;
    }
    let since = Instant::now();
    let loads: Vec<(String, LoadGenerator)> = cluster
        .record
        .nodes
        .iter()
        .map(|node| {
            let servers = PORTS.map(|(_, port)| SocketAddrV4::new(node.ip, port));
            (node.name.clone(), LoadGenerator::start_patient(&cluster.client(), &servers, "/", RATE, ANSWER))
        })
        .collect();
    let scale = format!("{REPLICATED}={}", wanted[REPLICATED]);
    // Any manager takes it; one whose node has the fault may not.
    let scaled = || {
        cluster.record.nodes.iter().filter(|other| other.name != node).any(|other| {
            let docker = crate::cluster::Docker::towards(&other.mesh_host);
            docker.run(&["service", "scale", "--detach", &scale]).is_ok()
        })
    };
    let mut was_scaled = false;
    let span = inflict::inflict(lab, binaries, round.fault, &node, since, || was_scaled = scaled())?;
    if !was_scaled {
        eventually("docker service scale to be taken", SETTLING, || {
            ensure!(scaled(), "no manager takes it");
            Ok(())
        })?;
    }
    let healed = Instant::now();
    let settled = settle(cluster, wanted);
    let took = healed.elapsed();
    let mut breaches = match settled {
        Ok(()) => Vec::new(),
        Err(_) => invariants::breaches(&observe::look(cluster, wanted.keys())?, wanted),
    };
    let (mut answered, mut failed) = (0, 0);
    for (name, load) in loads {
        let report = load.stop()?;
        answered += report.answered();
        failed += report.failures.len();
        breaches.extend(lost(&name, &report, name == node, round.fault.bound(), span));
    }
    println!(
        "{:?} on {node}: settled after {:.1} s, {answered} answered, {failed} failed, {} breaches",
        round.fault,
        took.as_secs_f64(),
        breaches.len()
    );
    Ok(breaches)
}

/// The connections to a node's address that failed beyond the fault's bound.
fn lost(name: &str, report: &Report, is_faulty: bool, bound: Bound, span: Span) -> Vec<Breach> {
    let allowed = if is_faulty { bound.own } else { bound.others };
    let begun = span.begun.as_secs_f64();
    let beyond = report.failures.iter().filter(|(opened, _)| !allowed.covers(*opened, span));
    beyond
        .map(|(opened, why)| {
            let after = opened.as_secs_f64() - begun;
            (Invariant::Connections, format!("through {name}, {after:+.1} s from the fault's begin: {why}"))
        })
        .collect()
}

/// Waits until the cluster is as it should be.
fn settle(cluster: &Cluster, wanted: &BTreeMap<String, usize>) -> Result<()> {
    eventually(&format!("the cluster to have {}", observe::shown(wanted)), SETTLING, || {
        let breaches = invariants::breaches(&observe::look(cluster, wanted.keys())?, wanted);
        match breaches.first() {
            None => Ok(()),
            Some((_, text)) => bail!("{} breaches, the first: {text}", breaches.len()),
        }
    })
}

/// The table of faults and invariants: how many rounds of each fault there were, and how many of
/// them broke each invariant.
fn table(outcomes: &Outcomes) -> String {
    let titles = Invariant::ALL.map(|invariant| format!(" {} |", invariant.title())).concat();
    let mut text =
        format!("\n| fault | rounds |{titles}\n|---|---|{}\n", "---|".repeat(Invariant::ALL.len()));
    let mut faults: Vec<Fault> = outcomes.iter().map(|(fault, _)| *fault).collect();
    faults.sort_unstable();
    faults.dedup();
    for fault in faults {
        let rounds: Vec<&Vec<Breach>> =
            outcomes.iter().filter(|(other, _)| *other == fault).map(|(_, breaches)| breaches).collect();
        let cells = Invariant::ALL.map(|invariant| {
            let broken = rounds.iter().filter(|breaches| breaches.iter().any(|(kind, _)| *kind == invariant));
            match broken.count() {
                0 => " held |".to_owned(),
                count => format!(" broken in {count} |"),
            }
        });
        // Writing to a String can't fail.
        _ = writeln!(text, "| {fault:?} | {} |{}", rounds.len(), cells.concat());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_outside_of_the_bound_is_lost() {
        let seconds = Duration::from_secs;
        let span = Span { begun: seconds(2), healed: seconds(22) };
        let report = Report {
            failures: vec![(seconds(3), "cut".to_owned()), (seconds(15), "cut".to_owned())],
            ..Report::default()
        };
        let count = |fault: Fault, is_faulty| lost("a", &report, is_faulty, fault.bound(), span).len();
        assert_eq!(count(Fault::NodeKilled, true), 0, "the dead node's own address");
        assert_eq!(count(Fault::NodeKilled, false), 1, "another node, long after it was noticed");
        assert_eq!(count(Fault::AgentKilled, true), 2, "an agent's death costs nothing");
    }

    #[test]
    fn the_table_counts_rounds_and_breaches() {
        let broken = vec![(Invariant::Tables, "x".to_owned()), (Invariant::Tables, "y".to_owned())];
        let outcomes = vec![(Fault::EtcdKilled, broken), (Fault::EtcdKilled, Vec::new())];
        let text = table(&outcomes);
        let row = "| EtcdKilled | 2 | held | held | held | broken in 1 | held | held |";
        assert!(text.contains(row), "{text}");
    }
}
