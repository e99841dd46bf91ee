//! Counters of one published port.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::byte_counters::ByteCounters;
use super::timings::{TimingFigures, Timings};

/// Live counters of one published port.
#[derive(Debug, Default)]
pub struct FrontendEntry {
    turns: AtomicU64,
    opened: AtomicU64,
    no_backend: AtomicU64,
    all_refused: AtomicU64,
    denied: AtomicU64,
    no_room: AtomicU64,
    bytes: ByteCounters,
    connect: Timings,
    lived: Timings,
}

/// Counters of one published port on this node's proxy, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FrontendFigures {
    /// Connections that this node accepted from clients.
    pub opened: u64,
    /// Connections refused because there was no backend.
    pub no_backend: u64,
    /// Connections refused because every backend that was tried failed.
    pub all_refused: u64,
    /// Connections refused because the service's allow-list doesn't hold the client.
    #[serde(default)]
    pub denied: u64,
    /// UDP flows refused because the proxy was full.
    #[serde(default)]
    pub no_room: u64,
    /// Payload bytes from clients.
    pub request_bytes: u64,
    /// Payload bytes to clients.
    pub reply_bytes: u64,
    /// How long backends took to accept connections.
    #[serde(default)]
    pub connect: TimingFigures,
    /// How long ended connections lasted.
    #[serde(default)]
    pub lived: TimingFigures,
}

impl FrontendEntry {
    pub(super) fn resumed(before: &FrontendFigures) -> Self {
        Self {
            turns: AtomicU64::default(),
            opened: before.opened.into(),
            no_backend: before.no_backend.into(),
            all_refused: before.all_refused.into(),
            denied: before.denied.into(),
            no_room: before.no_room.into(),
            bytes: ByteCounters::resumed(before.request_bytes, before.reply_bytes),
            connect: Timings::resumed(&before.connect),
            lived: Timings::resumed(&before.lived),
        }
    }

    /// Returns the round-robin counter and increments it.
    pub fn next_turn(&self) -> u64 {
        self.turns.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts an accepted connection.
    pub fn count_opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that was refused: for want of a backend, or (`tried`) because all that
    /// were tried failed.
    pub fn count_unassigned(&self, tried: bool) {
        let counter = if tried { &self.all_refused } else { &self.no_backend };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection of a client that the allow-list doesn't hold.
    pub fn count_denied(&self) {
        self.denied.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a UDP flow that was refused because the proxy was full.
    pub fn count_no_room(&self) {
        self.no_room.fetch_add(1, Ordering::Relaxed);
    }

    /// Records how long a backend took to accept a connection, including its node's relay.
    pub fn time_connect(&self, took: Duration) {
        self.connect.add(took);
    }

    /// Records how long a connection lasted.
    pub fn time_life(&self, lasted: Duration) {
        self.lived.add(lasted);
    }

    /// Counters of payload bytes.
    pub fn bytes(&self) -> &ByteCounters {
        &self.bytes
    }

    pub(super) fn figures(&self) -> FrontendFigures {
        let (request_bytes, reply_bytes) = self.bytes.figures();
        FrontendFigures {
            opened: self.opened.load(Ordering::Relaxed),
            no_backend: self.no_backend.load(Ordering::Relaxed),
            all_refused: self.all_refused.load(Ordering::Relaxed),
            denied: self.denied.load(Ordering::Relaxed),
            no_room: self.no_room.load(Ordering::Relaxed),
            request_bytes,
            reply_bytes,
            connect: self.connect.figures(),
            lived: self.lived.figures(),
        }
    }
}
