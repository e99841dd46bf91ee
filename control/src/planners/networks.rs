//! Gives a subnet and a number to networks that were stored without them.
//!
//! The API gives a network both when it creates it. A network that an older version stored has
//! neither: its record has the pool of all tasks as its subnet, and the number 0. This planner
//! gives it what a new network gets. Until then the tasks of its services wait, and their status
//! says so.
//!
//! Invariants: pure; the plan writes the cursor of subnets and numbers before the networks, under
//! the compare that the API uses too, so the API can't give the same subnet or number meanwhile.
//!
//! Left to others: addresses of these networks (`scheduler`, `addresses`). Tasks that were made
//! before have no attachment; an update of their service replaces them by tasks that have one.

use std::sync::Arc;

use mesh_state::Timestamp;
use mesh_state::network::Network;
use rand::RngCore;

use crate::feed::snapshot::{ClusterSnapshot, Versioned};
use crate::plan::{Action, Plan};
use crate::slots::network_space::{self, Wanted};

/// Gives each network without a number a number and a subnet.
pub fn plan(_now: Timestamp, snapshot: &ClusterSnapshot, _ids: &mut dyn RngCore) -> Plan {
    let mut plan = Plan::default();
    let Some(cluster) = &snapshot.cluster else { return plan };
    let mut without = snapshot.networks.values().filter(|network| !network.ingress && network.number == 0);
    let Some(first) = without.next() else { return plan };
    // The next network must not get what this one was given.
    let mut after = snapshot.clone();
    for stored in std::iter::once(first).chain(without) {
        let space = match network_space::give(&after, cluster, &Wanted::default()) {
            Ok(space) => space,
            Err(error) => {
                plan.reasons.push(format!("network {} gets no subnet: {error}", stored.name));
                break;
            }
        };
        plan.reasons.push(format!(
            "network {} of an older version gets subnet {} and number {}",
            stored.name, space.subnet, space.number
        ));
        let number = stored.spec.numbered(space.number);
        let network = Network { subnet: space.subnet, number, ..stored.value.clone() };
        let given = Versioned { value: network.clone(), ..Versioned::clone(stored) };
        after.networks.insert(network.id.clone(), Arc::new(given));
        let cursor = Versioned { value: space.cursor, create_revision: 0, mod_revision: 0 };
        after.network_cursor = Some(Arc::new(cursor));
        plan.actions.push(Action::UpdateNetwork { network, expected: stored.mod_revision });
    }
    if let Some(cursor) = after.network_cursor.filter(|_| !plan.actions.is_empty()) {
        let expected = snapshot.network_cursor.as_ref().map(|stored| stored.mod_revision);
        plan.actions.insert(0, Action::SetNetworkCursor { cursor: cursor.value, expected });
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{World, network};

    fn given(world: &World, id: &str) -> (String, u32) {
        let network = &world.snapshot.networks[&id.into()];
        (network.subnet.to_string(), network.number)
    }

    #[test]
    fn networks_from_before_get_what_new_ones_would() {
        let mut world = World::new();
        world.put_network(&network("new", "10.0.0.0/24", 1));
        for old in ["old", "older"] {
            world.put_network(&network(old, "10.128.0.0/12", 0));
        }
        let mut ingress = network("ingress", "10.128.0.0/12", 0);
        ingress.ingress = true;
        world.put_network(&ingress);
        world.run(plan);
        assert_eq!(given(&world, "new"), ("10.0.0.0/24".to_owned(), 1));
        assert_eq!(given(&world, "old"), ("10.0.1.0/24".to_owned(), 2));
        assert_eq!(given(&world, "older"), ("10.0.2.0/24".to_owned(), 3));
        assert_eq!(given(&world, "ingress"), ("10.128.0.0/12".to_owned(), 0), "it has no use for them");
        let cursor = world.snapshot.network_cursor.as_ref().unwrap().value;
        assert_eq!((cursor.subnet.unwrap().to_string(), cursor.number), ("10.0.2.0/24".to_owned(), 3));
        assert_eq!(world.run(plan), Plan::default(), "planned on its own result");
    }

    #[test]
    fn a_used_up_pool_is_a_reason() {
        let mut world = World::new();
        let mut cluster = world.snapshot.cluster.as_ref().unwrap().value.clone();
        (cluster.network_pool, cluster.network_prefix) = ("10.0.0.0/24".parse().unwrap(), 24);
        world.put_cluster(&cluster);
        for old in ["old", "older"] {
            world.put_network(&network(old, "10.128.0.0/12", 0));
        }
        let planned = world.run(plan);
        assert_eq!(given(&world, "old").1, 1);
        assert_eq!(given(&world, "older").1, 0);
        let reason = planned.reasons.last().unwrap();
        assert!(reason.starts_with("network older gets no subnet: could not find"), "{reason}");
    }
}
