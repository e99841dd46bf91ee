//! The results of the ways: tables, plots, and whether each target is met.

use std::fmt::Write as _;

use super::load::{Metric, Seen};
use super::way::{Group, Way};
use crate::plot::{self, Bar};
use crate::samples::Samples;

/// A target: the ratio of a way to another, by metric.
struct Target {
    way: Way,
    against: Way,
    least: [(Metric, Option<f64>); 5],
}

const fn target(way: Way, against: Way, new: f64, keep_alive: f64, bulk: Option<f64>) -> Target {
    let least = [
        (Metric::New, Some(new)),
        (Metric::KeepAlive, Some(keep_alive)),
        (Metric::Down, bulk),
        (Metric::Up, None),
        (Metric::DownOneCpu, None),
    ];
    Target { way, against, least }
}

const TARGETS: [Target; 9] = [
    target(Way::Tunnel, Way::NftVxlan, 1.25, 1.2, Some(1.05)),
    target(Way::Tunnel, Way::Vxlan, 1.0, 1.0, Some(1.0)),
    target(Way::Dsr, Way::Nft, 1.1, 0.95, Some(0.95)),
    target(Way::Local, Way::Direct, 0.95, 0.95, Some(0.95)),
    target(Way::Userspace, Way::Nginx, 1.2, 1.0, Some(1.0)),
    target(Way::Relay, Way::NginxRemote, 0.7, 0.7, Some(0.7)),
    target(Way::NetworkAddress, Way::BridgeVxlan, 1.3, 1.2, Some(1.1)),
    target(Way::NetworkVirtualIp, Way::BridgeNft, 1.5, 1.3, None),
    target(Way::NetworkLocal, Way::Bridge, 1.0, 1.0, Some(1.0)),
];

/// The measurements of all ways and metrics.
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

    /// Whether all ways of the group were measured.
    pub(super) fn has_all(&self, group: Group) -> bool {
        group.ways().all(|way| self.seen.iter().any(|seen| seen.1 == way))
    }

    /// Both tables of a group, in Markdown; empty if none of its ways was measured.
    pub(super) fn text(&self, group: Group) -> String {
        if !self.seen.iter().any(|seen| seen.1.group() == group) {
            return String::new();
        }
        let mut text = String::from(
            "| way | new connections/s | p99, ms | keep-alive requests/s | p99, ms | bulk to the client, Gbit/s | \
             bulk to the task, Gbit/s | to the client on one CPU |\n|---|---|---|---|---|---|---|---|\n",
        );
        for way in group.ways().filter(|way| self.seen.iter().any(|seen| seen.1 == *way)) {
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
        for Target { way, against, least } in TARGETS.iter().filter(|target| target.way.group() == group) {
            for (metric, least) in least {
                let ratio = self.ratio(*way, *against, *metric);
                if ratio.is_empty() {
                    continue;
                }
                let verdict = least.map_or_else(String::new, |least| {
                    let word = if ratio.median() >= least { "met" } else { "missed" };
                    format!("≥ {least} {word}")
                });
                _ = writeln!(
                    text,
                    "| {} ÷ {}, {} | {:.2} | {:.2}–{:.2} | {verdict} |",
                    way.name(),
                    against.name(),
                    metric.name(),
                    ratio.median(),
                    ratio.least(),
                    ratio.most()
                );
            }
        }
        text
    }

    /// A plot for each metric of a group.
    pub(super) fn plots(&self, group: Group) -> Vec<(String, String)> {
        Metric::ALL
            .into_iter()
            .map(|metric| {
                let bars: Vec<Bar> = group
                    .ways()
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
                (file(group, metric), plot::bars(metric.name(), &bars))
            })
            .collect()
    }
}

/// The part of a plot's file name that says what it shows.
const fn slug(metric: Metric) -> &'static str {
    match metric {
        Metric::New => "new",
        Metric::KeepAlive => "keep-alive",
        Metric::Down => "down",
        Metric::Up => "up",
        Metric::DownOneCpu => "down-one-cpu",
    }
}

/// The name of a group's section in the report, and of its plots.
pub(super) const fn subject(group: Group) -> &'static str {
    match group {
        Group::Published => "peers",
        Group::Networks => "task-to-task",
    }
}

/// The file of a plot.
pub(super) fn file(group: Group, metric: Metric) -> String {
    format!("{}-{}.svg", subject(group), slug(metric))
}
