//! Gives the addresses of networks that no task holds: virtual IPs of services, addresses of
//! containers that are no tasks, and addresses of nodes' bridges.
//!
//! It decides from the specs of services and the nodes of tasks. A service has a virtual IP on each
//! network that its spec names, unless it is in mode `dnsrr`, and keeps it while that holds, as
//! clients cache a virtual IP for long. A node gets an address on a network with its first task
//! there, and keeps it while it is a member, so a bridge that is removed and made again has the
//! same address. The scheduler gives tasks their own addresses together with their node, and leaves
//! as many free as this planner still has to give.
//!
//! It can't see who still uses an address that a node or a service gives up. A freed address rests
//! before it is given again ([`crate::slots::addresses`]), so as a rule nodes have applied a mesh
//! table without it by then.
//!
//! Invariants: pure; an address has one holder; a virtual IP doesn't change while its service is on
//! its network. If a network has no address left, the plan says so, and the nodes and services
//! without one get theirs as soon as one is free.

use std::collections::BTreeMap;

use mesh_state::Timestamp;
use mesh_state::attachment::AttachedContainer;
use mesh_state::ids::NetworkId;
use mesh_state::network::{Network, VirtualIp};
use mesh_state::service::Service;
use rand::RngCore;

use crate::feed::snapshot::{ClusterSnapshot, Stored};
use crate::plan::{Action, Plan};
use crate::slots::addresses::{
    Addresses, has_virtual_ips_wanted, is_served, owed_to_nodes, virtual_ips_wanted,
};

/// Gives nodes, services and attached containers the addresses that they lack, and frees those that
/// are no longer needed.
pub fn plan(_now: Timestamp, snapshot: &ClusterSnapshot, _ids: &mut dyn RngCore) -> Plan {
    let mut plan = Plan::default();
    if snapshot.attachments.is_empty() && snapshot.networks.values().all(|network| network.ingress) {
        return plan;
    }
    let mut addresses = Addresses::new(snapshot);
    // Nodes first: a task without its node's bridge is not on the network at all.
    node_addresses(snapshot, &mut addresses, &mut plan);
    let lacking = snapshot.services.values().filter(|service| !has_virtual_ips_wanted(snapshot, service));
    for service in lacking {
        virtual_ips(snapshot, service, &mut addresses, &mut plan);
    }
    for container in snapshot.attachments.values() {
        attached(snapshot, container, &mut addresses, &mut plan);
    }
    plan
}

/// Gives an attached container its address. Deletes the attachment if its node or its network was
/// removed.
fn attached(
    snapshot: &ClusterSnapshot,
    container: &Stored<AttachedContainer>,
    addresses: &mut Addresses<'_>,
    plan: &mut Plan,
) {
    let (id, name, expected) = (&container.id, &container.name, container.mod_revision);
    let is_there = snapshot.nodes.contains_key(&container.node_id)
        && snapshot.networks.contains_key(&container.network_id);
    if !is_there {
        plan.reasons
            .push(format!("container {name} is attached no more: its node or its network was removed"));
        plan.actions.push(Action::DeleteAttachment { id: id.clone(), expected });
        return;
    }
    if container.address.is_some() {
        return;
    }
    match addresses.for_container(container) {
        Ok(address) => {
            plan.reasons.push(format!("container {name} is {address} on its network"));
            let container = AttachedContainer { address: Some(address), ..container.value.clone() };
            plan.actions.push(Action::UpdateAttachment { container, expected });
        }
        Err(error) => plan.reasons.push(format!("container {name} gets no address: {error}")),
    }
}

fn node_addresses(snapshot: &ClusterSnapshot, addresses: &mut Addresses<'_>, plan: &mut Plan) {
    let mut changed: BTreeMap<&NetworkId, Network> = BTreeMap::new();
    for (id, stored) in snapshot.networks.iter().filter(|(_, network)| is_served(network)) {
        let is_gone = |node| !snapshot.nodes.contains_key(node);
        for node in stored.node_addresses.keys().filter(|node| is_gone(node)) {
            let network = changed.entry(id).or_insert_with(|| stored.value.clone());
            network.node_addresses.remove(node);
            plan.reasons.push(format!("node {node} gives up its address on network {}", stored.name));
        }
    }
    for (id, nodes) in owed_to_nodes(snapshot) {
        let Some(stored) = snapshot.networks.get(id) else { continue };
        for node in nodes {
            match addresses.for_node(id, node) {
                Ok(address) => {
                    let network = changed.entry(id).or_insert_with(|| stored.value.clone());
                    network.node_addresses.insert(node.clone(), address);
                    plan.reasons.push(format!("node {node} is {address} on network {}", stored.name));
                }
                Err(error) => plan.reasons.push(format!("node {node} gets no address: {error}")),
            }
        }
    }
    for (id, network) in changed {
        if let Some(stored) = snapshot.networks.get(id) {
            plan.actions.push(Action::UpdateNetwork { network, expected: stored.mod_revision });
        }
    }
}

fn virtual_ips(
    snapshot: &ClusterSnapshot,
    service: &Stored<Service>,
    addresses: &mut Addresses<'_>,
    plan: &mut Plan,
) {
    let mut held = Vec::new();
    for network_id in virtual_ips_wanted(snapshot, service) {
        let kept = service.virtual_ips.iter().find(|held| held.network_id == network_id);
        let given = match kept {
            Some(kept) => Ok(kept.address),
            None => addresses.for_service(&network_id),
        };
        match given {
            Ok(address) => held.push(VirtualIp { network_id, address }),
            Err(error) => {
                plan.reasons.push(format!("service {} gets no virtual IP: {error}", service.spec.name));
            }
        }
    }
    if held == service.virtual_ips {
        return;
    }
    let shown: Vec<String> = held.iter().map(|virtual_ip| virtual_ip.address.to_string()).collect();
    plan.reasons.push(format!("the virtual IPs of service {} are [{}]", service.spec.name, shown.join(", ")));
    let value = Service { virtual_ips: held, ..service.value.clone() };
    plan.actions.push(Action::UpdateService { service: value, expected: service.mod_revision });
}

#[cfg(test)]
mod tests;
