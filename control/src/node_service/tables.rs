//! Makes the mesh table of each snapshot once for all sessions of this manager, from the table
//! before it.
//!
//! Invariants: a change of contents is published at once; if only the revision rose, the generation
//! follows within [`GENERATION_LAG`], so that acknowledgements keep up without a message for every
//! write. A task that its node reports as ended leaves the table before the store holds the report,
//! without a new generation: an end is final, and the queue that holds the report until it is
//! stored ([`super::mailbox`]) keeps the task out of every table made in the meantime.
//!
//! Left to others: what is in a table ([`crate::node_service::mesh_table`]).

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::recorder::Reports;
use crate::feed::watch::Feed;
use crate::node_service::mesh_table::{Contents, Table};

/// How far a published generation may be behind a revision at which its contents are still right.
const GENERATION_LAG: Duration = Duration::from_millis(500);

/// Publishes the table of `feed`'s snapshots, without tasks that `reports` says have ended, until
/// `shutdown`.
pub async fn publish(
    feed: Feed,
    reports: Reports,
    tables: watch::Sender<Arc<Table>>,
    shutdown: CancellationToken,
) {
    let mut snapshots = feed.snapshots;
    let (mut contents, mut made_of) = (Contents::default(), None);
    let mut published_at = Instant::now();
    loop {
        // Read before the snapshot: a report that is missing here is in the snapshot that is read
        // after it.
        let ended = reports.ended();
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let source = Some((snapshot.mesh_revision, ended.clone()));
        let mut behind = false;
        if source != made_of {
            let mut table = contents.follow(&snapshot).without(&ended);
            let last = Arc::clone(&tables.borrow());
            behind = table.same_entries(&last) && published_at.elapsed() < GENERATION_LAG;
            if !behind {
                if table.generation == last.generation {
                    table.committed_unix_ms = Utc::now().timestamp_millis();
                }
                tables.send_replace(Arc::new(table));
                published_at = Instant::now();
                made_of = source;
            }
        }
        tokio::select! {
            () = reports.end_came() => {}
            changed = snapshots.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(published_at + GENERATION_LAG), if behind => {}
            () = shutdown.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::store::{MemoryStore, Op, Store as _};
    use mesh_state::task::{ContainerStatus, TaskState, TaskStatus};
    use mesh_state::{codec, keys};

    use super::*;
    use crate::feed::watch;
    use crate::fixtures::{endpoint, ingress, node, service, task};

    fn status(state: TaskState) -> TaskStatus {
        let container =
            ContainerStatus { address: Some("10.128.0.2".parse().unwrap()), ..ContainerStatus::default() };
        TaskStatus { state, container: Some(container), ..TaskStatus::default() }
    }

    /// A store with a task of `web` that runs on node `a` as backend 7.
    async fn store() -> MemoryStore {
        let store = MemoryStore::new();
        let mut web = service("web", 1);
        web.ports = vec![ingress(80, 80)];
        let mut first = task("t1", "web", 1);
        first.node_id = Some("a".into());
        first.endpoints = vec![endpoint(7, 80)];
        let ops = vec![
            Op::put(keys::node(&"a".into()), codec::encode(&node("a")).unwrap()),
            Op::put(keys::service(&web.id), codec::encode(&web).unwrap()),
            Op::put(keys::task(&first.id), codec::encode(&first).unwrap()),
            Op::put(keys::status(&first.id), codec::encode(&status(TaskState::Running)).unwrap()),
        ];
        store.txn(vec![], ops).await.unwrap();
        store
    }

    #[tokio::test(start_paused = true)]
    async fn a_reported_end_leaves_the_table_without_the_store_and_stays_out() {
        let store = store().await;
        let (follower, feed) = watch::feed();
        let (reports, shutdown) = (Reports::default(), CancellationToken::new());
        tokio::spawn(follower.follow(Arc::new(store.clone()), shutdown.clone()));
        let (tables, mut seen) = tokio::sync::watch::channel(Arc::new(Table::default()));
        tokio::spawn(publish(feed, reports.clone(), tables, shutdown.clone()));
        let running = Arc::clone(&seen.wait_for(|table| table.node_of(7).is_some()).await.unwrap());

        // No recorder writes the report, as if the store were unreachable.
        let reported_at = Instant::now();
        reports.leave_status("a".into(), "t1".into(), status(TaskState::Failed));
        let ended = Arc::clone(&seen.wait_for(|table| table.node_of(7).is_none()).await.unwrap());
        assert!(
            reported_at.elapsed() < Duration::from_millis(1),
            "published after {:?}",
            reported_at.elapsed()
        );
        assert_eq!(ended.generation, running.generation, "the store has not moved");
        assert_eq!(ended.since(&running).removed_backend_ids, [7]);

        // A change of another object doesn't bring it back.
        let other = service("other", 1);
        let op = Op::put(keys::service(&other.id), codec::encode(&other).unwrap());
        store.txn(vec![], vec![op]).await.unwrap();
        let later = seen.wait_for(|table| table.generation > running.generation).await.unwrap();
        assert_eq!(later.node_of(7), None, "the backend came back");
        shutdown.cancel();
    }
}
