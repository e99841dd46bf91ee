//! The proxy's threads: one event loop each, so that a connection's life stays on one core.
//!
//! All threads accept, and a connection lives on the thread that accepted it: that costs no wake-up
//! of another thread. But of connections that arrive together, the one thread that is awake may
//! accept nearly all, and while they last the other threads idle; so a thread that has far more
//! connections than another gives new ones to it. With one thread per CPU, each thread is pinned to
//! its CPU: its sockets' packets are processed where they were sent, and a thread that moved would
//! drag its connections' cache lines along.
//!
//! Invariants: what is spawned on a worker stays there; [`Workers::stop`] ends the threads with all
//! that still runs on them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::runtime::{Builder, Handle};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::warm::Warm;

/// More threads than this don't help a proxy whose work is mostly the kernel's.
const WORKERS_MAX: usize = 16;

/// How often an event loop wakes up by itself.
const TICK: Duration = Duration::from_millis(250);

/// Keeps the event loop's next timer near. Deadlines of connections are later than that, so setting
/// one doesn't wake the loop.
async fn tick() {
    loop {
        sleep(TICK).await;
    }
}

/// The CPUs that this process may use.
fn allowed_cpus() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(allowed) => (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect(),
        Err(error) => {
            tracing::debug!(error = mesh_runtime::error_chain(&error), "the proxy's threads run on any CPU");
            Vec::new()
        }
    }
}

/// The CPU of each of `count` threads; none if there are fewer threads than CPUs: then the
/// scheduler places them.
fn cpus_for(count: usize, allowed: &[usize]) -> &[usize] {
    if count == allowed.len() { allowed } else { &[] }
}

/// Pins the calling thread to this CPU.
fn keep_to(cpu: Option<usize>) {
    let Some(cpu) = cpu else { return };
    let mut own = CpuSet::new();
    own.set(cpu);
    if let Err(error) = sched_setaffinity(None, &own) {
        tracing::debug!(
            cpu,
            error = mesh_runtime::error_chain(&error),
            "a thread of the proxy runs on any CPU"
        );
    }
}

/// One thread, and what only its connections use.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    /// Spawns tasks on the thread.
    pub(super) handle: Handle,
    /// The thread's pool of connections to relays.
    pub(super) warm: Arc<Warm>,
    index: usize,
    connections: Arc<AtomicUsize>,
}

impl Worker {
    /// Counts a connection as the thread's until the returned guard is dropped.
    pub(super) fn count(&self) -> Counted {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(&self.connections))
    }
}

/// Guard of a connection that lives on a thread.
#[derive(Debug)]
pub(super) struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The thread for a connection that thread `own` accepted, given each thread's number of
/// connections: `own`, unless it has more than the idlest by a quarter and two.
fn home(own: usize, mut connections: impl Iterator<Item = usize> + Clone) -> usize {
    let least = connections.clone().enumerate().min_by_key(|(_, count)| *count);
    match (least, connections.nth(own)) {
        (Some((idlest, least)), Some(count)) if count > least + least / 4 + 2 => idlest,
        _ => own,
    }
}

/// The threads that serve connections.
#[derive(Debug)]
pub(super) struct Workers {
    all: Vec<Worker>,
    next: AtomicUsize,
    stop: CancellationToken,
}

impl Workers {
    /// Starts a thread for each core; their pools of relay connections share `waiting_room`.
    ///
    /// # Errors
    /// The system refuses a thread or an event queue.
    pub(super) fn start(waiting_room: &Arc<Semaphore>) -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
        let allowed = allowed_cpus();
        let cpus = cpus_for(count, &allowed);
        let stop = CancellationToken::new();
        let mut workers = Vec::with_capacity(count);
        for index in 0..count {
            let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
            let warm = Arc::new(Warm::new(Arc::clone(waiting_room)));
            let (handle, connections) = (runtime.handle().clone(), Arc::default());
            workers.push(Worker { handle, warm, index, connections });
            let (stop, cpu) = (stop.clone(), cpus.get(index).copied());
            thread::Builder::new().name(format!("mesh-proxy-{index}")).spawn(move || {
                keep_to(cpu);
                runtime.block_on(stop.run_until_cancelled(tick()))
            })?;
        }
        Ok(Self { all: workers, next: AtomicUsize::default(), stop })
    }

    /// Iterates over the threads.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.all.iter()
    }

    /// The next thread in round-robin order.
    pub(super) fn next(&self) -> Option<&Worker> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.all.get(turn % self.all.len().max(1))
    }

    /// The thread for a connection that `acceptor` accepted.
    pub(super) fn home<'a>(&'a self, acceptor: &'a Worker) -> &'a Worker {
        let counts = self.all.iter().map(|worker| worker.connections.load(Ordering::Relaxed));
        self.all.get(home(acceptor.index, counts)).unwrap_or(acceptor)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn home_of(own: usize, connections: &[usize]) -> usize {
        home(own, connections.iter().copied())
    }

    #[test]
    fn a_connection_stays_where_it_was_accepted() {
        assert_eq!(home_of(0, &[0]), 0, "one thread");
        assert_eq!(home_of(0, &[2, 0]), 0, "few connections");
        assert_eq!(home_of(1, &[8, 12, 10]), 1, "a quarter more than the idlest, and two");
    }

    #[test]
    fn from_a_busy_thread_it_goes_to_the_idlest() {
        assert_eq!(home_of(0, &[3, 0]), 1, "few connections");
        assert_eq!(home_of(1, &[9, 13, 8]), 2);
        assert_eq!(home_of(0, &[1000, 900, 700]), 2);
    }

    #[test]
    fn connections_that_one_thread_accepts_are_spread() {
        let mut connections = [0; 4];
        for _ in 0..100 {
            connections[home_of(0, &connections)] += 1;
        }
        let (least, most) = (connections.iter().min(), connections.iter().max());
        assert!(least >= Some(&20) && most <= Some(&32), "100 connections on four threads: {connections:?}");
    }

    #[test]
    fn threads_keep_to_a_cpu_each_if_there_is_one_for_each() {
        assert_eq!(cpus_for(2, &[1, 5]), [1, 5]);
        assert_eq!(cpus_for(1, &[1, 5]), [0; 0], "a quota of one CPU, anywhere");
        assert_eq!(cpus_for(16, &[]), [0; 0], "unknown");
        let kept = thread::spawn(|| {
            let first = allowed_cpus().first().copied();
            keep_to(first);
            (first, allowed_cpus())
        });
        let (first, kept) = kept.join().expect("it ends");
        assert_eq!(kept, Vec::from_iter(first));
    }

    #[test]
    fn a_connection_counts_as_long_as_it_lives() {
        let workers = Workers::start(&Arc::new(Semaphore::new(1))).expect("threads");
        let worker = workers.next().expect("a thread");
        let counted: Vec<Counted> = (0..3).map(|_| worker.count()).collect();
        assert_eq!(worker.connections.load(Ordering::Relaxed), 3);
        drop(counted);
        assert_eq!(worker.connections.load(Ordering::Relaxed), 0);
    }
}
