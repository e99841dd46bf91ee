//! The mesh table, by which every agent forwards: services with their ports and virtual IPs, the
//! tasks behind them, and the addresses on networks with their holders.
//!
//! Invariants: pure; one snapshot gives the same table on every manager, and a table's generation
//! is the store's revision of its snapshot, so tables of different managers compare; a backend is
//! in the table exactly while its task is observed running, a member of networks from when its task
//! has a node until the task has ended.
//!
//! Left to others: sending it ([`crate::node_service`]).

mod members;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

use mesh_state::Timestamp;
use mesh_state::ids::{NodeId, ServiceId, TaskId};
use mesh_state::lb::{LbSettings, node_weight};
use mesh_state::node::{Node, NodeState, is_member_address};
use mesh_state::proto::{
    BackendState, MeshBackend, MeshMember, MeshNetwork, MeshNode, MeshPort, MeshService, MeshServiceNetwork,
    MeshTable,
};
use mesh_state::service::Service;
use mesh_state::spec::{PublishMode, ServiceSpec};
use mesh_state::store::generation_of;
use mesh_state::task::{Task, TaskEndpoint, TaskState};

use crate::feed::snapshot::ClusterSnapshot;

/// The whole table at one generation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// The store's revision of its snapshot.
    pub generation: u64,
    /// When its newest change reached this manager, in milliseconds since 1970.
    pub committed_unix_ms: i64,
    entries: Entries,
}

/// A table's contents, by id.
#[derive(Debug, Clone, PartialEq, Default)]
struct Entries {
    nodes: BTreeMap<String, MeshNode>,
    services: BTreeMap<String, MeshService>,
    backends: BTreeMap<u32, MeshBackend>,
    networks: BTreeMap<String, MeshNetwork>,
    members: BTreeMap<String, MeshMember>,
    /// The member behind each backend of a virtual IP.
    member_of: BTreeMap<u32, String>,
}

impl Table {
    /// The table of a snapshot.
    pub fn of(snapshot: &ClusterSnapshot) -> Self {
        let mut entries = Entries::default();
        for node in snapshot.nodes.values() {
            if let Some(IpAddr::V4(address)) = node.address
                && is_member_address(address)
                && !is_left_to_another(snapshot, node)
            {
                let entry = MeshNode {
                    id: node.id.to_string(),
                    address: address.to_string(),
                    hostname: node.description.hostname.clone(),
                    subnet: node.subnet.map(|subnet| subnet.to_string()).unwrap_or_default(),
                    datapath: node.description.datapath.clone(),
                    takes_cookies: node.description.takes_cookies,
                };
                entries.nodes.insert(entry.id.clone(), entry);
            }
        }
        entries.networks = members::networks(snapshot);
        for service in snapshot.services.values() {
            let (ports, networks) = (ingress_ports(service), members::of_service(snapshot, service));
            entries.add(snapshot, &service.id, &service.spec, ports, networks);
        }
        let attached = snapshot.attachments.values();
        for member in attached.filter_map(|container| members::of_container(snapshot, container)) {
            entries.members.insert(member.id.clone(), member);
        }
        // A removed service is on no network any more, so its name resolves to nothing.
        for (service, (spec, ports)) in removed_services(snapshot, &entries) {
            entries.add(snapshot, service, spec, ports, Vec::new());
        }
        Self {
            generation: generation_of(snapshot.revision),
            committed_unix_ms: snapshot.received_at.timestamp_millis(),
            entries,
        }
    }

