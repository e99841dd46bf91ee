//! What tests start with.

use std::vec::Vec;

use crate::abi::{
    Address, AllowedKey, Backend, BackendLoad, Config, Flow, FlowKey, FragmentKey, FragmentPorts, Live,
    Member, Nat, NatKey, Node, Service, ServiceKey, SynGuard,
};

/// What userspace has written into the maps before a packet comes.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// The node.
    pub config: Config,
    /// Its addresses, by index.
    pub addresses: Vec<Address>,
    /// Published ports; their slots are those of [`Setup::slots`] that they name.
    pub services: Vec<(ServiceKey, Service)>,
    /// Backend ids, by slot.
    pub slots: Vec<u32>,
    /// Backends with their ids.
    pub backends: Vec<(u32, Backend)>,
    /// Nodes, by index.
    pub nodes: Vec<Node>,
    /// What is demanded of them, by index. Those that are missing are as an agent that has just
    /// started leaves them.
    pub members: Vec<Member>,
    /// Networks that may open flows, with their prefix lengths.
    pub allowed: Vec<(u32, AllowedKey)>,
    /// Half-open flows.
    pub flows_half_open: Vec<(FlowKey, Flow)>,
    /// Established flows.
    pub flows_established: Vec<(FlowKey, Flow)>,
    /// Half-open translations.
    pub nats_half_open: Vec<(NatKey, Nat)>,
    /// Established translations.
    pub nats_established: Vec<(NatKey, Nat)>,
    /// Ports of packets that come in fragments.
    pub fragments: Vec<(FragmentKey, FragmentPorts)>,
    /// Live connections by backend id.
    pub live: Vec<(u32, Live)>,
    /// Measured loads by backend id.
    pub loads: Vec<(u32, BackendLoad)>,
    /// This CPU's part of the guard against floods of SYNs.
    pub guard: SynGuard,
    /// When a SYN was last not remembered, ns of the monotonic clock; 0: never.
    pub guard_fired_ns: u64,
}
