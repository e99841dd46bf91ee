//! A load generator for a published port: opens new connections at a steady rate and records every
//! outcome.
//!
//! Invariant: every request that was begun is counted, as answered or as failed.

use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::http;
use crate::netns::Netns;

/// How far behind its plan a worker may be and still make up for it. Without this, each slow answer
/// would lower the rate; without a limit, a long silence would be followed by a flood.
const CATCHING_UP: Duration = Duration::from_secs(1);

/// Threads that send; each has its share of the rate.
const WORKERS: u32 = 16;

/// The outcomes of a load.
#[derive(Debug, Default)]
pub struct Report {
    /// Requests answered with 200, by the answer's first line.
    pub answers: BTreeMap<String, u64>,
    /// Requests that failed: when (since the load began) and why.
    pub failures: Vec<(Duration, String)>,
    /// The longest time that an answer took.
    pub slowest: Duration,
}

impl Report {
    /// Requests answered with 200.
    pub fn answered(&self) -> u64 {
        self.answers.values().sum()
    }

    /// The failures that began later than `since` after the start of the load.
    pub fn failures_after(&self, since: Duration) -> Vec<&(Duration, String)> {
        self.failures.iter().filter(|(at, _)| *at >= since).collect()
    }

    fn absorb(&mut self, other: Self) {
        for (answer, count) in other.answers {
            *self.answers.entry(answer).or_default() += count;
        }
        self.failures.extend(other.failures);
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// A load generator that runs until it is stopped.
#[derive(Debug)]
pub struct LoadGenerator {
    begun: Instant,
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Result<Report>>>,
}

impl LoadGenerator {
    /// Starts opening `per_second` connections per second from `client` to the `servers` in turn,
    /// each with a request for `path`.
    pub fn start(client: &Netns, servers: &[SocketAddrV4], path: &str, per_second: u32) -> Self {
        Self::start_patient(client, servers, path, per_second, http::DEADLINE)
    }

    /// Starts the same with another deadline for each answer.
    pub fn start_patient(
        client: &Netns,
        servers: &[SocketAddrV4],
        path: &str,
        per_second: u32,
        deadline: Duration,
    ) -> Self {
        let begun = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        let pause = Duration::from_secs(1) * WORKERS / per_second.max(1);
        let workers = (0..WORKERS)
            .map(|number| {
                let (client, servers) = (client.clone(), servers.to_vec());
                let (request, stop) = (Request { path: path.to_owned(), deadline }, Arc::clone(&stop));
                let first = begun + pause * number / WORKERS;
                std::thread::spawn(move || {
                    client.run(|| Ok(send(&servers, number as usize, &request, begun, first, pause, &stop)))
                })
            })
            .collect();
        Self { begun, stop, workers }
    }

    /// How long the load has run.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Stops the load and returns its outcomes.
    ///
    /// # Errors
    /// The client's namespace could not be entered.
    pub fn stop(self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = Report::default();
        for worker in self.workers {
            report.absorb(worker.join().map_err(|_| anyhow!("a load worker panicked"))??);
        }
        Ok(report)
    }
}

/// What each connection asks for, and how long it waits for the answer.
#[derive(Debug, Clone)]
struct Request {
    path: String,
    deadline: Duration,
}

/// One worker: sends a request each `pause`. After an answer that took longer it sends the requests
/// that are late at once, those of the last [`CATCHING_UP`] at most.
fn send(
    servers: &[SocketAddrV4],
    offset: usize,
    request: &Request,
    begun: Instant,
    first: Instant,
    pause: Duration,
    stop: &AtomicBool,
) -> Report {
    let mut report = Report::default();
    let mut due = first;
    for server in servers.iter().cycle().skip(offset) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let at = begun.elapsed();
        match ask_within(*server, &request.path, request.deadline) {
            Ok(answer) => {
                *report.answers.entry(answer).or_default() += 1;
                report.slowest = report.slowest.max(begun.elapsed().saturating_sub(at));
            }
            Err(error) => report.failures.push((at, format!("{server}: {error:#}"))),
        }
        due = (due + pause).max(Instant::now().checked_sub(CATCHING_UP).unwrap_or(due));
    }
    report
}

/// The first line of a 200 answer.
///
/// # Errors
/// Any other outcome.
pub fn ask(server: impl Into<SocketAddr>, path: &str) -> Result<String> {
    ask_within(server, path, http::DEADLINE)
}

fn ask_within(server: impl Into<SocketAddr>, path: &str, deadline: Duration) -> Result<String> {
    let response = http::get(server, path, deadline)?;
    if response.status != 200 {
        return Err(anyhow!("status {}", response.status));
    }
    Ok(response.text().lines().next().unwrap_or_default().to_owned())
}
