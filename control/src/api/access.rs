//! Access of requests to the cluster's state: reads from the snapshot, writes in one transaction.
//!
//! Invariants: a read is answered from the newest snapshot, also while etcd has no quorum; a write
//! is decided on a snapshot while the watch on etcd is up, committed under compares, decided again
//! after a conflict, and answered once the snapshot holds it, so that a client reads its own
//! writes.
//!
//! Left to others: what is written (the pure parts of the resources).

use std::sync::Arc;
use std::time::Duration;

use mesh_state::store::{Compare, Op, TxnOutcome};
use tokio::time::timeout;

use super::error::ApiError;
use crate::context::ApiContext;
use crate::feed::snapshot::ClusterSnapshot;

/// How long a request waits for a watch that is reconnecting, before it is refused.
const RECONNECT_GRACE: Duration = Duration::from_secs(2);

/// How long a request waits for the snapshot to hold a revision.
const CATCH_UP_MAX: Duration = Duration::from_secs(3);

/// How long a write waits after a conflict for the snapshot that shows why.
const CONFLICT_PAUSE: Duration = Duration::from_millis(200);

/// The most attempts of one write.
const ATTEMPTS: usize = 8;

/// A write with its conditions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Transaction {
    /// What must still hold for the writes to happen.
    pub(crate) compares: Vec<Compare>,
    /// What is written if it holds.
    pub(crate) ops: Vec<Op>,
}

/// When a client can read what it wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visible {
    /// This manager's snapshot holds the write.
    Now,
    /// The write is stored, but this manager's watch is behind: a read right after may not show it.
    Later,
}

/// The newest snapshot, to answer a read from. While etcd doesn't answer, it is the state that this
/// manager saw last; `GET /info` says so.
///
/// # Errors
/// [`ApiError::Disconnected`] if this manager has read nothing from etcd since its start.
pub(crate) async fn seen(context: &ApiContext) -> Result<Arc<ClusterSnapshot>, ApiError> {
    let snapshot = context.snapshot();
    if snapshot.revision > 0 { Ok(snapshot) } else { current(context).await }
}

/// The newest snapshot, to decide a write on.
///
/// # Errors
/// [`ApiError::Disconnected`] if the watch is down and doesn't reconnect at once, as the snapshot
/// may be old.
pub(crate) async fn current(context: &ApiContext) -> Result<Arc<ClusterSnapshot>, ApiError> {
    let mut connected = context.feed.connected.clone();
    let waited = timeout(RECONNECT_GRACE, connected.wait_for(|connected| *connected)).await;
    match waited {
        Ok(Ok(_)) => Ok(context.snapshot()),
        Ok(Err(_)) | Err(_) => Err(ApiError::Disconnected),
    }
}

/// Waits for the snapshot to hold `revision` for a moment: the client may have read it from a
/// manager that is ahead of this one.
///
/// # Errors
/// [`ApiError::Disconnected`]. A revision that doesn't come is no error: the decision on the
/// snapshot will show it.
pub(crate) async fn catch_up(context: &ApiContext, revision: i64) -> Result<(), ApiError> {
    current(context).await?;
    if context.wait_for_revision(revision, CATCH_UP_MAX).await.is_err() {
        tracing::debug!(revision, "deciding on an older snapshot than the client's");
    }
    Ok(())
}

/// Decides and commits, and repeats that after a conflict.
///
/// # Errors
/// An error of `decide`; [`ApiError::Contended`] if every attempt met a conflict;
/// [`ApiError::Unanswered`] and [`ApiError::Store`] if etcd fails.
pub(crate) async fn write(
    context: &ApiContext,
    mut decide: impl FnMut(&ClusterSnapshot) -> Result<Transaction, ApiError> + Send,
) -> Result<Visible, ApiError> {
    for _ in 0..ATTEMPTS {
        let snapshot = current(context).await?;
        let transaction = decide(&snapshot)?;
        match context.store.txn(transaction.compares, transaction.ops).await? {
            TxnOutcome::Committed(revision) => {
                let seen = context.wait_for_revision(revision, CATCH_UP_MAX).await;
                return Ok(if seen.is_ok() { Visible::Now } else { Visible::Later });
            }
            TxnOutcome::Conflict => newer_than(context, snapshot.revision).await,
        }
    }
    Err(ApiError::Contended)
}

/// Waits a moment for a snapshot that is newer than `revision`.
pub(crate) async fn newer_than(context: &ApiContext, revision: i64) {
    let mut snapshots = context.feed.snapshots.clone();
    let newer = snapshots.wait_for(|snapshot| snapshot.revision > revision);
    // Only a pause: the next attempt decides on the snapshot of that moment.
    drop(timeout(CONFLICT_PAUSE, newer).await);
}
