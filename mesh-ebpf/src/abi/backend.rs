//! Where packets go: backends (a task's published port) and the nodes they run on.

use super::closed_list::closed_list;
use super::layout::abi_struct;
use super::{Address, Be16, Mac};

abi_struct! {
    /// Entry of [`super::names::BACKENDS`]; the key is the backend's id, 1..=65535. 0 is never a backend.
    ///
    /// Everything a state change touches lies in one 8-byte word, which the kernel copies whole.
    pub struct Backend [64] {
        /// Address of the task, unique in the cluster.
        pub task_address: Address,
        /// Local ones: the task's IPv6 address; [`Address::NONE`] without one.
        pub task_address6: Address,
        /// Index of its node in [`super::names::NODES`]; 0, this node, for local ones.
        pub node: u32,
        /// Index of its published port, as [`super::Service::index`].
        pub service_index: u32,
        /// Port in the task.
        pub task_port_be: Be16,
        /// Published port, for people and tests.
        pub published_port_be: Be16,
        /// IP protocol number.
        pub protocol: u8,
        /// A [`BackendState`].
        pub state: u8,
        /// See [`backend_flag`].
        pub flags: u8,
        /// Zero.
        pub reserved: u8,
        /// Local ones: ifindex of the host-side veth. It names the task in [`super::NatKey`].
        pub ifindex: u32,
        /// Local ones: the task's own MAC.
        pub task_mac: Mac,
        /// Its share of new flows against others'; 0 counts as 1.
        pub weight: u16,
        /// Zero.
        pub reserved_tail: u32,
    }
}

/// Bits of [`Backend::flags`].
pub mod backend_flag {
    /// The task runs on this node.
    pub const LOCAL: u8 = 1;
    /// Only clients in [`super::super::names::ALLOWED`] may open flows; looked at where the task is, for what comes by the tunnel.
    pub const ALLOW_LIST: u8 = 2;
}

impl Backend {
    /// Whether flows of this backend may go on.
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
    /// State of a backend; [`Backend::state`]. New flows go where the slots point, whatever the state, as
    /// long as the backend is alive.
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
    /// Entry of [`super::names::NODES`]; the key is the node's index, given by userspace. 0 is this node.
    pub struct Node [40] {
        /// Address of the node.
        pub address: Address,
        /// Destination MAC of outer frames: the node's, or the next hop's. [`Mac::NONE`]: XDP leaves it to TC.
        pub mac: Mac,
        /// Source MAC of outer frames: that of the uplink `ifindex`.
        pub source_mac: Mac,
        /// Uplink over which the node is reached.
        pub ifindex: u32,
        /// None defined yet: zero.
        pub flags: u32,
        /// What tunnel packets for the node bear; 0: nothing.
        pub cookie: u32,
    }
}
