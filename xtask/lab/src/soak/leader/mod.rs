//! The leader's machine is killed while a rolling update runs under load: another manager leads
//! within seconds, the API of the others goes on, the update comes to its end, no request fails
//! whose connection did not run through the dead machine. Then two of three etcd are killed.

mod quorum;
mod takeover;

use std::net::SocketAddrV4;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use mesh_checkout::setup;

use self::takeover::Takeover;
use super::managers::{self, api::Api, etcd};
use super::measured::Measured;
use super::polling::{Polled, Polling};
use super::rolling;
use super::traffic::{Outcome, Traffic};
use crate::artifacts::{self, Binaries};
use crate::cluster::{Cluster, eventually};
use crate::faults::{self, Fault, Span};
use crate::layout::{LabName, Layout};
use crate::{Datapath, Lab, Part, UpOptions};

const MANAGERS: [&str; 3] = ["node-1", "node-2", "node-3"];
const SERVICE: &str = "web";
const REPLICAS: usize = 6;
const PORT: u16 = 8080;
/// The pause between two reads of a manager's API.
const POLL_PAUSE: Duration = Duration::from_millis(50);
/// How long a connection that stays open is used: less than the drain of its task takes.
const KEPT_LIFE: Duration = Duration::from_secs(5);
/// The longest time until another manager leads, and until what a client writes is carried out.
const TAKEOVER_MAX: Duration = Duration::from_secs(5);
/// The longest time between two answers of a manager's API.
const GAP_MAX: Duration = Duration::from_secs(1);
/// How long a state of the cluster may take to come.
const PATIENCE: Duration = Duration::from_mins(2);
const UPDATE_PATIENCE: Duration = Duration::from_mins(5);

/// Arguments of `cargo xtask soak leader`.
#[derive(Debug, Args)]
pub(super) struct LeaderArgs {
    /// The lab's name
    #[arg(long, default_value = "soak-leader")]
    name: LabName,
    /// Requests per second to the surviving nodes' ports, a quarter of them over connections that
    /// stay open
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// How often the leader's machine is killed during an update of each order
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// The agents' data path
    #[arg(long, value_enum, default_value_t = Datapath::Tc)]
    datapath: Datapath,
}

/// Makes a lab of three managers, kills, and removes the lab if every bound was held.
///
/// # Errors
/// A bound was broken; the lab is kept for inspection then.
pub(super) fn run(args: &LeaderArgs) -> Result<()> {
    setup::ensure()?;
    let binaries = artifacts::build()?;
    let layout = Layout::new(args.name.clone());
    let options = UpOptions { managers: 3, empty: true, ..UpOptions::usual(args.datapath) };
    let mut lab = Lab::up(&layout, &options, &binaries).context("make the lab")?;
    let mut measured = Measured::default();
    let outcome = hold(&mut lab, args, &binaries, &mut measured);
    measured
        .conclude(outcome)
        .with_context(|| format!("the lab is kept: cargo xtask lab --name {} down", args.name))?;
    Lab::down(&layout).context("remove the lab")
}

fn hold(lab: &mut Lab, args: &LeaderArgs, binaries: &Binaries, measured: &mut Measured) -> Result<()> {
    let cluster = Cluster::open(lab.layout().clone())?;
    managers::form(&cluster, &MANAGERS, &[])?;
    etcd::follows(lab, MANAGERS[0], &MANAGERS)?;
    let docker = cluster.docker()?;
    let (publish, replicas) = (format!("{PORT}:80"), format!("--replicas={REPLICAS}"));
    let flags = ["service", "create", "--quiet", "--detach", "--no-resolve-image", "--name", SERVICE];
    let pace = ["--update-parallelism=1", "--update-delay=1s", "--update-monitor=1s"];
    docker.run(&[&flags[..], &pace, &[&replicas, "--publish", &publish, "whoami"]].concat())?;
    cluster.wait_running(SERVICE, REPLICAS, PATIENCE)?;
    for server in cluster.everywhere(PORT) {
        eventually(&format!("{server} to answer"), PATIENCE, || cluster.ask(server, "/").map(drop))?;
    }
    for round in 0..args.rounds {
        for order in ["stop-first", "start-first"] {
            let value = format!("--env-add=ROUND={round}-{order}");
            kill_the_leader(lab, args, binaries, (order, &value), measured)
                .with_context(|| format!("the leader's machine killed during a {order} update"))?;
        }
    }
    quorum::lose(lab, &cluster, args.rate, measured).context("two of three etcd killed")
}

