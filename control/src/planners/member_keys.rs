//! Rotates the secrets that members share, in steps that disturb no packet and no connection.
//!
//! A new secret is *announced*: members accept it and still use the one before. Once all of them
//! know it, it is *in use*, and the one before is still accepted. Once all of them use it, the one
//! before is *forgotten*. A step follows when every node that is heard has acknowledged a mesh
//! table as new as the step before, or after [`STEP_LIMIT`].
//!
//! The removal of a node makes a new secret due at once. Age does, too, but a secret that is only
//! old waits for nodes that are not heard: their programs go on with the cookies that they have.
//!
//! It can't see whether a node uses a secret, only that its agent acknowledged a table that was
//! sent after it. Agents apply both in order, so one implies the other. It can't see either why a
//! node that is heard acknowledges nothing. After [`STEP_LIMIT`] the step is taken without that
//! node: one node with a broken agent then loses tunnel packets, where otherwise a removed node's
//! secret would stay valid for ever.
//!
//! Invariants: pure; at most two secrets are valid; nothing changes while a manager or a node
//! doesn't support member keys; cookies are demanded only while every node sends them.
//!
//! Left to others: deriving the secrets ([`crate::seal`]) and sending them to nodes
//! ([`crate::node_service`]).

use std::collections::BTreeSet;

use chrono::TimeDelta;
use mesh_state::Timestamp;
use mesh_state::ids::{self, NodeId};
use mesh_state::member_keys::{MemberKey, MemberKeys};
use mesh_state::node::NodeState;
use rand::RngCore;

use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::plan::{Action, Plan};

/// The longest time between two steps of a rotation.
const STEP_LIMIT: TimeDelta = TimeDelta::seconds(30);
/// How long a secret is used before the next one is announced.
const PERIOD: TimeDelta = TimeDelta::hours(6);
/// The age at which a secret is replaced without waiting for nodes that are not heard.
const PERIOD_MAX: TimeDelta = TimeDelta::hours(24);

/// Plans the next step, if one is due.
pub fn plan(now: Timestamp, snapshot: &ClusterSnapshot, ids: &mut dyn RngCore) -> Plan {
    let mut plan = Plan::default();
    if snapshot.cluster.is_none() {
        return plan;
    }
    if !snapshot.managers.values().all(|manager| manager.tells_member_keys) {
        return plan;
    }
    let Some(stored) = &snapshot.member_keys else {
        let first = MemberKey { id: 0, salt: String::new(), made_at: now };
        let keys = MemberKeys {
            keys: vec![first],
            cookies_demanded: false,
            known_to: nodes(snapshot),
            changed_at: now,
        };
        plan.reasons.push("members begin with the cluster's relay key".to_owned());
        plan.actions.push(Action::SetMemberKeys { keys, expected: None });
        return plan;
    };
    let step = KeyStep { now, snapshot, stored };
    if let Some((keys, reason)) = step.next(&mut plan, ids) {
        plan.reasons.push(reason);
        let keys = MemberKeys { changed_at: now, ..keys };
        plan.actions.push(Action::SetMemberKeys { keys, expected: Some(stored.mod_revision) });
    }
    plan
}

/// The inputs of a decision.
struct KeyStep<'a> {
    now: Timestamp,
    snapshot: &'a ClusterSnapshot,
    stored: &'a Stored<MemberKeys>,
}

