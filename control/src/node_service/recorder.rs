//! Writes nodes' reports to the store: one writer per manager, in batches that grow while a write
//! is in progress.
//!
//! Invariants: sessions never wait for it; each report is written, or replaced by something newer,
//! or no longer true; through an outage of the store it keeps the newest report of each kind and
//! writes it afterwards; an entry that the store refuses blocks no other.
//!
//! Left to others: what may be written ([`super::mailbox`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::Utc;
use mesh_admission::door::Door;
use mesh_admission::refusals::Reason;
use mesh_state::ids::{NodeId, TaskId};
use mesh_state::store::{MAX_TXN_BYTES, MAX_TXN_OPS, Op, Store, StoreError, TxnOutcome};
use mesh_state::task::TaskStatus;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::mailbox::{Mailbox, PendingWrite, Sorted, Unwritable};
use crate::feed::watch::Feed;
use mesh_runtime::backoff::Backoff;

/// The deadline for a write to show in the snapshot.
const SEEN_DEADLINE: Duration = Duration::from_secs(3);
/// The shortest pause after a failure of the store.
const PAUSE_SHORTEST: Duration = Duration::from_millis(50);
const PAUSE_LONGEST: Duration = Duration::from_secs(2);
/// Each write has two compares, and etcd limits the operations of a transaction.
const ENTRIES_PER_TXN: usize = MAX_TXN_OPS / 2;

/// The queue of reports, which sessions fill.
#[derive(Clone, Default)]
pub struct Reports {
    mailbox: Arc<Mutex<Mailbox>>,
    news: Arc<Notify>,
    ends: Arc<Notify>,
}

impl Reports {
    /// Changes the mailbox by `leave`, which must only put or drop, and wakes the recorder.
    pub fn leave(&self, leave: impl FnOnce(&mut Mailbox)) {
        leave(&mut self.mailbox.lock().unwrap_or_else(PoisonError::into_inner));
        self.news.notify_one();
    }

    /// Queues the status of a task; an end wakes [`Reports::end_came`], too.
    pub fn leave_status(&self, node: NodeId, task: TaskId, status: TaskStatus) {
        let ends = status.state.is_terminal();
        self.leave(|mailbox| mailbox.put_status(node, task, status));
        if ends {
            self.ends.notify_one();
        }
    }

    /// Waits until the end of a task is reported. For one caller only.
    pub async fn end_came(&self) {
        self.ends.notified().await;
    }

    /// Tasks with a reported end that the store may not hold yet, each with the node that reported
    /// it.
    pub fn ended(&self) -> BTreeMap<TaskId, NodeId> {
        self.with(|mailbox| mailbox.ended())
    }

