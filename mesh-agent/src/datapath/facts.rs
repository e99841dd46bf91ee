//! What this node knows by itself: its interfaces, how it reaches the other nodes, and the veths of
//! its tasks.
//!
//! Plain data: [`super::engine`] gathers it with the help of [`super::network`], [`super::diff`]
//! reads it.

use std::collections::{BTreeMap, BTreeSet};

use mesh_ebpf::abi::{Address, Config, Mac, Node};

use super::contents::{Contents, Front, Frontend};
use super::network::far_end::FarEnd;

/// The node's own part of the maps' desired contents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The programs' configuration; its address is this node's.
    pub config: Config,
    /// Addresses of the uplinks on which published ports answer too.
    pub addresses: BTreeSet<Address>,
    /// Entry 0 of `NODES`.
    pub own: Node,
    /// How the other member nodes are reached. A node that is missing here is reached through TC.
    pub hops: BTreeMap<Address, Hop>,
    /// The links of this node's tasks, by task address.
    pub ports: BTreeMap<Address, TaskPort>,
    /// The veths of this node's containers on users' networks, by ifindex. Each has its program.
    pub cables: BTreeMap<u32, Cable>,
    /// Weights in slow start, by backend id, in units of [`crate::lb::ramp::UNIT`].
    pub weights: BTreeMap<u32, u32>,
    /// Backends that the health check has ejected for now.
    pub ejected: BTreeSet<u32>,
    /// Ports that belong to the host: no service takes their packets, whatever the table says.
    pub host_ports: BTreeSet<Frontend>,
}

impl Facts {
    /// What an earlier agent knew of this node's interfaces, as far as the maps tell it. An agent
    /// that starts with this changes nothing that it hasn't looked at yet: a reconciliation with no
    /// facts would take the node's addresses out of the maps, and packets of live connections would
    /// reach the host's stack, which answers by RST.
    pub fn of_earlier_agent(contents: &Contents) -> Self {
        Self {
            config: contents.config,
            addresses: contents.addresses.keys().copied().collect(),
            own: contents.nodes.get(&0).copied().unwrap_or_default(),
            ..Self::default()
        }
    }

    /// Whether this is a published port that belongs to the host.
    pub fn is_the_hosts(&self, front: &Front) -> bool {
        matches!(front, Front::Port(port) if self.host_ports.contains(port))
    }
}

/// A veth that connects a container to a user's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cable {
    /// The network's number.
    pub network: u32,
    /// The container's end, once it is known.
    pub end: Option<FarEnd>,
}

/// The outer Ethernet header of frames to a member node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hop {
    /// The uplink's index.
    pub ifindex: u32,
    /// The MAC of the node or of the next hop; none as long as it isn't resolved.
    pub mac: Mac,
    /// The uplink's MAC.
    pub source_mac: Mac,
}

/// The state of a local task's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskPort {
    /// Its host-side veth has its program.
    Attached {
        /// Index of that veth.
        ifindex: u32,
        /// The task's own MAC.
        mac: Mac,
        /// The task's IPv6 address; none without one.
        address6: Address,
    },
    /// The task has gone, though the table may still hold it.
    Gone,
}
