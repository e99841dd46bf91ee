//! The cluster as etcd holds it at one revision: every stored object, indexed.
//!
//! Invariants: [`ClusterSnapshot::apply`] is pure and total: it ignores an unknown key, and leaves
//! out a value that can't be decoded and names it in [`ClusterSnapshot::unreadable`]. Snapshots
//! share their values, and the map of each kind of object that has not changed in between, so that
//! the next snapshot costs a copy of the pointers of the changed kinds only.
//!
//! Left to others: reading etcd ([`super::watch`]) and every decision.

mod managers;
mod networks;
mod touched;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use ipnet::Ipv4Net;
use mesh_state::Timestamp;
use mesh_state::attachment::AttachedContainer;
use mesh_state::cluster::{Cluster, EtcdPlace, Manager};
use mesh_state::codec;
use mesh_state::dependency::{Dependency, DependencyKind};
use mesh_state::ids::{AttachmentId, BackendId, DependencyId, NetworkId, NodeId, ServiceId, TaskId};
use mesh_state::keys::{self, Key};
use mesh_state::log_ask::LogAsk;
use mesh_state::member_keys::MemberKeys;
use mesh_state::network::{Network, NetworkCursor};
use mesh_state::node::{Liveness, Node, NodeState, PortClash};
use mesh_state::remote_client::RemoteClient;
use mesh_state::service::Service;
use mesh_state::shared::Shared;
use mesh_state::spec::ServiceSpec;
use mesh_state::store::{Change, KeyValue};
use mesh_state::task::{Task, TaskState, TaskStatus};
use networks::NewestAddresses;
use serde::de::DeserializeOwned;
use touched::Touched;

/// An object with the revisions at which it was created and last written.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned<T> {
    /// The object as etcd has it at that revision.
    pub value: T,
    /// Revision of its creation.
    pub create_revision: i64,
    /// Revision of its last write: Docker's `Version.Index`.
    pub mod_revision: i64,
}

impl<T> std::ops::Deref for Versioned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// A shared object with its revisions.
pub type Stored<T> = Arc<Versioned<T>>;

