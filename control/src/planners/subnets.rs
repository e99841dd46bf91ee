//! Assigns node subnets from the cluster's pool.
//!
//! Each node needs addresses for its tasks that no other node gives out. The planner decides from
//! the pool and the prefix in the cluster's record, the subnets that nodes have, and the addresses
//! of members. A node without a subnet gets the lowest free one that holds no member's address:
//! tasks could not reach a node inside it. It takes the lowest and not the next one, so that the
//! pool is used densely and routes stay readable.
//!
//! Subnets that hold a network of a host are left out, as far as agents have reported them. A node
//! that joins reports its host's networks only after it has its subnet: if they overlap, its agent
//! makes it unfit with the reason (`--default-addr-pool` is the remedy). To ask all nodes before a
//! subnet is given would make each join wait for the slowest member.
//!
//! A removed node's subnet is free at once, although that node may not have noticed its removal
//! yet. The next owner gets none of its packets: between nodes, packets go to the node's own
//! address in a tunnel and not by a route to its subnet.
//!
//! Invariants: subnets of nodes never overlap; a node keeps its subnet for as long as it is a
//! member. If the pool is used up, the plan says so and the node waits without a session.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use mesh_state::Timestamp;
use rand::RngCore;

use crate::feed::snapshot::ClusterSnapshot;
use crate::plan::{Action, Plan};
use crate::slots::host_overlap;

/// Gives each node without a subnet the lowest free one.
pub fn plan(_now: Timestamp, snapshot: &ClusterSnapshot, _ids: &mut dyn RngCore) -> Plan {
    let mut plan = Plan::default();
    let Some(cluster) = &snapshot.cluster else { return plan };
    if snapshot.nodes.values().all(|node| node.subnet.is_some()) {
        return plan;
    }
    let used: BTreeSet<Ipv4Net> = snapshot.nodes.values().filter_map(|node| node.subnet).collect();
    let Ok(candidates) = cluster.subnet_pool.subnets(cluster.subnet_prefix) else {
        plan.reasons.push(format!(
            "no node gets a subnet: the pool {} holds no /{}",
            cluster.subnet_pool, cluster.subnet_prefix
        ));
        return plan;
    };
    let members: BTreeSet<Ipv4Addr> = snapshot.nodes.values().filter_map(|node| v4(node.address?)).collect();
    let mut free = candidates
        .filter(|candidate| !overlaps(&used, *candidate))
        .filter(|candidate| members.range(candidate.network()..=candidate.broadcast()).next().is_none())
        .filter(|candidate| host_overlap::of_any(snapshot, *candidate).is_none());
    for stored in snapshot.nodes.values().filter(|node| node.subnet.is_none()) {
        let Some(subnet) = free.next() else {
            plan.reasons.push(format!(
                "node {} gets no subnet: the pool {} is used up",
                stored.id, cluster.subnet_pool
            ));
            break;
        };
        let mut node = stored.value.clone();
        node.subnet = Some(subnet);
        plan.reasons.push(format!("node {} gets subnet {subnet}", node.id));
        plan.actions.push(Action::UpdateNode { node, expected: stored.mod_revision });
    }
    plan
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// Whether `candidate` shares an address with one of `used`, which don't overlap each other.
fn overlaps(used: &BTreeSet<Ipv4Net>, candidate: Ipv4Net) -> bool {
    let shares = |other: &Ipv4Net| other.contains(&candidate) || candidate.contains(other);
    used.range(..=candidate).next_back().is_some_and(shares)
        || used.range(candidate..).next().is_some_and(shares)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{World, node};

    fn given(plan: &Plan) -> Vec<(String, String)> {
        plan.actions
            .iter()
            .map(|action| match action {
                Action::UpdateNode { node, .. } => (node.id.to_string(), node.subnet.unwrap().to_string()),
                other => panic!("expected subnets alone, saw {other:?}"),
            })
            .collect()
    }

    #[test]
    fn the_lowest_free_subnets_are_given() {
        let mut world = World::new();
        for (id, subnet) in [
            ("a", Some("10.128.1.0/24")),
            ("b", None),
            ("c", Some("10.128.3.0/24")),
            ("d", None),
            ("e", None),
        ] {
            let mut value = node(id);
            value.subnet = subnet.map(|text| text.parse().unwrap());
            world.put_node(&value);
        }
        let plan = super::plan(world.now, &world.snapshot, &mut world.rng.clone());
        let expected = [("b", "10.128.0.0/24"), ("d", "10.128.2.0/24"), ("e", "10.128.4.0/24")];
        assert_eq!(given(&plan), expected.map(|(id, subnet)| (id.to_owned(), subnet.to_owned())));
        world.commit(&plan);
        assert_eq!(
            super::plan(world.now, &world.snapshot, &mut world.rng.clone()),
            Plan::default(),
            "planned twice"
        );
    }

    #[test]
    fn a_wider_subnet_from_before_is_not_cut_into() {
        let mut world = World::new();
        let mut wide = node("a");
        wide.subnet = Some("10.128.0.0/22".parse().unwrap());
        world.put_node(&wide);
        let mut value = node("b");
        value.subnet = None;
        world.put_node(&value);
        let plan = super::plan(world.now, &world.snapshot, &mut world.rng.clone());
        assert_eq!(given(&plan), [("b".to_owned(), "10.128.4.0/24".to_owned())]);
    }

    #[test]
    fn a_used_up_pool_is_a_reason() {
        let mut world = World::new();
        let mut cluster = world.snapshot.cluster.as_ref().unwrap().value.clone();
        cluster.subnet_pool = "10.128.0.0/24".parse().unwrap();
        world.put_cluster(&cluster);
        for id in ["a", "b"] {
            let mut value = node(id);
            value.subnet = None;
            world.put_node(&value);
        }
        let plan = super::plan(world.now, &world.snapshot, &mut world.rng.clone());
        assert_eq!(given(&plan).len(), 1);
        assert!(plan.reasons.iter().any(|reason| reason.contains("used up")), "reasons: {:?}", plan.reasons);
    }

    #[test]
    fn no_subnet_is_given_that_holds_a_members_address() {
        let mut world = World::new();
        let mut first = node("a");
        first.subnet = None;
        first.address = Some("10.128.0.5".parse().unwrap());
        world.add_node(&first);
        assert_eq!(given(&world.run(plan)), [("a".to_owned(), "10.128.1.0/24".to_owned())]);
    }
    #[test]
    fn no_subnet_is_given_that_holds_a_network_of_a_host() {
        let mut world = World::new();
        world.put_node(&node("a"));
        let inside: [Ipv4Net; 2] = ["10.128.0.64/26".parse().unwrap(), "10.128.1.0/24".parse().unwrap()];
        world.put(mesh_state::keys::host_networks(&"a".into()), &inside.to_vec());
        let mut second = node("b");
        second.subnet = None;
        world.put_node(&second);
        assert_eq!(given(&world.run(plan)), [("b".to_owned(), "10.128.2.0/24".to_owned())]);
    }
}