    fn with<T>(&self, read: impl FnOnce(&mut Mailbox) -> T) -> T {
        read(&mut self.mailbox.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Writes reports to the store.
pub struct Recorder {
    /// The store to write to.
    pub store: Arc<dyn Store>,
    /// What the store holds already.
    pub feed: Feed,
    /// This manager's name.
    pub manager: String,
    /// The queue of reports.
    pub reports: Reports,
    /// Counts reports that can't be stored.
    pub door: Arc<Door>,
}

impl Recorder {
    /// Writes until `shutdown`, then writes what is left if the store takes it.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut backoff = Backoff::new(PAUSE_SHORTEST, PAUSE_LONGEST);
        let mut snapshots = self.feed.snapshots.clone();
        loop {
            let wrote = self.write_all().await;
            let pause = match wrote {
                Ok(()) => {
                    backoff.reset();
                    None
                }
                Err(error) => {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "can't record what nodes report: kept for later"
                    );
                    Some(backoff.pause(&mut rand::rng()))
                }
            };
            if shutdown.is_cancelled() {
                return;
            }
            if let Some(pause) = pause {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = shutdown.cancelled() => {}
                }
                continue;
            }
            let waits = !self.reports.with(|mailbox| mailbox.is_empty());
            tokio::select! {
                () = self.reports.news.notified() => {}
                // A report that met a conflict is tried again on the next snapshot.
                _ = snapshots.changed(), if waits => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// Writes everything in the mailbox, once.
    async fn write_all(&self) -> Result<(), StoreError> {
        let snapshot = self.feed.snapshot();
        let Sorted { entries, dropped } = self.reports.with(|mailbox| {
            mailbox.settle(&snapshot, &self.manager);
            mailbox.entries(&snapshot, &self.manager, Utc::now())
        });
        for Unwritable { key, reason } in dropped {
            self.door.refuse(Reason::Unwritable, &format_args!("{key}: {reason}"));
        }
        let (mut last, mut refused) = (None, None);
        for batch in batches(entries) {
            let (written, refusal) = self.write_batch(batch).await?;
            last = written.max(last);
            refused = refusal.or(refused);
        }
        if let Some(revision) = last
            && let Err(late) = self.feed.wait_for_revision(revision, SEEN_DEADLINE).await
        {
            debug!(%late, "reports were written and don't show yet");
        }
        // What the store refused stays in the mailbox, and is tried again after a pause.
        refused.map_or(Ok(()), Err)
    }

    /// Commits one transaction; on a conflict or a refusal, commits each entry by itself, so that
    /// one that can't be written doesn't block the others. Returns the last revision written, and
    /// the last refusal of a single entry.
    async fn write_batch(
        &self,
        batch: Vec<PendingWrite>,
    ) -> Result<(Option<i64>, Option<StoreError>), StoreError> {
        match self.write(&batch).await {
            Ok(TxnOutcome::Committed(revision)) => return Ok((Some(revision), None)),
            Ok(TxnOutcome::Conflict) => {}
            Err(error) if is_of_its_entries(&error) => {
                debug!(error = mesh_runtime::error_chain(&error), "write entries one by one");
            }
            Err(error) => return Err(error),
        }
        let (mut last, mut refused) = (None, None);
        for entry in batch {
            match self.write(std::slice::from_ref(&entry)).await {
                Ok(TxnOutcome::Committed(revision)) => last = Some(revision),
                Ok(TxnOutcome::Conflict) => {}
                Err(error) if is_of_its_entries(&error) => {
                    self.door.refuse(Reason::Unwritable, &format_args!("{}: {error}", key_of(&entry.op)));
                    refused = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok((last, refused))
    }

    async fn write(&self, entries: &[PendingWrite]) -> Result<TxnOutcome, StoreError> {
        let compares = entries.iter().flat_map(|entry| entry.compares.clone()).collect();
        let ops = entries.iter().map(|entry| entry.op.clone()).collect();
        self.store.txn(compares, ops).await
    }
}

/// Whether an error is caused by the entries and not by the store, so that another entry may
/// succeed.
fn is_of_its_entries(error: &StoreError) -> bool {
    matches!(error, StoreError::Refused { .. } | StoreError::TooLarge { .. })
}

fn key_of(op: &Op) -> &str {
    match op {
        Op::Put { key, .. } | Op::Delete { key } => key,
    }
}

/// Groups entries into transactions. Two entries on one key (a description) never share one: keys
/// are unique by kind and id.
fn batches(entries: Vec<PendingWrite>) -> Vec<Vec<PendingWrite>> {
    let mut cut: Vec<Vec<PendingWrite>> = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        let size = entry.size();
        match cut.last_mut() {
            Some(last) if last.len() < ENTRIES_PER_TXN && bytes + size <= MAX_TXN_BYTES => {
                bytes += size;
                last.push(entry);
            }
            _ => {
                bytes = size;
                cut.push(vec![entry]);
            }
        }
    }
    cut
}

#[cfg(test)]
mod tests {
    use mesh_admission::figures::Listener;
    use mesh_admission::refusals::Refusals;
    use mesh_state::store::MemoryStore;
    use tokio::time::Instant;

    use super::*;
    use crate::fixtures::World;

    #[tokio::test(start_paused = true)]
    async fn the_pause_after_a_failure_ends_with_the_manager() {
        let store = MemoryStore::new();
        store.set_reachable(false);
        let (_, mut feed) = crate::feed::watch::feed();
        feed.snapshots = tokio::sync::watch::channel(Arc::new(World::with_nodes(["a"]).snapshot)).1;
        let refusals = Refusals::register(&prometheus::Registry::new()).unwrap();
        let reports = Reports::default();
        let recorder = Recorder {
            store: Arc::new(store),
            feed,
            manager: "m1".to_owned(),
            reports: reports.clone(),
            door: Door::new(Listener::Nodes, Listener::Nodes.figures(), refusals),
        };
        reports.leave(|mailbox| mailbox.put_ack("a".into(), 1));
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(recorder.run(shutdown.clone()));
        // By now the pause has reached its maximum.
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert!(!reports.with(|mailbox| mailbox.is_empty()), "the report waits for the store");
        let asked = Instant::now();
        shutdown.cancel();
        running.await.unwrap();
        assert!(asked.elapsed() < PAUSE_SHORTEST, "it ended after {:?}", asked.elapsed());
    }
}
