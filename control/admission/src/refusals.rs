//! The reasons of refusals, and their counter.
//!
//! Invariant: the reasons are a closed list: they are a label of `mesh_refusals_total`.

use prometheus::{IntCounterVec, Opts, Registry};

use crate::figures::Listener;

/// Why a connection, a call or a report was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The listener has as many connections as it may.
    Connections,
    /// The client's address has as many connections as it may.
    PeerConnections,
    /// A waiting connection was closed to make room for a new one.
    Evicted,
    /// `accept` failed for lack of descriptors or memory.
    Descriptors,
    /// A request, or a proof of membership, didn't come in time.
    WaitedTooLong,
    /// The client left its answer unread for too long.
    Stalled,
    /// Too many endless answers are in service.
    Streams,
    /// Too many calls that may wait for others are in service.
    SlowCalls,
    /// Input exceeds a limit, in bytes or in number.
    TooLarge,
    /// Calls come faster than they may.
    Rate,
    /// The caller has no right to call.
    Stranger,
    /// The path can be read in two ways.
    Ambiguous,
    /// A report that can't be stored.
    Unwritable,
}

impl Reason {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 13] = [
        Self::Connections,
        Self::PeerConnections,
        Self::Evicted,
        Self::Descriptors,
        Self::WaitedTooLong,
        Self::Stalled,
        Self::Streams,
        Self::SlowCalls,
        Self::TooLarge,
        Self::Rate,
        Self::Stranger,
        Self::Ambiguous,
        Self::Unwritable,
    ];

    /// The label in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::PeerConnections => "peer-connections",
            Self::Evicted => "evicted",
            Self::Descriptors => "descriptors",
            Self::WaitedTooLong => "waited-too-long",
            Self::Stalled => "stalled",
            Self::Streams => "streams",
            Self::SlowCalls => "slow-calls",
            Self::TooLarge => "too-large",
            Self::Rate => "rate",
            Self::Stranger => "stranger",
            Self::Ambiguous => "ambiguous",
            Self::Unwritable => "unwritable",
        }
    }

    /// The message for a client, with the next step.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Connections => {
                "too many connections are open: close some that are idle or follow events or logs, then try again"
            }
            Self::PeerConnections => {
                "too many connections of your address are open: close some, then try again"
            }
            Self::Streams => {
                "too many clients follow events or logs or are attached to containers: end some, then try again"
            }
            Self::SlowCalls => "too many calls wait for the engine: see whether it answers, then try again",
            Self::Rate => "you call too often: wait a few seconds, then try again",
            Self::TooLarge => "the request is larger than is allowed: send less",
            Self::Ambiguous => "the path can be read in more than one way: spell it out",
            Self::Evicted | Self::Descriptors | Self::WaitedTooLong | Self::Stalled => {
                "the daemon is short of room: try again"
            }
            Self::Stranger => "the caller is no member of this cluster: join it first",
            Self::Unwritable => "the report can't be stored",
        }
    }
}

/// The counter of refusals of one daemon: `mesh_refusals_total{listener, reason}`.
#[derive(Debug, Clone)]
pub struct Refusals {
    counter: IntCounterVec,
}

impl Refusals {
    /// Makes the counter.
    ///
    /// # Errors
    /// Never for this name and these labels; the metrics crate checks them at run time.
    pub fn new() -> prometheus::Result<Self> {
        let help = "Connections, calls and reports from outside that were refused, by listener and reason.";
        Ok(Self {
            counter: IntCounterVec::new(Opts::new("mesh_refusals_total", help), &["listener", "reason"])?,
        })
    }

    /// Makes the counter and registers it.
    ///
    /// # Errors
    /// The registry has a family of this name already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let refusals = Self::new()?;
        refusals.show_in(registry)?;
        Ok(refusals)
    }

    /// Registers the counter.
    ///
    /// # Errors
    /// The registry has a family of this name already.
    pub fn show_in(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.counter.clone()))
    }

    /// Adds one to the counter of this listener and reason.
    pub fn count(&self, listener: Listener, reason: Reason) {
        self.counter.with_label_values(&[listener.as_str(), reason.as_str()]).inc();
    }

    /// How often `listener` refused for `reason`.
    pub fn seen(&self, listener: Listener, reason: Reason) -> u64 {
        self.counter.with_label_values(&[listener.as_str(), reason.as_str()]).get()
    }

    /// Creates the series of a listener with zeros, so that they exist from the start.
    pub fn show(&self, listener: Listener) {
        for reason in Reason::ALL {
            self.counter.with_label_values(&[listener.as_str(), reason.as_str()]).inc_by(0);
        }
    }
}
