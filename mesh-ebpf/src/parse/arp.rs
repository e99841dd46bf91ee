//! ARP packets (RFC 826) for IPv4 over Ethernet.

use super::{eth, quad};
use crate::abi::Mac;
use crate::packet::Packet;

/// EtherType of ARP, in network order.
pub const ETHERTYPE_BE: [u8; 2] = [0x08, 0x06];
/// Length of a packet.
pub const LEN: usize = 28;
/// Hardware type Ethernet, protocol type IPv4, and the lengths of both addresses.
const HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// Offset of the operation.
pub const OPERATION: usize = 6;
/// Offset of the sender's MAC address; its IPv4 address and the target's two follow.
pub const SENDER_MAC: usize = 8;
/// Operation "request".
pub const REQUEST: u16 = 1;
/// Operation "reply".
pub const REPLY: u16 = 2;

/// The fields of an ARP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// [`REQUEST`] or [`REPLY`]; others are rare.
    pub operation: u16,
    /// The sender's MAC address, as it says.
    pub sender_mac: Mac,
    /// The sender's IPv4 address, as it says; 0.0.0.0 in a probe for an address (RFC 5227).
    pub sender: [u8; 4],
    /// The address that is asked for.
    pub target: [u8; 4],
}

/// Parses the ARP packet behind the Ethernet header; `None` unless it is one for IPv4 over
/// Ethernet.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P) -> Option<Arp> {
    let bytes = packet.read_bytes::<LEN>(eth::LEN)?;
    let [h0, h1, p0, p1, hardware_len, protocol_len, o0, o1, ..] = bytes;
    if [h0, h1, p0, p1, hardware_len, protocol_len] != HEAD {
        return None;
    }
    let [.., m0, m1, m2, m3, m4, m5, s0, s1, s2, s3, _, _, _, _, _, _, _, _, _, _] = bytes;
    Some(Arp {
        operation: u16::from_be_bytes([o0, o1]),
        sender_mac: Mac([m0, m1, m2, m3, m4, m5]),
        sender: [s0, s1, s2, s3],
        target: quad(&bytes, LEN - 4),
    })
}

/// The operation and addresses of the reply in which `sender` says that it has the MAC address
/// `sender_mac`, to whoever sent `request`: the bytes from [`OPERATION`] on.
#[inline(always)]
pub const fn reply(sender_mac: Mac, sender: [u8; 4], request: &Arp) -> [u8; LEN - OPERATION] {
    let ([m0, m1, m2, m3, m4, m5], [s0, s1, s2, s3]) = (sender_mac.0, sender);
    let ([t0, t1, t2, t3, t4, t5], [a0, a1, a2, a3]) = (request.sender_mac.0, request.sender);
    let [o0, o1] = REPLY.to_be_bytes();
    [o0, o1, m0, m1, m2, m3, m4, m5, s0, s1, s2, s3, t0, t1, t2, t3, t4, t5, a0, a1, a2, a3]
}
