//! Counters of payload bytes, one for each direction.

use std::sync::atomic::{AtomicU64, Ordering};

/// Payload bytes from clients and to clients.
#[derive(Debug, Default)]
pub struct ByteCounters {
    request: AtomicU64,
    reply: AtomicU64,
}

impl ByteCounters {
    pub(super) fn resumed(request: u64, reply: u64) -> Self {
        Self { request: request.into(), reply: reply.into() }
    }

    /// Counts a datagram from a client.
    pub fn count_request(&self, length: usize) {
        self.request.fetch_add(length as u64, Ordering::Relaxed);
    }

    /// Counts a datagram to a client.
    pub fn count_reply(&self, length: usize) {
        self.reply.fetch_add(length as u64, Ordering::Relaxed);
    }

    /// The counter of bytes from clients.
    pub fn request(&self) -> &AtomicU64 {
        &self.request
    }

    /// The counter of bytes to clients.
    pub fn reply(&self) -> &AtomicU64 {
        &self.reply
    }

    /// The bytes counted so far, from clients and to clients.
    pub(super) fn figures(&self) -> (u64, u64) {
        (self.request.load(Ordering::Relaxed), self.reply.load(Ordering::Relaxed))
    }
}
