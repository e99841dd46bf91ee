//! The only access to etcd: get, list, transact and watch, over keys of [`crate::keys`].
//!
//! Invariants: every write is a transaction with its compares; revisions rise with each write; a
//! watch misses nothing after the revision that it began at, or reports that it must begin again
//! ([`WatchEvent::Compacted`]).
//!
//! Left to others: what is stored ([`crate::codec`]) and why.

#[cfg(test)]
mod contract;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "memory")]
mod memory;

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use thiserror::Error;

#[cfg(feature = "etcd")]
pub use etcd::{
    EtcdAccess, EtcdAccessError, EtcdIdentity, EtcdMember, EtcdStore, EtcdUser, Joined, MemberStatus, port_of,
};
#[cfg(feature = "memory")]
pub use memory::MemoryStore;

/// One key with its value and revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key that holds the value.
    pub key: String,
    /// The bytes that the key holds.
    pub value: Vec<u8>,
    /// The store's revision at the key's creation.
    pub create_revision: i64,
    /// The store's revision at the key's last write: Docker's `Version.Index`.
    pub mod_revision: i64,
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(String),
    /// The key exists.
    Exists(String),
    /// The key was last written at this revision.
    ModRevision(String, i64),
    /// The key was created at this revision: the fence of a leader.
    CreateRevision(String, i64),
    /// No key has this prefix.
    NoneBelow(String),
}

impl Compare {
    /// The key, or the prefix of the keys, that is compared.
    pub fn key(&self) -> &str {
        match self {
            Self::Absent(key)
            | Self::Exists(key)
            | Self::NoneBelow(key)
            | Self::ModRevision(key, _)
            | Self::CreateRevision(key, _) => key,
        }
    }

    /// The bytes that it adds to a transaction.
    pub fn size(&self) -> usize {
        self.key().len()
    }
}

/// One write of a transaction. etcd allows one write per key in each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes the key; bound to a lease if one is given.
    Put {
        /// The key that is written.
        key: String,
        /// The bytes that it gets.
        value: Vec<u8>,
        /// The lease with which the key is deleted.
        lease: Option<i64>,
    },
    /// Deletes the key.
    Delete {
        /// The key that is removed.
        key: String,
    },
}

impl Op {
    /// A write without a lease.
    pub fn put(key: impl Into<String>, value: Vec<u8>) -> Self {
        Self::Put { key: key.into(), value, lease: None }
    }

    /// A write of a key that is deleted with `lease`.
    pub fn put_leased(key: impl Into<String>, value: Vec<u8>, lease: i64) -> Self {
        Self::Put { key: key.into(), value, lease: Some(lease) }
    }

    /// An operation that removes a key.
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// The bytes that it adds to a transaction.
    pub fn size(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
        }
    }
}

/// The generation of the mesh table made from the store at `revision`. Revisions are never negative
/// ([`StoreError::NoRevision`]).
pub fn generation_of(revision: i64) -> u64 {
    revision.cast_unsigned()
}

/// The most compares in a transaction and, counted separately, the most writes, by etcd's limit.
pub const MAX_TXN_OPS: usize = 127;

/// The most bytes of keys and values in one transaction; etcd's own limit is 1.5 MiB per request.
pub const MAX_TXN_BYTES: usize = 1_200_000;

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxnOutcome {
    /// Committed, at this revision.
    Committed(i64),
    /// A compare failed; nothing was written.
    Conflict,
}

/// All keys below a prefix, at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The revision of the listing; a watch continues from the next.
    pub revision: i64,
    /// The keys, in order.
    pub items: Vec<KeyValue>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A key was written.
    Put(KeyValue),
    /// A key was deleted, or its lease expired.
    Deleted {
        /// The key that was removed.
        key: String,
        /// The revision of the deletion.
        mod_revision: i64,
    },
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(item) => &item.key,
            Self::Deleted { key, .. } => key,
        }
    }

    /// The store's revision after the change.
    pub fn mod_revision(&self) -> i64 {
        match self {
            Self::Put(item) => item.mod_revision,
            Self::Deleted { mod_revision, .. } => *mod_revision,
        }
    }
}

