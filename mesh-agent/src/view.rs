//! The node's view of the mesh: one immutable value, made from the tables that a manager sends.
//!
//! Invariants: a view is never changed, only replaced, and shares with the one before it each kind
//! of entry that hasn't changed; [`NodeView::apply`] is pure, and applies either a whole message or
//! none of it. Generations only rise, and a delta is applied only to the generation it was made
//! for.
//!
//! Left to others: receiving tables ([`crate::control_link`]), and following the view
//! ([`crate::datapath`], [`crate::proxy`], [`crate::metrics`]).

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;

use ipnet::Ipv4Net;
use mesh_state::ids::{BackendId, NetworkId, NodeId, ServiceId, TaskId};
use mesh_state::lb::LbSettings;
use mesh_state::proto;
use mesh_state::shared::Shared;
use mesh_state::spec::Protocol;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::control_link::member_keys::MemberKeys;

mod networks;
mod read;

pub use networks::{AttachmentView, MemberView, NetworkView, ServiceNetwork, Weighted};

/// The mesh as a manager last described it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// The generation of the mesh table; 0 before the first.
    pub generation: u64,
    /// When the newest change in it was committed, milliseconds since 1970 by this node's clock.
    pub committed_unix_ms: i64,
    /// This node's id; empty before it has joined.
    pub node_id: NodeId,
    /// The address by which other nodes reach this one, which its tunnel uses as well.
    pub address: Ipv4Addr,
    /// The network of this node's tasks, once a manager has assigned one.
    pub subnet: Option<Ipv4Net>,
    /// The secrets that members share, once a manager has sent some.
    #[serde(default)]
    pub member_keys: MemberKeys,
    /// Every member node, this one included.
    pub nodes: Shared<BTreeMap<NodeId, PeerNode>>,
    /// Services with published ports or networks.
    pub services: Shared<BTreeMap<ServiceId, ServiceView>>,
    /// The backends of these services.
    pub backends: Shared<BTreeMap<BackendId, BackendView>>,
    /// The networks that users made.
    #[serde(default)]
    pub networks: Shared<BTreeMap<NetworkId, NetworkView>>,
    /// Whoever has addresses on them, by the id of the task or the attachment.
    #[serde(default)]
    pub members: Shared<BTreeMap<String, MemberView>>,
}

/// A member node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerNode {
    /// The node's id.
    pub id: NodeId,
    /// The address by which other nodes reach it, which its tunnel uses as well.
    pub address: Ipv4Addr,
    /// The node's hostname.
    pub hostname: String,
    /// The network of its tasks, once it has one.
    #[serde(default)]
    pub subnet: Option<Ipv4Net>,
    /// Whether its data path is in userspace: no tunnel ends there, its tasks are reached through
    /// its relay.
    #[serde(default)]
    pub in_userspace: bool,
    /// Whether it accepts tunnel packets that bear a cookie.
    #[serde(default)]
    pub takes_cookies: bool,
    /// Where it takes packets of encrypted networks; absent if it takes none.
    #[serde(default)]
    pub encryption: Option<PeerEncryption>,
}

/// A member node's end of encrypted tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerEncryption {
    /// Its public key (X25519).
    pub public_key: [u8; 32],
    /// Its UDP port at the node's address.
    pub port: u16,
}

/// The part of a service that the mesh needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    /// The service's id.
    pub id: ServiceId,
    /// The service's name.
    pub name: String,
    /// The load-balancing settings from its labels.
    pub lb: LbSettings,
    /// Its published ports.
    pub ports: Vec<PortView>,
    /// The networks that it is on.
    #[serde(default)]
    pub networks: Vec<ServiceNetwork>,
}

/// A published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortView {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port on which every node answers.
    pub published: u16,
    /// The port on which tasks listen.
    pub target: u16,
}

/// A backend: one published port of one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendView {
    /// The backend's id in maps and on the wire.
    pub id: BackendId,
    /// The service it belongs to.
    pub service_id: ServiceId,
    /// The id of its task.
    pub task_id: TaskId,
    /// The task's name, for example `web.3`.
    pub task_name: String,
    /// The node that runs the task.
    pub node_id: NodeId,
    /// The task's address, unique in the cluster.
    pub address: IpAddr,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port on which nodes answer.
    pub published: u16,
    /// The port on which the task listens.
    pub target: u16,
    /// Decides whether the backend gets new flows.
    pub state: BackendState,
    /// Its share of new flows; 1 is the default.
    pub weight: NonZeroU32,
    /// The task's container.
    pub container_id: String,
}

/// Whether a backend gets new flows. The order is the order of preference: the best state that any
/// backend has is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BackendState {
    /// It gets new flows.
    Active,
    /// It gets new flows only if no backend is active; its flows live on.
    Draining,
    /// Its node is silent: it gets new flows only if no backend is active or draining.
    Silent,
    /// It gets no new flows: its slot or its service is gone; its flows live on.
    Retired,
}

impl BackendState {
    /// Every state, best first.
    pub const ALL: [Self; 4] = [Self::Active, Self::Draining, Self::Silent, Self::Retired];
}

