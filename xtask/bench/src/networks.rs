//! Measures what the next network and the next service cost in a cluster that has many: 200
//! networks and 500 services on three nodes, of which a few services have tasks.
//!
//! The figures of the first and of the last ones are compared: how long the API takes, and the CPU
//! time that manager and agents spend on each change.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_checkout::setup;
use mesh_lab::component::Component;
use mesh_lab::layout::Layout;
use mesh_lab::{Datapath, Lab, UpOptions, artifacts};

use super::api::{Api, until};
use super::report;
use super::samples::Samples;

const LAB: &str = "bench-networks";
const NETWORKS: usize = 200;
const SERVICES: usize = 500;
const QUICK: usize = 10;
/// How many of the first and of the last ones are compared.
const ENDS: usize = 20;
/// Every so many networks, one of its services has a task on each node.
const WITH_TASKS: usize = 20;
/// The most that the creation of the last network may take, as a multiple of the first one's.
const TARGET: f64 = 2.0;
/// The time in which the nodes take in what was created last.
const SETTLE: Duration = Duration::from_secs(2);
/// The time over which the CPU time of a cluster at rest is measured.
const REST: Duration = Duration::from_secs(3);

/// The daemons whose CPU time is compared: the manager's control, its agent, a worker's agent.
const DAEMONS: [(&str, &str, Component); 3] = [
    ("control", "node-1", Component::Control),
    ("the manager's agent", "node-1", Component::Agent),
    ("a worker's agent", "node-3", Component::Agent),
];

/// Measures, prints the results, and writes the report unless `quick`.
pub(super) fn run(quick: bool) -> Result<()> {
    setup::ensure()?;
    let layout = Layout::new(LAB.parse()?);
    let lab = Lab::up(&layout, &UpOptions::usual(Datapath::Tc), &artifacts::build()?)?;
    let (networks, services) = if quick { (QUICK, QUICK * 2) } else { (NETWORKS, SERVICES) };
    let text = grow(&lab, networks, services);
    Lab::down(&layout)?;
    let text = text?;
    println!("{text}");
    if quick { Ok(()) } else { report::write("networks", &section(&text), &[]) }
}

/// Times of one end of the run, in ms.
#[derive(Debug, Default)]
struct End {
    network: Samples,
    service: Samples,
    /// CPU time per change of each of [`DAEMONS`].
    cpu: [f64; DAEMONS.len()],
}

/// Creates networks, each with its share of the services. Returns the table.
fn grow(lab: &Lab, networks: usize, services: usize) -> Result<String> {
    let cluster = Api::of_cluster(&lab.layout().node(1));
    let ends = ENDS.min(networks / 2);
    let (mut first, mut last) = (End::default(), End::default());
    let (mut made, mut tasks) = (0, 0);
    let mut meter = Meter::start(lab, 0)?;
    for number in 1..=networks {
        if number == networks - ends + 1 {
            std::thread::sleep(SETTLE);
            meter = Meter::start(lab, number - 1 + made)?;
        }
        let end = if number <= ends { Some(&mut first) } else { None };
        let mut end = if number > networks - ends { Some(&mut last) } else { end };
        let asked = Instant::now();
        let network = cluster.create_network(&format!("net-{number}"))?;
        if let Some(end) = &mut end {
            end.network.push(millis(asked.elapsed()));
        }
        while made * networks < number * services {
            made += 1;
            let replicas =
                if number % WITH_TASKS == 1 && made * networks >= number * services { 3 } else { 0 };
            tasks += replicas;
            let asked = Instant::now();
            cluster.create_service(&format!("service-{made}"), &[&network], replicas, &[])?;
            if let Some(end) = &mut end {
                end.service.push(millis(asked.elapsed()));
            }
        }
        if number == ends || number == networks {
            std::thread::sleep(SETTLE);
            let end = if number == ends { &mut first } else { &mut last };
            end.cpu = meter.per_change(lab, number + made)?;
        }
        if number % WITH_TASKS == 0 {
            println!("networks: {number} networks, {made} services, {tasks} tasks");
        }
    }
    until("all tasks to run", || {
        let listed = cluster.get("/tasks")?;
        let listed = listed.as_array().context("a list of tasks")?;
        let running = listed.iter().filter(|task| task["Status"]["State"] == "running").count() as u64;
        Ok((running == tasks).then_some(()))
    })?;
    Ok(table(&first, &last, ends, networks, services))
}

