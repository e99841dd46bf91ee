//! Asks a node for logs through the manager that has its session.
//!
//! Managers communicate through etcd alone, so the request is a key there for the few seconds until
//! that manager reads it; the node then sends its lines directly to the asking manager.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_state::ids::NodeId;
use mesh_state::log_ask::{AskedLog, LogAsk};
use mesh_state::proto::{LogsWanted, WantedLog};
use mesh_state::store::{Compare, Op, Store, StoreError, TxnOutcome};
use mesh_state::{codec, keys};
use tokio_util::sync::CancellationToken;

use super::broker::LogSelection;

/// How long a request stays in etcd.
const HEARD_WITHIN: Duration = Duration::from_secs(15);

/// This manager, as others need to know it.
#[derive(Clone)]
pub(crate) struct Forwarder {
    /// The store that requests are written to.
    pub(crate) store: Arc<dyn Store>,
    /// This manager's name.
    pub(crate) manager: String,
    /// The address at which nodes reach it.
    pub(crate) address: SocketAddr,
    /// Cancelled when the manager stops; pending requests are abandoned then.
    pub(crate) stopping: CancellationToken,
}

impl Forwarder {
    /// Writes a request for the manager of `node`, in the background. If no manager reads it, the
    /// node doesn't answer.
    pub(crate) fn leave(&self, node: NodeId, ask_id: String, wanted: LogSelection, logs: &[WantedLog]) {
        let ask = LogAsk {
            manager: self.manager.clone(),
            address: self.address.to_string(),
            logs: logs.iter().map(stored).collect(),
            stdout: wanted.stdout,
            stderr: wanted.stderr,
            follow: wanted.follow,
        };
        let (store, stopping) = (Arc::clone(&self.store), self.stopping.clone());
        tokio::spawn(async move {
            match stopping.run_until_cancelled(put(store.as_ref(), &node, &ask_id, &ask)).await {
                Some(Ok(true)) | None => {}
                Some(Ok(false)) => {
                    tracing::debug!(%node, "the node that holds the logs is no member any more");
                }
                Some(Err(error)) => {
                    tracing::warn!(%node, error = mesh_runtime::error_chain(&error), "can't ask for logs through another manager");
                }
            }
        });
    }
}

async fn put(store: &dyn Store, node: &NodeId, ask_id: &str, ask: &LogAsk) -> Result<bool, StoreError> {
    let value = match codec::encode(ask) {
        Ok(value) => value,
        Err(error) => {
            tracing::error!(error = mesh_runtime::error_chain(&error), "can't encode a request for logs");
            return Ok(false);
        }
    };
    let lease = store.grant_lease(HEARD_WITHIN).await?;
    let op = Op::put_leased(keys::log_ask(node, ask_id), value, lease);
    let outcome = store.txn(vec![Compare::Exists(keys::node(node))], vec![op]).await?;
    Ok(matches!(outcome, TxnOutcome::Committed(_)))
}

/// The message that the node gets for a request.
pub(crate) fn message(ask_id: &str, ask: &LogAsk) -> LogsWanted {
    let log = |log: &AskedLog| WantedLog {
        task_id: log.task.to_string(),
        since: log.since.clone(),
        tail: log.tail,
    };
    LogsWanted {
        ask_id: ask_id.to_owned(),
        logs: ask.logs.iter().map(log).collect(),
        stdout: ask.stdout,
        stderr: ask.stderr,
        follow: ask.follow,
        manager: ask.address.clone(),
    }
}

fn stored(log: &WantedLog) -> AskedLog {
    AskedLog { task: log.task_id.as_str().into(), since: log.since.clone(), tail: log.tail }
}

#[cfg(test)]
mod tests {
    use mesh_state::store::MemoryStore;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_reaches_the_node_as_written_and_expires() {
        let store = MemoryStore::new();
        let node = NodeId::from("n1");
        let logs = [WantedLog { task_id: "t1".to_owned(), since: "1.5".to_owned(), tail: 7 }];
        let ask = LogAsk {
            manager: "m1".to_owned(),
            address: "10.77.0.11:2377".to_owned(),
            logs: logs.iter().map(stored).collect(),
            stdout: true,
            stderr: false,
            follow: true,
        };
        assert!(
            !put(&store, &node, "a1", &ask).await.unwrap(),
            "a request to a node that is no member was written"
        );
        store.txn(vec![], vec![Op::put(keys::node(&node), b"{}".to_vec())]).await.unwrap();
        assert!(put(&store, &node, "a1", &ask).await.unwrap());
        let key = keys::log_ask(&node, "a1");
        let read: LogAsk = codec::decode(&store.get(&key).await.unwrap().unwrap().value).unwrap();
        let message = message("a1", &read);
        assert_eq!((message.logs, message.manager.as_str()), (logs.to_vec(), "10.77.0.11:2377"));
        tokio::time::sleep(HEARD_WITHIN + Duration::from_secs(5)).await;
        assert!(store.get(&key).await.unwrap().is_none(), "the request stays in the store");
    }
}
