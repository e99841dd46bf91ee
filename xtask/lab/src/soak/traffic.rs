//! Requests of clients: new connections, and connections that stay open, at one rate.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::client::keep_alive::{KeepAlive, Pace};
use crate::client::load::LoadGenerator;
use crate::netns::Netns;

/// One of so many requests goes over a connection that stays open.
const KEPT_SHARE: u32 = 4;
/// The requests per second of each such connection.
const KEPT_RATE: u32 = 5;
/// The deadline of an answer: a busy machine is slow, and a slow answer is no failed one.
const ANSWER: Duration = Duration::from_secs(10);

/// Requests until they are stopped.
#[derive(Debug)]
pub(super) struct Traffic {
    begun: Instant,
    load: LoadGenerator,
    kept: KeepAlive,
}

/// The outcomes of the requests.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Answers on new connections, and on those that stay open.
    pub(super) answered: [u64; 2],
    /// Requests that failed: when they began, since the traffic began, and why.
    pub(super) failures: Vec<(Duration, String)>,
    /// Connections that a server closed between two requests, which costs no request.
    pub(super) closed: Vec<String>,
    /// The longest that an answer on a new connection took.
    pub(super) slowest: Duration,
    /// How long the traffic lasted.
    pub(super) lasted: Duration,
}

impl Traffic {
    /// Sends `rate` requests per second from `client` to the `servers`. Connections that stay open
    /// are replaced after `life`; `None`: never.
    pub(super) fn start(client: &Netns, servers: &[SocketAddrV4], rate: u32, life: Option<Duration>) -> Self {
        let begun = Instant::now();
        let kept = (rate / KEPT_SHARE).max(KEPT_RATE);
        let connections = usize::try_from(kept / KEPT_RATE).unwrap_or(1);
        let pace = Pace { connections, pause: Duration::from_secs(1) / KEPT_RATE, life, deadline: ANSWER };
        Self {
            begun,
            load: LoadGenerator::start_patient(
                client,
                servers,
                "/",
                rate.saturating_sub(kept).max(1),
                ANSWER,
            ),
            kept: KeepAlive::start(client, servers, pace, begun),
        }
    }

    /// The time since the traffic began.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Stops it and returns the outcomes.
    ///
    /// # Errors
    /// The client's namespace could not be entered.
    pub(super) fn stop(self) -> Result<Outcome> {
        let lasted = self.begun.elapsed();
        let (kept, new) = (self.kept.stop()?, self.load.stop()?);
        let text = |(at, why): (Duration, String)| format!("at {:.1} s: {why}", at.as_secs_f64());
        let answered = [new.answered(), kept.answered];
        let slowest = new.slowest;
        let over_kept = |(at, why): (Duration, String)| (at, format!("{why} (connection that stays open)"));
        let failures = new.failures.into_iter().chain(kept.failures.into_iter().map(over_kept)).collect();
        Ok(Outcome {
            answered,
            failures,
            closed: kept.closed.into_iter().map(text).collect(),
            slowest,
            lasted,
        })
    }
}

impl Outcome {
    /// The failures as text, each with its moment.
    pub(super) fn failed(&self) -> Vec<String> {
        self.failures.iter().map(|(at, why)| format!("at {:.1} s: {why}", at.as_secs_f64())).collect()
    }

    /// Requests per second that were answered.
    pub(super) fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let answered = self.answered.iter().sum::<u64>() as f64;
        answered / self.lasted.as_secs_f64()
    }
}