/// Everything in etcd, at one revision.
#[derive(Debug, Clone, Default)]
pub struct ClusterSnapshot {
    /// The revision of the store.
    pub revision: i64,
    /// The cluster's record.
    pub cluster: Option<Stored<Cluster>>,
    /// The leading manager.
    pub leader: Option<Stored<Manager>>,
    /// Managers that are alive, by name.
    pub managers: BTreeMap<String, Stored<Manager>>,
    /// Managers' places in the etcd that they run, by node; none with an etcd of the operator's.
    pub etcd_places: BTreeMap<NodeId, Stored<EtcdPlace>>,
    /// Clients that may use the Docker API from other machines, by name.
    pub clients: BTreeMap<String, Stored<RemoteClient>>,
    /// Services by id.
    pub services: Shared<BTreeMap<ServiceId, Stored<Service>>>,
    /// Versions of services' specs that tasks were made from.
    pub specs: Shared<BTreeMap<(ServiceId, u64), Stored<ServiceSpec>>>,
    /// Tasks by id.
    pub tasks: Shared<BTreeMap<TaskId, Stored<Task>>>,
    /// Observed states by task.
    pub statuses: Shared<BTreeMap<TaskId, Stored<TaskStatus>>>,
    /// Nodes by id.
    pub nodes: Shared<BTreeMap<NodeId, Stored<Node>>>,
    /// The liveness of nodes: ready, silent or down.
    pub liveness: Shared<BTreeMap<NodeId, Stored<Liveness>>>,
    /// When this manager's watch saw the state of each node's liveness change, by this manager's
    /// clock; for what the first listing had, the moment of the listing.
    pub liveness_seen: BTreeMap<NodeId, Timestamp>,
    /// When the watch saw the steps of each task.
    pub tasks_seen: Shared<BTreeMap<TaskId, seen::TaskSeen>>,
    /// When the watch saw each manager's record written; records of the first listing have no
    /// entry.
    pub managers_seen: BTreeMap<String, Timestamp>,
    /// When the watch saw the members' keys change.
    pub member_keys_seen: Option<Timestamp>,
    /// The generation of the mesh table that each node has acknowledged.
    pub acks: BTreeMap<NodeId, Stored<u64>>,
    /// Published ports that nodes can't listen on.
    pub clashes: BTreeMap<NodeId, Stored<Vec<PortClash>>>,
    /// The networks of nodes' hosts, sorted.
    pub host_networks: BTreeMap<NodeId, Stored<Vec<Ipv4Net>>>,
    /// Claimed names: (kind, name) to id.
    pub names: Shared<BTreeMap<(String, String), Stored<String>>>,
    /// Claimed ports: (protocol, port) to service.
    pub ports: Shared<BTreeMap<(String, u16), Stored<ServiceId>>>,
    /// Networks by id.
    pub networks: Shared<BTreeMap<NetworkId, Stored<Network>>>,
    /// Containers that are no tasks, on networks.
    pub attachments: Shared<BTreeMap<AttachmentId, Stored<AttachedContainer>>>,
    /// Secrets and configs, without their data.
    pub dependencies: Shared<BTreeMap<(DependencyKind, DependencyId), Stored<Dependency>>>,
    /// The services that refer to each secret or config.
    pub references: Shared<BTreeSet<(DependencyKind, DependencyId, ServiceId)>>,
    /// Requests of managers for logs from nodes whose session another manager has, by node and
    /// request.
    pub log_asks: BTreeMap<(NodeId, String), Stored<LogAsk>>,
    /// The backend id given last.
    pub backend_cursor: Option<Stored<BackendId>>,
    /// The subnet and the number given last to a network.
    pub network_cursor: Option<Stored<NetworkCursor>>,
    /// The record of the secrets that members share, without the secrets.
    pub member_keys: Option<Stored<MemberKeys>>,
    /// The newest revision that changed something that the mesh table is made of (services, tasks,
    /// statuses, nodes, liveness, networks, attached containers).
    pub mesh_revision: i64,
    /// When this manager received the newest change; the watch sets it.
    pub received_at: Timestamp,
    /// Keys whose values could not be decoded, with the error.
    pub unreadable: BTreeMap<String, String>,
    tasks_by_service: Shared<BTreeMap<ServiceId, BTreeSet<TaskId>>>,
    tasks_by_node: Shared<BTreeMap<NodeId, BTreeSet<TaskId>>>,
    touched: Touched,
    newest_addresses: NewestAddresses,
    acked_by_all: OnceLock<i64>,
}

mod seen;

impl ClusterSnapshot {
    /// The snapshot of everything that was listed at `revision`.
    pub fn from_listing(revision: i64, items: Vec<KeyValue>) -> Self {
        let mut snapshot = Self::default();
        for item in items {
            snapshot.put(&item);
        }
        snapshot.revision = revision;
        // A deletion before the listing left no trace in it, so the mesh table may have changed at
        // any revision up to the listing's.
        snapshot.mesh_revision = revision;
        snapshot.touched.all(revision);
        snapshot
    }

