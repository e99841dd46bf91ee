//! Why sessions end, and the status that the node gets.

use std::time::Duration;

use mesh_admission::figures::report::MESSAGES_A_SECOND;
use mesh_admission::refusals::Reason;
use mesh_admission::text::Outside;
use mesh_state::ids::NodeId;
use mesh_state::report::ReportError;
use thiserror::Error;
use tonic::Status;

use super::address::AddressError;

/// A node that takes no message for this long is disconnected.
pub(super) const SEND_DEADLINE: Duration = Duration::from_secs(5);

/// Why a session ended.
#[derive(Debug, Error)]
pub(super) enum SessionEnd {
    #[error("the node closed its stream")]
    Closed,
    #[error("the stream broke: {}", Outside(.0.message()))]
    Broken(Box<Status>),
    #[error("the node was removed from the cluster")]
    Removed,
    #[error("the cluster's record is gone from etcd")]
    NoCluster,
    #[error("the node has a newer session, here or with another manager")]
    Superseded,
    #[error("this manager stops")]
    Stopping,
    #[error("the node took no message for {SEND_DEADLINE:?}")]
    Slow,
    #[error("the node broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("the node sends more than a node may: {0}")]
    Report(#[from] ReportError),
    #[error("the node sends messages faster than {MESSAGES_A_SECOND} a second")]
    TooFast,
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("encode assignments: {0}")]
    Encode(#[from] serde_json::Error),
}

impl SessionEnd {
    /// The reason under which the refusal is counted, if the node was refused something.
    pub(super) fn refusal(&self) -> Option<Reason> {
        match self {
            Self::Report(ReportError::TooMuch { .. }) => Some(Reason::TooLarge),
            Self::TooFast => Some(Reason::Rate),
            _ => None,
        }
    }

    /// The status that the node gets.
    pub(super) fn status(&self, node: &NodeId) -> Status {
        match self {
            Self::Removed => not_a_member(node),
            Self::NoCluster => no_cluster(),
            Self::Protocol(_) | Self::Report(_) | Self::Address(_) => {
                Status::invalid_argument(self.to_string())
            }
            Self::TooFast => Status::resource_exhausted(self.to_string()),
            Self::Encode(_) => Status::internal(self.to_string()),
            Self::Stopping => Status::unavailable(self.to_string()),
            _ => Status::aborted(self.to_string()),
        }
    }
}

/// The status for a node that was removed, or never was a member.
pub(super) fn not_a_member(node: &NodeId) -> Status {
    Status::permission_denied(format!(
        "node {node} is no member of this cluster: remove its identity file and let it join again with a token"
    ))
}

/// The status from a manager that finds no cluster in the store: it must not call a node no member.
pub(super) fn no_cluster() -> Status {
    Status::unavailable("this manager finds no cluster's record in etcd")
}
