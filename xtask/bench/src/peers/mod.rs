//! Measures what clients get through mesh and through other load balancers: new connections,
//! requests over open ones, bulk.
//!
//! Every [`way`] has a [`cluster`] of its own; rounds take them in turn, forth and back, and all
//! targets are ratios within one round.

mod cluster;
mod load;
mod mesh;
mod network;
mod outcome;
mod section;
mod way;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use mesh_checkout::workspace;

use self::load::{Metric, Place};
use self::outcome::Outcomes;
use self::way::{Group, Paved, Way};
use super::{leftovers, objects, report};

/// Rounds of a measured run.
const ROUNDS: usize = 7;
/// How long each measurement lasts.
const MEASURE_MS: u32 = 700;
const QUICK_MS: u32 = 100;
/// The most attempts at one measurement.
const MEASUREMENTS: u32 = 3;
/// How often a way is tried before it must work: programs and neighbour entries need a moment.
const ATTEMPTS: u32 = 20;

/// Measures all ways, or those named in `only`; prints the results, and writes the report of each
/// group whose ways were all measured.
pub(super) fn run(quick: bool, only: &[String]) -> Result<()> {
    let begun = Instant::now();
    let ways = chosen(only)?;
    let objects = objects::compile()?;
    let binaries = load::build(quick, ways.iter().any(|way| way.needs_proxy()))?;
    let prefix = leftovers::clear("mesh-peers-")?;
    let directory = workspace::target_dir().join("bench/peers");
    std::fs::create_dir_all(&directory).context("make the directory of configurations")?;
    let begun_measuring = Instant::now();
    let mut paved: Vec<(Way, Paved)> = Vec::new();
    for (number, way) in ways.into_iter().enumerate() {
        let made = way::pave(way, &format!("{prefix}-{number}"), &objects, &binaries, &directory);
        paved.push((way, made.with_context(|| format!("set up `{}`", way.name()))?));
    }
    println!("peers: {} ways set up after {} s", paved.len(), begun.elapsed().as_secs());
    let (rounds, ms) = if quick { (1, QUICK_MS) } else { (ROUNDS, MEASURE_MS) };
    for (way, made) in &paved {
        answers(&binaries, *way, made).with_context(|| format!("ask by `{}`", way.name()))?;
    }
    let mut outcomes = Outcomes::default();
    for round in 1..=rounds {
        for metric in Metric::ALL {
            let takes_part = |way: Way| metric != Metric::DownOneCpu || !way.is_proxied();
            let mut order: Vec<&(Way, Paved)> = paved.iter().filter(|(way, _)| takes_part(*way)).collect();
            if round % 2 == 0 {
                order.reverse();
            }
            for (way, made) in order {
                let seen = repeated(&binaries, *way, made, metric, ms)
                    .with_context(|| format!("{} by `{}`, round {round}", metric.name(), way.name()))?;
                outcomes.add(round, *way, metric, seen);
            }
        }
        println!("peers: round {round} of {rounds}, {} s so far", begun.elapsed().as_secs());
    }
    drop(paved);
    for group in Group::ALL {
        let text = outcomes.text(group);
        println!("{text}");
        if !quick && outcomes.has_all(group) {
            let section = section::section(group, &text, rounds, MEASURE_MS);
            report::write(outcome::subject(group), &section, &outcomes.plots(group))?;
        }
    }
    println!(
        "took {} s, {} of them after building",
        begun.elapsed().as_secs(),
        begun_measuring.elapsed().as_secs()
    );
    Ok(())
}

/// The ways, or groups of ways, with these names; all ways if there are none.
fn chosen(only: &[String]) -> Result<Vec<Way>> {
    let is_named = |way: Way, name: &str| way.name() == name || way.group().name() == name;
    for name in only {
        let is_known = Way::ALL.into_iter().any(|way| is_named(way, name));
        let names =
            || [Group::ALL.map(Group::name).join(", "), Way::ALL.map(Way::name).join(", ")].join(", ");
        ensure!(is_known, "there is no way `{name}`; there are: {}", names());
    }
    Ok(Way::ALL
        .into_iter()
        .filter(|way| only.is_empty() || only.iter().any(|name| is_named(*way, name)))
        .collect())
}

/// Repeats a measurement that fails, as on a busy machine, so that the other rounds are not lost.
fn repeated(
    binaries: &load::Binaries,
    way: Way,
    made: &Paved,
    metric: Metric,
    ms: u32,
) -> Result<load::Seen> {
    let place = metric.place(way.is_proxied());
    let measure = || {
        let measure = || load::measure(binaries, &made.cluster.client, way.destination(), metric, place, ms);
        if place == Place::Anywhere { measure() } else { made.cluster.on_first_cpu(measure) }
    };
    for _ in 1..MEASUREMENTS {
        match measure() {
            Ok(seen) => return Ok(seen),
            Err(error) => println!("peers: {} by `{}`, once more: {error:#}", metric.name(), way.name()),
        }
    }
    measure()
}

/// Waits until the way works.
fn answers(binaries: &load::Binaries, way: Way, made: &Paved) -> Result<()> {
    let (client, anywhere) = (&made.cluster.client, Place::Anywhere);
    let ask = || load::measure(binaries, client, way.destination(), Metric::New, anywhere, QUICK_MS);
    for _ in 1..ATTEMPTS {
        if ask().is_ok() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    ask().map(drop)
}
