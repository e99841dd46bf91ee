//! The store, guarded: usable only while it holds this manager's cluster.
//!
//! Purpose: etcd may lose its data, or become another cluster's, while a manager runs: its
//! directory was lost, an operator deleted keys or restored a backup of elsewhere. Such an etcd
//! must not look like an empty cluster, in which no node is a member: it counts as unreachable.
//!
//! Invariants: every write has the condition that the cluster's record is the one that this manager
//! opened; a key counts as missing only after a check of that record; a listing or a watch that
//! shows the record missing, or another cluster's, fails like one of an unreachable store, so that
//! nodes and tasks stay as they are.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use mesh_state::cluster::Cluster;
use mesh_state::ids::ClusterId;
use mesh_state::store::{Change, Compare, KeyValue, Listing, Op, Store, StoreError, TxnOutcome, WatchEvent};
use mesh_state::{codec, keys};

/// A store that counts as unreachable unless it holds one cluster.
pub struct OwnStore<S> {
    inner: S,
    cluster: ClusterId,
    /// The revision at which the cluster's record was created; changes of the record keep it. A
    /// listing updates it when the record was deleted and restored by hand.
    created: AtomicI64,
}

impl<S: Store> OwnStore<S> {
    /// Guards `inner` for the cluster whose record was created at revision `created`.
    pub fn new(inner: S, cluster: ClusterId, created: i64) -> Self {
        Self { inner, cluster, created: AtomicI64::new(created) }
    }

    fn check(&self, operation: &'static str, record: Option<&[u8]>) -> Result<(), StoreError> {
        check_record(operation, &self.cluster, record)
    }
}

/// Checks that `record` is that of `cluster`.
fn check_record(
    operation: &'static str,
    cluster: &ClusterId,
    record: Option<&[u8]>,
) -> Result<(), StoreError> {
    let found = record.and_then(|record| codec::decode::<Cluster>(record).ok()).map(|record| record.id);
    if found.as_ref() == Some(cluster) {
        return Ok(());
    }
    let found = found.map_or_else(|| "no cluster".to_owned(), |found| format!("cluster {found}"));
    let message = format!(
        "it holds {found}, and this manager is of cluster {cluster}: restore a backup, or name this cluster's etcd; \
         nodes and tasks go on as they are"
    );
    Err(StoreError::Unavailable { operation, message })
}

/// Checks that a change leaves the record of `cluster` in the store.
fn check_change(cluster: &ClusterId, change: &Change) -> Result<(), StoreError> {
    match change {
        Change::Put(item) if item.key == keys::CLUSTER => check_record("watch", cluster, Some(&item.value)),
        Change::Deleted { key, .. } if key == keys::CLUSTER => check_record("watch", cluster, None),
        Change::Put(_) | Change::Deleted { .. } => Ok(()),
    }
}

#[async_trait]
impl<S: Store> Store for OwnStore<S> {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let found = self.inner.get(key).await?;
        if found.is_none() {
            let record = self.inner.get(keys::CLUSTER).await?;
            self.check("get", record.as_ref().map(|item| item.value.as_slice()))?;
        }
        Ok(found)
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let listing = self.inner.list(prefix).await?;
        let listed = listing.items.iter().find(|item| item.key == keys::CLUSTER);
        let read = if listed.is_none() { self.inner.get(keys::CLUSTER).await? } else { None };
        let record = listed.or(read.as_ref());
        self.check("list", record.map(|item| item.value.as_slice()))?;
        if let Some(record) = record {
            self.created.store(record.create_revision, Ordering::Relaxed);
        }
        Ok(listing)
    }

    async fn txn(&self, mut compares: Vec<Compare>, ops: Vec<Op>) -> Result<TxnOutcome, StoreError> {
        let created = self.created.load(Ordering::Relaxed);
        compares.push(Compare::CreateRevision(keys::CLUSTER.to_owned(), created));
        self.inner.txn(compares, ops).await
    }

    async fn watch(
        &self,
        prefix: &str,
        from_revision: i64,
    ) -> Result<BoxStream<'static, Result<WatchEvent, StoreError>>, StoreError> {
        let events = self.inner.watch(prefix, from_revision).await?;
        let cluster = self.cluster.clone();
        let checked = events.map(move |event| {
            let event = event?;
            if let WatchEvent::Changes { changes, .. } = &event {
                changes.iter().try_for_each(|change| check_change(&cluster, change))?;
            }
            Ok(event)
        });
        Ok(checked.boxed())
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
        self.inner.compact(revision).await
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::store::MemoryStore;

    use super::*;
    use crate::fixtures::World;

    fn record(id: &str) -> Op {
        let world = World::with_nodes([]);
        let cluster = Cluster { id: id.into(), ..world.snapshot.cluster.as_ref().unwrap().value.clone() };
        Op::put(keys::CLUSTER, codec::encode(&cluster).unwrap())
    }

    async fn own(store: &MemoryStore) -> OwnStore<MemoryStore> {
        let TxnOutcome::Committed(created) = store.txn(vec![], vec![record("ours")]).await.unwrap() else {
            panic!("a write without compares met a conflict");
        };
        OwnStore::new(store.clone(), "ours".into(), created)
    }

    fn is_away<T: std::fmt::Debug>(outcome: &Result<T, StoreError>) {
        assert!(
            matches!(outcome, Err(StoreError::Unavailable { .. })),
            "expected an unreachable store: {outcome:?}"
        );
    }

    #[tokio::test]
    async fn a_store_with_the_cluster_works_as_usual() {
        let store = MemoryStore::new();
        let own = own(&store).await;
        assert!(own.get("/mesh/v1/x").await.unwrap().is_none(), "a missing key");
        let put = Op::put("/mesh/v1/x", vec![1]);
        assert!(matches!(own.txn(vec![], vec![put]).await, Ok(TxnOutcome::Committed(_))), "a write");
        assert_eq!(own.list(keys::ROOT).await.unwrap().items.len(), 2, "the record and the written key");
        let again = own.txn(vec![], vec![record("ours")]).await;
        assert!(matches!(again, Ok(TxnOutcome::Committed(_))), "the record itself may change");
        let after = own.txn(vec![], vec![Op::put("/mesh/v1/y", vec![1])]).await;
        assert!(matches!(after, Ok(TxnOutcome::Committed(_))), "a write after that");
    }

    #[tokio::test]
    async fn an_emptied_store_and_one_of_another_cluster_count_as_unreachable() {
        for other in [None, Some("theirs")] {
            let store = MemoryStore::new();
            let own = own(&store).await;
            let revision = own.list(keys::ROOT).await.unwrap().revision;
            let mut events = own.watch(keys::ROOT, revision + 1).await.unwrap();
            store.txn(vec![], vec![Op::Delete { key: keys::CLUSTER.to_owned() }]).await.unwrap();
            if let Some(other) = other {
                store.txn(vec![], vec![record(other)]).await.unwrap();
            }
            is_away(&events.next().await.unwrap());
            is_away(&own.get("/mesh/v1/nodes/n1").await);
            is_away(&own.list(keys::ROOT).await);
            let written = own.txn(vec![], vec![Op::put("/mesh/v1/x", vec![1])]).await.unwrap();
            assert_eq!(written, TxnOutcome::Conflict, "a write into a store that is not ours");

            store.txn(vec![], vec![record("ours")]).await.unwrap();
            own.list(keys::ROOT).await.unwrap();
            let written = own.txn(vec![], vec![Op::put("/mesh/v1/x", vec![1])]).await;
            assert!(
                matches!(written, Ok(TxnOutcome::Committed(_))),
                "after the record was restored: {written:?}"
            );
        }
    }
}
