//! The state of the maps that a test starts with.

use std::vec::Vec;

use crate::abi::{
    Address, AllowedKey, Backend, BackendLoad, Config, Endpoint, EndpointKey, Flow, FlowKey, FragmentKey,
    FragmentPorts, IsolatedKey, Link, Live, Member, Nat, NatKey, Node, Service, ServiceKey, Subnet6,
    SynGuard,
};

/// What userspace has written to the maps before the packet comes.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Settings of the node.
    pub config: Config,
    /// Addresses of the node, by index.
    pub addresses: Vec<Address>,
    /// Published ports; each names a range of [`Setup::slots`].
    pub services: Vec<(ServiceKey, Service)>,
    /// Backend ids, by slot.
    pub slots: Vec<u32>,
    /// Backends with their ids.
    pub backends: Vec<(u32, Backend)>,
    /// Nodes, by index; 0 is this node.
    pub nodes: Vec<Node>,
    /// What their tunnel packets must bear, by index. A missing entry is as an agent that has just
    /// started leaves it.
    pub members: Vec<Member>,
    /// Networks that may open flows, with their prefix lengths.
    pub allowed: Vec<(u32, AllowedKey)>,
    /// As whom tasks may send on networks, by the ifindex of their veth.
    pub links: Vec<(u32, Link)>,
    /// Who has the addresses of networks.
    pub endpoints: Vec<(EndpointKey, Endpoint)>,
    /// Virtual IPs.
    pub virtual_ips: Vec<(EndpointKey, Service)>,
    /// The IPv6 addresses of networks, by their numbers.
    pub subnets6: Vec<(u32, Subnet6)>,
    /// What tasks must not send to by their veth on `mesh`: prefix length, prefix, and `ISOLATED`
    /// or `REACHABLE`.
    pub isolated: Vec<(u32, IsolatedKey, u32)>,
    /// Half-open flows.
    pub flows_half_open: Vec<(FlowKey, Flow)>,
    /// Established flows.
    pub flows_established: Vec<(FlowKey, Flow)>,
    /// Half-open translations.
    pub nats_half_open: Vec<(NatKey, Nat)>,
    /// Established translations.
    pub nats_established: Vec<(NatKey, Nat)>,
    /// Ports of fragmented packets.
    pub fragments: Vec<(FragmentKey, FragmentPorts)>,
    /// Live connections by backend id.
    pub live: Vec<(u32, Live)>,
    /// Measured loads by backend id.
    pub loads: Vec<(u32, BackendLoad)>,
    /// The SYN guard's token buckets on this CPU.
    pub guard: SynGuard,
    /// When the guard last fired, ns of the monotonic clock; 0: never.
    pub guard_fired_ns: u64,
}
