//! VXLAN headers (RFC 7348), and what mesh says in their network identifier (VNI, 24 bits).
//!
//! Towards the task's node it is the backend's id, with a bit that asks to answer the client directly. On the way back
//! its top bit is set, the low seven bits are the backend's load, and the sixteen between are its id, or zero where none is told. What
//! tasks send to each other's addresses has a VNI of its own.

use super::{eth, ipv4, udp};
use crate::packet::Packet;

/// Length of the header.
pub const LEN: usize = 8;
/// Bytes that a tunnelled frame has in front of it: Ethernet, IPv4, UDP, VXLAN.
pub const OVERHEAD: usize = eth::LEN + ipv4::LEN + udp::LEN + LEN;
/// The smallest of outer source ports: dynamic ones (RFC 6335, section 6).
pub const SOURCE_PORT_MIN: u16 = 0xc000;
/// The largest of them.
pub const SOURCE_PORT_MAX: u16 = 0xffff;
/// First byte of a header with a valid VNI.
pub const FLAG_VNI: u8 = 0x08;

/// A VXLAN network identifier as mesh uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vni(pub u32);

impl Vni {
    /// Set on the way from the task to the client.
    const REPLY: u32 = 1 << 23;

    /// Set towards the task's node that is to answer the client directly. On every packet, so that a lost entry is made
    /// again alike.
    const DSR: u32 = 1 << 22;
    /// Set on packets of tasks to tasks, by their own addresses: nothing in them is translated.
    const TASKS: u32 = 1 << 21;
    /// Bits of a load.
    const LOAD: u32 = 0x7f;
    /// Bits of a backend's id.
    const BACKEND: u32 = 0xffff;

    /// Towards the task's node.
    #[inline(always)]
    pub const fn request(backend: u32, is_dsr: bool) -> Self {
        Self(backend & Self::BACKEND | if is_dsr { Self::DSR } else { 0 })
    }

    /// Towards the ingress node, with the backend's load: see [`crate::abi::BackendLoad::load`].
    #[inline(always)]
    pub const fn reply(load: u32) -> Self {
        Self(Self::REPLY | load & Self::LOAD)
    }

    /// The same for a reply of this backend's.
    #[must_use]
    #[inline(always)]
    pub const fn of(self, backend: u32) -> Self {
        Self(self.0 | (backend & Self::BACKEND) << Self::LOAD.trailing_ones())
    }

    /// From a task to a task of another node, by its address.
    #[inline(always)]
    pub const fn between_tasks() -> Self {
        Self(Self::TASKS)
    }

    /// Whether the packet is for a task's own address.
    #[inline(always)]
    pub const fn is_between_tasks(self) -> bool {
        self.0 & (Self::REPLY | Self::TASKS) == Self::TASKS
    }

    /// Whether the client is to be answered directly.
    #[inline(always)]
    pub const fn is_dsr(self) -> bool {
        self.0 & (Self::REPLY | Self::DSR) == Self::DSR
    }

    /// The load that a reply tells; 0: none.
    #[inline(always)]
    pub const fn load(self) -> u32 {
        self.0 & Self::LOAD
    }

    /// Whether the packet is on its way back to the client.
    #[inline(always)]
    pub const fn is_reply(self) -> bool {
        self.0 & Self::REPLY != 0
    }

    /// The backend that sends a reply; 0: it isn't told.
    #[inline(always)]
    pub const fn sender(self) -> u32 {
        self.0 >> Self::LOAD.trailing_ones() & Self::BACKEND
    }

    /// The backend's id that a request names.
    #[inline(always)]
    pub const fn backend(self) -> u32 {
        self.0 & Self::BACKEND
    }

    /// As it lies in the header, reserved byte included.
    #[inline(always)]
    pub const fn to_bytes(self) -> [u8; 4] {
        (self.0 << 8).to_be_bytes()
    }
}

/// The VNI of the header at `offset`; `None` if it has none.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, offset: usize) -> Option<Vni> {
    let bytes = packet.load::<LEN>(offset)?;
    if bytes[0] & FLAG_VNI == 0 {
        return None;
    }
    Some(Vni(u32::from_be_bytes([0, bytes[4], bytes[5], bytes[6]])))
}
