//! Tells the cluster that this node leaves, so that it counts as down at once.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_state::proto::LeaveRequest;
use mesh_state::proto::node_service_client::NodeServiceClient;
use thiserror::Error;

use super::channel;
use super::identity::Identity;
use mesh_runtime::error_chain;

/// The deadline of a manager's answer.
const DEADLINE: Duration = Duration::from_secs(3);

/// No manager took note that this node leaves.
#[derive(Debug, Error)]
#[error("no manager answers: the node counts as down there after three missed heartbeats ({0})")]
pub struct Unheard(String);

/// Tells one of `managers` that this node leaves.
///
/// # Errors
/// None of them took note.
pub async fn tell(managers: &[SocketAddr], identity: &Identity) -> Result<(), Unheard> {
    let mut failures = Vec::new();
    for manager in managers {
        let exchange = async {
            let channel = channel::connect_member(*manager, identity).await.map_err(|e| error_chain(&e))?;
            let told = NodeServiceClient::new(channel).leave(LeaveRequest {}).await;
            told.map(drop).map_err(|status| status.message().to_owned())
        };
        match tokio::time::timeout(DEADLINE, exchange).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(reason)) => failures.push(format!("{manager}: {reason}")),
            Err(_) => failures.push(format!("{manager}: nothing within {DEADLINE:?}")),
        }
    }
    Err(Unheard(failures.join("; ")))
}