/// What a watch yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// All changes of one or more whole revisions, in order, up to `revision`.
    Changes {
        /// The revision after the changes.
        revision: i64,
        /// The changes of these revisions, in their order.
        changes: Vec<Change>,
    },
    /// The requested revision is compacted: list again, then watch.
    Compacted,
}

/// Why an operation on the store failed. Each operation has a deadline of its own.
#[derive(Debug, Error)]
pub enum StoreError {
    /// No endpoint answered.
    #[error("cannot reach etcd for {operation}: {message}")]
    Unavailable {
        /// The operation, as in metrics.
        operation: &'static str,
        /// The connection's error.
        message: String,
    },
    /// The operation exceeded its deadline: a write may or may not be committed.
    #[error("etcd did not answer {operation} within {deadline:?}")]
    Deadline {
        /// The operation, as in metrics.
        operation: &'static str,
        /// How long the call waited.
        deadline: Duration,
    },
    /// etcd refused the request.
    #[error("etcd refused {operation}: {message}")]
    Refused {
        /// The operation, as in metrics: get, list, txn, watch, lease, compact.
        operation: &'static str,
        /// etcd's message.
        message: String,
    },
    /// etcd's answer has no revision, or a negative one, so its contents can't be ordered.
    #[error("etcd's answer to {operation} has no revision")]
    NoRevision {
        /// The operation, as in metrics.
        operation: &'static str,
    },
    /// The transaction exceeds [`MAX_TXN_OPS`] or [`MAX_TXN_BYTES`]: the caller must split it.
    #[error(
        "transaction of {ops} operations and {bytes} bytes is too large: at most {MAX_TXN_OPS} and {MAX_TXN_BYTES}"
    )]
    TooLarge {
        /// Compares or writes, whichever are more.
        ops: usize,
        /// Bytes of keys and values.
        bytes: usize,
    },
}

impl StoreError {
    /// The operation that failed, as in metrics.
    pub fn operation(&self) -> &'static str {
        match self {
            Self::Unavailable { operation, .. }
            | Self::Deadline { operation, .. }
            | Self::Refused { operation, .. }
            | Self::NoRevision { operation } => operation,
            Self::TooLarge { .. } => "txn",
        }
    }
}

/// Refuses a transaction that etcd would refuse, with the same error from every store.
#[cfg(any(feature = "etcd", feature = "memory"))]
fn check_size(compares: &[Compare], ops: &[Op]) -> Result<(), StoreError> {
    // mesh-control adds one compare to each of its writes, on the cluster's record, for which etcd
    // has room.
    let compares = compares.iter().filter(|compare| compare.key() != crate::keys::CLUSTER);
    let count = compares.clone().count().max(ops.len());
    let bytes = compares.map(Compare::size).chain(ops.iter().map(Op::size)).sum();
    if count > MAX_TXN_OPS || bytes > MAX_TXN_BYTES {
        return Err(StoreError::TooLarge { ops: count, bytes });
    }
    Ok(())
}

/// A key-value store with revisions, transactions, leases and watches: etcd, or memory in tests.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// One key, if it exists (linearizable).
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError>;

    /// All keys below a prefix at one revision (linearizable; read in pages when large).
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError>;

    /// Applies all `ops` if all `compares` hold, else nothing.
    async fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<TxnOutcome, StoreError>;

    /// Changes below a prefix from `from_revision` on, inclusive. The stream ends with an error
    /// when the connection is lost: the caller then watches again from the revision that it has.
    async fn watch(
        &self,
        prefix: &str,
        from_revision: i64,
    ) -> Result<BoxStream<'static, Result<WatchEvent, StoreError>>, StoreError>;

    /// Grants a lease of at least `ttl`; keys bound to it are deleted when it expires.
    async fn grant_lease(&self, ttl: Duration) -> Result<i64, StoreError>;

    /// Renews a lease once. `false`: it had already expired.
    async fn keep_alive(&self, lease: i64) -> Result<bool, StoreError>;

    /// Revokes a lease and deletes its keys. A lease that has already expired is no error.
    async fn revoke_lease(&self, lease: i64) -> Result<(), StoreError>;

    /// Compacts revisions before `revision`: a watch from before it gets [`WatchEvent::Compacted`].
    /// A revision that is already compacted is no error.
    async fn compact(&self, revision: i64) -> Result<(), StoreError>;
}
