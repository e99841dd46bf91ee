//! The revision at which each node's assignments may last have changed, so that a session compares
//! its node's tasks only then.
//!
//! Invariant: a change of anything that a node's assignments are made of touches the node: its
//! tasks, their statuses, and their services with their specs. A new listing after a lost watch
//! touches every node.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use mesh_state::ids::NodeId;
use mesh_state::keys::Key;

use super::{ClusterSnapshot, feeds_mesh_table};

/// The revision at which each node was last touched.
#[derive(Debug, Clone, Default)]
pub(super) struct Touched {
    /// The revision of the last listing: it touched every node.
    floor: i64,
    by_node: BTreeMap<NodeId, i64>,
}

impl Touched {
    /// Marks every node as touched.
    pub(super) fn all(&mut self, revision: i64) {
        self.floor = revision;
        self.by_node.clear();
    }

    /// Marks a node as touched.
    pub(super) fn node(&mut self, node: &NodeId, revision: i64) {
        match self.by_node.get_mut(node) {
            Some(known) => *known = revision.max(*known),
            None => drop(self.by_node.insert(node.clone(), revision)),
        }
    }

    /// The revision at which the node was last touched.
    pub(super) fn last(&self, node: &NodeId) -> i64 {
        self.by_node.get(node).copied().unwrap_or_default().max(self.floor)
    }
}

impl ClusterSnapshot {
    /// Marks the nodes whose assignments a change of `key` may affect.
    pub(super) fn note(&mut self, key: &Key, revision: i64) {
        self.revision = self.revision.max(revision);
        if feeds_mesh_table(key) {
            self.mesh_revision = self.mesh_revision.max(revision);
        }
        match key {
            Key::Node(_) | Key::Liveness(_) | Key::Ack(_) => self.acked_by_all = OnceLock::new(),
            Key::Status(task) | Key::Task(task) => {
                if let Some(node) = self.tasks.get(task).and_then(|task| task.node_id.as_ref()) {
                    self.touched.node(node, revision);
                }
            }
            Key::Service(service) | Key::Spec(service, _) => {
                let tasks = self.tasks_by_service.get(service).into_iter().flatten();
                for node in tasks.filter_map(|id| self.tasks.get(id)?.node_id.as_ref()) {
                    self.touched.node(node, revision);
                }
            }
            _ => {}
        }
    }
}
