//! The networks in the mesh table, and their members.
//!
//! Invariants: a member has a node, an address and a task that has not ended; it serves by the same
//! rules as a backend of a published port, but is in the table before it serves, so that packets
//! reach it while its process starts.

use mesh_state::attachment::AttachedContainer;
use mesh_state::ids::BackendId;
use mesh_state::lb::LbSettings;
use mesh_state::network::Network;
use mesh_state::node::{Node, NodeState};
use mesh_state::proto::{BackendState, MeshAttachment, MeshMember, MeshNetwork, MeshServiceNetwork};
use mesh_state::service::Service;
use mesh_state::task::{Task, TaskState};
use mesh_state::template::{TemplateContext, expand};

use super::{state, weight};
use crate::feed::snapshot::ClusterSnapshot;
use crate::slots::addresses::is_served;
use crate::slots::networks::named_by;

/// A network's entry; `None` unless it is a user's and has its subnet.
pub(super) fn network(network: &Network) -> Option<MeshNetwork> {
    let addresses = network.node_addresses.iter();
    is_served(network).then(|| MeshNetwork {
        id: network.id.to_string(),
        name: network.name.clone(),
        number: network.number,
        subnet: network.subnet.to_string(),
        node_addresses: addresses.map(|(node, address)| (node.to_string(), address.to_string())).collect(),
        internal: network.spec.internal,
        attachable: network.spec.attachable,
        subnet6: network.subnet6.map(|subnet| subnet.to_string()).unwrap_or_default(),
    })
}

/// The networks that a service is on, in the order of its spec.
pub(super) fn of_service(snapshot: &ClusterSnapshot, service: &Service) -> Vec<MeshServiceNetwork> {
    let named = named_by(&service.spec).into_iter();
    let served = named.filter(|one| snapshot.networks.get(&one.id).is_some_and(|network| is_served(network)));
    served
        .map(|one| {
            let held = service.virtual_ips.iter().find(|held| held.network_id == one.id);
            MeshServiceNetwork {
                network_id: one.id.to_string(),
                virtual_ip: held.map(|held| held.address.to_string()).unwrap_or_default(),
                aliases: one.aliases,
            }
        })
        .collect()
}

/// A task as a member of its networks; `None` until it has a node, and once it has ended.
pub(super) fn of_task(
    snapshot: &ClusterSnapshot,
    service_name: &str,
    settings: &LbSettings,
    task: &Task,
) -> Option<MeshMember> {
    if task.attachments.is_empty() {
        return None;
    }
    let node = snapshot.nodes.get(task.node_id.as_ref()?)?;
    let status = snapshot.status_of(task);
    if status.state.is_terminal() {
        return None;
    }
    let attachments: Vec<_> = task
        .attachments
        .iter()
        .filter_map(|attachment| {
            Some(MeshAttachment {
                network_id: attachment.network_id.to_string(),
                address: attachment.address?.to_string(),
                backend_id: attachment.backend_id.map_or(0, BackendId::get),
                aliases: Vec::new(),
            })
        })
        .collect();
    if attachments.is_empty() {
        return None;
    }
    let state = match status.state {
        TaskState::Running => state(snapshot, task, node),
        _ => BackendState::Unspecified,
    };
    let name = format!("{service_name}.{}.{}", task.slot, task.id);
    Some(MeshMember {
        id: task.id.to_string(),
        service_id: task.service_id.to_string(),
        node_id: node.id.to_string(),
        container_id: status.container.as_ref().map(|made| made.container_id.clone()).unwrap_or_default(),
        hostname: hostname(snapshot, task, node, &name),
        name,
        state: state.into(),
        attachments,
        weight: weight(settings, task, node),
    })
}

/// An attached container as a member of its network, once it has its address. It serves once its
/// container exists, while its node is not silent.
pub(super) fn of_container(snapshot: &ClusterSnapshot, container: &AttachedContainer) -> Option<MeshMember> {
    let node = snapshot.nodes.get(&container.node_id)?;
    snapshot.networks.get(&container.network_id).filter(|network| is_served(network))?;
    let is_heard = snapshot.node_state(&node.id) == NodeState::Ready;
    let state = if !container.container_id.is_empty() && is_heard {
        BackendState::Active
    } else {
        BackendState::Unspecified
    };
    Some(MeshMember {
        id: container.id.to_string(),
        name: container.name.clone(),
        node_id: node.id.to_string(),
        container_id: container.container_id.clone(),
        hostname: container.hostname.clone(),
        state: state.into(),
        attachments: vec![MeshAttachment {
            network_id: container.network_id.to_string(),
            address: container.address?.to_string(),
            backend_id: 0,
            aliases: container.aliases.clone(),
        }],
        ..MeshMember::default()
    })
}

/// The hostname that the task's spec gives its container; empty if there is none, or if it can't be
/// expanded, in which case the agent refuses the task.
fn hostname(snapshot: &ClusterSnapshot, task: &Task, node: &Node, name: &str) -> String {
    let Some(spec) = snapshot.spec_of(task) else { return String::new() };
    let asked = spec.task_template.container_spec.as_ref().map_or("", |container| &container.hostname);
    if !asked.contains("{{") {
        return asked.to_owned();
    }
    let context = TemplateContext {
        service_id: task.service_id.to_string(),
        service_name: spec.name.clone(),
        service_labels: spec.labels.clone(),
        node_id: node.id.to_string(),
        node_hostname: node.description.hostname.clone(),
        architecture: node.description.architecture.clone(),
        os: node.description.os.clone(),
        task_id: task.id.to_string(),
        task_name: name.to_owned(),
        task_slot: task.slot.to_string(),
    };
    expand(asked, &context).unwrap_or_default()
}

#[cfg(test)]
mod tests;
