//! Where packets go: backends (a published port of a task) and the nodes that run them.

use super::closed_list::closed_list;
use super::layout::abi_struct;
use super::{Address, Be16, Mac};

abi_struct! {
    /// Entry of [`super::names::BACKENDS`]; the key is the backend's id, 1..=65535. No backend has
    /// the id 0.
    ///
    /// All fields that a state change touches lie in one 8-byte word, which the kernel copies
    /// whole.
    pub struct Backend [64] {
        /// The task's IPv4 address, unique in the cluster; of a backend of a virtual IP, that on
        /// its network.
        pub task_address: Address,
        /// The task's IPv6 address, of a local backend only; [`Address::NONE`] if the task has
        /// none. Of a backend of a virtual IP: that virtual IP, by which replies are translated
        /// back.
        pub task_address6: Address,
        /// Index of the backend's node in [`super::names::NODES`]; 0 is this node.
        pub node: u32,
        /// Index of the backend's published port: [`super::Service::index`].
        pub service_index: u32,
        /// The port that the task listens on.
        pub task_port_be: Be16,
        /// The published port. Only people and tests read it.
        pub published_port_be: Be16,
        /// IP protocol number of the published port.
        pub protocol: u8,
        /// The backend's [`BackendState`].
        pub state: u8,
        /// Bits of [`backend_flag`].
        pub flags: u8,
        /// Padding; always zero.
        pub reserved: u8,
        /// ifindex of the task's host-side veth, of a local backend only. It names the task in
        /// [`super::NatKey`].
        pub ifindex: u32,
        /// The MAC address of the task's own interface, of a local backend only.
        pub task_mac: Mac,
        /// The backend's share of new flows, relative to the weights of the others; 0 counts as 1.
        pub weight: u16,
        /// Number of the network, of a backend of a virtual IP; 0: a backend of a published port.
        pub network: u32,
    }
}

/// Bits of [`Backend::flags`].
pub mod backend_flag {
    /// The task runs on this node. Never set for a backend of a virtual IP: where that is, its
    /// [`super::super::Endpoint`] says.
    pub const LOCAL: u8 = 1;
    /// Only clients in [`super::super::names::ALLOWED`] may open flows. The task's node checks this
    /// for packets out of the tunnel.
    pub const ALLOW_LIST: u8 = 2;
}

impl Backend {
    /// Whether the backend still serves its flows: it is active or draining.
    #[inline(always)]
    pub const fn is_alive(&self) -> bool {
        self.state == BackendState::Active as u8 || self.state == BackendState::Draining as u8
    }

    /// Whether the task runs on this node.
    #[inline(always)]
    pub const fn is_local(&self) -> bool {
        self.flags & backend_flag::LOCAL != 0
    }
}

closed_list! {
    /// State of a backend; [`Backend::state`]. New flows go where the slots point, whatever the
    /// state, as long as the backend is alive.
    pub enum BackendState: u8 {
        /// The id is not in use, or not known yet on this node.
        Absent = 0 => "absent",
        /// The backend takes new flows.
        Active = 1 => "active",
        /// The backend keeps its flows; no slot names it, unless no other backend is left.
        Draining = 2 => "draining",
        /// The backend is gone: its flows get a RST.
        Down = 3 => "down",
    }
    /// The state in one word: for logs and tests.
    name: name;
}

abi_struct! {
    /// Entry of [`super::names::NODES`]; the key is the node's index, which userspace assigns. 0 is
    /// this node.
    pub struct Node [40] {
        /// The node's address towards other nodes.
        pub address: Address,
        /// Destination MAC address of outer frames: the node's, or that of the next hop towards it.
        /// While it is [`Mac::NONE`], XDP leaves the node's packets to TC.
        pub mac: Mac,
        /// Source MAC address of outer frames: that of the uplink `ifindex`.
        pub source_mac: Mac,
        /// ifindex of the uplink over which the node is reached.
        pub ifindex: u32,
        /// Bits of [`node_flag`].
        pub flags: u32,
        /// The cookie that this node writes into tunnel packets for that node; 0: none.
        pub cookie: u32,
    }
}

/// Bits of [`Node::flags`].
pub mod node_flag {
    /// The node takes packets of encrypted networks, as its public key is known here.
    pub const ENCRYPTS: u32 = 1;
}
