//! When what each node is told was last changed, so that a session looks at its node's tasks only if that may differ.
//!
//! Invariant: whatever a node's assignments are made of touches the node: its tasks, what is observed of them, and their services with
//! their specs. What was missed while the watch was down touches everybody.

use std::collections::BTreeMap;

use mesh_state::ids::NodeId;

/// The revision at which each node was touched last.
#[derive(Debug, Clone, Default)]
pub(super) struct Touched {
    /// Nobody was touched earlier than this, as far as anyone can tell.
    floor: i64,
    by_node: BTreeMap<NodeId, i64>,
}

impl Touched {
    /// Every node is touched.
    pub(super) fn all(&mut self, revision: i64) {
        self.floor = revision;
        self.by_node.clear();
    }

    /// A node is touched.
    pub(super) fn node(&mut self, node: &NodeId, revision: i64) {
        match self.by_node.get_mut(node) {
            Some(known) => *known = revision.max(*known),
            None => drop(self.by_node.insert(node.clone(), revision)),
        }
    }

    /// When the node was touched last.
    pub(super) fn last(&self, node: &NodeId) -> i64 {
        self.by_node.get(node).copied().unwrap_or_default().max(self.floor)
    }
}