/// Why a table was refused. The view stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ViewError {
    /// A delta for another generation than ours: the stream lost a message. A new session brings
    /// the whole table.
    #[error("a delta on generation {base} doesn't fit our generation {ours}: ask for the whole table")]
    Gap {
        /// The generation to which the delta applies.
        base: u64,
        /// The generation of our view.
        ours: u64,
    },
    /// An older table than ours, from a manager that lags behind.
    #[error(
        "table of generation {got} is older than ours, {ours}: wait for the manager to catch up, or ask another"
    )]
    Stale {
        /// The table's generation.
        got: u64,
        /// The generation of our view.
        ours: u64,
    },
    /// A field with an invalid value.
    #[error(
        "{kind} {id}: bad {field} {value:?}: manager and agent are of different versions, upgrade the older"
    )]
    InvalidField {
        /// `node`, `service` or `backend`.
        kind: &'static str,
        /// The id of that node, service or backend.
        id: String,
        /// The field's name.
        field: &'static str,
        /// The field's value.
        value: String,
    },
}

impl NodeView {
    /// Whether the backend's task runs on a node whose data path is in userspace.
    pub fn is_in_userspace(&self, backend: &BackendView) -> bool {
        self.nodes.get(&backend.node_id).is_some_and(|node| node.in_userspace)
    }

    /// The view of a node that has received no table yet.
    pub fn new(node_id: NodeId, address: Ipv4Addr) -> Self {
        Self {
            generation: 0,
            committed_unix_ms: 0,
            node_id,
            address,
            subnet: None,
            member_keys: MemberKeys::default(),
            nodes: Shared::default(),
            services: Shared::default(),
            backends: Shared::default(),
            networks: Shared::default(),
            members: Shared::default(),
        }
    }

    /// This view without anything to forward, for a node that its cluster doesn't know any more.
    #[must_use]
    pub fn emptied(&self) -> Self {
        Self {
            generation: self.generation,
            committed_unix_ms: self.committed_unix_ms,
            subnet: self.subnet,
            ..Self::new(self.node_id.clone(), self.address)
        }
    }

    /// Applies a whole table, or a delta, that a manager sent.
    ///
    /// # Errors
    /// The message doesn't fit this view, or has a field with an invalid value; see [`ViewError`].
    pub fn apply(&self, table: &proto::MeshTable) -> Result<Self, ViewError> {
        let whole = table.base_generation == 0;
        if !whole && table.base_generation != self.generation {
            return Err(ViewError::Gap { base: table.base_generation, ours: self.generation });
        }
        if table.generation < self.generation {
            return Err(ViewError::Stale { got: table.generation, ours: self.generation });
        }
        let mut next = if whole {
            let (subnet, member_keys) = (self.subnet, self.member_keys.clone());
            Self { subnet, member_keys, ..Self::new(self.node_id.clone(), self.address) }
        } else {
            self.clone()
        };
        next.generation = table.generation;
        next.committed_unix_ms = table.committed_unix_ms;
        next.remove(table);
        for node in &table.nodes {
            next.nodes.insert(node.id.as_str().into(), read::node(node)?);
        }
        for service in &table.services {
            next.services.insert(service.id.as_str().into(), read::service(service)?);
        }
        for backend in &table.backends {
            let backend = read::backend(backend)?;
            next.backends.insert(backend.id, backend);
        }
        for network in table.networks.iter().chain(&table.encrypted_networks) {
            let network = read::network(network, &next.node_id)?;
            next.networks.insert(network.id.clone(), network);
        }
        for member in &table.members {
            next.members.insert(member.id.clone(), read::member(member)?);
        }
        Ok(next)
    }

    fn remove(&mut self, table: &proto::MeshTable) {
        for id in &table.removed_node_ids {
            self.nodes.remove(&NodeId::from(id.as_str()));
        }
        for id in &table.removed_service_ids {
            self.services.remove(&ServiceId::from(id.as_str()));
        }
        for id in table.removed_backend_ids.iter().filter_map(|id| BackendId::new(*id)) {
            self.backends.remove(&id);
        }
        for id in &table.removed_network_ids {
            self.networks.remove(&NetworkId::from(id.as_str()));
        }
        for id in &table.removed_member_ids {
            self.members.remove(id);
        }
    }

    /// Whether both views hold the same entries, whatever their generations.
    pub fn has_same_entries(&self, other: &Self) -> bool {
        self.backends == other.backends
            && self.services == other.services
            && self.nodes == other.nodes
            && self.networks == other.networks
            && self.members == other.members
    }

    /// Whether a backend's task runs on this node.
    pub fn is_local(&self, backend: &BackendView) -> bool {
        backend.node_id == self.node_id
    }

    /// Every published port with its service.
    pub fn frontends(&self) -> impl Iterator<Item = (&ServiceView, PortView)> {
        self.services.values().flat_map(|service| service.ports.iter().map(move |port| (service, *port)))
    }

    /// Every published port with its service and its backends in the order of their ids. One pass
    /// over the backends.
    pub fn frontends_with_backends(
        &self,
    ) -> impl Iterator<Item = (&ServiceView, PortView, Vec<&BackendView>)> {
        let mut groups: HashMap<_, Vec<&BackendView>> = HashMap::new();
        for backend in self.backends.values() {
            let port = (&backend.service_id, backend.protocol, backend.published);
            groups.entry(port).or_default().push(backend);
        }
        self.frontends().map(move |(service, port)| {
            let backends = groups.remove(&(&service.id, port.protocol, port.published)).unwrap_or_default();
            (service, port, backends)
        })
    }
}

#[cfg(test)]
mod tests;
