//! The API's objects, spelled as Docker spells them.
//!
//! Invariants: these types are separate from the stored ones; a spec is shown as its user wrote it,
//! with the fields that Swarm's objects always have and, on request, Swarm's defaults.

#![expect(clippy::struct_field_names, reason = "the names are Docker's")]

mod dependency;
mod network;
mod network_members;
mod node;
mod service;
mod shown;
mod swarm;
mod task;
mod tls_info;

pub(crate) use dependency::Dependency;
pub(crate) use network::{AttachedNetwork, Network};
pub(crate) use network_members::Members;
pub(crate) use node::{Node, runs_manager};
pub(crate) use service::Service;
pub(crate) use swarm::{Cluster, JoinTokens, RAFT, SwarmInfo, SwarmObject};
pub(crate) use task::{Task, desired as desired_state};

use serde::Serialize;

/// The revision of an object's last write; a client sends it with an update.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Version {
    /// The etcd revision of the object's last change.
    pub(crate) index: i64,
}

/// The answer to a creation.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Created {
    /// The new object's id.
    #[serde(rename = "ID")]
    pub(crate) id: String,
    /// Warnings for the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) warnings: Option<Vec<String>>,
}

/// The answer to an update.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Updated {
    /// Warnings for the user.
    pub(crate) warnings: Option<Vec<String>>,
}
