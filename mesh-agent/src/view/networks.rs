//! The part of the view that is about networks of users: their subnets, and who has which address
//! on them.

use std::net::Ipv4Addr;
use std::num::NonZeroU32;

use ipnet::Ipv4Net;
use mesh_state::ids::{BackendId, NetworkId, NodeId, ServiceId};
use serde::{Deserialize, Serialize};

use super::{BackendState, NodeView};

/// A network that a user made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    /// The network's id.
    pub id: NetworkId,
    /// Its name.
    pub name: String,
    /// The number by which the tunnel's packets name it, at least 1.
    pub number: u32,
    /// Its subnet, which overlaps with that of no other network.
    pub subnet: Ipv4Net,
    /// The address of its bridge on this node, once control gave one.
    pub node_address: Option<Ipv4Addr>,
    /// Whether its user asked for no way out.
    pub internal: bool,
    /// Whether containers that are no tasks may join.
    pub attachable: bool,
}

/// A service on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceNetwork {
    /// The network.
    pub network_id: NetworkId,
    /// The service's virtual IP there; absent in mode `dnsrr`.
    pub virtual_ip: Option<Ipv4Addr>,
    /// Further names of the service there.
    pub aliases: Vec<String>,
}

/// Whoever has addresses on networks: a task that a node has, or an attached container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// The id of the task or of the attachment.
    pub id: String,
    /// Its service; absent for an attached container.
    pub service_id: Option<ServiceId>,
    /// The container's name, for example `web.3.<task id>`.
    pub name: String,
    /// The node that it is on.
    pub node_id: NodeId,
    /// Its container; empty until it is made.
    pub container_id: String,
    /// The container's hostname; empty: the first 12 digits of its id.
    pub hostname: String,
    /// Whether it gets new flows; absent if it doesn't serve, which names leave out.
    pub state: Option<BackendState>,
    /// Its share of the new flows to its service's virtual IPs; 1 is the default.
    pub weight: NonZeroU32,
    /// Its places on networks.
    pub attachments: Vec<AttachmentView>,
}

/// A member's place on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentView {
    /// The network.
    pub network_id: NetworkId,
    /// The member's address there, unique in the cluster.
    pub address: Ipv4Addr,
    /// The member as a backend of its service's virtual IP there; absent in mode `dnsrr`.
    pub backend_id: Option<BackendId>,
    /// Names there of this member alone.
    pub aliases: Vec<String>,
}

/// A backend, of a published port or of a virtual IP, and what decides how many new flows it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weighted<'a> {
    /// The backend's id.
    pub id: BackendId,
    /// The service it belongs to.
    pub service_id: &'a ServiceId,
    /// Decides whether the backend gets new flows.
    pub state: BackendState,
    /// Its share of new flows; 1 is the default.
    pub weight: NonZeroU32,
}

impl NodeView {
    /// Every backend: of published ports, and of virtual IPs.
    pub fn weighted(&self) -> impl Iterator<Item = Weighted<'_>> {
        let published = self.backends.values().map(|backend| Weighted {
            id: backend.id,
            service_id: &backend.service_id,
            state: backend.state,
            weight: backend.weight,
        });
        let members = self.members.values().filter_map(|member| {
            let (service_id, state) = (member.service_id.as_ref()?, member.state?);
            let ids = member.attachments.iter().filter_map(|attachment| attachment.backend_id);
            Some(ids.map(move |id| Weighted { id, service_id, state, weight: member.weight }))
        });
        published.chain(members.flatten())
    }
}
