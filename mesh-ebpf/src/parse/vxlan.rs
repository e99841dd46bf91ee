//! VXLAN headers (RFC 7348), and the meaning of their network identifier (VNI, 24 bits).
//!
//! The bits that RFC 7348 reserves hold a cookie that only members know, see [`header`].
//!
//! Towards the task's node the VNI is the backend's id, with a bit that asks that node to answer
//! the client directly. On the way back its top bit is set, the low seven bits are the backend's
//! load, and the sixteen bits between are the backend's id, or 0 if it is not given. Packets
//! between tasks of a network have the network's number and two bits; a third bit says that the
//! network is encrypted.

use super::{eth, ipv4, pair, udp};
use crate::packet::Packet;

/// Length of the header.
pub const LEN: usize = 8;
/// Length of the outer headers of a tunnelled frame: Ethernet, IPv4, UDP, VXLAN.
pub const OVERHEAD: usize = eth::LEN + ipv4::LEN + udp::LEN + LEN;
/// The lowest outer source port; they are dynamic ports (RFC 6335, section 6).
pub const SOURCE_PORT_MIN: u16 = 0xc000;
/// The highest outer source port.
pub const SOURCE_PORT_MAX: u16 = 0xffff;
/// Offset of the flags.
const FLAGS: usize = 0;
/// Offset of the first three bytes of the cookie; the fourth one is at [`COOKIE_LAST`].
const COOKIE: usize = 1;
/// Offset of the VNI, three bytes.
const VNI: usize = 4;
/// Offset of the last byte of the cookie.
const COOKIE_LAST: usize = 7;
/// Bit of the first byte that says that the VNI is valid.
pub const FLAG_VNI: u8 = 0x08;

/// A VXLAN network identifier as mesh uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vni(pub u32);

impl Vni {
    /// Set on the way from the task to the client.
    const REPLY: u32 = 1 << 23;

    /// Asks the task's node to answer the client directly. Every packet has it, so that a lost
    /// translation is restored the same.
    const DSR: u32 = 1 << 22;
    /// Set on packets between tasks. Alone, it is what nodes without networks sent to each other's
    /// tasks.
    const TASKS: u32 = 1 << 21;
    /// Set on packets of a network, besides [`Self::TASKS`].
    const NETWORK: u32 = 1 << 20;
    /// Set on packets of an encrypted network, besides [`Self::NETWORK`]. Maps name such a network
    /// by its number with this bit, so an encrypted and an unencrypted packet never find each
    /// other's entries.
    pub const ENCRYPTED: u32 = 1 << 19;
    /// Mask of a network's number, with [`Self::ENCRYPTED`].
    const NUMBER: u32 = 0xffff | Self::ENCRYPTED;
    /// Mask of a load.
    const LOAD: u32 = 0x7f;
    /// Mask of a backend's id.
    const BACKEND: u32 = 0xffff;

    /// The VNI of a request: towards the task's node.
    #[inline(always)]
    pub const fn request(backend: u32, is_dsr: bool) -> Self {
        Self(backend & Self::BACKEND | if is_dsr { Self::DSR } else { 0 })
    }

    /// The VNI of a reply: towards the ingress node, with the backend's load, see
    /// [`crate::abi::BackendLoad::load`].
    #[inline(always)]
    pub const fn reply(load: u32) -> Self {
        Self(Self::REPLY | load & Self::LOAD)
    }

    /// Adds the id of the backend that sends a reply.
    #[must_use]
    #[inline(always)]
    pub const fn of(self, backend: u32) -> Self {
        Self(self.0 | (backend & Self::BACKEND) << Self::LOAD.trailing_ones())
    }

    /// The VNI of a packet from a task to a task of another node by their addresses on `mesh`:
    /// refused.
    #[inline(always)]
    pub const fn between_tasks() -> Self {
        Self(Self::TASKS)
    }

    /// The VNI of a packet from a task to a task of another node, by their addresses on the network
    /// with this number, to which [`Self::ENCRYPTED`] is added if the network is encrypted.
    #[inline(always)]
    pub const fn network(number: u32) -> Self {
        Self(Self::TASKS | Self::NETWORK | number & Self::NUMBER)
    }

