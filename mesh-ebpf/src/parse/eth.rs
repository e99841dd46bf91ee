//! Ethernet II headers.

use crate::packet::Packet;

/// Length of the header.
pub const LEN: usize = 14;
/// Offset of the destination address; the source address follows.
pub const DESTINATION: usize = 0;
/// Offset of the source address.
pub const SOURCE: usize = 6;
/// EtherType of IPv4, in network order.
pub const IPV4_BE: [u8; 2] = [0x08, 0x00];

/// Whether the frame at `offset` carries IPv4, untagged. `None`: too short.
#[inline(always)]
pub fn is_ipv4<P: Packet>(packet: &P, offset: usize) -> Option<bool> {
    Some(packet.load::<2>(offset + 12)? == IPV4_BE)
}
