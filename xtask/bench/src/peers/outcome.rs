//! The results of the ways: tables, plots, and whether each target is met.

use std::fmt::Write as _;

use super::load::{Metric, Seen};
use super::way::Way;
use crate::plot::{self, Bar};
use crate::samples::Samples;

/// A target: the ratio of a way to another, by metric.
struct Target {
    way: Way,
    against: Way,
    least: [(Metric, f64); 3],
}

const fn target(way: Way, against: Way, new: f64, keep_alive: f64, bulk: f64) -> Target {
    let least = [(Metric::New, new), (Metric::KeepAlive, keep_alive), (Metric::Down, bulk)];
    Target { way, against, least }
}

const TARGETS: [Target; 6] = [
    target(Way::Tunnel, Way::NftVxlan, 1.25, 1.2, 1.05),
    target(Way::Tunnel, Way::Vxlan, 1.0, 1.0, 1.0),
    target(Way::Dsr, Way::Nft, 1.1, 0.95, 0.95),
    target(Way::Local, Way::Direct, 0.95, 0.95, 0.95),
    target(Way::Userspace, Way::Nginx, 1.2, 1.0, 1.0),
    target(Way::Relay, Way::NginxRemote, 0.7, 0.7, 0.7),
];

/// All measurements.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    seen: Vec<(usize, Way, Metric, Seen)>,
}

impl Outcomes {
    /// Adds a measurement of a round.
    pub(super) fn add(&mut self, round: usize, way: Way, metric: Metric, seen: Seen) {
        self.seen.push((round, way, metric, seen));
    }

    fn samples(&self, way: Way, metric: Metric, of: impl Fn(&Seen) -> f64) -> Samples {
        let mut samples = Samples::default();
        for (_, own, its, seen) in &self.seen {
            if *own == way && *its == metric {
                samples.push(of(seen));
            }
        }
        samples
    }

    /// The ratio of a way to another, round by round.
    fn ratio(&self, way: Way, against: Way, metric: Metric) -> Samples {
        let value = |round: usize, way: Way| {
            self.seen
                .iter()
                .find(|(r, w, m, _)| (*r, *w, *m) == (round, way, metric))
                .map(|found| found.3.value)
        };
        let mut samples = Samples::default();
        let rounds = self.seen.iter().map(|(round, ..)| *round).max().unwrap_or_default();
        for round in 1..=rounds {
            if let (Some(own), Some(other)) = (value(round, way), value(round, against)) {
                samples.push(own / other);
            }
        }
        samples
    }

    /// Both tables, in Markdown.
    pub(super) fn text(&self) -> String {
        let mut text = String::from(
            "| way | new connections/s | p99, ms | keep-alive requests/s | p99, ms | bulk to the client, Gbit/s | \
             bulk to the task, Gbit/s | to the client on one CPU |\n|---|---|---|---|---|---|---|---|\n",
        );
        for way in Way::ALL.into_iter().filter(|way| self.seen.iter().any(|seen| seen.1 == *way)) {
            let value = |metric| self.samples(way, metric, |seen| seen.value).median();
            let p99 = |metric| self.samples(way, metric, |seen| seen.p99_ms).median();
            // Writing to a String can't fail.
            _ = writeln!(
                text,
                "| {} | {:.0} | {:.2} | {:.0} | {:.2} | {:.2} | {:.2} | {} |",
                way.name(),
                value(Metric::New),
                p99(Metric::New),
                value(Metric::KeepAlive),
                p99(Metric::KeepAlive),
                value(Metric::Down),
                value(Metric::Up),
                if way.is_proxied() { String::new() } else { format!("{:.2}", value(Metric::DownOneCpu)) }
            );
        }
        text.push_str("\n| ratio within a round | median | of all rounds | target |\n|---|---|---|---|\n");
        for Target { way, against, least } in &TARGETS {
            for (metric, least) in least {
                let ratio = self.ratio(*way, *against, *metric);
                if ratio.is_empty() {
                    continue;
                }
                let word = if ratio.median() >= *least { "met" } else { "missed" };
                _ = writeln!(
                    text,
                    "| {} ÷ {}, {} | {:.2} | {:.2}–{:.2} | ≥ {least} {word} |",
                    way.name(),
                    against.name(),
                    metric.name(),
                    ratio.median(),
                    ratio.least(),
                    ratio.most()
                );
            }
            let costs = self.ratio(*way, *against, Metric::DownOneCpu);
            if !costs.is_empty() {
                _ = writeln!(
                    text,
                    "| {} ÷ {}, {} | {:.2} | {:.2}–{:.2} |  |",
                    way.name(),
                    against.name(),
                    Metric::DownOneCpu.name(),
                    costs.median(),
                    costs.least(),
                    costs.most()
                );
            }
        }
        text
    }

