//! A node that leaves the cluster by its operator's `docker swarm leave`: it is down at once, not
//! only after three missed heartbeats, so that its tasks are replaced and its address is free.
//!
//! Invariant: a node speaks for itself only; its record stays until `docker node rm`.

use mesh_state::Timestamp;
use mesh_state::codec;
use mesh_state::ids::NodeId;
use mesh_state::keys;
use mesh_state::node::{Liveness, NodeState};
use mesh_state::store::{Compare, Op, TxnOutcome};
use tonic::Status;
use tracing::info;

use super::recorder::Reports;
use crate::context::ApiContext;

/// How often the write is tried: another manager may write the node's state at the same moment.
const ATTEMPTS: usize = 5;
/// The reason in the node's status.
const MESSAGE: &str = "node has left the swarm";

/// Records that `node` is down.
///
/// # Errors
/// The store is unreachable, or others kept writing the node's state.
pub(super) async fn record(
    context: &ApiContext,
    reports: &Reports,
    node: &NodeId,
    now: Timestamp,
) -> Result<(), Status> {
    // The end of its session was reported as silence a moment ago.
    reports.leave(|mailbox| mailbox.drop_heard(node));
    let key = keys::liveness(node);
    let liveness = Liveness {
        state: NodeState::Down,
        since: now,
        message: MESSAGE.to_owned(),
        manager: context.manager_name.clone(),
    };
    let value = codec::encode(&liveness).map_err(|error| Status::internal(error.to_string()))?;
    for _ in 0..ATTEMPTS {
        let stored = context.store.get(&key).await;
        let stored = stored.map_err(|error| Status::unavailable(error.to_string()))?;
        let unchanged = match &stored {
            Some(item) => Compare::ModRevision(key.clone(), item.mod_revision),
            None => Compare::Absent(key.clone()),
        };
        let compares = vec![unchanged, Compare::Exists(keys::node(node))];
        match context.store.txn(compares, vec![Op::put(key.clone(), value.clone())]).await {
            Ok(TxnOutcome::Committed(_)) => {
                info!(%node, "a node left");
                return Ok(());
            }
            Ok(TxnOutcome::Conflict) => {}
            Err(error) => return Err(Status::unavailable(error.to_string())),
        }
    }
    Err(Status::aborted("others write this node's state: try again"))
}