impl KeyStep<'_> {
    /// The record after the next step, with the reason.
    fn next(&self, plan: &mut Plan, ids: &mut dyn RngCore) -> Option<(MemberKeys, String)> {
        let (mut keys, members) = (self.stored.value.clone(), nodes(self.snapshot));
        if !members.is_subset(&keys.known_to) {
            keys.known_to.extend(members);
            return Some((keys, "nodes have joined".to_owned()));
        }
        let (are_able, is_known) = (self.are_able(), self.is_known_to_all());
        if are_able != keys.cookies_demanded && (!are_able || is_known) {
            keys.cookies_demanded = are_able;
            let reason = if are_able { "all nodes send cookies" } else { "a node sends no cookies" };
            return Some((keys, reason.to_owned()));
        }
        let limit = self.snapshot.member_keys_since(self.stored.changed_at) + STEP_LIMIT;
        if !is_known && self.now < limit {
            plan.wake_by(limit);
            return None;
        }
        match keys.keys.as_slice() {
            [in_use] if keys.cookies_demanded => {
                let reason = self.why_renew(in_use, plan)?;
                let next = MemberKey { id: in_use.id + 1, salt: ids::random_text(ids), made_at: self.now };
                keys.keys.push(next);
                keys.known_to = members;
                Some((keys, format!("a new member key is announced: {reason}")))
            }
            [in_use, next] if in_use.id < next.id => {
                let reason = format!("member key {} is in use", next.id);
                keys.keys.swap(0, 1);
                Some((keys, reason))
            }
            [_, former] => {
                let reason = format!("member key {} is forgotten", former.id);
                keys.keys.truncate(1);
                Some((keys, reason))
            }
            _ => None,
        }
    }

    /// Why the secret in use is to be replaced, if it is.
    fn why_renew(&self, in_use: &MemberKey, plan: &mut Plan) -> Option<String> {
        if let Some(gone) = self.stored.known_to.iter().find(|id| !self.snapshot.nodes.contains_key(id)) {
            return Some(format!("node {gone} was removed"));
        }
        let (due, last) = (in_use.made_at + PERIOD, in_use.made_at + PERIOD_MAX);
        if self.now < due {
            plan.wake_by(due);
            return None;
        }
        let is_heard = |id: &NodeId| self.snapshot.node_state(id) == NodeState::Ready;
        if self.now < last && !self.snapshot.nodes.keys().all(is_heard) {
            plan.wake_by(last);
            return None;
        }
        Some("the one in use is old".to_owned())
    }

    /// Whether every node's agent supports member keys. A node that has not described itself yet
    /// sends nothing and doesn't count.
    fn are_able(&self) -> bool {
        let mut spoken = self.snapshot.nodes.values().filter(|node| node.address.is_some());
        spoken.all(|node| node.description.takes_cookies)
    }

    /// Whether at least one node is heard and all that are heard know the record and the other
    /// nodes, that is, have acknowledged a table as new.
    fn is_known_to_all(&self) -> bool {
        let newest = self.snapshot.nodes.values().map(|node| node.mod_revision).max().unwrap_or_default();
        let revision = newest.max(self.stored.mod_revision);
        let is_heard = |id: &&NodeId| self.snapshot.node_state(id) == NodeState::Ready;
        let mut heard = self.snapshot.nodes.keys().filter(is_heard).peekable();
        let knows = |id: &NodeId| {
            let acknowledged = self.snapshot.acks.get(id).and_then(|ack| i64::try_from(ack.value).ok());
            acknowledged.is_some_and(|generation| generation >= revision)
        };
        heard.peek().is_some() && heard.all(knows)
    }
}

fn nodes(snapshot: &ClusterSnapshot) -> BTreeSet<NodeId> {
    snapshot.nodes.keys().cloned().collect()
}

#[cfg(test)]
mod tests {
    use mesh_state::keys;

    use super::*;
    use crate::fixtures::World;

    /// Nodes whose agents support member keys.
    fn world(ids: &[&str]) -> World {
        let mut world = World::with_nodes(ids.iter().copied());
        for (last, id) in (11..).zip(ids) {
            world.update_node(id, |node| {
                node.address = Some(std::net::IpAddr::from([10, 77, 0, last]));
                node.description.takes_cookies = true;
            });
        }
        world
    }

    fn acknowledge(world: &mut World) {
        let heard: Vec<NodeId> = world.snapshot.nodes.keys().cloned().collect();
        for id in heard {
            let revision = u64::try_from(world.snapshot.revision).unwrap();
            world.put(keys::ack(&id), &revision);
        }
    }

    fn record(world: &World) -> (Vec<u64>, bool) {
        let stored = world.snapshot.member_keys.as_ref().expect("a record");
        (stored.keys.iter().map(|key| key.id).collect(), stored.cookies_demanded)
    }

