//! The mesh table, by which every agent forwards: services with their ports and virtual IPs, the
//! tasks behind them, and the addresses on networks with their holders.
//!
//! Invariants: pure; one snapshot gives the same table on every manager, and a table's generation
//! is the store's revision of its snapshot, so tables of different managers compare; a backend is
//! in the table exactly while its task is observed running, a member of networks from when its task
//! has a node until the task has ended.
//!
//! Left to others: sending it ([`crate::node_service`]).

mod contents;
mod entries;
mod members;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mesh_state::Timestamp;
use mesh_state::ids::{NodeId, ServiceId, TaskId};
use mesh_state::lb::{LbSettings, node_weight};
use mesh_state::network::ENCRYPTED;
use mesh_state::node::{Node, NodeState, is_member_address};
use mesh_state::proto::{
    BackendState, MeshBackend, MeshNetwork, MeshNode, MeshPort, MeshService, MeshServiceNetwork, MeshTable,
};
use mesh_state::service::Service;
use mesh_state::spec::{PublishMode, ServiceSpec};
use mesh_state::task::{Task, TaskEndpoint, TaskState};

pub use self::contents::Contents;
use self::entries::{Entries, Map, Part, changes, values};
use crate::feed::snapshot::{ClusterSnapshot, Stored};

/// The whole table at one generation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// The store's revision of its snapshot.
    pub generation: u64,
    /// When its newest change reached this manager, in milliseconds since 1970.
    pub committed_unix_ms: i64,
    entries: Entries,
}

impl Table {
    /// The table of a snapshot.
    pub fn of(snapshot: &ClusterSnapshot) -> Self {
        Contents::of(snapshot).table(snapshot)
    }

    /// This table without the backends and memberships of ended tasks. `ended` names each task with
    /// the node that reports it, as a node reports its own tasks only.
    #[must_use]
    pub fn without(mut self, ended: &BTreeMap<TaskId, NodeId>) -> Self {
        if !ended.is_empty() {
            self.entries.remove_ended(ended);
        }
        self
    }

    /// The node that a backend's task runs on.
    pub fn node_of(&self, backend: u32) -> Option<&str> {
        let member = || self.entries.members.get(self.entries.member_of.get(&backend)?);
        let port = self.entries.backends.get(&backend).map(|backend| backend.node_id.as_str());
        port.or_else(|| member().map(|member| member.node_id.as_str()))
    }

    /// Whether both tables have the same entries, whatever their generations.
    pub fn same_entries(&self, other: &Self) -> bool {
        self.entries == other.entries
    }

    /// The message with the whole table.
    pub fn whole(&self) -> MeshTable {
        let (encrypted_networks, networks) =
            values(&self.entries.networks).into_iter().partition(is_encrypted);
        MeshTable {
            generation: self.generation,
            committed_unix_ms: self.committed_unix_ms,
            nodes: values(&self.entries.nodes),
            services: values(&self.entries.services),
            backends: values(&self.entries.backends),
            networks,
            encrypted_networks,
            members: values(&self.entries.members),
            ..MeshTable::default()
        }
    }

    /// The message that turns `base` into this table; if both have the same entries, it has the
    /// generation only.
    pub fn since(&self, base: &Self) -> MeshTable {
        let (nodes, removed_node_ids) = changes(&base.entries.nodes, &self.entries.nodes);
        let (services, removed_service_ids) = changes(&base.entries.services, &self.entries.services);
        let (backends, removed_backend_ids) = changes(&base.entries.backends, &self.entries.backends);
        let (networks, removed_network_ids) = changes(&base.entries.networks, &self.entries.networks);
        let (encrypted_networks, networks) = networks.into_iter().partition(is_encrypted);
        let (members, removed_member_ids) = changes(&base.entries.members, &self.entries.members);
        MeshTable {
            generation: self.generation,
            base_generation: base.generation,
            committed_unix_ms: self.committed_unix_ms,
            // The sender fills it in.
            sent_unix_ms: 0,
            nodes,
            removed_node_ids,
            services,
            removed_service_ids,
            backends,
            removed_backend_ids,
            networks,
            removed_network_ids,
            members,
            removed_member_ids,
            encrypted_networks,
        }
    }
}

