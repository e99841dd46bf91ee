//! Logs between nodes and those who read them: what a session tells its node to send, and taking
//! what the node sends.
//!
//! Invariants: a node's lines come on a connection of their own, so that a reader that stops
//! reading holds up that alone; the reader always hears how a stream ended, for the taking outlives
//! the call that brought it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_state::ids::NodeId;
use mesh_state::proto::control_message::Body as Down;
use mesh_state::proto::{LogBatch, LogsTaken};
use tokio::sync::watch;
use tonic::{Status, Streaming};
use tracing::debug;

use crate::feed::snapshot::ClusterSnapshot;
use crate::logs::broker::{LogBroker, News, SentLogRequests};
use crate::logs::forward;

/// A node's first batch must come within this.
const FIRST_DEADLINE: Duration = Duration::from_secs(5);

/// What one session tells its node about logs.
pub(super) struct SessionAsks {
    broker: Arc<LogBroker>,
    changes: watch::Receiver<()>,
    told: SentLogRequests,
    /// Other managers' asks that were told, with the revision they were read at.
    told_for_others: BTreeMap<String, i64>,
}

impl SessionAsks {
    /// Nothing was told yet.
    pub(super) fn new(broker: Arc<LogBroker>) -> Self {
        let mut changes = broker.changes();
        changes.mark_changed();
        Self { broker, changes, told: SentLogRequests::default(), told_for_others: BTreeMap::new() }
    }

    /// Waits until something else is asked.
    pub(super) async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The broker is held by this very struct, so this doesn't happen.
            std::future::pending::<()>().await;
        }
    }

    /// What the session's node is to be told by `manager`, for itself and for those that can't say
    /// it themselves.
    pub(super) fn untold(&mut self, node: &NodeId, manager: &str, snapshot: &ClusterSnapshot) -> Vec<Down> {
        let mut untold = self.broker.untold(node, &mut self.told);
        let of_node = snapshot.log_asks.range((node.clone(), String::new())..);
        let of_node = of_node.take_while(|((asked, _), _)| asked == node);
        let of_others = of_node.filter(|(_, ask)| ask.manager != manager);
        let mut standing = BTreeMap::new();
        for ((_, id), ask) in of_others {
            if self.told_for_others.get(id) != Some(&ask.mod_revision) {
                untold.push(forward::message(id, ask));
            }
            standing.insert(id.clone(), ask.mod_revision);
        }
        self.told_for_others = standing;
        untold.into_iter().map(Down::LogsWanted).collect()
    }
}

/// Takes what `node` sends until it has no more, or nobody reads it.
///
/// # Errors
/// A stream that nobody asked this node for.
pub(super) async fn take(
    broker: &LogBroker,
    node: NodeId,
    mut incoming: Streaming<LogBatch>,
) -> Result<LogsTaken, Status> {
    let first = tokio::time::timeout(FIRST_DEADLINE, incoming.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no logs came"))??
        .ok_or_else(|| Status::invalid_argument("no logs came"))?;
    let (reader, dropped) =
        broker.open(&first.ask_id, &node).ok_or_else(|| Status::not_found("nobody reads these logs"))?;
    // A task of its own: a call whose connection is lost is dropped, and the reader would never
    // know.
    let passing = tokio::spawn(async move {
        let ask = first.ask_id.clone();
        let pass = async {
            let mut next = News::Opened;
            loop {
                let ends = matches!(next, News::Closed { .. });
                if reader.send((ask.clone(), next)).await.is_err() || ends {
                    return;
                }
                next = match incoming.message().await {
                    Ok(Some(batch)) => News::Batch(batch),
                    Ok(None) => News::Closed { whole: true },
                    Err(status) => {
                        debug!(%node, error = status.message(), "a node's logs broke off");
                        News::Closed { whole: false }
                    }
                };
            }
        };
        dropped.run_until_cancelled(pass).await;
    });
    passing.await.map_err(|error| Status::internal(error.to_string()))?;
    Ok(LogsTaken {})
}
