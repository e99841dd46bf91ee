//! Counters of the proxy, and the signal that ends its connections: one entry for each backend, one
//! for each published port.
//!
//! Invariants: counters only grow; the number of live connections is never negative; an entry lives
//! as long as its backend is in the view or a connection holds it. No lock is held across an await.
//!
//! Left to others: turning figures into metrics ([`crate::metrics`]).

pub use byte_counters::ByteCounters;
pub use frontend::{FrontendEntry, FrontendFigures};
pub use gone::Gone;
pub use timings::TimingFigures;

mod byte_counters;
mod frontend;
mod gone;
mod timings;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_state::ids::{BackendId, ServiceId};
use mesh_state::spec::Protocol;
use serde::{Deserialize, Serialize};

use super::dial_error::FailureReason;
use crate::lb::health::Handshakes;
use crate::view::NodeView;

/// Identifies a published port of a service.
pub type FrontendKey = (ServiceId, Protocol, u16);

/// Counters of one backend.
#[derive(Debug, Default)]
pub struct BackendEntry {
    opened: AtomicU64,
    answered: AtomicU64,
    closed: AtomicU64,
    bytes: ByteCounters,
    failures: [AtomicU64; FailureReason::ALL.len()],
    /// Live connections that began before the drain, including those relayed for other nodes.
    waited_for: AtomicU64,
    drains: AtomicBool,
    gone: Gone,
}

/// Counters of one backend on this node's proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BackendFigures {
    /// Connections that this node assigned to the backend.
    pub opened: u64,
    /// Of those: connections that the backend accepted.
    #[serde(default)]
    pub answered: u64,
    /// Of those: connections that are live.
    pub live: u64,
    /// Payload bytes from clients to the task.
    pub request_bytes: u64,
    /// Payload bytes from the task to clients.
    pub reply_bytes: u64,
    /// Failed attempts to connect, by [`FailureReason`].
    pub failures: [u64; FailureReason::ALL.len()],
}

impl BackendFigures {
    /// Completed and failed handshakes, for passive health checks.
    pub fn handshakes(&self) -> Handshakes {
        Handshakes { answered: self.answered, failed: self.failures.iter().sum() }
    }
}

/// All counters at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxyStats {
    /// Counters by backend.
    pub backends: BTreeMap<BackendId, BackendFigures>,
    /// Counters by published port.
    pub frontends: BTreeMap<FrontendKey, FrontendFigures>,
    /// Whether this node listens on each published port.
    pub listeners: BTreeMap<(Protocol, u16), bool>,
}

/// All entries, by backend and by published port.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    backends: BTreeMap<BackendId, Arc<BackendEntry>>,
    frontends: BTreeMap<FrontendKey, Arc<FrontendEntry>>,
    listeners: BTreeMap<(Protocol, u16), bool>,
    is_cut: bool,
}

impl Ledger {
    /// The backend's entry; it is made on first use.
    pub fn backend(&self, id: BackendId) -> Arc<BackendEntry> {
        let mut entries = self.lock();
        let entry = Arc::clone(entries.backends.entry(id).or_default());
        if entries.is_cut {
            entry.gone.signal();
        }
        entry
    }

    /// The published port's entry; it is made on first use.
    pub fn frontend(&self, key: &FrontendKey) -> Arc<FrontendEntry> {
        let mut entries = self.lock();
        if let Some(entry) = entries.frontends.get(key) {
            return Arc::clone(entry);
        }
        Arc::clone(entries.frontends.entry(key.clone()).or_default())
    }

    /// Adds the counters of an earlier agent's proxy. Its connections ended with it.
    pub fn resume(&self, before: &ProxyStats) {
        let mut entries = self.lock();
        for (id, figures) in &before.backends {
            entries.backends.insert(*id, Arc::new(BackendEntry::resumed(figures)));
        }
        for (key, figures) in &before.frontends {
            entries.frontends.insert(key.clone(), Arc::new(FrontendEntry::resumed(figures)));
        }
    }

