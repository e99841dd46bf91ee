//! Users' networks in the view: subnets, virtual IPs, and the holders of addresses.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;

use ipnet::{Ipv4Net, Ipv6Net};
use mesh_state::ids::{BackendId, NetworkId, NodeId, ServiceId};
use serde::{Deserialize, Serialize};

use super::{BackendState, NodeView};

/// A network that a user made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    /// The network's id.
    pub id: NetworkId,
    /// The network's name, as users gave it.
    pub name: String,
    /// The number of the network in tunnel packets, at least 1, with
    /// [`ENCRYPTED`](mesh_state::network::ENCRYPTED) if it is encrypted.
    pub number: u32,
    /// The network's subnet; the subnets of networks don't overlap.
    pub subnet: Ipv4Net,
    /// The network's IPv6 subnet, if it has IPv6.
    pub subnet6: Option<Ipv6Net>,
    /// The address of the network's bridge on this node, once control has given one.
    pub node_address: Option<Ipv4Addr>,
    /// Whether the network gives no way out.
    pub internal: bool,
    /// Whether containers that are no tasks may join.
    pub attachable: bool,
}

impl NetworkView {
    /// The IPv6 address of whoever has this IPv4 address on the network.
    pub fn address6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        self.subnet6.map(|subnet| mesh_state::network::address6(subnet, address))
    }
}

/// A service on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceNetwork {
    /// The network's id.
    pub network_id: NetworkId,
    /// The service's virtual IP there; absent in mode `dnsrr`.
    pub virtual_ip: Option<Ipv4Addr>,
    /// The service's aliases on the network.
    pub aliases: Vec<String>,
}

/// A network member: a task that has a node, or an attached container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// The id of the task or of the attachment.
    pub id: String,
    /// The member's service; absent for an attached container.
    pub service_id: Option<ServiceId>,
    /// The container's name, for example `web.3.<task id>`.
    pub name: String,
    /// The member's node.
    pub node_id: NodeId,
    /// The id of the container; empty until it is created.
    pub container_id: String,
    /// The container's hostname; if empty, it is the first 12 digits of its id.
    pub hostname: String,
    /// Whether it gets new flows; absent if it doesn't serve, so names leave it out.
    pub state: Option<BackendState>,
    /// The member's share of new flows to its service's virtual IPs; 1 is the default.
    pub weight: NonZeroU32,
    /// The member's networks and its address on each.
    pub attachments: Vec<AttachmentView>,
}

/// A member's attachment to one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentView {
    /// The network's id.
    pub network_id: NetworkId,
    /// The member's address there, unique in the cluster.
    pub address: Ipv4Addr,
    /// The member as a backend of its service's virtual IP there; absent in mode `dnsrr`.
    pub backend_id: Option<BackendId>,
    /// Aliases of this member alone on the network.
    pub aliases: Vec<String>,
}

/// A backend of a published port or of a virtual IP, with what decides its share of new flows.
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
    /// All backends of published ports and of virtual IPs.
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
