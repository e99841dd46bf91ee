//! Which node runs which manager. A manager's record names its node by id; hostnames play no part.

use std::collections::BTreeSet;

use mesh_state::cluster::Manager;
use mesh_state::ids::NodeId;

use super::{ClusterSnapshot, Stored};

impl ClusterSnapshot {
    /// The living manager that runs on a node.
    pub fn manager_on(&self, node: &NodeId) -> Option<&Stored<Manager>> {
        self.managers.values().find(|manager| manager.node.as_ref() == Some(node))
    }

    /// The node that a living manager runs on, once that node's agent has told the manager.
    pub fn node_of_manager(&self, name: &str) -> Option<&NodeId> {
        self.managers.get(name)?.node.as_ref()
    }

    /// The addresses at which nodes reach the living managers, each once.
    pub fn manager_addresses(&self) -> Vec<String> {
        let addresses = self.managers.values().map(|manager| manager.address.clone());
        addresses.filter(|address| !address.is_empty()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// How many managers are alive, and how many there are. With an etcd of the operator's, only
    /// the living ones are known.
    pub fn managers_reachable(&self) -> (usize, usize) {
        let alive = self.managers.len();
        let known: BTreeSet<&NodeId> = self
            .managers
            .values()
            .filter_map(|manager| manager.node.as_ref())
            .chain(self.etcd_places.keys())
            .collect();
        (alive, known.len().max(alive))
    }

    /// Whether the etcd that managers run keeps its quorum without the member of this node.
    pub fn keeps_quorum_without(&self, node: &NodeId) -> bool {
        if !self.etcd_places.contains_key(node) {
            return true;
        }
        let others: Vec<&NodeId> = self.etcd_places.keys().filter(|other| *other != node).collect();
        let alive = others.iter().filter(|other| self.manager_on(other).is_some()).count();
        alive > others.len() / 2
    }

    /// Whether the leading manager runs on this node.
    pub fn is_led_from(&self, node: &NodeId) -> bool {
        self.leader.as_ref().is_some_and(|leader| self.node_of_manager(&leader.name) == Some(node))
    }

    /// How many milliseconds a node's clock is ahead of the clock of a manager that has its
    /// session; if several managers say so, the largest. `None` below a second.
    pub fn clock_ahead_ms(&self, node: &NodeId) -> Option<i64> {
        let told = self.managers.values().filter_map(|manager| manager.nodes_off.get(node));
        told.max_by_key(|ahead| ahead.unsigned_abs()).copied()
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::keys;

    use super::*;
    use crate::fixtures::World;

    #[test]
    fn a_node_of_the_same_hostname_runs_no_manager() {
        let mut world = World::with_nodes(["a", "b"]);
        for id in ["a", "b"] {
            world.update_node(id, |node| node.description.hostname = "same".to_owned());
        }
        let manager = Manager { name: "same".to_owned(), ..Manager::default() };
        world.put(keys::manager("same"), &manager);
        world.put(keys::LEADER.to_owned(), &manager);
        let seen = |world: &World| ["a", "b"].map(|id| world.snapshot.manager_on(&id.into()).is_some());
        assert_eq!(seen(&world), [false, false], "no agent has told the manager its node");
        world.put(keys::manager("same"), &Manager { node: Some("a".into()), ..manager });
        assert_eq!(seen(&world), [true, false]);
        assert_eq!(["a", "b"].map(|id| world.snapshot.is_led_from(&id.into())), [true, false]);
        assert_eq!(world.snapshot.node_of_manager("same"), Some(&"a".into()));
    }
}
