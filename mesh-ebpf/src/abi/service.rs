//! Published ports: looked up by destination port, and spread over slots.

use super::Be16;
use super::closed_list::closed_list;
use super::layout::abi_struct;

/// IP protocol numbers used in keys.
pub mod protocol {
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
}

abi_struct! {
    /// Key of [`super::names::SERVICES`]. The address is not part of it: a published port answers
    /// on every address in [`super::names::ADDRESSES`], and on no other.
    pub struct ServiceKey [4] {
        /// The published port.
        pub port_be: Be16,
        /// IP protocol number, see [`protocol`].
        pub protocol: u8,
        /// Padding; always zero.
        pub reserved: u8,
    }
}

impl ServiceKey {
    /// The key of `port` (host order) over TCP.
    #[inline(always)]
    pub const fn tcp(port: u16) -> Self {
        Self { port_be: Be16::new(port), protocol: protocol::TCP, reserved: 0 }
    }
}

abi_struct! {
    /// Value of [`super::names::SERVICES`]: one published port. Replacing it is the atomic swap of
    /// its slots.
    pub struct Service [32] {
        /// Index of this published port in [`super::names::ROUND_ROBIN`] and
        /// [`super::names::FRONTEND_STATS`].
        pub index: u32,
        /// First slot in [`super::names::SLOTS`].
        pub slot_base: u32,
        /// Number of slots; 0: there is no backend, and new connections are refused.
        pub slot_count: u32,
        /// Generation of the mesh table that this value comes from. Only people and tests read it.
        pub generation: u32,
        /// The service's [`Policy`].
        pub policy: u8,
        /// The service's [`Mode`].
        pub mode: u8,
        /// Bits of [`service_flag`].
        pub flags: u16,
        /// Padding; always zero.
        pub reserved: [u32; 3],
    }
}

/// Bits of [`Service::flags`].
pub mod service_flag {
    /// Only clients in [`super::super::names::ALLOWED`] may open flows.
    pub const ALLOW_LIST: u16 = 1;
}

closed_list! {
    /// How a service's packets get to remote tasks and back; [`Service::mode`]. A flow keeps the
    /// mode that it began with.
    pub enum Mode: u8 {
        /// Requests and replies both go through the tunnel.
        Tunnel = 0 => "tunnel",
        /// Direct server return: requests go through the tunnel; the task's node answers the client
        /// directly.
        Dsr = 1 => "dsr",
        /// The userspace proxy terminates new connections; the programs leave their packets to its
        /// listener.
        Proxy = 2 => "proxy",
    }
    /// The mode as users write it in the label `mesh.lb.mode`.
    name: name;
    read: from_byte(u8), unknown is Tunnel;
}

closed_list! {
    /// How a new flow gets its backend; [`Service::policy`].
    pub enum Policy: u8 {
        /// Slots take turns; the turns are exact over all CPUs of a node.
        RoundRobin = 0 => "round-robin",
        /// The one of two distinct slots drawn at random that has fewer live connections.
        LeastConnections = 1 => "least-connections",
        /// A slot drawn at random.
        Random = 2 => "random",
        /// The one of two distinct slots drawn at random whose node measures the lower load.
        LeastLoad = 3 => "least-load",
        /// The slot that the client's address hashes to; the slots are a Maglev table, the same on
        /// all nodes.
        SourceHash = 4 => "source-hash",
    }
    /// The policy as users write it in the label `mesh.lb.policy`.
    name: name;
    read: from_byte(u8), unknown is RoundRobin;
}

abi_struct! {
    /// Key of [`super::names::ALLOWED`] after its prefix length: a network that may open flows to a
    /// published port. The prefix length, in bits, counts the 32 of `service_index_be` and, for
    /// IPv4, the 96 of the v4-mapped prefix.
    pub struct AllowedKey [20] {
        /// [`Service::index`] in network order, as a trie matches prefixes from the first byte on.
        pub service_index_be: [u8; 4],
        /// The network's address.
        pub network: [u8; 16],
    }
}

impl AllowedKey {
    /// Prefix length of a whole key, that is of a single client.
    pub const BITS: u32 = 8 * size_of::<Self>() as u32;
}
