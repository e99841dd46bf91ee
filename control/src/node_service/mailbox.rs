//! What nodes reported and the store doesn't hold yet: the newest of each kind, until the store shows it.
//!
//! Invariants: pure; bounded by the cluster's tasks and nodes, for newer reports take the place of older ones; a report is checked
//! against the snapshot when it is written, so a node speaks for its own tasks only and an observed state only rises.
//!
//! Left to others: writing ([`super::recorder`]).

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_state::Timestamp;
use mesh_state::codec::{self, CodecError};
use mesh_state::ids::{NodeId, TaskId};
use mesh_state::keys;
use mesh_state::node::{Liveness, Node, NodeDescription, NodeState};
use mesh_state::store::{Compare, Op};
use mesh_state::task::TaskStatus;
use serde::Serialize;

use crate::snapshot::{ClusterSnapshot, Stored};

/// Reports that wait for the store.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Mailbox {
    statuses: BTreeMap<TaskId, (NodeId, TaskStatus)>,
    acks: BTreeMap<NodeId, u64>,
    liveness: BTreeMap<NodeId, Heard>,
    descriptions: BTreeMap<NodeId, (NodeDescription, IpAddr)>,
}

/// Whether a node is heard, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// `Ready` or `Silent`.
    pub state: NodeState,
    /// Since when.
    pub since: Timestamp,
}

/// One write with what it stands on.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What is written.
    pub op: Op,
}

/// Whether the store holds a reported status, or a later one of the same task.
pub fn holds(stored: Option<&TaskStatus>, reported: &TaskStatus) -> bool {
    stored.is_some_and(|stored| stored.clone().advance(reported.clone()) == *stored)
}

impl Mailbox {
    /// `node` observed `status` of `task`.
    pub fn put_status(&mut self, node: NodeId, task: TaskId, status: TaskStatus) {
        let newest = match self.statuses.remove(&task) {
            Some((reporter, earlier)) if reporter == node => earlier.advance(status),
            _ => status,
        };
        self.statuses.insert(task, (node, newest));
    }

    /// `node` carries traffic by this generation.
    pub fn put_ack(&mut self, node: NodeId, generation: u64) {
        self.acks.insert(node, generation);
    }

    /// `node` is heard, or isn't.
    pub fn put_heard(&mut self, node: NodeId, heard: Heard) {
        self.liveness.insert(node, heard);
    }

    /// `node` said this of itself.
    pub fn put_description(&mut self, node: NodeId, description: NodeDescription, address: IpAddr) {
        self.descriptions.insert(node, (description, address));
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Drops what the store holds by now and what nobody may write: reports on what doesn't exist or isn't the node's, and the
    /// silence of a node that another manager took over.
    pub fn settle(&mut self, snapshot: &ClusterSnapshot, manager: &str) {
        self.statuses.retain(|id, (node, status)| {
            let of_node = snapshot.tasks.get(id).is_some_and(|task| task.node_id.as_ref() == Some(node));
            of_node && !holds(stored_status(snapshot, id), status)
        });
        self.acks.retain(|id, generation| {
            snapshot.nodes.contains_key(id)
                && snapshot.acks.get(id).is_none_or(|acked| acked.value < *generation)
        });
        self.liveness.retain(|id, heard| {
            let ours =
                snapshot.liveness.get(id).map(|liveness| (liveness.state, liveness.manager == manager));
            snapshot.nodes.contains_key(id)
                && match (heard.state, ours) {
                    (NodeState::Ready, ours) => ours != Some((NodeState::Ready, true)),
                    (_, ours) => ours == Some((NodeState::Ready, true)),
                }
        });
        self.descriptions.retain(|id, (description, address)| {
            let node = snapshot.nodes.get(id);
            node.is_some_and(|node| node.description != *description || node.address != Some(*address))
        });
    }

    /// The writes that wait, each standing on what `snapshot` shows. Liveness comes first: it decides where traffic goes.
    ///
    /// # Errors
    /// A report has no stored form.
    pub fn entries(
        &self,
        snapshot: &ClusterSnapshot,
        manager: &str,
        now: Timestamp,
    ) -> Result<Vec<Entry>, CodecError> {
        let mut entries = Vec::new();
        for (id, heard) in &self.liveness {
            let liveness = Liveness {
                state: heard.state,
                since: heard.since,
                message: String::new(),
                manager: manager.to_owned(),
            };
            entries.push(write(keys::liveness(id), snapshot.liveness.get(id), keys::node(id), &liveness)?);
        }
        for (id, (_, status)) in &self.statuses {
            let stored = snapshot.statuses.get(id);
            let status =
                stored.map(|stored| stored.value.clone()).unwrap_or_default().advance(status.clone());
            entries.push(write(keys::status(id), stored, keys::task(id), &status)?);
        }
        for (id, (description, address)) in &self.descriptions {
            if let Some(stored) = snapshot.nodes.get(id) {
                let node = Node {
                    description: description.clone(),
                    address: Some(*address),
                    updated_at: now,
                    ..stored.value.clone()
                };
                entries.push(write(keys::node(id), Some(stored), keys::node(id), &node)?);
            }
        }
        for (id, generation) in &self.acks {
            entries.push(write(keys::ack(id), snapshot.acks.get(id), keys::node(id), generation)?);
        }
        Ok(entries)
    }
}

/// A write of `key` over what is `stored`, as long as `owner` exists.
fn write<T, V: Serialize>(
    key: String,
    stored: Option<&Stored<T>>,
    owner: String,
    value: &V,
) -> Result<Entry, CodecError> {
    let stands = match stored {
        Some(stored) => Compare::ModRevision(key.clone(), stored.mod_revision),
        None => Compare::Absent(key.clone()),
    };
    Ok(Entry { compares: vec![stands, Compare::Exists(owner)], op: Op::put(key, codec::encode(value)?) })
}

fn stored_status<'a>(snapshot: &'a ClusterSnapshot, task: &TaskId) -> Option<&'a TaskStatus> {
    snapshot.statuses.get(task).map(|stored| &stored.value)
}
