//! Builds the measuring programs, and takes one measurement.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use mesh_checkout::command::Program;
use mesh_checkout::workspace;
use mesh_lab::netns::Netns;

/// The programs that a run needs beside xtask.
#[derive(Debug)]
pub(super) struct Binaries {
    /// The server and the clients.
    pub(super) load: PathBuf,
    /// mesh's userspace proxy alone.
    pub(super) proxy: PathBuf,
}

/// Builds them, optimised unless `quick`. The proxy, which takes by far the longest, is built only
/// on demand.
pub(super) fn build(quick: bool, needs_proxy: bool) -> Result<Binaries> {
    let (profile, directory) = if quick { ("dev", "debug") } else { ("release", "release") };
    let proxy: &[&str] = if needs_proxy { &["--example", "bench_proxy"] } else { &[] };
    println!("peers: building bench-load{} ({profile})", if needs_proxy { " and mesh's proxy" } else { "" });
    // With the features of the whole workspace: for one package alone, cargo would build the
    // dependencies again.
    let build = ["build", "--quiet", "--workspace", "--profile", profile, "--features", "mesh-tests/load"];
    Program::cargo()
        .args(build)
        .args(["--bin", "bench-load"])
        .args(proxy)
        .current_dir(workspace::root())
        .run_shown()?;
    let directory = workspace::target_dir().join(directory);
    Ok(Binaries { load: directory.join("bench-load"), proxy: directory.join("examples/bench_proxy") })
}

/// The CPU for confined processes.
pub(super) const FIRST_CPU: &str = "0";

/// The CPU that is furthest from [`FIRST_CPU`].
pub(super) fn last_cpu() -> String {
    (thread::available_parallelism().map_or(1, usize::from) - 1).to_string()
}

/// The CPUs of the two ends of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Chosen by the scheduler.
    Anywhere,
    /// Each on a CPU of its own.
    Apart,
    /// The same CPU for both.
    Together,
}

/// What is measured of a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metric {
    /// New connections per second, one request on each.
    New,
    /// Requests per second over connections that stay open.
    KeepAlive,
    /// Gbit/s from the task to the client.
    Down,
    /// Gbit/s from the client to the task.
    Up,
    /// Gbit/s from the task to the client with both on one CPU: the cost of the way, without the
    /// gain from a second CPU.
    DownOneCpu,
}

impl Metric {
    /// Every metric, in the order of the report.
    pub(super) const ALL: [Self; 5] = [Self::New, Self::KeepAlive, Self::Down, Self::Up, Self::DownOneCpu];

    /// The name in tables and plots.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::New => "new connections/s",
            Self::KeepAlive => "keep-alive requests/s",
            Self::Down => "bulk to the client, Gbit/s",
            Self::Up => "bulk to the task, Gbit/s",
            Self::DownOneCpu => "bulk to the client on one CPU, Gbit/s",
        }
    }

    /// The CPUs of the two ends. Without a setting the scheduler would put them on one CPU at one
    /// moment and on two at the next, which makes a larger difference than any two ways have.
    /// Proxies need CPUs for themselves.
    pub(super) const fn place(self, is_proxied: bool) -> Place {
        match self {
            Self::DownOneCpu => Place::Together,
            Self::Down | Self::Up if !is_proxied => Place::Apart,
            Self::New | Self::KeepAlive | Self::Down | Self::Up => Place::Anywhere,
        }
    }

    const fn role(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::KeepAlive => "keep-alive",
            Self::Down | Self::DownOneCpu => "down",
            Self::Up => "up",
        }
    }

    const fn connections(self) -> u32 {
        match self {
            Self::New | Self::KeepAlive => 32,
            Self::Down | Self::Up | Self::DownOneCpu => 4,
        }
    }
}

/// The result of one measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// The value, in the metric's unit.
    pub(super) value: f64,
    /// The 99th percentile of the answers' times, milliseconds; 0 for bulk.
    pub(super) p99_ms: f64,
}

#[derive(Deserialize)]
struct Said {
    answers: f64,
    bytes: f64,
    failed: u64,
    p99_us: f64,
    ms: f64,
}

/// Measures for `ms` milliseconds, from `client` to `destination`, on CPUs by `place`.
pub(super) fn measure(
    binaries: &Binaries,
    client: &Netns,
    destination: SocketAddrV4,
    metric: Metric,
    place: Place,
    ms: u32,
) -> Result<Seen> {
    let confined = |cpu: &str| Program::new("taskset").args(["-c", cpu]).arg(&binaries.load);
    let said = client.run(|| {
        let load = match place {
            Place::Anywhere => Program::new(&binaries.load),
            Place::Apart => confined(&last_cpu()),
            Place::Together => confined(FIRST_CPU),
        };
        load.args([metric.role(), &destination.to_string(), "--ms", &ms.to_string()])
            .args(["--parallel", &metric.connections().to_string()])
            .output()
    })?;
    let said: Said = serde_json::from_str(&said).context("parse the output of bench-load")?;
    let value = match metric {
        Metric::New | Metric::KeepAlive => said.answers / said.ms * 1e3,
        Metric::Down | Metric::Up | Metric::DownOneCpu => said.bytes * 8.0 / said.ms / 1e6,
    };
    ensure!(value > 0.0, "nothing came through ({} failed)", said.failed);
    // Of thousands of connections one may lose a packet; more failures would make another
    // measurement.
    let failed_max = said.answers / 1000.0 + 1.0;
    #[expect(clippy::cast_precision_loss, reason = "few fail")]
    let failed = said.failed as f64;
    ensure!(failed <= failed_max, "{} failed of {}", said.failed, said.answers + failed);
    Ok(Seen { value, p99_ms: said.p99_us / 1e3 })
}
