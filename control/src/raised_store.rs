//! The store, with revisions that begin above a base.
//!
//! Purpose: a new etcd begins at revision 1, and a cluster that was restored into one must not: its
//! revisions are the generations of the mesh table and the versions of objects, and nodes and
//! clients that have seen newer ones would take everything for old. The base is in the cluster's
//! record and never changes.
//!
//! Invariants: the only place where the two kinds of revisions meet; everything above it sees
//! raised ones.

use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use mesh_state::store::{Change, Compare, KeyValue, Listing, Op, Store, StoreError, TxnOutcome, WatchEvent};

/// A store whose revisions are `base` higher than those of the one within.
pub struct RaisedStore<S> {
    inner: S,
    base: i64,
}

impl<S: Store> RaisedStore<S> {
    /// Raises the revisions of `inner` by `base`.
    pub fn new(inner: S, base: i64) -> Self {
        Self { inner, base }
    }

    /// A revision as the store within has it. One from before the base matches none there.
    fn lowered(&self, revision: i64) -> i64 {
        revision.saturating_sub(self.base)
    }

    fn lowered_compare(&self, compare: Compare) -> Compare {
        match compare {
            Compare::ModRevision(key, revision) => Compare::ModRevision(key, self.lowered(revision)),
            Compare::CreateRevision(key, revision) => Compare::CreateRevision(key, self.lowered(revision)),
            other @ (Compare::Absent(_) | Compare::Exists(_) | Compare::NoneBelow(_)) => other,
        }
    }
}

fn raised(item: KeyValue, base: i64) -> KeyValue {
    let (create_revision, mod_revision) = (item.create_revision + base, item.mod_revision + base);
    KeyValue { create_revision, mod_revision, ..item }
}

fn raised_event(event: WatchEvent, base: i64) -> WatchEvent {
    let WatchEvent::Changes { revision, changes } = event else { return event };
    let change = |change| match change {
        Change::Put(item) => Change::Put(raised(item, base)),
        Change::Deleted { key, mod_revision } => Change::Deleted { key, mod_revision: mod_revision + base },
    };
    WatchEvent::Changes { revision: revision + base, changes: changes.into_iter().map(change).collect() }
}

#[async_trait]
impl<S: Store> Store for RaisedStore<S> {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        Ok(self.inner.get(key).await?.map(|item| raised(item, self.base)))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let Listing { revision, items } = self.inner.list(prefix).await?;
        let items = items.into_iter().map(|item| raised(item, self.base)).collect();
        Ok(Listing { revision: revision + self.base, items })
    }

    async fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<TxnOutcome, StoreError> {
        let compares = compares.into_iter().map(|compare| self.lowered_compare(compare)).collect();
        Ok(match self.inner.txn(compares, ops).await? {
            TxnOutcome::Committed(revision) => TxnOutcome::Committed(revision + self.base),
            TxnOutcome::Conflict => TxnOutcome::Conflict,
        })
    }

    async fn watch(
        &self,
        prefix: &str,
        from_revision: i64,
    ) -> Result<BoxStream<'static, Result<WatchEvent, StoreError>>, StoreError> {
        let base = self.base;
        let events = self.inner.watch(prefix, self.lowered(from_revision).max(1)).await?;
        Ok(events.map(move |event| Ok(raised_event(event?, base))).boxed())
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<i64, StoreError> {
        self.inner.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: i64) -> Result<bool, StoreError> {
        self.inner.keep_alive(lease).await
    }

    async fn revoke_lease(&self, lease: i64) -> Result<(), StoreError> {
        self.inner.revoke_lease(lease).await
    }

    async fn compact(&self, revision: i64) -> Result<(), StoreError> {
        // A revision that was noted before the first one of this store compacts nothing.
        match self.lowered(revision) {
            lowered if lowered > 0 => self.inner.compact(lowered).await,
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::store::MemoryStore;

    use super::*;

    const BASE: i64 = 1_000_000;

    fn put(key: &str) -> Vec<Op> {
        vec![Op::put(key, b"1".to_vec())]
    }

    #[tokio::test]
    async fn every_revision_is_raised_and_compares_mean_the_same() {
        let (plain, store) = (MemoryStore::new(), MemoryStore::new());
        let raised = RaisedStore::new(store.clone(), BASE);
        let both: [&dyn Store; 2] = [&plain, &raised];
        let mut revisions = Vec::new();
        for store in both {
            let TxnOutcome::Committed(first) = store.txn(vec![], put("/a")).await.unwrap() else {
                panic!("a write without compares met a conflict")
            };
            let listing = store.list("/").await.unwrap();
            assert_eq!(listing.revision, first);
            let mut events = store.watch("/", listing.revision + 1).await.unwrap();
            for compare in
                [Compare::ModRevision("/a".into(), first), Compare::CreateRevision("/a".into(), first)]
            {
                let written = store.txn(vec![compare], put("/b")).await.unwrap();
                assert!(matches!(written, TxnOutcome::Committed(_)), "a compare with the present revision");
            }
            let stale = vec![Compare::ModRevision("/a".into(), first - 1)];
            assert_eq!(store.txn(stale, put("/b")).await.unwrap(), TxnOutcome::Conflict);
            let Some(Ok(WatchEvent::Changes { revision, changes })) = events.next().await else {
                panic!("the watch ended")
            };
            let read = store.get("/b").await.unwrap().unwrap();
            revisions.push([first, revision, changes[0].mod_revision(), read.create_revision]);
            store.compact(first).await.unwrap();
        }
        assert_eq!(revisions[1], revisions[0].map(|revision| revision + BASE));
        assert!(raised.compact(BASE - 1).await.is_ok(), "from before this store");
        let old = raised.txn(vec![Compare::ModRevision("/a".into(), 3)], put("/a")).await.unwrap();
        assert_eq!(old, TxnOutcome::Conflict, "a revision of the former etcd");
    }
}