fn is_encrypted(network: &MeshNetwork) -> bool {
    network.number & ENCRYPTED != 0
}

/// The public key by which the node takes packets of encrypted networks. Empty if it reports none,
/// or none that is one: agents would refuse the table for it.
fn public_key(node: &Node) -> Vec<u8> {
    const LEN: usize = 32;
    let reported = node.description.encryption.as_ref().filter(|end| end.port != 0);
    let decoded = reported.and_then(|end| BASE64_STANDARD.decode(&end.public_key).ok());
    decoded.filter(|key| key.len() == LEN).unwrap_or_default()
}

/// The table's message for one node, without what only other nodes need: the container ids of their
/// backends, and their addresses on networks. The container ids of members stay, as they are names.
pub fn for_node(mut message: MeshTable, node: &NodeId, now: Timestamp) -> MeshTable {
    message.sent_unix_ms = now.timestamp_millis();
    for backend in message.backends.iter_mut().filter(|backend| backend.node_id != node.as_str()) {
        backend.container_id.clear();
    }
    for network in message.networks.iter_mut().chain(&mut message.encrypted_networks) {
        network.node_addresses.retain(|other, _| other == node.as_str());
    }
    message
}

/// The member nodes.
fn nodes(snapshot: &ClusterSnapshot) -> Map<String, MeshNode> {
    let in_table = snapshot.nodes.values().filter(|node| !is_left_to_another(snapshot, node));
    let entry = |node: &Stored<Node>| match node.address {
        Some(IpAddr::V4(address)) if is_member_address(address) => Some(MeshNode {
            id: node.id.to_string(),
            address: address.to_string(),
            hostname: node.description.hostname.clone(),
            subnet: node.subnet.map(|subnet| subnet.to_string()).unwrap_or_default(),
            datapath: node.description.datapath.clone(),
            takes_cookies: node.description.takes_cookies,
            public_key: public_key(node),
            encryption_port: node.description.encryption.as_ref().map_or(0, |end| end.port.into()),
        }),
        _ => None,
    };
    in_table.filter_map(entry).map(|node| (node.id.clone(), node.into())).collect()
}

/// Whether a node that is down had an address that another node has now, that is, its machine was
/// set up anew.
fn is_left_to_another(snapshot: &ClusterSnapshot, node: &Node) -> bool {
    let is_down = |id: &NodeId| snapshot.node_state(id) == NodeState::Down;
    let shares = |other: &Node| other.id != node.id && other.address == node.address;
    is_down(&node.id) && snapshot.nodes.values().any(|other| shares(other) && !is_down(&other.id))
}

/// A service that is reached through the mesh, with its backends and members.
fn part(
    snapshot: &ClusterSnapshot,
    id: &ServiceId,
    spec: &ServiceSpec,
    ports: Vec<MeshPort>,
    networks: Vec<MeshServiceNetwork>,
) -> Part {
    // Labels were checked when they were written; one of a later version gets its default here.
    let settings = LbSettings::from_labels(&spec.labels).unwrap_or_default();
    let mut part = Part::default();
    for task in snapshot.tasks_of(id) {
        part.members.extend(members::of_task(snapshot, &spec.name, &settings, task));
        if !ports.is_empty() {
            part.backends.extend(backends(snapshot, &spec.name, &settings, task));
        }
    }
    if !ports.is_empty() || !networks.is_empty() || !part.members.is_empty() {
        part.service = Some(MeshService {
            id: id.to_string(),
            name: spec.name.clone(),
            policy: settings.policy.to_string(),
            ports,
            settings_json: serde_json::to_string(&settings).unwrap_or_default(),
            networks,
        });
    }
    part
}