    /// Applies one change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Put(item) => self.put(&item),
            Change::Deleted { key, mod_revision } => self.delete(&key, mod_revision),
        }
    }

    /// The tasks of a service, whatever their state, by id.
    pub fn tasks_of<'a>(&'a self, service: &ServiceId) -> impl Iterator<Item = &'a Stored<Task>> + use<'a> {
        self.tasks_by_service.get(service).into_iter().flatten().filter_map(|id| self.tasks.get(id))
    }

    /// The services that have tasks, whether or not they are removed, by id.
    pub fn services_with_tasks(&self) -> impl Iterator<Item = &ServiceId> {
        self.tasks_by_service.keys()
    }

    /// The tasks on a node, whatever their state, by id.
    pub fn tasks_on<'a>(&'a self, node: &NodeId) -> impl Iterator<Item = &'a Stored<Task>> + use<'a> {
        self.tasks_by_node.get(node).into_iter().flatten().filter_map(|id| self.tasks.get(id))
    }

    /// The status of a task: the one that its node reported, else the leader's.
    pub fn status_of<'a>(&'a self, task: &'a Task) -> &'a TaskStatus {
        match self.statuses.get(&task.id) {
            Some(reported) if reported.state >= task.leader_status.state => &reported.value,
            _ => &task.leader_status,
        }
    }

    /// The observed state of a task.
    pub fn state_of(&self, task: &Task) -> TaskState {
        self.status_of(task).state
    }

    /// Why a task failed or waits: its node's message, else the leader's (`assigned node no longer
    /// meets constraints`).
    pub fn error_of<'a>(&'a self, task: &'a Task) -> &'a str {
        let reported = &self.status_of(task).err;
        if reported.is_empty() { &task.leader_status.err } else { reported }
    }

    /// The node's liveness; a node that was never heard is down.
    pub fn node_state(&self, node: &NodeId) -> NodeState {
        self.liveness.get(node).map_or(NodeState::Down, |liveness| liveness.state)
    }

    /// Whether a node is down or no member any more, so that nothing that it holds can be waited
    /// for.
    pub fn is_lost(&self, node: &NodeId) -> bool {
        !self.nodes.contains_key(node) || self.node_state(node) == NodeState::Down
    }

    /// The revision of the newest change that may affect the assignments of `node`.
    pub fn touched_at(&self, node: &NodeId) -> i64 {
        self.touched.last(node)
    }

    /// The oldest mesh-table generation that the nodes which aren't down have acknowledged; the
    /// highest revision if all are down. A silent node counts: its agent may be restarting while
    /// its data plane forwards by the last table. Computed once per snapshot.
    pub fn acked_by_all(&self) -> i64 {
        *self.acked_by_all.get_or_init(|| {
            let up = self.nodes.keys().filter(|node| self.node_state(node) != NodeState::Down);
            let acked = up.map(|node| {
                let acked = self.acks.get(node).map(|ack| i64::try_from(ack.value).unwrap_or(i64::MAX));
                acked.unwrap_or(i64::MIN)
            });
            acked.min().unwrap_or(i64::MAX)
        })
    }

    /// The spec that a task was made from.
    pub fn spec_of<'a>(&'a self, task: &Task) -> Option<&'a ServiceSpec> {
        match self.services.get(&task.service_id) {
            Some(service) if service.spec_version == task.spec_version => Some(&service.spec),
            _ => self.specs.get(&(task.service_id.clone(), task.spec_version)).map(|stored| &stored.value),
        }
    }

    fn put(&mut self, item: &KeyValue) {
        let Some(key) = keys::parse(&item.key) else { return };
        self.unreadable.remove(&item.key);
        self.note(&key, item.mod_revision);
        match key {
            Key::Cluster => self.cluster = self.read(item).or(self.cluster.take()),
            Key::Leader => self.leader = self.read(item).or(self.leader.take()),
            Key::Manager(name) => keep(self.read(item), name, &mut self.managers),
            Key::EtcdPlace(node) => keep(self.read(item), node, &mut self.etcd_places),
            Key::Client(name) => keep(self.read(item), name, &mut self.clients),
            Key::Service(id) => self.put_service(id, item),
            Key::Spec(service, version) => keep(self.read(item), (service, version), &mut self.specs),
            Key::Name(kind, name) => keep(self.read(item), (kind, name), &mut self.names),
            Key::Port(protocol, port) => keep(self.read(item), (protocol, port), &mut self.ports),
            Key::Node(id) => keep(self.read(item), id, &mut self.nodes),
            Key::Liveness(id) => keep(self.read(item), id, &mut self.liveness),
            Key::Ack(id) => keep(self.read(item), id, &mut self.acks),
            Key::Clashes(id) => keep(self.read(item), id, &mut self.clashes),
            Key::HostNetworks(id) => keep(self.read(item), id, &mut self.host_networks),
            Key::Task(id) => self.put_task(id, item),
            Key::Status(id) => keep(self.read(item), id, &mut self.statuses),
            Key::Network(id) => self.put_network(id, item),
            Key::Attachment(id) => self.put_attachment(id, item),
            Key::LogAsk(node, ask) => keep(self.read(item), (node, ask), &mut self.log_asks),
            Key::BackendCursor => self.backend_cursor = self.read(item).or(self.backend_cursor.take()),
            Key::NetworkCursor => self.network_cursor = self.read(item).or(self.network_cursor.take()),
            Key::MemberKeys => self.member_keys = self.read(item).or(self.member_keys.take()),
            Key::Dependency(kind, id) => keep(self.read(item), (kind, id), &mut self.dependencies),
            Key::Reference(kind, id, service) => drop(self.references.insert((kind, id, service))),
        }
    }

    fn put_task(&mut self, id: TaskId, item: &KeyValue) {
        let Some(stored) = self.read::<Task>(item) else { return };
        let before = self.tasks.get(&id).map(|before| &before.value);
        self.newest_addresses.note_task(before, &stored, item.mod_revision);
        self.unindex_task(&id);
        self.tasks_by_service.entry(stored.service_id.clone()).or_default().insert(id.clone());
        if let Some(node) = &stored.node_id {
            self.touched.node(node, item.mod_revision);
            self.tasks_by_node.entry(node.clone()).or_default().insert(id.clone());
        }
        self.tasks.insert(id, stored);
    }

    fn unindex_task(&mut self, id: &TaskId) {
        let Some(old) = self.tasks.get(id) else { return };
        remove_from(&mut self.tasks_by_service, &old.service_id, id);
        if let Some(node) = &old.node_id {
            remove_from(&mut self.tasks_by_node, node, id);
        }
    }

    fn delete(&mut self, text: &str, mod_revision: i64) {
        self.revision = self.revision.max(mod_revision);
        self.unreadable.remove(text);
        let Some(key) = keys::parse(text) else { return };
        self.note(&key, mod_revision);
        match key {
            Key::Cluster => self.cluster = None,
            Key::Leader => self.leader = None,
            Key::Manager(name) => drop(self.managers.remove(&name)),
            Key::EtcdPlace(node) => drop(self.etcd_places.remove(&node)),
            Key::Client(name) => drop(self.clients.remove(&name)),
            Key::Service(id) => drop(self.services.remove(&id)),
            Key::Spec(service, version) => drop(self.specs.remove(&(service, version))),
            Key::Name(kind, name) => drop(self.names.remove(&(kind, name))),
            Key::Port(protocol, port) => drop(self.ports.remove(&(protocol, port))),
            Key::Node(id) => drop(self.nodes.remove(&id)),
            Key::Liveness(id) => drop(self.liveness.remove(&id)),
            Key::Ack(id) => drop(self.acks.remove(&id)),
            Key::Clashes(id) => drop(self.clashes.remove(&id)),
            Key::HostNetworks(id) => drop(self.host_networks.remove(&id)),
            Key::Task(id) => {
                self.unindex_task(&id);
                self.tasks.remove(&id);
            }
            Key::Status(id) => drop(self.statuses.remove(&id)),
            Key::Network(id) => self.delete_network(&id, mod_revision),
            Key::Attachment(id) => drop(self.attachments.remove(&id)),
            Key::LogAsk(node, ask) => drop(self.log_asks.remove(&(node, ask))),
            Key::BackendCursor => self.backend_cursor = None,
            Key::NetworkCursor => self.network_cursor = None,
            Key::MemberKeys => self.member_keys = None,
            Key::Dependency(kind, id) => drop(self.dependencies.remove(&(kind, id))),
            Key::Reference(kind, id, service) => drop(self.references.remove(&(kind, id, service))),
        }
    }

    fn read<T: DeserializeOwned>(&mut self, item: &KeyValue) -> Option<Stored<T>> {
        match codec::decode(&item.value) {
            Ok(value) => Some(Arc::new(Versioned {
                value,
                create_revision: item.create_revision,
                mod_revision: item.mod_revision,
            })),
            Err(error) => {
                self.unreadable.insert(item.key.clone(), error.to_string());
                None
            }
        }
    }
}

fn feeds_mesh_table(key: &Key) -> bool {
    // The keys count, too: a node that has acknowledged a table knows the secrets of its time.
    matches!(
        key,
        Key::Service(_)
            | Key::Spec(..)
            | Key::Task(_)
            | Key::Status(_)
            | Key::Node(_)
            | Key::Liveness(_)
            | Key::Network(_)
            | Key::Attachment(_)
            | Key::MemberKeys
    )
}

fn keep<K: Ord, T>(read: Option<Stored<T>>, key: K, map: &mut BTreeMap<K, Stored<T>>) {
    if let Some(stored) = read {
        map.insert(key, stored);
    }
}

fn remove_from<K: Ord>(index: &mut BTreeMap<K, BTreeSet<TaskId>>, key: &K, id: &TaskId) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
