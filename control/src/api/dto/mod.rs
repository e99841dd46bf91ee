//! What the API answers with: Docker's objects, spelled as Docker spells them.
//!
//! Invariants: domain types and these are two things; a spec goes out as its user wrote it, with
//! the fields that Swarm's objects always have and, on request, Swarm's defaults.

#![expect(clippy::struct_field_names, reason = "the names are Docker's")]

mod dependency;
mod network;
mod node;
mod service;
mod shown;
mod swarm;
mod task;
mod tls_info;

pub(crate) use dependency::Dependency;
pub(crate) use network::{AttachedNetwork, Network};
pub(crate) use node::{Node, runs_manager};
pub(crate) use service::Service;
pub(crate) use swarm::{Cluster, JoinTokens, RAFT, SwarmInfo, SwarmObject};
pub(crate) use task::{Task, desired as desired_state};

use serde::Serialize;

/// The revision an object was last written at; a client hands it back with an update.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Version {
    /// The revision.
    pub(crate) index: i64,
}

/// Answer to a creation.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Created {
    /// The new object's id.
    #[serde(rename = "ID")]
    pub(crate) id: String,
    /// What the user should know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) warnings: Option<Vec<String>>,
}

/// Answer to an update.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Updated {
    /// What the user should know.
    pub(crate) warnings: Option<Vec<String>>,
}
