//! What must hold at every revision, whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use mesh_control::feed::snapshot::ClusterSnapshot;
use mesh_state::task::{Task, TaskState};

/// Panics if an invariant is violated between two snapshots.
pub(crate) fn check(before: &ClusterSnapshot, after: &ClusterSnapshot) {
    states_rise(before, after);
    nothing_is_wanted_again(before, after);
    slots_have_one_wanted_task(after);
    backend_ids_are_unique(after);
    subnets_are_unique(after);
    addresses_have_one_holder(after);
    addresses_stay(before, after);
    assert!(after.unreadable.is_empty(), "unreadable: {:?}", after.unreadable);
}

fn states_rise(before: &ClusterSnapshot, after: &ClusterSnapshot) {
    for (id, old) in &before.statuses {
        if let Some(new) = after.statuses.get(id) {
            assert!(new.state >= old.state, "task {id} fell from {:?} to {:?}", old.state, new.state);
        }
    }
}

fn nothing_is_wanted_again(before: &ClusterSnapshot, after: &ClusterSnapshot) {
    for (id, old) in &before.tasks {
        if let Some(new) = after.tasks.get(id) {
            let (was, is) = (old.desired_state, new.desired_state);
            assert!(
                was < TaskState::Shutdown || is >= was,
                "task {id} was wanted again: {was:?}, then {is:?}"
            );
            let moved = old.node_id.is_some() && new.node_id != old.node_id;
            assert!(!moved, "task {id} moved from {:?} to {:?}", old.node_id, new.node_id);
        }
    }
}

fn slots_have_one_wanted_task(snapshot: &ClusterSnapshot) {
    let mut wanted = BTreeMap::new();
    for task in snapshot.tasks.values().filter(|task| task.desired_state == TaskState::Running) {
        let tasks: &mut Vec<_> = wanted.entry((&task.service_id, &task.slot)).or_default();
        tasks.push(&task.id);
    }
    for ((service, slot), tasks) in wanted {
        assert!(tasks.len() == 1, "slot {slot} of {service} has several wanted tasks: {tasks:?}");
    }
}

fn backend_ids_are_unique(snapshot: &ClusterSnapshot) {
    let mut owners = BTreeMap::new();
    for task in snapshot.tasks.values().filter(|task| !snapshot.state_of(task).is_terminal()) {
        for backend in task.backend_ids() {
            if let Some(other) = owners.insert(backend, &task.id) {
                panic!("backend {} belongs to tasks {other} and {}", backend.get(), task.id);
            }
        }
    }
}

fn subnets_are_unique(snapshot: &ClusterSnapshot) {
    let mut seen = BTreeSet::new();
    for subnet in snapshot.nodes.values().filter_map(|node| node.subnet) {
        assert!(seen.insert(subnet), "two nodes have subnet {subnet}");
    }
}

fn addresses_have_one_holder(snapshot: &ClusterSnapshot) {
    let nodes = snapshot.networks.values().flat_map(|network| {
        network.node_addresses.iter().map(|(node, address)| (*address, node.to_string()))
    });
    let services = snapshot.services.values().flat_map(|service| {
        service.virtual_ips.iter().map(|held| (held.address, format!("service {}", service.id)))
    });
    let alive = snapshot.tasks.values().filter(|task| !snapshot.state_of(task).is_terminal());
    let tasks = alive.flat_map(|task| {
        let given = task.attachments.iter().filter_map(|attachment| attachment.address);
        given.map(|address| (address, format!("task {}", task.id)))
    });
    let mut holders = BTreeMap::new();
    for (address, holder) in nodes.chain(services).chain(tasks) {
        if let Some(other) = holders.insert(address, holder.clone()) {
            panic!("{address} belongs to {other} and {holder}");
        }
    }
}

/// A task keeps its addresses, and a service that stays on its networks its virtual IPs, whoever
/// leads.
fn addresses_stay(before: &ClusterSnapshot, after: &ClusterSnapshot) {
    for (id, old) in &before.tasks {
        let Some(new) = after.tasks.get(id).filter(|_| old.node_id.is_some()) else { continue };
        let addresses = |task: &Task| task.attachments.iter().map(|one| one.address).collect::<Vec<_>>();
        assert_eq!(addresses(old), addresses(new), "addresses of task {id}");
    }
    for (id, old) in before.services.iter().filter(|(_, old)| !old.virtual_ips.is_empty()) {
        if let Some(new) = after.services.get(id) {
            assert_eq!(old.virtual_ips, new.virtual_ips, "virtual IPs of {id}");
        }
    }
}