    fn step(world: &mut World) -> (Vec<u64>, bool) {
        world.run(plan);
        record(world)
    }

    /// A cluster whose nodes demand cookies.
    fn settled(ids: &[&str]) -> World {
        let mut world = world(ids);
        step(&mut world);
        acknowledge(&mut world);
        assert_eq!(step(&mut world), (vec![0], true));
        acknowledge(&mut world);
        world
    }

    #[test]
    fn cookies_are_demanded_once_every_heard_node_knows_that_all_send_them() {
        let mut world = world(&["a", "b"]);
        assert_eq!(step(&mut world), (vec![0], false));
        assert_eq!(step(&mut world), (vec![0], false), "no node has acknowledged a table");
        acknowledge(&mut world);
        assert_eq!(step(&mut world), (vec![0], true));
        world.update_node("b", |node| node.description.takes_cookies = false);
        assert_eq!(step(&mut world), (vec![0], false), "an older agent runs on b");
        acknowledge(&mut world);
        assert_eq!(step(&mut world), (vec![0], false), "and nothing changes as long as it does");
    }

    #[test]
    fn nothing_begins_while_a_manager_does_not_support_member_keys() {
        let mut world = world(&["a"]);
        let older = mesh_state::cluster::Manager { name: "m".into(), ..Default::default() };
        world.put(keys::manager("m"), &older);
        assert_eq!(plan(world.now, &world.snapshot, &mut world.rng.clone()), Plan::default());
    }

    #[test]
    fn a_removed_node_makes_a_new_key_in_three_steps() {
        let mut world = settled(&["a", "b"]);
        world.delete(keys::node(&"b".into()));
        assert_eq!(step(&mut world).0, [0, 1], "announced: 0 is in use");
        assert_eq!(step(&mut world).0, [0, 1], "a doesn't know yet");
        acknowledge(&mut world);
        assert_eq!(step(&mut world).0, [1, 0], "1 is in use");
        assert_eq!(step(&mut world).0, [1, 0], "a may still use 0");
        acknowledge(&mut world);
        assert_eq!(step(&mut world).0, [1], "0 is forgotten");
        acknowledge(&mut world);
        assert_eq!(step(&mut world).0, [1], "b never knew 1");
    }

    #[test]
    fn a_step_waits_for_a_silent_node_no_longer_than_the_limit() {
        let mut world = settled(&["a", "b", "c"]);
        world.delete(keys::node(&"c".into()));
        assert_eq!(step(&mut world).0, [0, 1]);
        world.pass(29);
        assert_eq!(step(&mut world).0, [0, 1], "no node has acknowledged");
        world.pass(1);
        assert_eq!(step(&mut world).0, [1, 0]);
    }

    #[test]
    fn an_old_key_is_replaced_when_all_nodes_are_heard() {
        let mut world = settled(&["a", "b"]);
        world.pass(6 * 3600 - 1);
        assert_eq!(step(&mut world).0, [0], "a key is used for six hours");
        world.pass(1);
        world.set_liveness(&"b".into(), NodeState::Down);
        assert_eq!(step(&mut world).0, [0], "b's programs may still forward");
        world.pass(18 * 3600);
        assert_eq!(step(&mut world).0, [0, 1], "but not for ever");
        let salts: BTreeSet<String> = world
            .snapshot
            .member_keys
            .iter()
            .flat_map(|stored| stored.keys.clone())
            .map(|key| key.salt)
            .collect();
        assert_eq!(salts.len(), 2, "each has a salt of its own");
    }

    #[test]
    fn a_node_that_joins_is_recorded() {
        let mut world = settled(&["a"]);
        world.put_node(&crate::fixtures::node("b"));
        step(&mut world);
        let known_to = world.snapshot.member_keys.as_ref().map(|stored| stored.known_to.clone());
        assert_eq!(known_to, Some(BTreeSet::from(["a".into(), "b".into()])));
        assert_eq!(
            record(&world),
            (vec![0], true),
            "a node that has not described itself yet changes nothing"
        );
    }
}
