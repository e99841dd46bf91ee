//! What this node knows by itself: its interfaces, how it reaches the others, and where its tasks are plugged in.
//!
//! Plain data, gathered by `uplinks`, `neighbours` and `tasks`, and read by `diff`.

use std::collections::{BTreeMap, BTreeSet};

use mesh_ebpf::abi::{Address, Config, Mac, Node};

use super::contents::Frontend;

/// The node's own part of what the maps say.
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
    /// Where this node's tasks are plugged in, by task address.
    pub ports: BTreeMap<Address, TaskPort>,
    /// Weights that still rise, by backend id, in units of [`crate::lb::ramp::UNIT`].
    pub weights: BTreeMap<u32, u32>,
    /// Backends that fail too often: no new flows for now.
    pub ejected: BTreeSet<u32>,
    /// Ports that are the host's own here: no service takes their packets, whatever the table says.
    pub host_ports: BTreeSet<Frontend>,
}

/// The outer Ethernet header of frames to a member node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hop {
    /// The uplink.
    pub ifindex: u32,
    /// The node's MAC, or the next hop's; none as long as it isn't resolved.
    pub mac: Mac,
    /// The uplink's MAC.
    pub source_mac: Mac,
}

/// The state of a local task's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskPort {
    /// Its host-side veth has its program.
    Attached {
        /// ifindex of that veth.
        ifindex: u32,
        /// The task's own MAC.
        mac: Mac,
        /// Its IPv6 address; none without one.
        address6: Address,
    },
    /// The task has gone; the table may not say so yet.
    Gone,
}
