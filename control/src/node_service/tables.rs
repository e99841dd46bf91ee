//! Makes the mesh table of each snapshot once for all sessions of this manager.
//!
//! Invariant: a change of contents is published at once; if only the revision rose, the generation follows within
//! [`GENERATION_LAG`], so that acknowledgements keep up without a message for every write.
//!
//! Left to others: what is in a table ([`crate::mesh_table`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::mesh_table::Table;
use crate::watch::Feed;

/// How far a published generation may be behind the revision that its contents are still right at.
const GENERATION_LAG: Duration = Duration::from_millis(500);

/// Publishes the table of `feed`'s snapshots until `shutdown`.
pub async fn publish(feed: Feed, tables: watch::Sender<Arc<Table>>, shutdown: CancellationToken) {
    let mut snapshots = feed.snapshots;
    let mut made_of = 0;
    let mut published_at = Instant::now();
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let mut behind = false;
        if snapshot.mesh_revision != made_of {
            let table = Table::of(&snapshot);
            behind = table.says_the_same(&tables.borrow()) && published_at.elapsed() < GENERATION_LAG;
            if !behind {
                tables.send_replace(Arc::new(table));
                published_at = Instant::now();
                made_of = snapshot.mesh_revision;
            }
        }
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(published_at + GENERATION_LAG), if behind => {}
            () = shutdown.cancelled() => return,
        }
    }
}
