//! Follows the store: lists everything once, watches from there, and publishes each state as one
//! shared snapshot.
//!
//! Invariants: a published snapshot is the whole store at one revision; while the store is
//! unreachable the last snapshot stays and [`Feed::connected`] is false. A lost watch leads to a
//! new listing: that is right after a compaction and after a restored backup, too.
//!
//! Left to others: reading the snapshot.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use futures::{FutureExt as _, StreamExt as _};
use mesh_state::keys;
use mesh_state::store::{Change, Store, StoreError, WatchEvent};
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::feed::events;
use crate::feed::events::log::EventLog;
use crate::feed::snapshot::ClusterSnapshot;
use mesh_runtime::backoff::Backoff;

/// The first pause before the store is tried again.
const PAUSE_SHORTEST: Duration = Duration::from_millis(50);
/// The longest pause before the store is tried again.
const PAUSE_LONGEST: Duration = Duration::from_secs(2);
/// The most events applied to one snapshot when they come faster than snapshots are read.
const EVENTS_PER_SNAPSHOT: usize = 256;

/// The state of the store, and whether the watch on it is up.
#[derive(Debug, Clone)]
pub struct Feed {
    /// The newest snapshot; an empty one until the first listing.
    pub snapshots: watch::Receiver<Arc<ClusterSnapshot>>,
    /// Whether the watch is up.
    pub connected: watch::Receiver<bool>,
    /// Events of the cluster's objects.
    pub events: EventLog,
}

/// A revision did not show in the snapshot in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("revision {wanted} was not seen within {deadline:?}; the watch on etcd is behind or down")]
pub struct RevisionTimeout {
    /// The revision that was waited for.
    pub wanted: i64,
    /// How long it was waited for.
    pub deadline: Duration,
}

impl Feed {
    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<ClusterSnapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// The first snapshot that holds `revision`, so that a writer can read its own write.
    ///
    /// # Errors
    /// [`RevisionTimeout`] when it doesn't come within `deadline`.
    pub async fn wait_for_revision(
        &self,
        wanted: i64,
        deadline: Duration,
    ) -> Result<Arc<ClusterSnapshot>, RevisionTimeout> {
        let mut snapshots = self.snapshots.clone();
        let seen = snapshots.wait_for(|snapshot| snapshot.revision >= wanted);
        match tokio::time::timeout(deadline, seen).await {
            Ok(Ok(snapshot)) => Ok(Arc::clone(&snapshot)),
            _ => Err(RevisionTimeout { wanted, deadline }),
        }
    }
}

/// The writing end of a [`Feed`].
#[derive(Debug)]
pub struct Follower {
    snapshots: watch::Sender<Arc<ClusterSnapshot>>,
    connected: watch::Sender<bool>,
    events: EventLog,
}

/// A feed and the follower that fills it.
pub fn feed() -> (Follower, Feed) {
    let (snapshots, snapshots_seen) = watch::channel(Arc::new(ClusterSnapshot::default()));
    let (connected, connected_seen) = watch::channel(false);
    let events = EventLog::default();
    let feed = Feed { snapshots: snapshots_seen, connected: connected_seen, events: events.clone() };
    (Follower { snapshots, connected, events }, feed)
}