    /// Ends all connections, including later ones.
    pub fn cut(&self) {
        let mut entries = self.lock();
        entries.is_cut = true;
        for entry in entries.backends.values() {
            entry.gone.signal();
        }
    }

    /// Stores on which published ports this node listens.
    pub fn set_listeners(&self, listeners: BTreeMap<(Protocol, u16), bool>) {
        self.lock().listeners = listeners;
    }

    /// Removes entries that the view doesn't hold any more; connections of removed backends end at
    /// once.
    pub fn follow(&self, view: &NodeView) {
        let mut entries = self.lock();
        entries.backends.retain(|id, entry| {
            let stays = view.backends.contains_key(id);
            if !stays {
                entry.gone.signal();
            }
            stays
        });
        entries.frontends.retain(|(service, protocol, published), _| {
            view.services.get(service).is_some_and(|service| {
                service.ports.iter().any(|port| port.protocol == *protocol && port.published == *published)
            })
        });
    }

    /// The number of connections to these backends that a drain waits for. From the first call on,
    /// new connections don't count.
    pub fn drain(&self, backends: &[BackendId]) -> u64 {
        let entries = self.lock();
        backends.iter().filter_map(|id| entries.backends.get(id)).map(|entry| entry.drain()).sum()
    }

    /// Completed and failed handshakes with the backend.
    pub fn handshakes(&self, id: BackendId) -> Handshakes {
        self.lock().backends.get(&id).map(|entry| entry.figures().handshakes()).unwrap_or_default()
    }