    /// A plot for each metric.
    pub(super) fn plots(&self) -> Vec<(&'static str, String)> {
        Metric::ALL
            .into_iter()
            .map(|metric| {
                let bars: Vec<Bar> = Way::ALL
                    .into_iter()
                    .filter(|way| metric != Metric::DownOneCpu || !way.is_proxied())
                    .map(|way| {
                        let samples = self.samples(way, metric, |seen| seen.value);
                        Bar {
                            label: way.name().to_owned(),
                            value: samples.median(),
                            least: samples.least(),
                            most: samples.most(),
                            target: None,
                        }
                    })
                    .collect();
                (file(metric), plot::bars(metric.name(), &bars))
            })
            .collect()
    }
}

const fn file(metric: Metric) -> &'static str {
    match metric {
        Metric::New => "peers-new.svg",
        Metric::KeepAlive => "peers-keep-alive.svg",
        Metric::Down => "peers-down.svg",
        Metric::Up => "peers-up.svg",
        Metric::DownOneCpu => "peers-down-one-cpu.svg",
    }
}

/// The section of the report.
pub(super) fn section(tables: &str, rounds: usize, ms: u32) -> String {
    let mut plots = String::new();
    for metric in Metric::ALL {
        // Writing to a String can't fail.
        _ = writeln!(plots, "![{}](xtask/bench/plots/{})", metric.name(), file(metric));
    }
    format!(
        "## What clients get\n\n\
         `cargo xtask bench peers`: a client, two nodes and a task on each, in namespaces of one machine, joined by veths and one \
         bridge; every way has namespaces of its own. One client thread and one server thread (`bench-load`, 64 bytes asked, 128 \
         answered out of memory): 32 connections at once for new ones and requests, 4 for bulk, {ms} ms each. {rounds} rounds, every \
         second one backwards; medians, and medians of ratios within one round. Connection tracking is on in all nodes, as an engine \
         leaves it; tunnels have an MTU of 1450; TCP's congestion control is reno, as one that paces (bbr) would be what is measured.\n\n\
         *direct*: the client has a route to the task by its node. *vxlan*: over the other node and a plain kernel VXLAN, both ways, \
         without balancing. *nft*: round-robin DNAT and masquerade by nftables, the task behind a route; *nft-vxlan*: behind that \
         VXLAN, the shape of Swarm's ingress. *haproxy*, *nginx*: Debian's, two threads or workers, the task on the same node; \
         *remote*: on the other one. *mesh tc tunnel*, *dsr*, *local*, *xdp*: mesh's programs; *userspace*, *relay*: its proxy, the \
         task on the same node or the other.\n\n\
         In bulk, where the kernel alone is between them, the client has one CPU and the task another: left to the scheduler, a way differs \
         from itself by more than from any other. Readers are woken for 128 KiB at a time. With both *on one CPU* the sum of all costs \
         counts, and nothing else.\n\n\
         {tables}\n{plots}\n\
         Not shown: real network cards and their offloads. veths hand whole 64 KiB packets on, which native XDP on a veth forbids: its \
         bulk is not what a card would give. Client, nodes and tasks share the machine's CPUs, so a way's cost is also its \
         neighbours' loss.\n"
    )
}
