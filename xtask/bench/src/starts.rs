//! Measures what a task's overlay networks cost at its start: a task without networks against one
//! on two, in turns, on one node of a lab.
//!
//! A start lasts from the moment at which the leader makes the task to the one at which its node
//! has it running, by the task's own record. The lab's processes share one clock.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use chrono::DateTime;
use mesh_checkout::setup;
use mesh_lab::layout::Layout;
use mesh_lab::{Datapath, Lab, UpOptions, artifacts};
use serde_json::Value;

use super::api::{Api, until};
use super::report;
use super::samples::Samples;

const LAB: &str = "bench-starts";
const ROUNDS: usize = 20;
/// Rounds in which the first task of its networks on the node is measured too.
const FIRST_ROUNDS: usize = 5;
/// The most that a start on two networks may take, as a multiple of one on none.
const TARGET: f64 = 1.3;
const NODE: &str = "node-3";

/// What is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// A task without networks.
    Alone,
    /// A task on two networks, which another task on its node is on too.
    Networked,
    /// The node's first task on two networks.
    First,
}

/// Measures, prints the results, and writes the report unless `quick`.
pub(super) fn run(quick: bool) -> Result<()> {
    setup::ensure()?;
    let layout = Layout::new(LAB.parse()?);
    let lab = Lab::up(&layout, &UpOptions::usual(Datapath::Tc), &artifacts::build()?)?;
    let bench = Bench {
        cluster: Api::of_cluster(&layout.node(1)),
        engine: Api::of_engine(&lab.node(NODE)?),
        constraint: format!("node.hostname=={NODE}"),
    };
    let rounds = if quick { 1 } else { ROUNDS };
    let text = bench.measure(rounds);
    Lab::down(&layout)?;
    let text = text?;
    println!("{text}");
    if quick { Ok(()) } else { report::write("starts", &section(&text), &[]) }
}

struct Bench {
    cluster: Api,
    engine: Api,
    constraint: String,
}

impl Bench {
    fn measure(&self, rounds: usize) -> Result<String> {
        let shared = [self.cluster.create_network("one")?, self.cluster.create_network("two")?];
        let shared = [shared[0].as_str(), shared[1].as_str()];
        let resident = self.cluster.create_service("resident", &shared, 1, &[&self.constraint])?;
        self.started("resident")?;
        let (mut alone, mut networked, mut first) =
            (Samples::default(), Samples::default(), Samples::default());
        let mut ratios = Samples::default();
        for round in 1..=rounds {
            let order = [Start::Alone, Start::Networked];
            let order = if round % 2 == 0 { [order[1], order[0]] } else { order };
            let mut took = [0.0; 2];
            for start in order {
                let networks: &[&str] = if start == Start::Alone { &[] } else { &shared };
                took[usize::from(start == Start::Networked)] = self.start(networks)?;
            }
            alone.push(took[0]);
            networked.push(took[1]);
            ratios.push(took[1] / took[0]);
            println!("starts: round {round} of {rounds}: {:.0} and {:.0} ms", took[0], took[1]);
            if round <= FIRST_ROUNDS {
                first.push(self.first(round)?);
            }
        }
        self.cluster.delete(&format!("/services/{resident}"))?;
        Ok(table(&[(Start::Alone, &alone), (Start::Networked, &networked), (Start::First, &first)], &ratios))
    }

    /// Milliseconds of the start of the node's first task on two new networks.
    fn first(&self, round: usize) -> Result<f64> {
        let one = self.cluster.create_network(&format!("first-{round}"))?;
        let two = self.cluster.create_network(&format!("second-{round}"))?;
        self.start(&[&one, &two])
    }

    /// Milliseconds of the start of a task on these networks. It is gone afterwards.
    fn start(&self, networks: &[&str]) -> Result<f64> {
        let before = self.containers()?;
        let service = self.cluster.create_service("started", networks, 1, &[&self.constraint])?;
        let took = self.started("started")?;
        self.cluster.delete(&format!("/services/{service}"))?;
        until("the task's container to go", || Ok((self.containers()? <= before).then_some(())))?;
        Ok(took)
    }

    /// Milliseconds of the start of the service's one task, once it runs.
    fn started(&self, service: &str) -> Result<f64> {
        let path = format!("/tasks?filters=%7B%22service%22%3A%5B%22{service}%22%5D%7D");
        let task = until("the task to run", || {
            let tasks = self.cluster.get(&path)?;
            let runs = |task: &&Value| task["Status"]["State"] == "running";
            Ok(tasks.as_array().into_iter().flatten().find(runs).cloned())
        })?;
        let moment = |value: &Value| {
            DateTime::parse_from_rfc3339(value.as_str().unwrap_or_default())
                .with_context(|| format!("a moment of {task}"))
        };
        let took = moment(&task["Status"]["Timestamp"])? - moment(&task["CreatedAt"])?;
        Ok(took.as_seconds_f64() * 1000.0)
    }

    /// The number of containers on the node.
    fn containers(&self) -> Result<usize> {
        let listed = self.engine.get("/containers/json?all=1")?;
        Ok(listed.as_array().context("a list of containers")?.len())
    }
}

fn table(rows: &[(Start, &Samples)], ratios: &Samples) -> String {
    let mut text = "| start of a task | median, ms | of all starts |\n|---|---|---|\n".to_owned();
    for (start, samples) in rows {
        let name = match start {
            Start::Alone => "on no network",
            Start::Networked => "on two networks",
            Start::First => "on two networks, the first of its node there",
        };
        let (median, least, most) = (samples.median(), samples.least(), samples.most());
        // Writing to a String can't fail.
        _ = writeln!(text, "| {name} | {median:.0} | {least:.0}–{most:.0} |");
    }
    let verdict = if ratios.median() <= TARGET { "met" } else { "missed" };
    _ = writeln!(
        text,
        "\nTwo networks ÷ none: {:.2} ({:.2}–{:.2} of all rounds); target ≤ {TARGET} {verdict}.",
        ratios.median(),
        ratios.least(),
        ratios.most()
    );
    text
}

fn section(table: &str) -> String {
    format!(
        "## What networks cost at a task's start\n\n\
         `cargo xtask bench starts`: services of one task are created on one node of a lab of three, on two networks and on none in turns, \
         {ROUNDS} rounds; medians, and the median of the ratios within one round. A start lasts from the making of the task by the leader to \
         its state RUNNING, by the task's record. Other tasks of the node are on the networks already; where none is, its Docker networks \
         are made first.\n\n{table}"
    )
}