impl Follower {
    /// Follows `store` until `shutdown`; reconnects after every loss.
    pub async fn follow(self, store: Arc<dyn Store>, shutdown: CancellationToken) {
        let mut backoff = Backoff::new(PAUSE_SHORTEST, PAUSE_LONGEST);
        loop {
            let end = tokio::select! {
                end = self.list_and_watch(store.as_ref(), &mut backoff) => end,
                () = shutdown.cancelled() => return,
            };
            self.connected.send_replace(false);
            match end {
                Ok(()) => info!("the watch was compacted away: listing again"),
                Err(error) => warn!(
                    error = mesh_runtime::error_chain(&error),
                    "lost the watch on the store: trying again"
                ),
            }
            let pause = backoff.pause(&mut rand::rng());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Lists once and watches from there. Returns `Ok` when the store has compacted the revisions
    /// that the watch needs.
    async fn list_and_watch(&self, store: &dyn Store, backoff: &mut Backoff) -> Result<(), StoreError> {
        let listing = store.list(keys::ROOT).await?;
        let mut events = store.watch(keys::ROOT, listing.revision + 1).await?;
        let mut snapshot = ClusterSnapshot::from_listing(listing.revision, listing.items);
        snapshot.received_at = Utc::now();
        snapshot.see_listing(&self.snapshots.borrow(), snapshot.received_at);
        info!(revision = snapshot.revision, "following the store");
        let snapshot = Arc::new(snapshot);
        let before = self.snapshots.send_replace(Arc::clone(&snapshot));
        // Before the first listing there is no state to compare with.
        if before.revision > 0 {
            let missed = events::after_listing(&before, &snapshot, snapshot.received_at);
            for event in missed {
                self.events.add(event);
            }
        }
        self.connected.send_replace(true);
        backoff.reset();
        while let Some(event) = events.next().await {
            let WatchEvent::Changes { mut revision, mut changes } = event? else { return Ok(()) };
            let mut end = None;
            for _ in 1..EVENTS_PER_SNAPSHOT {
                match events.next().now_or_never().flatten() {
                    Some(Ok(WatchEvent::Changes { revision: newer, changes: more })) => {
                        revision = newer;
                        changes.extend(more);
                    }
                    Some(Ok(WatchEvent::Compacted)) => end = Some(Ok(())),
                    Some(Err(error)) => end = Some(Err(error)),
                    None => break,
                }
            }
            self.publish(revision, changes);
            if let Some(end) = end {
                return end;
            }
        }
        Err(StoreError::Unavailable { operation: "watch", message: "the watch ended".to_owned() })
    }

    fn publish(&self, revision: i64, changes: Vec<Change>) {
        let now = Utc::now();
        let mut happened = Vec::new();
        self.snapshots.send_modify(|shared| {
            // Copies pointers if another reference to the last snapshot exists, else changes it in
            // place.
            let snapshot = Arc::make_mut(shared);
            for change in changes {
                happened.extend(events::of_change(snapshot, change, now));
            }
            snapshot.revision = snapshot.revision.max(revision);
            snapshot.received_at = now;
        });
        // Sent after the snapshot is published: a listener can then look at the object of an event.
        for event in happened {
            self.events.add(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::codec;
    use mesh_state::store::{MemoryStore, Op, TxnOutcome};

    use super::*;

    struct Followed {
        store: MemoryStore,
        feed: Feed,
        shutdown: CancellationToken,
    }

    fn follow() -> Followed {
        let (follower, feed) = feed();
        let (store, shutdown) = (MemoryStore::new(), CancellationToken::new());
        tokio::spawn(follower.follow(Arc::new(store.clone()), shutdown.clone()));
        Followed { store, feed, shutdown }
    }

    impl Drop for Followed {
        fn drop(&mut self) {
            self.shutdown.cancel();
        }
    }

    impl Followed {
        /// Claims a name and returns the revision of the claim.
        async fn claim(&self, name: &str) -> i64 {
            let op = Op::put(keys::name("services", name), codec::encode(&name).unwrap());
            match self.store.txn(vec![], vec![op]).await.unwrap() {
                TxnOutcome::Committed(revision) => revision,
                TxnOutcome::Conflict => panic!("a write without compares met a conflict"),
            }
        }

        async fn names_at(&self, revision: i64) -> Vec<String> {
            let snapshot = self.feed.wait_for_revision(revision, Duration::from_mins(1)).await.unwrap();
            snapshot.names.keys().map(|(_, name)| name.clone()).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_written_is_seen() {
        let followed = follow();
        let revision = followed.claim("a").await;
        assert_eq!(followed.names_at(revision).await, ["a"]);
        let revision = followed.claim("b").await;
        assert_eq!(followed.names_at(revision).await, ["a", "b"]);
        let late = followed.feed.wait_for_revision(revision + 1, Duration::from_millis(10)).await;
        assert_eq!(late.unwrap_err().wanted, revision + 1, "a revision that never comes");
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_keeps_the_last_snapshot_and_what_was_missed_comes_after_it() {
        let followed = follow();
        let first = followed.claim("a").await;
        assert_eq!(followed.names_at(first).await, ["a"]);
        followed.store.set_reachable(false);
        let mut connected = followed.feed.connected.clone();
        connected.wait_for(|up| !up).await.unwrap();
        assert_eq!(followed.feed.snapshot().names.len(), 1, "the last snapshot stays");

        followed.store.set_reachable(true);
        let last = followed.claim("b").await;
        followed.store.compact(last).await.unwrap();
        assert_eq!(followed.names_at(last).await, ["a", "b"], "after the outage and a compaction");
        connected.wait_for(|up| *up).await.unwrap();
    }
}
