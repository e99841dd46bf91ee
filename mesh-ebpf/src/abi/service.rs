//! Published ports: what is looked up by destination port, and how it spreads over its slots.

use super::Be16;
use super::layout::abi_struct;

/// IP protocol numbers used in keys.
pub mod protocol {
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
}

abi_struct! {
    /// Key of [`super::names::SERVICES`]. The address is not part of it: a published port answers on every
    /// address in [`super::names::ADDRESSES`], and on no other.
    pub struct ServiceKey [4] {
        /// Published port.
        pub port_be: Be16,
        /// IP protocol number, see [`protocol`].
        pub protocol: u8,
        /// Zero.
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
    /// Value of [`super::names::SERVICES`]: one published port. Replacing it is the atomic swap of its slots.
    pub struct Service [32] {
        /// Index of this published port in [`super::names::ROUND_ROBIN`] and [`super::names::FRONTEND_STATS`].
        pub index: u32,
        /// First slot in [`super::names::SLOTS`].
        pub slot_base: u32,
        /// Number of slots; 0: no backend, new connections are refused.
        pub slot_count: u32,
        /// Table generation this value comes from; for people and tests, the programs ignore it.
        pub generation: u32,
        /// A [`Policy`].
        pub policy: u8,
        /// Forwarding mode: 0, tunnel.
        pub mode: u8,
        /// None defined yet: zero.
        pub flags: u16,
        /// Zero.
        pub reserved: [u32; 3],
    }
}

/// How a new flow gets its backend; [`Service::policy`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Policy {
    /// One after the other, exact over all CPUs of a node.
    RoundRobin = 0,
    /// The less loaded by live connections of two distinct slots drawn at random.
    LeastConnections = 1,
}

impl Policy {
    /// Every policy.
    pub const ALL: [Self; 2] = [Self::RoundRobin, Self::LeastConnections];

    /// The policy of a stored byte; an unknown one is round-robin, so that traffic goes on.
    #[inline(always)]
    pub const fn from_byte(byte: u8) -> Self {
        if byte == Self::LeastConnections as u8 { Self::LeastConnections } else { Self::RoundRobin }
    }
}
