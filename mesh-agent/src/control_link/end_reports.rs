//! Reports to the managers without a session of this node that a task has ended.
//!
//! Managers learn of an ended task from one another through the store, which may be unavailable. So
//! the node of a task that dies reports the end to every manager itself, and all nodes remove the
//! task from their tables at once. Tasks that were asked to stop were removed before.
//!
//! Invariants: one call at a time to each manager; ends that are reported meanwhile go with the
//! next call; a manager that can't be reached gets no second call, as it learns of the end through
//! the store. The status that the session sends is authoritative, and is sent until it is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use mesh_state::ids::TaskId;
use mesh_state::proto;
use mesh_state::proto::node_service_client::NodeServiceClient;
use mesh_state::task::{TaskState, TaskStatus};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::channel;
use super::identity::Identity;
use mesh_runtime::error_chain;

/// The deadline of one call.
const DEADLINE: Duration = Duration::from_secs(5);
/// The most ends in one call; managers accept no more.
const ENDS_MAX: usize = 256;

/// Whether a task ended by itself, so that nodes may still send it connections.
pub(super) fn is_sudden(status: &TaskStatus) -> bool {
    matches!(status.state, TaskState::Complete | TaskState::Failed)
}

/// Ends that are still to be reported, by manager.
#[derive(Debug, Default)]
pub(super) struct EndReports {
    waiting: BTreeMap<SocketAddr, Vec<proto::TaskStatus>>,
    under_way: BTreeSet<SocketAddr>,
    calls: JoinSet<SocketAddr>,
}

#[derive(Debug, Error)]
enum CallError {
    #[error("connect")]
    Connect(#[from] tonic::transport::Error),
    #[error("manager: {} ({:?})", .0.message(), .0.code())]
    Refused(Box<tonic::Status>),
    #[error("no answer within {DEADLINE:?}")]
    Late,
}

impl EndReports {
    /// Reports to `managers` that `task` has ended.
    pub(super) fn report(
        &mut self,
        managers: impl Iterator<Item = SocketAddr>,
        identity: &watch::Receiver<Identity>,
        task: &TaskId,
        status_json: &str,
    ) {
        for manager in managers {
            let waiting = self.waiting.entry(manager).or_default();
            if waiting.len() < ENDS_MAX {
                let status_json = status_json.to_owned();
                waiting.push(proto::TaskStatus { task_id: task.to_string(), status_json, number: 0 });
            }
            self.call(manager, identity);
        }
    }

    /// Whether a call is under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.calls.is_empty()
    }

    /// Waits until a call ends, and starts the next one to the same manager. Cancel-safe.
    pub(super) async fn send_pending(&mut self, identity: &watch::Receiver<Identity>) {
        if let Some(Ok(manager)) = self.calls.join_next().await {
            self.under_way.remove(&manager);
            self.call(manager, identity);
        }
    }

    fn call(&mut self, manager: SocketAddr, identity: &watch::Receiver<Identity>) {
        if self.under_way.contains(&manager) {
            return;
        }
        let Some(statuses) = self.waiting.remove(&manager) else { return };
        self.under_way.insert(manager);
        let identity = identity.borrow().clone();
        self.calls.spawn(async move {
            let called = timeout(DEADLINE, report(manager, &identity, statuses)).await;
            if let Err(error) = called.unwrap_or(Err(CallError::Late)) {
                tracing::debug!(%manager, error = error_chain(&error), "can't report ended tasks to a manager");
            }
            manager
        });
    }
}

async fn report(
    manager: SocketAddr,
    identity: &Identity,
    statuses: Vec<proto::TaskStatus>,
) -> Result<(), CallError> {
    let channel = channel::connect_member(manager, identity).await?;
    let answer = NodeServiceClient::new(channel).report_ends(proto::TaskStatuses { statuses }).await;
    answer.map(drop).map_err(|status| CallError::Refused(Box::new(status)))
}