    /// A copy of all counters.
    pub fn stats(&self) -> ProxyStats {
        let entries = self.lock();
        ProxyStats {
            backends: entries.backends.iter().map(|(id, entry)| (*id, entry.figures())).collect(),
            frontends: entries.frontends.iter().map(|(key, entry)| (key.clone(), entry.figures())).collect(),
            listeners: entries.listeners.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BackendEntry {
    fn resumed(before: &BackendFigures) -> Self {
        Self {
            opened: before.opened.into(),
            answered: before.answered.into(),
            closed: before.opened.into(),
            bytes: ByteCounters::resumed(before.request_bytes, before.reply_bytes),
            failures: before.failures.map(AtomicU64::new),
            ..Self::default()
        }
    }

    /// The signal that the backend is gone, or that all connections must end.
    pub fn gone(&self) -> &Gone {
        &self.gone
    }

    /// Counts a connection assigned to the backend, until the guard is dropped.
    pub fn open(self: &Arc<Self>) -> Opened {
        self.opened.fetch_add(1, Ordering::Relaxed);
        Opened { waited_for: Some(self.wait_for()), entry: Arc::clone(self) }
    }

    /// Counts a UDP flow assigned to the backend, until the guard is dropped. A drain doesn't wait
    /// for UDP flows: only their timeout shows that they ended, and the client's next datagram
    /// selects another backend.
    pub fn open_flow(self: &Arc<Self>) -> Opened {
        self.opened.fetch_add(1, Ordering::Relaxed);
        Opened { waited_for: None, entry: Arc::clone(self) }
    }

    /// Makes a drain wait for a connection until the guard is dropped, unless the drain has begun.
    pub fn wait_for(self: &Arc<Self>) -> WaitedFor {
        let counted = !self.drains.load(Ordering::Acquire);
        if counted {
            self.waited_for.fetch_add(1, Ordering::AcqRel);
        }
        WaitedFor { entry: Arc::clone(self), counted }
    }

    /// The number of connections that a drain of the backend waits for. From the first call on, new
    /// connections don't count.
    pub fn drain(&self) -> u64 {
        self.drains.store(true, Ordering::Release);
        self.waited_for.load(Ordering::Acquire)
    }

    /// Counts a connection that the backend accepted.
    pub fn count_answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a failed attempt to connect.
    pub fn count_failure(&self, reason: FailureReason) {
        self.failures[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counters of payload bytes.
    pub fn bytes(&self) -> &ByteCounters {
        &self.bytes
    }

    /// Live connections that this node assigned to the backend.
    pub fn live(&self) -> u64 {
        // `closed` is read first: a connection that opens and closes between the two reads must not
        // make the difference negative.
        let closed = self.closed.load(Ordering::Acquire);
        self.opened.load(Ordering::Acquire).saturating_sub(closed)
    }

    fn figures(&self) -> BackendFigures {
        let (request_bytes, reply_bytes) = self.bytes.figures();
        BackendFigures {
            opened: self.opened.load(Ordering::Relaxed),
            answered: self.answered.load(Ordering::Relaxed),
            live: self.live(),
            request_bytes,
            reply_bytes,
            failures: std::array::from_fn(|reason| self.failures[reason].load(Ordering::Relaxed)),
        }
    }
}

/// Guard of a connection that this node assigned to a backend; dropping it counts the end.
#[derive(Debug)]
pub struct Opened {
    entry: Arc<BackendEntry>,
    #[expect(dead_code, reason = "held for its drop")]
    waited_for: Option<WaitedFor>,
}

/// Guard of a connection that a drain of its backend waits for, if it began before the drain.
#[derive(Debug)]
pub struct WaitedFor {
    entry: Arc<BackendEntry>,
    counted: bool,
}

impl Drop for WaitedFor {
    fn drop(&mut self) {
        if self.counted {
            self.entry.waited_for.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.entry.closed.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use mesh_state::ids::NodeId;

    use super::*;

    #[test]
    fn a_backend_that_leaves_the_view_takes_its_entry_and_its_connections_along() {
        let ledger = Ledger::default();
        let id = BackendId::new(1).expect("an id");
        let entry = ledger.backend(id);
        let open = entry.open();
        assert_eq!(entry.live(), 1);
        ledger.follow(&NodeView::new(NodeId::from("n"), Ipv4Addr::LOCALHOST));
        assert!(entry.gone().is_signalled(), "its connections are told");
        assert_eq!(ledger.stats().backends.len(), 0, "its figures vanish");
        drop(open);
        assert!(!ledger.backend(id).gone().is_signalled(), "a later backend of this id starts afresh");
    }

    #[test]
    fn once_all_is_cut_nothing_begins() {
        let ledger = Ledger::default();
        let [before, after] = [1, 2].map(|id| BackendId::new(id).expect("an id"));
        let entry = ledger.backend(before);
        assert!(!entry.gone().is_signalled());
        ledger.cut();
        assert!(entry.gone().is_signalled() && ledger.backend(after).gone().is_signalled());
    }

    #[test]
    fn a_drain_waits_for_what_began_before_it() {
        let ledger = Ledger::default();
        let entry = ledger.backend(BackendId::new(1).expect("an id"));
        let (before, relayed, flow) = (entry.open(), entry.wait_for(), entry.open_flow());
        assert_eq!(entry.drain(), 2, "a connection and one that is relayed; no UDP flow");
        let late = entry.open();
        assert_eq!(entry.drain(), 2, "what comes later is not waited for");
        drop((before, flow));
        assert_eq!(entry.drain(), 1);
        drop((relayed, late));
        assert_eq!((entry.drain(), entry.live()), (0, 0));
    }

    #[test]
    fn live_counts_follow_the_guards() {
        let ledger = Ledger::default();
        let id = BackendId::new(1).expect("an id");
        let (first, second) = (ledger.backend(id).open(), ledger.backend(id).open());
        drop(first);
        ledger.backend(id).count_failure(FailureReason::Timeout);
        let figures = ledger.stats().backends[&id];
        assert_eq!((figures.opened, figures.live), (2, 1));
        assert_eq!(figures.failures.iter().sum::<u64>(), 1);
        drop(second);
        let figures = ledger.stats().backends[&id];
        assert_eq!((figures.opened, figures.live), (2, 0));
    }
}