    /// Whether the packet goes from task to task, on a network or not.
    #[inline(always)]
    pub const fn is_between_tasks(self) -> bool {
        self.0 & (Self::REPLY | Self::TASKS) == Self::TASKS
    }

    /// Whether it is a packet of an encrypted network, which must not cross the nodes' network in
    /// clear.
    #[inline(always)]
    pub const fn is_encrypted(self) -> bool {
        const BITS: u32 = Vni::TASKS | Vni::NETWORK | Vni::ENCRYPTED;
        self.0 & (Self::REPLY | BITS) == BITS
    }

    /// The number of the network of a packet that goes from task to task, as maps have it; 0: no
    /// network.
    #[inline(always)]
    pub const fn network_number(self) -> u32 {
        if self.0 & Self::NETWORK != 0 { self.0 & Self::NUMBER } else { 0 }
    }

    /// Whether the task's node is to answer the client directly.
    #[inline(always)]
    pub const fn is_dsr(self) -> bool {
        self.0 & (Self::REPLY | Self::DSR) == Self::DSR
    }

    /// The load that a reply carries; 0: none.
    #[inline(always)]
    pub const fn load(self) -> u32 {
        self.0 & Self::LOAD
    }

    /// Whether the packet is on its way back to the client.
    #[inline(always)]
    pub const fn is_reply(self) -> bool {
        self.0 & Self::REPLY != 0
    }

    /// The id of the backend that sends a reply; 0: not given.
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

/// Builds a header. The cookie, 0 for none, goes into the bytes that RFC 7348 reserves: the three
/// behind the flags, and the last one.
#[inline(always)]
pub const fn header(vni: Vni, cookie: u32) -> [u8; LEN] {
    let ([c0, c1, c2, c3], [_, v0, v1, v2]) = (cookie.to_be_bytes(), vni.0.to_be_bytes());
    [FLAG_VNI, c0, c1, c2, v0, v1, v2, c3]
}

/// The cookie of the header at `offset`; 0 if it has none.
#[inline(always)]
pub fn cookie<P: Packet>(packet: &P, offset: usize) -> u32 {
    match packet.read_bytes::<LEN>(offset) {
        Some(bytes) => {
            let [c0, c1] = pair(&bytes, COOKIE);
            u32::from_be_bytes([c0, c1, bytes[COOKIE + 2], bytes[COOKIE_LAST]])
        }
        None => 0,
    }
}

/// The VNI of the header at `offset`; `None` if it has none.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, offset: usize) -> Option<Vni> {
    let bytes = packet.read_bytes::<LEN>(offset)?;
    if bytes[FLAGS] & FLAG_VNI == 0 {
        return None;
    }
    Some(Vni(u32::from_be_bytes([0, bytes[VNI], bytes[VNI + 1], bytes[VNI + 2]])))
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
        for vni in [Vni::request(0xffff, true), Vni::between_tasks(), Vni::network(0xffff)] {
            assert_eq!(vni.is_between_tasks(), vni != Vni::request(0xffff, true), "{vni:?}");
            assert!(!vni.is_reply(), "{vni:?}");
        }
        assert_eq!(Vni::network(0x1234).network_number(), 0x1234);
        assert_eq!(Vni::between_tasks().network_number(), 0);
        let encrypted = Vni::network(0x1234 | Vni::ENCRYPTED);
        assert!(encrypted.is_encrypted() && encrypted.is_between_tasks() && !encrypted.is_reply());
        assert_eq!(encrypted.network_number(), 0x1234 | Vni::ENCRYPTED);
        for other in [Vni::network(0xffff), Vni::request(0xffff, true), Vni::reply(127).of(0xffff)] {
            assert!(!other.is_encrypted(), "{other:?}");
        }
        assert_eq!(
            header(Vni(0x0a_0b0c), 0),
            [8, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0],
            "plain VXLAN without a cookie"
        );
    }
}
