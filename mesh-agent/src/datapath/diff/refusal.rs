//! Entries that found no room in a map.

use std::fmt;

use ipnet::IpNet;
use mesh_ebpf::abi::{Address, names};

use crate::datapath::contents::{Front, NetworkAddress, service_map};

/// An entry that found no room in a map, and was left out or kept as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// An address of this node.
    Address(Address),
    /// A member node.
    Node(Address),
    /// A published port, which the userspace proxy serves instead, or a virtual IP, which nothing
    /// serves.
    Service(Front),
    /// The slots of a published port or a virtual IP, which keeps those it has.
    Slots(Front),
    /// Networks of a published port's allow-list; clients in them are refused.
    Allowed(Front),
    /// The veth with this index; its container is cut off from the network.
    Link(u32),
    /// An address on a network; this node's tasks can't send to it.
    Endpoint(NetworkAddress),
    /// The IPv6 addresses of the network with this number, which carries no IPv6 on this node.
    Subnet6(u32),
    /// Addresses that tasks must not reach through `mesh`, and can.
    Isolated(IpNet),
}

impl Refusal {
    /// The map that is full.
    pub const fn map(self) -> &'static str {
        match self {
            Self::Address(_) => names::ADDRESSES,
            Self::Node(_) => names::NODES,
            Self::Service(front) => service_map(front),
            Self::Slots(_) => names::SLOTS,
            Self::Allowed(_) => names::ALLOWED,
            Self::Link(_) => names::LINKS,
            Self::Endpoint(_) => names::ENDPOINTS,
            Self::Subnet6(_) => names::SUBNETS6,
            Self::Isolated(_) => names::ISOLATED,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "address {address} of this node"),
            Self::Node(address) => write!(f, "member node {address}"),
            Self::Service(front) => write!(f, "{front}"),
            Self::Slots(front) => write!(f, "the backends of {front}"),
            Self::Allowed(front) => write!(f, "the allow-list of {front}"),
            Self::Link(ifindex) => write!(f, "the container at interface {ifindex}"),
            Self::Endpoint(place) => write!(f, "address {place}"),
            Self::Subnet6(network) => write!(f, "the IPv6 addresses of network {network}"),
            Self::Isolated(network) => write!(f, "{network}, which tasks should not reach"),
        }
    }
}
