//! The signal to a backend's connections that they must end.
//!
//! Invariant: the signal is never withdrawn; waiters are woken after it can be seen.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// Whether a backend is gone. Connections on all threads check it whenever they carry bytes, so
/// checking takes no lock.
#[derive(Debug, Default)]
pub struct Gone {
    is_signalled: AtomicBool,
    waiting: CancellationToken,
}

impl Gone {
    /// Ends all connections, including later ones.
    pub fn signal(&self) {
        self.is_signalled.store(true, Ordering::Release);
        self.waiting.cancel();
    }

    /// Whether the signal was given.
    pub fn is_signalled(&self) -> bool {
        self.is_signalled.load(Ordering::Acquire)
    }

    /// Completes once the signal is given.
    pub fn signalled(&self) -> WaitForCancellationFuture<'_> {
        self.waiting.cancelled()
    }
}