/// Measures the CPU time that each of [`DAEMONS`] spends on a change, beyond what it spends at
/// rest.
struct Meter {
    begun: Instant,
    changes: usize,
    before: [f64; DAEMONS.len()],
    /// CPU time in one millisecond at rest.
    at_rest: [f64; DAEMONS.len()],
}

impl Meter {
    /// Measures the cluster at rest, after this many changes.
    fn start(lab: &Lab, changes: usize) -> Result<Self> {
        let (begun, earlier) = (Instant::now(), cpu_times(lab)?);
        std::thread::sleep(REST);
        let (before, rested) = (cpu_times(lab)?, millis(begun.elapsed()));
        let at_rest = std::array::from_fn(|index| (before[index] - earlier[index]) / rested);
        Ok(Self { begun: Instant::now(), changes, before, at_rest })
    }

    /// Milliseconds for each change since the start, when there have been `changes` in all.
    fn per_change(&self, lab: &Lab, changes: usize) -> Result<[f64; DAEMONS.len()]> {
        let (now, passed) = (cpu_times(lab)?, millis(self.begun.elapsed()));
        let spent = |index: usize| now[index] - self.before[index] - self.at_rest[index] * passed;
        Ok(std::array::from_fn(|index| spent(index).max(0.0) / count(changes - self.changes)))
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// CPU time of each of [`DAEMONS`] since its start, in ms.
fn cpu_times(lab: &Lab) -> Result<[f64; DAEMONS.len()]> {
    let mut times = [0.0; DAEMONS.len()];
    for (time, (name, node, component)) in times.iter_mut().zip(DAEMONS) {
        let record = lab.record().node(node).with_context(|| format!("no {node}"))?;
        let pid = record.pids.get(component).with_context(|| format!("{name} does not run"))?;
        let path = format!("/proc/{pid}/stat");
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        *time = cpu_ms(&text).with_context(|| format!("the times in {text}"))?;
    }
    Ok(times)
}

/// User and system time in the text of `/proc/PID/stat`, in ms. The kernel counts them in 1/100 s
/// for userspace, whatever its own ticks.
fn cpu_ms(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let (user, system): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(f64::from(user + system) * 10.0)
}

fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::INFINITY, f64::from)
}

fn table(first: &End, last: &End, ends: usize, networks: usize, services: usize) -> String {
    let mut text = format!(
        "| median, ms | the first {ends} networks | the last {ends} | last ÷ first | target |\n|---|---|---|---|---|\n"
    );
    let mut row = |name: &str, one: f64, other: f64, target: Option<f64>| {
        let verdict = |target: f64| if other / one <= target { "met" } else { "missed" };
        let target = target.map_or(String::new(), |target| format!("≤ {target} {}", verdict(target)));
        // Writing to a String can't fail.
        _ = writeln!(text, "| {name} | {one:.1} | {other:.1} | {:.2} | {target} |", other / one);
    };
    row("create a network", first.network.median(), last.network.median(), Some(TARGET));
    row("create a service on it", first.service.median(), last.service.median(), None);
    for ((name, _, _), (one, other)) in DAEMONS.iter().zip(first.cpu.into_iter().zip(last.cpu)) {
        row(&format!("CPU time of {name} for each of them (mean, without that at rest)"), one, other, None);
    }
    _ = writeln!(text, "\n{networks} networks, {services} services.");
    text
}

fn section(table: &str) -> String {
    format!(
        "## What the next network costs\n\n\
         `cargo xtask bench networks`: networks and services, on one network each, are created one after the other at a manager's API, in a \
         lab of three nodes with one manager. Every {WITH_TASKS}th network has a service with three tasks, the other services have none. The \
         target is that of networks.\n\n{table}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_a_process_are_found_behind_its_name() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 9 0 99 1 2";
        assert_eq!(cpu_ms(stat), Some(2000.0));
        assert_eq!(cpu_ms("nonsense"), None);
    }
}
