//! Asks the managers for what the manager on this node needs to become one of them.
//!
//! Invariant: the answer is sealed to the key of that manager's process; this process can't read
//! it.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_state::proto::BecomeManagerRequest;
use mesh_state::proto::node_service_client::NodeServiceClient;
use thiserror::Error;
use tonic::Code;

use super::channel;
use super::identity::Identity;
use mesh_runtime::error_chain;

/// The deadline of a manager's answer: etcd may have to find its quorum first.
const DEADLINE: Duration = Duration::from_secs(12);

/// Why this node's manager gets nothing.
#[derive(Debug, Error)]
pub enum BecomeManagerError {
    /// A manager refused; the same request will be refused again.
    #[error("{0}")]
    Refused(String),
    /// No manager could answer; a later attempt may succeed.
    #[error("no manager lets this node's manager in yet: {0}")]
    Away(String),
}

/// Asks one of `managers` after the other.
///
/// # Errors
/// [`BecomeManagerError`]
pub async fn ask(
    managers: &[SocketAddr],
    identity: &Identity,
    request: &BecomeManagerRequest,
) -> Result<Vec<u8>, BecomeManagerError> {
    let mut failures = Vec::new();
    for manager in managers {
        let exchange = async {
            let channel = channel::connect_member(*manager, identity)
                .await
                .map_err(|error| BecomeManagerError::Away(error_chain(&error)))?;
            let answer = NodeServiceClient::new(channel).become_manager(request.clone()).await;
            answer.map(|answer| answer.into_inner().sealed).map_err(|status| refusal(&status))
        };
        match tokio::time::timeout(DEADLINE, exchange).await {
            Ok(Err(BecomeManagerError::Away(reason))) => failures.push(format!("{manager}: {reason}")),
            Ok(outcome) => return outcome,
            Err(_) => failures.push(format!("{manager}: nothing within {DEADLINE:?}")),
        }
    }
    Err(BecomeManagerError::Away(failures.join("; ")))
}

fn refusal(status: &tonic::Status) -> BecomeManagerError {
    let said = status.message().to_owned();
    match status.code() {
        Code::FailedPrecondition | Code::InvalidArgument | Code::PermissionDenied => {
            BecomeManagerError::Refused(said)
        }
        Code::Unimplemented => BecomeManagerError::Refused("upgrade the managers first".to_owned()),
        _ => BecomeManagerError::Away(said),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_time_can_mend_is_asked_again() {
        let is_final = |status| matches!(refusal(&status), BecomeManagerError::Refused(_));
        assert!(is_final(tonic::Status::failed_precondition("another manager is called so")));
        assert!(is_final(tonic::Status::permission_denied("no manager")));
        assert!(!is_final(tonic::Status::unavailable("another manager joins")));
        assert!(!is_final(tonic::Status::internal("x")));
    }
}
