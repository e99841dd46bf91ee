//! Containers that are no tasks, on networks of the cluster (`docker run --network`).
//!
//! Invariants: only its own node attaches a container; the container holds its address as long as
//! this record exists.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::ids::{AttachmentId, NetworkId, NodeId};

/// A container on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedContainer {
    /// The attachment's id. The container's node chooses it.
    pub id: AttachmentId,
    /// The network that the container is on.
    pub network_id: NetworkId,
    /// The node that runs the container.
    pub node_id: NodeId,
    /// The container's id; empty until the container is created.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container_id: String,
    /// The name by which other members of the network find the container.
    pub name: String,
    /// The container's hostname; if empty, it is the first 12 digits of its id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// The container's aliases on the network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The address that the container's user chose; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<Ipv4Addr>,
    /// The container's address; absent until the leader has given one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// When the container was attached.
    pub created_at: Timestamp,
}
