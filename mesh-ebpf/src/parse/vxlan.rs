//! VXLAN headers (RFC 7348), and what mesh says in their network identifier (VNI, 24 bits).
//!
//! What RFC 7348 reserves in the header holds a cookie that tells members from others, see
//! [`header`].
//!
//! Towards the task's node it is the backend's id, with a bit that asks to answer the client
//! directly. On the way back its top bit is set, the low seven bits are the backend's load, and the
//! sixteen between are its id, or zero where none is told. What tasks send to each other's
//! addresses has a VNI of its own.

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

    /// Set towards the task's node that is to answer the client directly. On every packet, so that
    /// a lost entry is made again alike.
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
}

/// A header. The cookie, 0 for none, lies in what RFC 7348 reserves: three bytes behind the flags,
/// and the last one.
#[inline(always)]
pub const fn header(vni: Vni, cookie: u32) -> [u8; LEN] {
    let ([c0, c1, c2, c3], [_, v0, v1, v2]) = (cookie.to_be_bytes(), vni.0.to_be_bytes());
    [FLAG_VNI, c0, c1, c2, v0, v1, v2, c3]
}

/// The cookie of the header at `offset`; 0 if it has none.
#[inline(always)]
pub fn cookie<P: Packet>(packet: &P, offset: usize) -> u32 {
    match packet.read_bytes::<LEN>(offset) {
        Some(bytes) => u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[7]]),
        None => 0,
    }
}

/// The VNI of the header at `offset`; `None` if it has none.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, offset: usize) -> Option<Vni> {
    let bytes = packet.read_bytes::<LEN>(offset)?;
    if bytes[0] & FLAG_VNI == 0 {
        return None;
    }
    Some(Vni(u32::from_be_bytes([0, bytes[4], bytes[5], bytes[6]])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Frame;

    #[test]
    fn a_header_reads_back() {
        for (vni, bearing) in [(Vni::request(0xffff, true), 0x0102_0304), (Vni::reply(127).of(9), 0)] {
            let frame = Frame::new(header(vni, bearing).to_vec());
            assert_eq!(parse(&frame, 0), Some(vni));
            assert_eq!(cookie(&frame, 0), bearing);
        }
        assert_eq!(
            header(Vni(0x0a_0b0c), 0),
            [8, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0],
            "plain VXLAN without a cookie"
        );
    }
}
