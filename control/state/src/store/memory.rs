//! The store in memory, for tests. It keeps etcd's guarantees; the shared contract tests both.
//!
//! Invariants: a revision is applied as a whole or not at all; a watch yields whole revisions in
//! order; leases run on tokio's clock, so paused time works.
//!
//! Left to others: durability, and a network. [`MemoryStore::set_reachable`] simulates an outage.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Change, Compare, KeyValue, Listing, Op, Store, StoreError, TxnOutcome, WatchEvent, check_size};

/// A store that lives as long as its last clone.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    /// The newest revision and whether the store is reachable; a change wakes watches.
    news: Arc<watch::Sender<News>>,
}

#[derive(Debug, Clone, Copy)]
struct News {
    revision: i64,
    reachable: bool,
}

#[derive(Debug, Default)]
struct State {
    revision: i64,
    /// The oldest revision that is not compacted.
    oldest_kept: i64,
    items: BTreeMap<String, KeyValue>,
    history: VecDeque<(i64, Vec<Change>)>,
    next_lease: i64,
    leases: BTreeMap<i64, Lease>,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    ends_at: Instant,
    keys: BTreeSet<String>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store, at revision 1 like a new etcd.
    pub fn new() -> Self {
        let state = State { revision: 1, oldest_kept: 1, next_lease: 1, ..State::default() };
        Self {
            state: Arc::new(Mutex::new(state)),
            news: Arc::new(watch::Sender::new(News { revision: 1, reachable: true })),
        }
    }

    /// Makes the store reachable or not. While it isn't, every call fails and every watch ends with
    /// an error; the data stays.
    pub fn set_reachable(&self, reachable: bool) {
        self.news.send_modify(|news| news.reachable = reachable);
    }

    /// Gives every lease its full life again, as etcd does after it has elected a leader.
    pub fn restart_leases(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for lease in state.leases.values_mut() {
            lease.ends_at = Instant::now() + lease.ttl;
        }
    }

    fn lock(&self, operation: &'static str) -> Result<MutexGuard<'_, State>, StoreError> {
        self.check_reachable(operation)?;
        Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn check_reachable(&self, operation: &'static str) -> Result<(), StoreError> {
        if self.news.borrow().reachable {
            return Ok(());
        }
        Err(StoreError::Unavailable { operation, message: "the store was made unreachable".to_owned() })
    }

    fn tell(&self, revision: i64) {
        self.news.send_modify(|news| news.revision = revision);
    }

    /// Ends the lease at its expiry, which each renewal postpones.
    async fn expire(self, lease: i64) {
        loop {
            let ends_at = {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(found) = state.leases.get(&lease) else { return };
                if found.ends_at <= Instant::now() {
                    state.end_lease(lease);
                    let revision = state.revision;
                    drop(state);
                    self.tell(revision);
                    return;
                }
                found.ends_at
            };
            tokio::time::sleep_until(ends_at).await;
        }
    }

    /// The changes below `prefix` from `from` on, with the revision reached; `None` if they are
    /// compacted.
    fn changes_since(&self, prefix: &str, from: i64) -> Option<(i64, Vec<Change>)> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if from < state.oldest_kept {
            return None;
        }
        let newer = state.history.iter().skip_while(|(revision, _)| *revision < from);
        let changes =
            newer.flat_map(|(_, changes)| changes).filter(|change| change.key().starts_with(prefix));
        Some((state.revision, changes.cloned().collect()))
    }
}

impl State {
    fn holds(&self, compare: &Compare) -> bool {
        let found = self.items.get(compare.key());
        match compare {
            Compare::Absent(_) => found.is_none(),
            Compare::Exists(_) => found.is_some(),
            Compare::NoneBelow(prefix) => {
                let first = self.items.range(prefix.clone()..).next();
                first.is_none_or(|(key, _)| !key.starts_with(prefix.as_str()))
            }
            Compare::ModRevision(_, revision) => found.is_some_and(|item| item.mod_revision == *revision),
            Compare::CreateRevision(_, revision) => {
                found.is_some_and(|item| item.create_revision == *revision)
            }
        }
    }

    fn apply(&mut self, ops: Vec<Op>) -> i64 {
        let revision = self.revision + 1;
        let changes: Vec<Change> = ops.into_iter().filter_map(|op| self.apply_one(op, revision)).collect();
        if !changes.is_empty() {
            self.revision = revision;
            self.history.push_back((revision, changes));
        }
        self.revision
    }