/// A removed service that still has tasks: the spec to show it by, and those of its ports that
/// `is_taken` by no other service. Its live flows go on and new ones are refused until the tasks
/// have stopped. `None` once it is in the table no more.
fn removed_service<'a>(
    snapshot: &'a ClusterSnapshot,
    id: &ServiceId,
    is_taken: impl Fn(&MeshPort) -> bool,
) -> Option<(&'a ServiceSpec, Vec<MeshPort>)> {
    let mut found: Option<(&ServiceSpec, Vec<MeshPort>)> = None;
    for task in snapshot.tasks_of(id) {
        let is_running = snapshot.state_of(task) == TaskState::Running;
        if !is_running && task.attachments.is_empty() {
            continue;
        }
        let Some(spec) = snapshot.spec_of(task) else { continue };
        let (_, ports) = found.get_or_insert((spec, Vec::new()));
        for endpoint in task.endpoints.iter().filter(|_| is_running) {
            let port = MeshPort {
                protocol: endpoint.protocol.to_string(),
                published: endpoint.published_port.into(),
                target: endpoint.target_port.into(),
            };
            if !ports.contains(&port) && !is_taken(&port) {
                ports.push(port);
            }
        }
    }
    found
}

fn ingress_ports(service: &Service) -> Vec<MeshPort> {
    let ingress = service.ports.iter().filter(|port| port.publish_mode == PublishMode::Ingress);
    ingress
        .filter(|port| port.published_port != 0)
        .map(|port| MeshPort {
            protocol: port.protocol.to_string(),
            published: port.published_port.into(),
            target: port.target_port.into(),
        })
        .collect()
}

/// The backends of a task: none unless the task is observed running, at a known address, on a known
/// node.
fn backends(
    snapshot: &ClusterSnapshot,
    service_name: &str,
    settings: &LbSettings,
    task: &Task,
) -> Vec<MeshBackend> {
    let status = snapshot.status_of(task);
    let node = task.node_id.as_ref().and_then(|id| snapshot.nodes.get(id));
    let (Some(node), Some(container)) = (node, &status.container) else { return Vec::new() };
    let Some(IpAddr::V4(address)) = container.address else { return Vec::new() };
    if status.state != TaskState::Running {
        return Vec::new();
    }
    let backend = |endpoint: &TaskEndpoint| MeshBackend {
        id: endpoint.backend_id.get(),
        service_id: task.service_id.to_string(),
        task_id: task.id.to_string(),
        task_name: format!("{service_name}.{}", task.slot),
        node_id: node.id.to_string(),
        address: address.to_string(),
        protocol: endpoint.protocol.to_string(),
        published: endpoint.published_port.into(),
        target: endpoint.target_port.into(),
        state: state(snapshot, task, node).into(),
        weight: weight(settings, task, node),
        container_id: container.container_id.clone(),
    };
    task.endpoints.iter().map(backend).collect()
}

/// The state of a task's backends, which decides whether they get new flows.
fn state(snapshot: &ClusterSnapshot, task: &Task, node: &Node) -> BackendState {
    if task.desired_state == TaskState::Remove || !snapshot.services.contains_key(&task.service_id) {
        return BackendState::Retired;
    }
    // A running task reports an error only when it is unhealthy and about to be stopped.
    let is_well = task.desired_state == TaskState::Running && snapshot.status_of(task).err.is_empty();
    match snapshot.node_state(&node.id) {
        NodeState::Silent | NodeState::Down => BackendState::Silent,
        NodeState::Ready if is_well => BackendState::Active,
        // The node got the order to stop when it came back, and its report may be late: the task is
        // probably gone, and a silent node's task a better choice.
        NodeState::Ready if has_returned_since(snapshot, task, node) => BackendState::Retired,
        NodeState::Ready => BackendState::Draining,
    }
}

/// Whether the node was away, and came back after the task was asked to stop.
fn has_returned_since(snapshot: &ClusterSnapshot, task: &Task, node: &Node) -> bool {
    let liveness = snapshot.liveness.get(&node.id);
    let back_at = liveness.map(|liveness| snapshot.liveness_since(&node.id, liveness));
    snapshot.asked_to_stop_at(task).is_some_and(|asked_at| back_at.is_some_and(|back_at| back_at > asked_at))
}

fn weight(settings: &LbSettings, task: &Task, node: &Node) -> u32 {
    let of_node = node_weight(&node.spec.labels).unwrap_or(NonZeroU32::MIN);
    settings.weight_of(&task.slot, of_node).get()
}

#[cfg(test)]
mod tests;
