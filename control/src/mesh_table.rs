//! The mesh table: which services answer on which ports, and which tasks stand behind them. What every agent forwards by.
//!
//! Invariants: pure; the same snapshot gives the same table on every manager, and a table's generation is the store's revision that
//! it was made of, so tables of different managers compare; a backend is in the table exactly while its task is observed running.
//!
//! Left to others: sending it ([`crate::node_service`]).

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_state::lb::LbSettings;
use mesh_state::node::NodeState;
use mesh_state::proto::{BackendState, MeshBackend, MeshNode, MeshPort, MeshService, MeshTable};
use mesh_state::service::Service;
use mesh_state::spec::PublishMode;
use mesh_state::task::{Task, TaskEndpoint, TaskState};

use crate::snapshot::ClusterSnapshot;

/// The weight of a backend without a label that says otherwise.
const USUAL_WEIGHT: u32 = 1;

/// The whole table at one generation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// The revision that it was made of.
    pub generation: u64,
    /// When its newest change was heard of, milliseconds since 1970.
    pub committed_unix_ms: u64,
    entries: Entries,
}

/// A table's contents, by id.
#[derive(Debug, Clone, PartialEq, Default)]
struct Entries {
    nodes: BTreeMap<String, MeshNode>,
    services: BTreeMap<String, MeshService>,
    backends: BTreeMap<u32, MeshBackend>,
}

impl Table {
    /// The table of a snapshot.
    pub fn of(snapshot: &ClusterSnapshot) -> Self {
        let mut entries = Entries::default();
        for node in snapshot.nodes.values() {
            if let Some(IpAddr::V4(address)) = node.address {
                let hostname = node.description.hostname.clone();
                let entry = MeshNode { id: node.id.to_string(), address: address.to_string(), hostname };
                entries.nodes.insert(entry.id.clone(), entry);
            }
        }
        for service in snapshot.services.values() {
            let ports = ingress_ports(service);
            if ports.is_empty() {
                continue;
            }
            let backends = snapshot.tasks_of(&service.id).flat_map(|task| backends(snapshot, service, task));
            entries.backends.extend(backends.map(|backend| (backend.id, backend)));
            // Labels were checked when they were written; one from a later version means the default here.
            let policy = LbSettings::from_labels(&service.spec.labels).unwrap_or_default().policy;
            let (id, name) = (service.id.to_string(), service.spec.name.clone());
            entries.services.insert(id.clone(), MeshService { id, name, policy: policy.to_string(), ports });
        }
        Self {
            generation: u64::try_from(snapshot.revision).unwrap_or_default(),
            committed_unix_ms: u64::try_from(snapshot.received_at.timestamp_millis()).unwrap_or_default(),
            entries,
        }
    }

    /// Whether both say the same, whatever their generations.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.entries == other.entries
    }

    /// The message that holds all of it.
    pub fn whole(&self) -> MeshTable {
        MeshTable {
            generation: self.generation,
            committed_unix_ms: self.committed_unix_ms,
            nodes: self.entries.nodes.values().cloned().collect(),
            services: self.entries.services.values().cloned().collect(),
            backends: self.entries.backends.values().cloned().collect(),
            ..MeshTable::default()
        }
    }

    /// The message that turns `base` into this table; only a generation, if both say the same.
    pub fn since(&self, base: &Self) -> MeshTable {
        let (nodes, removed_node_ids) = changes(&base.entries.nodes, &self.entries.nodes);
        let (services, removed_service_ids) = changes(&base.entries.services, &self.entries.services);
        let (backends, removed_backend_ids) = changes(&base.entries.backends, &self.entries.backends);
        MeshTable {
            generation: self.generation,
            base_generation: base.generation,
            committed_unix_ms: self.committed_unix_ms,
            nodes,
            removed_node_ids,
            services,
            removed_service_ids,
            backends,
            removed_backend_ids,
        }
    }
}

/// New and changed values, and keys that are gone.
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

/// The backends of a task: none unless it is observed running, at a known address, on a known node.
fn backends(snapshot: &ClusterSnapshot, service: &Service, task: &Task) -> Vec<MeshBackend> {
    let status = snapshot.status_of(task);
    let (Some(node), Some(container)) = (&task.node_id, &status.container) else { return Vec::new() };
    let Some(IpAddr::V4(address)) = container.address else { return Vec::new() };
    if status.state != TaskState::Running || !snapshot.nodes.contains_key(node) {
        return Vec::new();
    }
    let state = match (snapshot.node_state(node), task.desired_state) {
        (NodeState::Silent | NodeState::Down, _) => BackendState::Silent,
        (NodeState::Ready, TaskState::Running) => BackendState::Active,
        (NodeState::Ready, _) => BackendState::Draining,
    };
    let backend = |endpoint: &TaskEndpoint| MeshBackend {
        id: endpoint.backend_id.get(),
        service_id: service.id.to_string(),
        task_id: task.id.to_string(),
        task_name: service.task_name(&task.slot),
        node_id: node.to_string(),
        address: address.to_string(),
        protocol: endpoint.protocol.to_string(),
        published: endpoint.published_port.into(),
        target: endpoint.target_port.into(),
        state: state.into(),
        weight: USUAL_WEIGHT,
        container_id: container.container_id.clone(),
    };
    task.endpoints.iter().map(backend).collect()
}
