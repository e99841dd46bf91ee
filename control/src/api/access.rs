//! How requests meet the cluster's state: reads from the snapshot, writes through one transaction.
//!
//! Invariants: a read is answered only while the watch on etcd is up; a write is decided on a
//! snapshot, committed under compares, decided anew when it loses, and answered once the snapshot
//! holds it, so that a client reads what it wrote.
//!
//! Left to others: what is written (the resources' pure parts).

use std::sync::Arc;
use std::time::Duration;

use mesh_state::store::{Compare, Op, TxnOutcome};
use tokio::time::timeout;

use super::error::ApiError;
use crate::context::ApiContext;
use crate::feed::snapshot::ClusterSnapshot;

/// How long a request waits for a watch that is being set up anew, before it is refused.
const RECONNECT_GRACE: Duration = Duration::from_secs(2);

/// How long a request waits for the snapshot to hold what was written or read elsewhere.
const CATCH_UP_MAX: Duration = Duration::from_secs(3);

/// How long a write that lost waits for the snapshot to show why.
const CONFLICT_PAUSE: Duration = Duration::from_millis(200);

/// Decisions of one write, the lost ones included.
const ATTEMPTS: usize = 8;

/// What a write needs and does.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Transaction {
    /// What must hold.
    pub(crate) compares: Vec<Compare>,
    /// What is written.
    pub(crate) ops: Vec<Op>,
}

/// When the client that wrote will see what it wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visible {
    /// This manager's snapshot holds the write.
    Now,
    /// The write is stored, but this manager's watch is behind: a read right after may not show it.
    Later,
}

/// The newest snapshot.
///
/// # Errors
/// [`ApiError::Disconnected`] when the watch is down and doesn't come back at once: what is known
/// may be old.
pub(crate) async fn current(context: &ApiContext) -> Result<Arc<ClusterSnapshot>, ApiError> {
    let mut connected = context.feed.connected.clone();
    let waited = timeout(RECONNECT_GRACE, connected.wait_for(|connected| *connected)).await;
    match waited {
        Ok(Ok(_)) => Ok(context.snapshot()),
        Ok(Err(_)) | Err(_) => Err(ApiError::Disconnected),
    }
}

/// Gives the snapshot a moment to hold `revision`: a client may have read it from a manager that is
/// ahead of this one.
///
/// # Errors
/// [`ApiError::Disconnected`]. A revision that doesn't come is no error: what is decided on the
/// snapshot will show it.
pub(crate) async fn catch_up(context: &ApiContext, revision: i64) -> Result<(), ApiError> {
    current(context).await?;
    if context.wait_for_revision(revision, CATCH_UP_MAX).await.is_err() {
        tracing::debug!(revision, "decide on an older snapshot than the client's");
    }
    Ok(())
}

/// Decides and commits, again and again while others are faster.
///
/// # Errors
/// What `decide` refuses; [`ApiError::Contended`] when every attempt lost; [`ApiError::Store`] when
/// etcd doesn't take it.
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

async fn newer_than(context: &ApiContext, revision: i64) {
    let mut snapshots = context.feed.snapshots.clone();
    let newer = snapshots.wait_for(|snapshot| snapshot.revision > revision);
    // A pause is all that is wanted: the next attempt decides on whatever the snapshot then is.
    drop(timeout(CONFLICT_PAUSE, newer).await);
}