    /// This table without the backends and memberships of ended tasks. `ended` names each task with
    /// the node that reports it, as a node reports its own tasks only.
    #[must_use]
    pub fn without(mut self, ended: &BTreeMap<TaskId, NodeId>) -> Self {
        if !ended.is_empty() {
            let says_so =
                |task: &str, on: &str| ended.get(&TaskId::from(task)).is_some_and(|node| node.as_str() == on);
            self.entries.backends.retain(|_, backend| !says_so(&backend.task_id, &backend.node_id));
            self.entries.members.retain(|_, member| !says_so(&member.id, &member.node_id));
            let Entries { members, member_of, .. } = &mut self.entries;
            member_of.retain(|_, member| members.contains_key(member));
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
        MeshTable {
            generation: self.generation,
            committed_unix_ms: self.committed_unix_ms,
            nodes: self.entries.nodes.values().cloned().collect(),
            services: self.entries.services.values().cloned().collect(),
            backends: self.entries.backends.values().cloned().collect(),
            networks: self.entries.networks.values().cloned().collect(),
            members: self.entries.members.values().cloned().collect(),
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
        }
    }
}

/// The table's message for one node, without what only other nodes need: the container ids of their
/// backends, and their addresses on networks. The container ids of members stay, as they are names.
pub fn for_node(mut message: MeshTable, node: &NodeId, now: Timestamp) -> MeshTable {
    message.sent_unix_ms = now.timestamp_millis();
    for backend in message.backends.iter_mut().filter(|backend| backend.node_id != node.as_str()) {
        backend.container_id.clear();
    }
    for network in &mut message.networks {
        network.node_addresses.retain(|other, _| other == node.as_str());
    }
    message
}

/// Whether a node that is down had an address that another node has now, that is, its machine was
/// set up anew.
fn is_left_to_another(snapshot: &ClusterSnapshot, node: &Node) -> bool {
    let is_down = |id: &NodeId| snapshot.node_state(id) == NodeState::Down;
    let shares = |other: &Node| other.id != node.id && other.address == node.address;
    is_down(&node.id) && snapshot.nodes.values().any(|other| shares(other) && !is_down(&other.id))
}

impl Entries {
    /// Adds a service that is reached through the mesh, with its backends and members.
    fn add(
        &mut self,
        snapshot: &ClusterSnapshot,
        id: &ServiceId,
        spec: &ServiceSpec,
        ports: Vec<MeshPort>,
        networks: Vec<MeshServiceNetwork>,
    ) {
        // Labels were checked when they were written; one of a later version gets its default here.
        let settings = LbSettings::from_labels(&spec.labels).unwrap_or_default();
        let mut has_members = false;
        for task in snapshot.tasks_of(id) {
            if let Some(member) = members::of_task(snapshot, &spec.name, &settings, task) {
                let backends = member.attachments.iter().map(|attachment| attachment.backend_id);
                self.member_of.extend(backends.filter(|id| *id != 0).map(|id| (id, member.id.clone())));
                self.members.insert(member.id.clone(), member);
                has_members = true;
            }
            if !ports.is_empty() {
                let backends = backends(snapshot, &spec.name, &settings, task);
                self.backends.extend(backends.into_iter().map(|backend| (backend.id, backend)));
            }
        }
        if ports.is_empty() && networks.is_empty() && !has_members {
            return;
        }
        let entry = MeshService {
            id: id.to_string(),
            name: spec.name.clone(),
            policy: settings.policy.to_string(),
            ports,
            settings_json: serde_json::to_string(&settings).unwrap_or_default(),
            networks,
        };
        self.services.insert(entry.id.clone(), entry);
    }

    fn answers_on(&self, port: &MeshPort) -> bool {
        let ports = self.services.values().flat_map(|service| &service.ports);
        ports.into_iter().any(|taken| (&taken.protocol, taken.published) == (&port.protocol, port.published))
    }
}

/// Removed services that still have tasks, with those of their ports that no other service has
/// taken: their live flows go on and new ones are refused until the tasks have stopped.
fn removed_services<'a>(
    snapshot: &'a ClusterSnapshot,
    entries: &Entries,
) -> BTreeMap<&'a ServiceId, (&'a ServiceSpec, Vec<MeshPort>)> {
    let mut removed: BTreeMap<&ServiceId, (&ServiceSpec, Vec<MeshPort>)> = BTreeMap::new();
    let left = snapshot.tasks.values().filter(|task| {
        !snapshot.services.contains_key(&task.service_id)
            && (snapshot.state_of(task) == TaskState::Running || !task.attachments.is_empty())
    });
    for task in left {
        let Some(spec) = snapshot.spec_of(task) else { continue };
        let (_, ports) = removed.entry(&task.service_id).or_insert((spec, Vec::new()));
        let is_running = snapshot.state_of(task) == TaskState::Running;
        for endpoint in task.endpoints.iter().filter(|_| is_running) {
            let port = MeshPort {
                protocol: endpoint.protocol.to_string(),
                published: endpoint.published_port.into(),
                target: endpoint.target_port.into(),
            };
            if !ports.contains(&port) && !entries.answers_on(&port) {
                ports.push(port);
            }
        }
    }
    removed
}

/// The new and changed values, and the removed keys.
fn changes<K: Ord + Clone, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> (Vec<V>, Vec<K>) {
    let set = new.iter().filter(|(key, value)| old.get(key) != Some(value)).map(|(_, value)| value.clone());
    let removed = old.keys().filter(|key| !new.contains_key(key)).cloned();
    (set.collect(), removed.collect())
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
        NodeState::Ready => BackendState::Draining,
    }
}

fn weight(settings: &LbSettings, task: &Task, node: &Node) -> u32 {
    let of_node = node_weight(&node.spec.labels).unwrap_or(NonZeroU32::MIN);
    settings.weight_of(&task.slot, of_node).get()
}

#[cfg(test)]
mod tests;
