//! When this manager saw nodes' liveness change, by its own clock: what another manager wrote bears that one's.
//!
//! Invariant: pure; a state that is written anew stays seen when it was first seen, also over a new listing.

use mesh_state::Timestamp;
use mesh_state::ids::NodeId;
use mesh_state::keys::{self, Key};
use mesh_state::node::Liveness;
use mesh_state::store::Change;

use super::{ClusterSnapshot, Stored};

impl ClusterSnapshot {
    /// Applies a change that the watch saw at `now`, by this manager's clock.
    pub fn apply_seen(&mut self, change: Change, now: Timestamp) {
        let key = match &change {
            Change::Put(item) => keys::parse(&item.key),
            Change::Deleted { key, .. } => keys::parse(key),
        };
        let Some(Key::Liveness(node)) = key else { return self.apply(change) };
        let state = |snapshot: &Self| snapshot.liveness.get(&node).map(|liveness| liveness.state);
        let before = state(self);
        self.apply(change);
        match state(self) {
            None => drop(self.liveness_seen.remove(&node)),
            after if after != before => drop(self.liveness_seen.insert(node, now)),
            _ => {}
        }
    }

    /// Takes over from the snapshot `before` when liveness was seen; what is new was seen `now`.
    pub fn see_liveness(&mut self, before: &Self, now: Timestamp) {
        let seen = |(node, liveness): (&NodeId, &Stored<Liveness>)| {
            let same = before.liveness.get(node).is_some_and(|known| known.state == liveness.state);
            let known = before.liveness_seen.get(node).filter(|_| same);
            (node.clone(), known.copied().unwrap_or(now))
        };
        self.liveness_seen = self.liveness.iter().map(seen).collect();
    }

    /// Since when a node is in its state of liveness, by this manager's clock; by the clock of who wrote it if no watch saw it.
    pub fn liveness_since(&self, node: &NodeId, liveness: &Liveness) -> Timestamp {
        self.liveness_seen.get(node).copied().unwrap_or(liveness.since)
    }
}

#[cfg(test)]
mod tests {
    use mesh_state::codec;
    use mesh_state::node::NodeState;
    use mesh_state::store::KeyValue;

    use super::*;

    fn item(key: String, value: &impl serde::Serialize, revision: i64) -> KeyValue {
        let value = codec::encode(value).unwrap();
        KeyValue { key, value, create_revision: revision, mod_revision: revision }
    }

    #[test]
    fn a_change_of_liveness_is_seen_once_and_kept_over_a_new_listing() {
        let moment = |second| Timestamp::from_timestamp(second, 0).unwrap();
        let (mut snapshot, node) = (ClusterSnapshot::default(), NodeId::from("n"));
        let put = |state, revision| {
            let liveness =
                Liveness { state, since: moment(9999), message: String::new(), manager: "m".to_owned() };
            item(keys::liveness(&"n".into()), &liveness, revision)
        };
        snapshot.apply_seen(Change::Put(put(NodeState::Ready, 1)), moment(10));
        snapshot.apply_seen(Change::Put(put(NodeState::Silent, 2)), moment(20));
        snapshot.apply_seen(Change::Put(put(NodeState::Silent, 3)), moment(30));
        assert_eq!(snapshot.liveness_seen[&node], moment(20), "silent since it became so");

        let mut listed = ClusterSnapshot::from_listing(3, vec![put(NodeState::Silent, 3)]);
        listed.see_liveness(&snapshot, moment(40));
        assert_eq!(listed.liveness_since(&node, &listed.liveness[&node]), moment(20), "known before");
        let mut other = ClusterSnapshot::from_listing(4, vec![put(NodeState::Down, 4)]);
        other.see_liveness(&snapshot, moment(40));
        assert_eq!(other.liveness_since(&node, &other.liveness[&node]), moment(40), "changed meanwhile");
        let key = keys::liveness(&node);
        snapshot.apply_seen(Change::Deleted { key, mod_revision: 5 }, moment(50));
        assert!(snapshot.liveness_seen.is_empty(), "a node that is gone");
    }
}
