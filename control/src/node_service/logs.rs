//! Logs between nodes and their readers: which logs a session asks its node for, and the lines that
//! the node sends.
//!
//! Invariants: a node's lines come on a connection of their own, so that a reader that stops
//! reading blocks only that one; the reader always gets the end of a stream, as the task that takes
//! the lines outlives the call.

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

/// The deadline of a node's first batch.
const FIRST_DEADLINE: Duration = Duration::from_secs(5);

/// The log requests that one session sends to its node.
pub(super) struct SessionAsks {
    broker: Arc<LogBroker>,
    changes: watch::Receiver<()>,
    told: SentLogRequests,
    /// Other managers' requests that were sent, with the revision that each was read at.
    told_for_others: BTreeMap<String, i64>,
}

impl SessionAsks {
    /// A new session's: nothing was sent yet.
    pub(super) fn new(broker: Arc<LogBroker>) -> Self {
        let mut changes = broker.changes();
        changes.mark_changed();
        Self { broker, changes, told: SentLogRequests::default(), told_for_others: BTreeMap::new() }
    }

    /// Waits until the requests change.
    pub(super) async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // This struct itself keeps the broker alive, so this doesn't happen.
            std::future::pending::<()>().await;
        }
    }

    /// The requests that the session's node is to be sent, from `manager` and from managers that
    /// have no session with it.
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

/// Takes the lines that `node` sends until it has no more, or no reader is left.
///
/// # Errors
/// No reader asked this node for the stream.
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
    // A task of its own: a call whose connection is lost is dropped, and the reader would never get
    // its end.
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
