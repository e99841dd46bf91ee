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
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use mesh_checkout::setup;

use self::fault::{Bound, Round, Severed};
pub(crate) use self::fault::{Fault, Span};
pub(crate) use self::inflict::leader;
use self::invariants::{Breach, Invariant};
use crate::artifacts::{self, Binaries};
use crate::client::held::{Connection, Held};
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
/// Connections to each node, to the service with a task on each, that stay open over a fault.
const HELD: usize = 6;
/// The overlay network and the secret that all tasks have.
const NETWORK: &str = "faults";
const SECRET: &str = "fault-secret";
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
    create_services(&cluster)?;
    let mut wanted = BTreeMap::from([
        (REPLICATED.to_owned(), REPLICAS[0]),
        (GLOBAL.to_owned(), cluster.record.nodes.len()),
    ]);
    settle(lab, &cluster, &wanted).context("before the first fault")?;
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

/// Makes the services; with a network, unless the data path carries none.
fn create_services(cluster: &Cluster) -> Result<()> {
    let docker = cluster.docker()?;
    let mut shared = vec!["--secret", SECRET];
    docker.run(&["secret", "create", "--label", "of=faults", SECRET, "/proc/sys/kernel/random/uuid"])?;
    if cluster.record.datapath != "userspace" {
        docker.run(&["network", "create", "--driver", "overlay", NETWORK])?;
        shared.extend(["--network", NETWORK]);
    }
    for (service, port) in PORTS {
        let (publish, replicas) = (format!("{port}:80"), format!("--replicas={}", REPLICAS[0]));
        let mode = if service == GLOBAL { "--mode=global" } else { replicas.as_str() };
        let flags = ["service", "create", "--quiet", "--detach", "--no-resolve-image", "--name", service];
        let own = [mode, "--publish", &publish, "--env", "WHOAMI_NODE={{.Node.Hostname}}", "whoami"];
        docker.run(&[&flags[..], &shared, &own].concat())?;
    }
    Ok(())
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
        node = eventually("a leader", SETTLING, || leader(&docker))?;
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
    let held = Held::open(&cluster.client(), &cluster.everywhere(PORTS[1].1), HELD, ANSWER);
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
    let settled = settle(lab, cluster, wanted);
    let took = healed.elapsed();
    let mut breaches = match settled {
        Ok(()) => Vec::new(),
        Err(_) => invariants::breaches(&observe::look(lab, cluster, wanted.keys())?, wanted),
    };
    let (mut answered, mut failed) = (0, 0);
    for (name, load) in loads {
        let report = load.stop()?;
        answered += report.answered();
        failed += report.failures.len();
        breaches.extend(lost(&name, &report, name == node, round.fault.bound(), span));
    }
    let connections = held.release()?;
    let broken = connections.iter().filter(|connection| connection.broken.is_some()).count();
    let address = cluster.node(&node)?.ip;
    breaches.extend(severed(&connections, &node, address, round.fault.severs()));
    println!(
        "{:?} on {node}: settled after {:.1} s, {answered} answered, {failed} failed, {broken} of {} held \
         connections broken, {} breaches",
        round.fault,
        took.as_secs_f64(),
        connections.len(),
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

/// The held connections that broke although the fault, on `node` with `address`, left them a path.
fn severed(connections: &[Connection], node: &str, address: Ipv4Addr, allowed: Severed) -> Vec<Breach> {
    let broken = connections.iter().filter_map(|connection| Some((connection, connection.broken.as_ref()?)));
    let unexpected = broken.filter(|(connection, _)| {
        let its_task = connection.first.contains(&format!("\"node\":\"{node}\""));
        let through_it = *connection.server.ip() == address;
        match allowed {
            Severed::None => true,
            Severed::ToItsTasks => !its_task,
            Severed::ThroughIt => !its_task && !through_it,
        }
    });
    unexpected
        .map(|(connection, (at, why))| {
            let (server, first) = (connection.server, connection.first.trim());
            let text = format!(
                "held connection to {server}, broken after {:.1} s: {why}; {first}",
                at.as_secs_f64()
            );
            (Invariant::Connections, text)
        })
        .collect()
}

/// Waits until the cluster is as it should be, with so many tasks of each service.
///
/// # Errors
/// It isn't within [`SETTLING`]; the message has the first invariant that is broken.
pub(crate) fn settle(lab: &Lab, cluster: &Cluster, wanted: &BTreeMap<String, usize>) -> Result<()> {
    eventually(&format!("the cluster to have {}", observe::shown(wanted)), SETTLING, || {
        let breaches = invariants::breaches(&observe::look(lab, cluster, wanted.keys())?, wanted);
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
    fn a_held_connection_with_a_path_must_last() {
        let address = Ipv4Addr::new(10, 77, 0, 12);
        let broken = |through: Ipv4Addr, task_on: &str| Connection {
            server: SocketAddrV4::new(through, 8081),
            first: format!("{{\"task\":\"each.x\",\"node\":\"{task_on}\"}}"),
            broken: Some((Duration::from_secs(3), "reset".to_owned())),
        };
        let other = Ipv4Addr::new(10, 77, 0, 11);
        let connections = [
            broken(address, "node-1"),
            broken(other, "node-2"),
            broken(other, "node-1"),
            Connection { broken: None, ..broken(other, "node-1") },
        ];
        let count = |allowed| severed(&connections, "node-2", address, allowed).len();
        assert_eq!(count(Severed::None), 3);
        assert_eq!(count(Severed::ToItsTasks), 2, "one through it, one that has nothing to do with it");
        assert_eq!(count(Severed::ThroughIt), 1, "one that has nothing to do with it");
    }

    #[test]
    fn the_table_counts_rounds_and_breaches() {
        let broken = vec![(Invariant::Tables, "x".to_owned()), (Invariant::Tables, "y".to_owned())];
        let outcomes = vec![(Fault::EtcdKilled, broken), (Fault::EtcdKilled, Vec::new())];
        let text = table(&outcomes);
        let row = "| EtcdKilled | 2 | held | held | held | held | broken in 1 | held | held | held |";
        assert!(text.contains(row), "{text}");
    }
}