    fn apply_one(&mut self, op: Op, revision: i64) -> Option<Change> {
        match op {
            Op::Put { key, value, lease } => {
                self.detach(&key);
                if let Some(lease) = lease.and_then(|id| self.leases.get_mut(&id)) {
                    lease.keys.insert(key.clone());
                }
                let create_revision = self.items.get(&key).map_or(revision, |old| old.create_revision);
                let item = KeyValue { key: key.clone(), value, create_revision, mod_revision: revision };
                self.items.insert(key, item.clone());
                Some(Change::Put(item))
            }
            Op::Delete { key } => {
                self.detach(&key);
                self.items.remove(&key)?;
                Some(Change::Deleted { key, mod_revision: revision })
            }
        }
    }

    fn detach(&mut self, key: &str) {
        for lease in self.leases.values_mut() {
            lease.keys.remove(key);
        }
    }

    fn end_lease(&mut self, lease: i64) {
        if let Some(ended) = self.leases.remove(&lease) {
            self.apply(ended.keys.into_iter().map(Op::delete).collect());
        }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        Ok(self.lock("get")?.items.get(key).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let state = self.lock("list")?;
        let below = state.items.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        Ok(Listing { revision: state.revision, items: below.map(|(_, item)| item.clone()).collect() })
    }

    async fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<TxnOutcome, StoreError> {
        check_size(&compares, &ops)?;
        let mut state = self.lock("txn")?;
        let unknown = ops.iter().find_map(|op| match op {
            Op::Put { lease: Some(lease), .. } if !state.leases.contains_key(lease) => Some(*lease),
            _ => None,
        });
        if !compares.iter().all(|compare| state.holds(compare)) {
            return Ok(TxnOutcome::Conflict);
        }
        if let Some(lease) = unknown {
            return Err(StoreError::Refused {
                operation: "txn",
                message: format!("requested lease {lease} not found"),
            });
        }
        let revision = state.apply(ops);
        drop(state);
        self.tell(revision);
        Ok(TxnOutcome::Committed(revision))
    }

    async fn watch(
        &self,
        prefix: &str,
        from_revision: i64,
    ) -> Result<BoxStream<'static, Result<WatchEvent, StoreError>>, StoreError> {
        self.check_reachable("watch")?;
        let watcher = Watcher {
            store: self.clone(),
            news: self.news.subscribe(),
            prefix: prefix.to_owned(),
            next: from_revision,
        };
        Ok(futures::stream::unfold(Some(watcher), |watcher| async move { watcher?.next().await }).boxed())
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<i64, StoreError> {
        let id = {
            let mut state = self.lock("lease")?;
            let id = state.next_lease;
            state.next_lease += 1;
            state.leases.insert(id, Lease { ttl, ends_at: Instant::now() + ttl, keys: BTreeSet::new() });
            id
        };
        tokio::spawn(self.clone().expire(id));
        Ok(id)
    }

    async fn keep_alive(&self, lease: i64) -> Result<bool, StoreError> {
        let mut state = self.lock("lease")?;
        let Some(found) = state.leases.get_mut(&lease) else { return Ok(false) };
        found.ends_at = Instant::now() + found.ttl;
        Ok(true)
    }

    async fn revoke_lease(&self, lease: i64) -> Result<(), StoreError> {
        let revision = {
            let mut state = self.lock("lease")?;
            state.end_lease(lease);
            state.revision
        };
        self.tell(revision);
        Ok(())
    }

    async fn compact(&self, revision: i64) -> Result<(), StoreError> {
        let mut state = self.lock("compact")?;
        if revision > state.revision {
            return Err(StoreError::Refused {
                operation: "compact",
                message: format!("revision {revision} is in the future"),
            });
        }
        state.oldest_kept = state.oldest_kept.max(revision);
        while state.history.front().is_some_and(|(kept, _)| *kept < revision) {
            state.history.pop_front();
        }
        Ok(())
    }
}

/// A watch: its position, and the channel that wakes it.
struct Watcher {
    store: MemoryStore,
    news: watch::Receiver<News>,
    prefix: String,
    /// The first revision not yet yielded.
    next: i64,
}

type WatchItem = Result<WatchEvent, StoreError>;

impl Watcher {
    /// The next event, with the watcher unless it has ended.
    async fn next(mut self) -> Option<(WatchItem, Option<Self>)> {
        loop {
            let news = *self.news.borrow_and_update();
            if let Err(error) = self.store.check_reachable("watch") {
                return Some((Err(error), None));
            }
            let Some((revision, changes)) = self.store.changes_since(&self.prefix, self.next) else {
                return Some((Ok(WatchEvent::Compacted), None));
            };
            self.next = self.next.max(revision + 1);
            if !changes.is_empty() {
                return Some((Ok(WatchEvent::Changes { revision, changes }), Some(self)));
            }
            debug_assert!(news.revision <= revision, "news of a revision that is not stored");
            self.news.changed().await.ok()?;
        }
    }
}
