//! The results of the cases: a table, a plot, and whether each target is met.

use std::fmt::Write as _;

use super::case::{Case, FLAT, RELATIONS, Relation};
use crate::plot::{self, Bar};
use crate::samples::Samples;

/// How far costs that must be equal may differ.
const TOLERANCE: f64 = 0.10;

/// A case with the samples of its rounds.
#[derive(Debug)]
pub(super) struct Outcome {
    case: Case,
    baseline_ns: Samples,
    one_line_ns: Samples,
    one_line_ratio: Samples,
    cost_ns: Samples,
    ratio: Samples,
    /// The nanoseconds of the case and of the one-line program, round by round.
    rounds: Vec<(f64, f64)>,
}

impl Outcome {
    /// A case without samples.
    pub(super) fn of(case: Case) -> Self {
        Self {
            case,
            baseline_ns: Samples::default(),
            one_line_ns: Samples::default(),
            one_line_ratio: Samples::default(),
            cost_ns: Samples::default(),
            ratio: Samples::default(),
            rounds: Vec::new(),
        }
    }

    /// Adds a round: the nanoseconds of the bare XDP_TX, of the one-line program, and of the case.
    pub(super) fn add(&mut self, baseline_ns: f64, one_line_ns: f64, cost_ns: f64) {
        self.baseline_ns.push(baseline_ns);
        self.one_line_ns.push(one_line_ns);
        self.one_line_ratio.push(one_line_ns / baseline_ns);
        self.cost_ns.push(cost_ns);
        self.ratio.push(cost_ns / baseline_ns);
        self.rounds.push((cost_ns, one_line_ns));
    }

    fn verdict(&self) -> String {
        self.case.target.map_or_else(String::new, |target| {
            let word = if self.ratio.median() <= target { "met" } else { "missed" };
            format!("≤ {target} {word}")
        })
    }
}

/// The table in Markdown, with the comparison of costs that must be equal.
pub(super) fn text(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "| packets | ns | bare XDP_TX, ns | with one line, ns | its ratio | ratio | of all rounds | target |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for outcome in outcomes {
        let Outcome { case, baseline_ns, one_line_ns, one_line_ratio, cost_ns, ratio, .. } = outcome;
        // Writing to a String can't fail.
        _ = writeln!(
            text,
            "| {} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2} | {:.2}–{:.2} | {} |",
            case.name,
            cost_ns.median(),
            baseline_ns.median(),
            one_line_ns.median(),
            one_line_ratio.median(),
            ratio.median(),
            ratio.least(),
            ratio.most(),
            outcome.verdict()
        );
    }
    text.push('\n');
    for relation in &RELATIONS {
        text.push_str(&related(outcomes, relation));
    }
    for names in FLAT {
        text.push_str(&flatness(outcomes, names));
    }
    text
}

/// The cost of one case relative to another, and the same ratio of the one-line program, round by
/// round.
fn related(outcomes: &[Outcome], relation: &Relation) -> String {
    let rounds = |name: &str| outcomes.iter().find(|o| o.case.name == name).map(|o| &o.rounds);
    let (Some(costs_of), Some(baseline)) = (rounds(relation.case), rounds(relation.other)) else {
        return String::new();
    };
    let (mut costs, mut lines) = (Samples::default(), Samples::default());
    for ((cost, line), (other_cost, other_line)) in costs_of.iter().zip(baseline) {
        costs.push(cost / other_cost);
        lines.push(line / other_line);
    }
    let verdict = relation.target.map_or_else(String::new, |target| {
        let word = if costs.median() <= target { "met" } else { "missed" };
        format!("; ≤ {target} {word}")
    });
    format!(
        "- {}, against {}: {:.2} times ({:.2}–{:.2}); one line of memory alone {:.2} times{verdict}\n",
        relation.case,
        relation.other,
        costs.median(),
        costs.least(),
        costs.most(),
        lines.median()
    )
}

/// Whether the cases of these names have equal costs. It compares the least of their rounds: what
/// else runs on the machine only adds to a cost, so the least is nearest to the program's own. The
/// ratio round by round shows how far single rounds lie from that.
fn flatness(outcomes: &[Outcome], names: &[&str]) -> String {
    let of = |name: &str| outcomes.iter().find(|o| o.case.name == name);
    let mut text = String::new();
    for name in names.iter().skip(1) {
        let (Some(first), Some(this)) = (names.first().and_then(|name| of(name)), of(name)) else { continue };
        let apart = this.cost_ns.least() / first.cost_ns.least() - 1.0;
        let mut paired = Samples::default();
        for ((cost, _), (other, _)) in this.rounds.iter().zip(&first.rounds) {
            paired.push(cost / other - 1.0);
        }
        let word = if apart.abs() <= TOLERANCE { "flat" } else { "not flat" };
        _ = writeln!(
            text,
            "- {name}, against {}: {:+.0} % ({word}, ±{:.0} % asked for); round by round {:+.0} % ({:+.0} to {:+.0})",
            names[0],
            apart * 100.0,
            TOLERANCE * 100.0,
            paired.median() * 100.0,
            paired.least() * 100.0,
            paired.most() * 100.0
        );
    }
    text
}

/// The section of the report.
pub(super) fn section(table: &str, rounds: u32) -> String {
    format!(
        "## What a packet costs\n\n\
         `cargo xtask bench packet`: live frames (`BPF_PROG_TEST_RUN`, 60 bytes, batches of 64) from one end of a veth pair meet \
         `mesh_xdp`, attached natively to the other. The generating program writes all headers of each frame. Flows come in an order \
         that is no order in memory, in a table for a quarter more. Figures are the kernel's own (`run_time_ns` ÷ `run_cnt`), its clock's ~20 ns included, on one CPU, or on two that send at once, each \
         its own flows. \
         What the program does: look the flow up, or select and write it, note what was seen, put the tunnel's headers in front, count \
         for backend and published port. Each case stands beside a bare XDP_TX measured right before it, and beside one that does one thing \
         more: it looks at a line of memory that is the flow's, in a table as large as the case's. Medians of {rounds} \
         alternating rounds, tables made anew in each.\n\n\
         {table}\n\
         ![ratio to a bare XDP_TX](xtask/bench/plots/packet.svg)\n\n\
         Not shown: a real network card, whose driver adds its own cost to both; more than two CPUs on one table; the way back; TC, where the \
         kernel's own work is far more than the program's. \"Spread\" services also cost what their counters cost in caches: \
         ten thousand services that all have traffic touch a few megabytes more.\n"
    )
}

/// Ratios as bars, with their targets.
pub(super) fn plot(outcomes: &[Outcome]) -> String {
    let bars: Vec<Bar> = outcomes
        .iter()
        .map(|outcome| Bar {
            label: outcome.case.name.to_owned(),
            value: outcome.ratio.median(),
            least: outcome.ratio.least(),
            most: outcome.ratio.most(),
            target: outcome.case.target,
        })
        .collect();
    plot::bars("mesh_xdp, ingress: cost of a packet as a multiple of a bare XDP_TX", &bars)
}
