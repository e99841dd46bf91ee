//! The word to a backend's connections that they must end.
//!
//! Invariant: once told it stays told; whoever waits is woken after the word can be seen.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// Whether a backend is gone. Connections look at it with every byte they carry, on all threads: looking takes no lock.
#[derive(Debug, Default)]
pub struct Gone {
    is_told: AtomicBool,
    waiting: CancellationToken,
}

impl Gone {
    /// Tells all connections, those to come included.
    pub fn tell(&self) {
        self.is_told.store(true, Ordering::Release);
        self.waiting.cancel();
    }

    /// Whether it was told.
    pub fn is_told(&self) -> bool {
        self.is_told.load(Ordering::Acquire)
    }

    /// Ready once it is told.
    pub fn told(&self) -> WaitForCancellationFuture<'_> {
        self.waiting.cancelled()
    }
}
