//! What found no room in a map.

use std::fmt;

use ipnet::IpNet;
use mesh_ebpf::abi::{Address, names};

use crate::datapath::contents::{Front, NetworkAddress, service_map};

/// Something that found no room in a map and was left out, or left as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// An address of this node.
    Address(Address),
    /// A member node.
    Node(Address),
    /// A published port, which the userspace proxy serves, or a virtual IP, which nobody serves.
    Service(Front),
    /// The slots of a published port or a virtual IP, which keeps the ones it has.
    Slots(Front),
    /// Networks of a published port's allow-list, whose clients are refused.
    Allowed(Front),
    /// The veth with this index, whose container is cut off from its network.
    Link(u32),
    /// An address of a network, to which nothing can be sent from here.
    Endpoint(NetworkAddress),
    /// Addresses that tasks should not send to, and can.
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
            Self::Isolated(network) => write!(f, "{network}, which tasks should not reach"),
        }
    }
}
