//! Restores a backup into an empty etcd: the cluster of the backup, with its key, its CA and its
//! tokens, goes on there.
//!
//! Invariants: the cluster's record is written last, so that no manager takes half of a backup for
//! a cluster; the record has a base above every revision that a node of the cluster can have seen;
//! an etcd with a cluster is left as it is.
//!
//! Left to others: making that etcd and the key file (`app::managed`), and restoring onto a cluster
//! that runs (`api::restore`).

use mesh_backup::{Backup, families};
use mesh_state::Timestamp;
use mesh_state::cluster::Cluster;
use mesh_state::codec::{self, CodecError};
use mesh_state::keys;
use mesh_state::store::{Compare, MAX_TXN_BYTES, MAX_TXN_OPS, Op, Store, StoreError, TxnOutcome};
use thiserror::Error;

/// The least distance between the newest revision in the backup and the first of the restored
/// cluster: how much a cluster may have gone on after its backup if this machine's clock is wrong.
const DISTANCE_MIN: i64 = 1_000_000_000;

/// Why a backup can't be restored into an etcd.
#[derive(Debug, Error)]
pub enum RefillError {
    /// etcd refused a read or a write, or can't be reached.
    #[error("write the backup to etcd")]
    Store(#[from] StoreError),
    /// The cluster's record can't be read or written.
    #[error("read the cluster's record in the backup")]
    Codec(#[from] CodecError),
    /// The backup has no cluster's record.
    #[error("the backup has no record of a cluster: take another one")]
    NoCluster,
    /// The etcd is not empty.
    #[error("this etcd holds a cluster already: restore onto it while its managers run")]
    Taken,
}

/// What is added to the revisions of the etcd that a cluster is restored into at `now`, after it
/// had the revision `newest`.
///
/// The cluster went on for an unknown time after its backup, and may have been restored from it
/// before. Its revisions rise by far less than one each microsecond, so the present moment in
/// microseconds is above all of them, unless the clock is wrong.
fn base(newest: i64, now: Timestamp) -> i64 {
    now.timestamp_micros().max(newest.saturating_add(DISTANCE_MIN))
}

/// The writes that make an empty etcd hold the cluster of `backup`, in transactions, in order.
/// Pure.
///
/// # Errors
/// [`RefillError::NoCluster`], or the record can't be read.
pub fn writes(backup: &Backup, now: Timestamp) -> Result<Vec<Vec<Op>>, RefillError> {
    let mut entries: Vec<_> =
        backup.entries().iter().filter(|entry| families::is_state(&entry.key)).collect();
    entries.sort_by_key(|entry| families::rank(&entry.key));
    if entries.last().is_none_or(|last| last.key != keys::CLUSTER) {
        return Err(RefillError::NoCluster);
    }
    let mut cut: Vec<Vec<Op>> = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        let is_last = entry.key == keys::CLUSTER;
        let value = if is_last {
            let cluster: Cluster = codec::decode(&entry.value)?;
            let revision_base = base(backup.manifest().revision, now);
            codec::encode(&Cluster { revision_base, ..cluster })?
        } else {
            entry.value.clone()
        };
        let op = Op::put(entry.key.clone(), value);
        bytes += op.size();
        match cut.last_mut() {
            Some(ops) if ops.len() < MAX_TXN_OPS && bytes <= MAX_TXN_BYTES && !is_last => ops.push(op),
            _ => {
                bytes = op.size();
                cut.push(vec![op]);
            }
        }
    }
    Ok(cut)
}

/// Writes `backup` to the empty `store`. A transaction whose answer was lost is written again by
/// the caller's next attempt, which begins anew.
///
/// # Errors
/// [`RefillError`].
pub async fn refill(store: &dyn Store, backup: &Backup, now: Timestamp) -> Result<(), RefillError> {
    for ops in writes(backup, now)? {
        let no_cluster = vec![Compare::Absent(keys::CLUSTER.to_owned())];
        if store.txn(no_cluster, ops).await? == TxnOutcome::Conflict {
            return Err(RefillError::Taken);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use mesh_backup::Entry;
    use mesh_backup::content::Origin;
    use mesh_state::store::MemoryStore;
    use zeroize::Zeroizing;

    use super::*;
    use crate::fixtures;

    fn backup(entries: Vec<Entry>) -> Backup {
        let origin = Origin {
            cluster: "c".into(),
            revision: 500,
            mesh: String::new(),
            manager: String::new(),
            now: Timestamp::default(),
        };
        Backup::new(origin, Zeroizing::new([1; mesh_backup::KEY_BYTES]), entries).unwrap()
    }

    fn entry(key: String, value: Vec<u8>) -> Entry {
        Entry { key, value }
    }

    fn large() -> Backup {
        let tasks = (0..1000)
            .map(|number| entry(keys::task(&format!("t{number}").as_str().into()), vec![b'x'; 5000]));
        let mut entries = vec![entry(keys::CLUSTER.to_owned(), codec::encode(&fixtures::cluster()).unwrap())];
        entries.extend(tasks);
        entries.push(entry(keys::manager("m"), b"alive".to_vec()));
        backup(entries)
    }

    #[tokio::test]
    async fn an_empty_store_gets_all_state_and_a_base_above_all_revisions() {
        let now = Timestamp::default() + TimeDelta::days(20_000);
        let cut = writes(&large(), now).unwrap();
        for ops in &cut {
            let bytes: usize = ops.iter().map(Op::size).sum();
            assert!(
                ops.len() <= MAX_TXN_OPS && bytes <= MAX_TXN_BYTES,
                "{} writes, {bytes} bytes",
                ops.len()
            );
        }
        let last: Vec<_> = cut.last().unwrap().iter().collect();
        assert!(
            matches!(last[..], [Op::Put { key, .. }] if key == keys::CLUSTER),
            "alone and last: {last:?}"
        );
        let store = MemoryStore::new();
        refill(&store, &large(), now).await.unwrap();
        let listing = store.list(keys::ROOT).await.unwrap();
        assert_eq!(listing.items.len(), 1001, "the tasks and the record, and no manager");
        let record = listing.items.iter().find(|item| item.key == keys::CLUSTER).unwrap();
        let cluster: Cluster = codec::decode(&record.value).unwrap();
        assert_eq!(cluster.revision_base, now.timestamp_micros());
        assert!(matches!(refill(&store, &large(), now).await, Err(RefillError::Taken)));
        assert!(matches!(refill(&store, &backup(vec![]), now).await, Err(RefillError::NoCluster)));
    }

    #[test]
    fn each_restore_begins_above_the_one_before_and_above_the_backup() {
        let now = Timestamp::default() + TimeDelta::days(20_000);
        let first = base(500, now);
        let second = base(500, now + TimeDelta::minutes(1));
        assert!(second - first > 1_000_000, "what the first one may have written in a minute");
        assert_eq!(base(first, Timestamp::default()), first + DISTANCE_MIN, "with a wrong clock");
        assert!(u64::try_from(second).unwrap() < 1 << 53, "JavaScript's clients read it exactly");
    }
}