/// Kills the leader's machine during an update, measures what that costs, and brings it back.
fn kill_the_leader(
    lab: &mut Lab,
    args: &LeaderArgs,
    binaries: &Binaries,
    (order, value): (&str, &str),
    measured: &mut Measured,
) -> Result<()> {
    let cluster = Cluster::open(lab.layout().clone())?;
    let leader = eventually("a leader", PATIENCE, || faults::leader(&cluster.docker()?))?;
    let survivors: Vec<&str> = MANAGERS.into_iter().filter(|name| *name != leader).collect();
    let (docker, api) = (managers::docker(&cluster, survivors[0])?, Api::of(&cluster, survivors[0])?);
    let led_etcd = etcd::leads(lab, &leader)?;
    let floor = takeover::floor(&api).context("a write before the leader's death")?;
    let traffic = start_traffic(&cluster, &survivors, args.rate)?;
    let polling = Polling::start(managers::sockets(&cluster, &survivors)?, POLL_PAUSE);
    rolling::begin(&docker, SERVICE, &[&format!("--update-order={order}"), value])?;
    rolling::wait_until(&docker, SERVICE, "updating", PATIENCE)?;

    let died = traffic.elapsed();
    let since = Instant::now();
    let seen = thread::scope(|scope| {
        let watch = scope.spawn(|| Takeover::measure(&api, &leader, since));
        let killed = lab.kill(&leader, Part::All);
        let seen = watch.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the watch panicked")));
        killed.and(seen)
    })?;
    let updated = rolling::wait_until(&docker, SERVICE, "completed", UPDATE_PATIENCE)
        .and_then(|()| docker.wait_running(SERVICE, REPLICAS, PATIENCE).map(drop));
    let finished = since.elapsed();
    let (polled, outcome) = (polling.stop()?, traffic.stop()?);
    tell(measured, order, &polled, &outcome, died);
    measured.tell(&format!("{order}: the dead machine led etcd, too"), led_etcd.to_string());
    measured.below(&format!("{order}: another manager leads"), seen.led, TAKEOVER_MAX);
    measured.below(&format!("{order}: what a client writes runs"), seen.runs, TAKEOVER_MAX);
    measured.tell(&format!("{order}: the same before the death"), format!("{:.2} s", floor.as_secs_f64()));
    measured.tell(&format!("{order}: a write was taken"), format!("{:.2} s", seen.taken.as_secs_f64()));
    measured.tell(&format!("{order}: writes refused with 503"), seen.refused.to_string());
    updated?;
    measured.tell(&format!("{order}: the update was complete"), format!("{:.0} s", finished.as_secs_f64()));

    let begun = Instant::now();
    lab.start(&leader, Part::All, binaries)?;
    managers::shows(&docker, &MANAGERS)?;
    etcd::follows(lab, survivors[0], &MANAGERS)?;
    takeover::clear(&docker)?;
    let wanted = [(SERVICE.to_owned(), REPLICAS)].into();
    faults::settle(lab, &Cluster::open(lab.layout().clone())?, &wanted)?;
    measured.tell(
        &format!("{order}: the machine was back and the cluster whole"),
        format!("{:.0} s", begun.elapsed().as_secs_f64()),
    );
    Ok(())
}

fn start_traffic(cluster: &Cluster, nodes: &[&str], rate: u32) -> Result<Traffic> {
    let server = |node: &&str| Ok(SocketAddrV4::new(cluster.node(node)?.ip, PORT));
    let servers = nodes.iter().map(server).collect::<Result<Vec<_>>>()?;
    Ok(Traffic::start(&cluster.client(), &servers, rate, Some(KEPT_LIFE)))
}

/// The figures of the traffic and of the polls. Requests that failed within the bound of a dead
/// machine, which `cargo xtask faults` states as well, count apart.
fn tell(measured: &mut Measured, order: &str, polled: &[Polled], outcome: &Outcome, died: Duration) {
    for polled in polled {
        let Polled { manager, answered, failures, gap } = polled;
        measured.some(&format!("{order}: reads that {manager} answered"), *answered);
        measured.none(&format!("{order}: reads that {manager} did not answer"), failures);
        measured.below(&format!("{order}: the longest time without an answer of {manager}"), *gap, GAP_MAX);
    }
    let span = Span { begun: died, healed: outcome.lasted };
    let through_the_dead = |at: Duration| Fault::NodeKilled.bound().others.covers(at, span);
    let text = |(at, why): &(Duration, String)| {
        format!("{:+.1} s from the death: {why}", at.as_secs_f64() - died.as_secs_f64())
    };
    let (lost, failed): (Vec<_>, Vec<_>) = outcome.failures.iter().partition(|(at, _)| through_the_dead(*at));
    for (at, why) in lost.iter().take(5) {
        println!("    {order}: {:+.1} s from the death: {why}", at.as_secs_f64() - died.as_secs_f64());
    }
    measured.some(&format!("{order}: answers on new connections"), outcome.answered[0]);
    measured.some(&format!("{order}: answers on connections that stay open"), outcome.answered[1]);
    measured.tell(&format!("{order}: answers per second"), format!("{:.0}", outcome.rate()));
    measured.tell(&format!("{order}: the slowest answer"), format!("{:.1} s", outcome.slowest.as_secs_f64()));
    measured.tell(
        &format!("{order}: requests lost with the dead machine's tasks (first 5 s)"),
        lost.len().to_string(),
    );
    let failed: Vec<String> = failed.into_iter().map(text).collect();
    measured.none(&format!("{order}: requests failed"), &failed);
}
