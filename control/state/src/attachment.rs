//! Containers that are no tasks, on networks of the cluster (`docker run --network`).
//!
//! Invariants: a container is attached by its own node and by nobody else; it holds its address for
//! as long as this record is there.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::ids::{AttachmentId, NetworkId, NodeId};

/// A container on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedContainer {
    /// The attachment's id. The container's node chooses it.
    pub id: AttachmentId,
    /// The network.
    pub network_id: NetworkId,
    /// The node that the container is on.
    pub node_id: NodeId,
    /// The container's id; empty until it is made.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container_id: String,
    /// Its name.
    pub name: String,
    /// Its hostname; empty: the first 12 digits of its id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// Further names of it on the network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Its address; absent until the leader gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// When it was attached.
    pub created_at: Timestamp,
}
