//! Measures how long it takes to create and scale a service: mesh against a real Swarm on the same
//! kind of engines, in turns.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::Result;
use mesh_swarm_diff::contender::{Contender, contenders};

use super::report;
use super::samples::Samples;

const ROUNDS: usize = 5;
/// The number of tasks to scale up to.
const MANY: usize = 60;
const FEW: usize = 6;

/// The measures in the order of the table: their names, and the targets as multiples of Swarm's
/// time.
const MEASURES: [(&str, Option<f64>); 4] = [
    ("create, until its one task runs", Some(0.8)),
    ("scale up, until all tasks run", Some(1.0)),
    ("create without a published port", None),
    ("scale up without a published port", None),
];
/// The services: a server that listens at once, and a command without a port.
const SERVER: &str = "--publish 8080:80 busybox httpd -f -p 80";
const SLEEPER: &str = "busybox sleep 100000";

/// The seconds of each measure in one round.
type Seen = [f64; MEASURES.len()];

/// Measures both clusters, prints the results, and writes the report unless `quick`.
pub(super) fn run(quick: bool) -> Result<()> {
    let (rounds, many) = if quick { (1, FEW) } else { (ROUNDS, MANY) };
    let both = contenders()?;
    let mut seen: [Vec<Seen>; 2] = Default::default();
    for round in 1..=rounds {
        let order = if round % 2 == 0 { [1, 0] } else { [0, 1] };
        for side in order {
            let times = measure(&both[side], many)?;
            println!("services: round {round}, {}: {times:.2?} s", both[side].name);
            seen[side].push(times);
        }
    }
    drop(both);
    let text = table(&seen, many);
    println!("{text}");
    if quick { Ok(()) } else { report::write("services", &section(&text, rounds), &[]) }
}

fn measure(cluster: &Contender, many: usize) -> Result<Seen> {
    let [created, scaled] = grow(cluster, SERVER, many)?;
    let [created_alone, scaled_alone] = grow(cluster, SLEEPER, many)?;
    Ok([created, scaled, created_alone, scaled_alone])
}

/// Seconds until a service runs, and until `many` of its tasks do.
fn grow(cluster: &Contender, what: &str, many: usize) -> Result<[f64; 2]> {
    // Docker's CLI would wait for some time longer on both alike, so it is run with `--detach`.
    let begun = Instant::now();
    cluster.run(&format!("docker service create --detach --name web --stop-signal KILL {what}"))?;
    cluster.wait_running("web", 1)?;
    let created = begun.elapsed();
    let begun = Instant::now();
    cluster.run(&format!("docker service scale --detach web={many}"))?;
    cluster.wait_running("web", many)?;
    let scaled = begun.elapsed();
    cluster.clean()?;
    Ok([created, scaled].map(|time| time.as_secs_f64()))
}

fn table([swarm, mesh]: &[Vec<Seen>; 2], many: usize) -> String {
    let mut text = format!(
        "| to {many} tasks on three nodes | Swarm, s | mesh, s | mesh ÷ Swarm | of all rounds | target |\n|---|---|---|---|---|---|\n"
    );
    for (index, (name, most)) in MEASURES.iter().enumerate() {
        let (mut own, mut others, mut ratios) = (Samples::default(), Samples::default(), Samples::default());
        for (theirs, ours) in swarm.iter().zip(mesh) {
            others.push(theirs[index]);
            own.push(ours[index]);
            ratios.push(ours[index] / theirs[index]);
        }
        let target = most.map_or(String::new(), |most| {
            format!("≤ {most} {}", if ratios.median() <= most { "met" } else { "missed" })
        });
        // Writing to a String can't fail.
        _ = writeln!(
            text,
            "| {name} | {:.2} | {:.2} | {:.2} | {:.2}–{:.2} | {target} |",
            others.median(),
            own.median(),
            ratios.median(),
            ratios.least(),
            ratios.most()
        );
    }
    text
}

fn section(table: &str, rounds: usize) -> String {
    format!(
        "## What a service takes\n\n\
         `cargo xtask bench services`: three real engines joined into a Swarm, and mesh on three of the same, both up at the same time and \
         measured in turns, {rounds} rounds; medians, and medians of ratios within one round. A service of busybox's `httpd` with a published \
         port, and then one of its `sleep` without any, is created with one replica and scaled up; the end is when the API shows its tasks \
         running, which at mesh's means that they listen. The images are there before.\n\n\
         {table}\n\
         Not shown: what the CLI waits by itself (five seconds of verification), pulling images, several managers.\n"
    )
}
