//! The only door to etcd: get, list, transact and watch, over keys of [`crate::keys`].
//!
//! Invariants: every write is a transaction with its compares; revisions rise with each write; a watch misses nothing after the
//! revision that it began at, or says that it must begin anew ([`WatchEvent::Compacted`]).
//!
//! Left to others: what is stored ([`crate::codec`]) and why.

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use thiserror::Error;

/// One key with its value and revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// The store's revision at its creation.
    pub create_revision: i64,
    /// The store's revision at its last write: Docker's `Version.Index`.
    pub mod_revision: i64,
}

/// What must hold for a transaction to be applied.
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
}

/// One write of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Write the key; bound to a lease if one is given.
    Put {
        /// The key.
        key: String,
        /// Its value.
        value: Vec<u8>,
        /// The lease that it ends with.
        lease: Option<i64>,
    },
    /// Delete the key.
    Delete {
        /// The key.
        key: String,
    },
}

impl Op {
    /// A write without a lease.
    pub fn put(key: impl Into<String>, value: Vec<u8>) -> Self {
        Self::Put { key: key.into(), value, lease: None }
    }

    /// A deletion.
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete { key: key.into() }
    }
}

/// Operations (compares and writes together) that etcd takes in a transaction.
pub const MAX_TXN_OPS: usize = 128;

/// Bytes of keys and values kept below in one transaction; etcd's own limit is 1.5 MiB a request.
pub const MAX_TXN_BYTES: usize = 1_200_000;

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxnOutcome {
    /// Applied, at this revision.
    Committed(i64),
    /// A compare did not hold; nothing was written.
    Conflict,
}

/// Everything below a prefix at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The revision it was read at; a watch goes on from the next.
    pub revision: i64,
    /// The keys, in order.
    pub items: Vec<KeyValue>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A key was written.
    Put(KeyValue),
    /// A key was deleted, or its lease ended.
    Deleted {
        /// The key.
        key: String,
        /// The revision of the deletion.
        mod_revision: i64,
    },
}

/// What a watch yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// All changes of one or more whole revisions, in order; the store stands at `revision` after them.
    Changes {
        /// The revision after the changes.
        revision: i64,
        /// The changes.
        changes: Vec<Change>,
    },
    /// The asked revision is no longer kept: list again, then watch.
    Compacted,
}

/// Why the store could not do what was asked. Each operation has a deadline of its own.
#[derive(Debug, Error)]
pub enum StoreError {
    /// No endpoint answered.
    #[error("reach etcd: {0}")]
    Unavailable(String),
    /// The operation took longer than its deadline.
    #[error("etcd did not answer within {0:?}")]
    Deadline(Duration),
    /// etcd refused the request.
    #[error("etcd refused {operation}: {message}")]
    Refused {
        /// The operation, as in metrics: get, list, txn, watch, lease.
        operation: &'static str,
        /// etcd's words.
        message: String,
    },
    /// The transaction exceeds [`MAX_TXN_OPS`] or [`MAX_TXN_BYTES`]: the caller must cut it.
    #[error(
        "transaction of {ops} operations and {bytes} bytes is too large: at most {MAX_TXN_OPS} and {MAX_TXN_BYTES}"
    )]
    TooLarge {
        /// Compares and writes.
        ops: usize,
        /// Bytes of keys and values.
        bytes: usize,
    },
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

    /// Changes below a prefix from `from_revision` on, that revision included. The stream ends with an error when the
    /// connection is lost: the caller begins anew from the revision it has.
    async fn watch(
        &self,
        prefix: &str,
        from_revision: i64,
    ) -> Result<BoxStream<'static, Result<WatchEvent, StoreError>>, StoreError>;

    /// A lease of at least `ttl`; keys bound to it vanish when it is not kept alive.
    async fn grant_lease(&self, ttl: Duration) -> Result<i64, StoreError>;

    /// Prolongs a lease once. `false`: it had ended already.
    async fn keep_alive(&self, lease: i64) -> Result<bool, StoreError>;

    /// Ends a lease and deletes its keys.
    async fn revoke_lease(&self, lease: i64) -> Result<(), StoreError>;
}
