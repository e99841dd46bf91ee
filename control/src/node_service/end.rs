//! Why sessions end, and what nodes are told of it.

use mesh_state::ids::NodeId;
use thiserror::Error;
use tonic::Status;

use super::session::SEND_DEADLINE;
use super::sessions::not_a_member;

/// Why a session ended.
#[derive(Debug, Error)]
pub(super) enum End {
    #[error("the node closed its stream")]
    Closed,
    #[error("the stream broke: {}", .0.message())]
    Broken(Box<Status>),
    #[error("the node was removed from the cluster")]
    Removed,
    #[error("the node has a newer session, here or with another manager")]
    Superseded,
    #[error("this manager stops")]
    Stopping,
    #[error("the node took no message for {SEND_DEADLINE:?}")]
    Slow,
    #[error("the node broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("encode assignments: {0}")]
    Encode(#[from] serde_json::Error),
}

impl End {
    /// What the node is told.
    pub(super) fn status(&self, node: &NodeId) -> Status {
        match self {
            Self::Removed => not_a_member(node),
            Self::Protocol(_) => Status::invalid_argument(self.to_string()),
            Self::Encode(_) => Status::internal(self.to_string()),
            Self::Stopping => Status::unavailable(self.to_string()),
            _ => Status::aborted(self.to_string()),
        }
    }
}
