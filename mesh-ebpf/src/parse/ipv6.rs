//! IPv6 headers (RFC 8200) without extension headers.

use super::ip::Header;
use crate::abi::Address;
use crate::packet::Packet;

/// Length of the header.
pub const LEN: usize = 40;
/// Offset of the next header's number; the hop limit follows.
pub const NEXT_HEADER: usize = 6;
/// Offset of the source address.
pub const SOURCE: usize = 8;
/// Offset of the destination address.
pub const DESTINATION: usize = 24;

/// Parses the header at `offset`. By the protocol the caller sees whether an extension header
/// follows.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, offset: usize) -> Option<Header> {
    let [version, _, _, _, len_high, len_low, protocol, ttl] = packet.read_bytes::<8>(offset)?;
    if version >> 4 != 6 {
        return None;
    }
    Some(Header {
        offset,
        is_v6: true,
        extension_len: 0,
        total_len: LEN as u32 + u32::from(u16::from_be_bytes([len_high, len_low])),
        ttl,
        protocol,
        dont_fragment: true,
        source: Address(packet.read_bytes::<16>(offset + SOURCE)?),
        destination: Address(packet.read_bytes::<16>(offset + DESTINATION)?),
    })
}
