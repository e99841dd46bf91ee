//! The proxy's threads: one event loop each, so that a connection's life stays on one core.
//!
//! Invariants: what is spawned on a worker stays there; the threads end once they are told to, with all that still runs on them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::warm::Warm;

/// More threads than this don't help a proxy whose work is the kernel's.
const WORKERS_MAX: usize = 16;

/// How often an event loop wakes up by itself.
const TICK: Duration = Duration::from_millis(250);

/// Keeps a loop's next timer near. A connection's deadlines are later then, and setting one doesn't wake the loop up.
async fn tick() {
    loop {
        sleep(TICK).await;
    }
}

/// One thread and what only its connections use.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    /// Spawns on the thread.
    pub(super) handle: Handle,
    /// Relay connections that wait for use.
    pub(super) warm: Arc<Warm>,
}

/// The threads.
#[derive(Debug)]
pub(super) struct Workers {
    all: Vec<Worker>,
    next: AtomicUsize,
    stop: CancellationToken,
}

impl Workers {
    /// Starts a thread for each core, with `waiting_room` for connections to relays that wait for use.
    ///
    /// # Errors
    /// The system gives no thread, or no event queue.
    pub(super) fn start(waiting_room: &Arc<Semaphore>) -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
        let stop = CancellationToken::new();
        let mut workers = Vec::with_capacity(count);
        for index in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let warm = Arc::new(Warm::new(Arc::clone(waiting_room)));
            workers.push(Worker { handle: runtime.handle().clone(), warm });
            let stop = stop.clone();
            thread::Builder::new()
                .name(format!("mesh-proxy-{index}"))
                .spawn(move || runtime.block_on(stop.run_until_cancelled(tick())))?;
        }
        Ok(Self { all: workers, next: AtomicUsize::default(), stop })
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.all.iter()
    }

    /// One of them, each in its turn.
    pub(super) fn next(&self) -> Option<&Worker> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.all.get(turn % self.all.len().max(1))
    }

    /// Ends the threads.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}
