//! IPv4 headers (RFC 791) without options, of packets that are not fragments.

use super::ip::Header;
use crate::abi::Address;
use crate::packet::Packet;

/// Length of a header without options.
pub const LEN: usize = 20;
/// Offset of the type of service: DSCP and ECN.
pub const TOS: usize = 1;
/// Offset of the time to live; the protocol follows.
pub const TTL: usize = 8;
/// Offset of the protocol.
pub const PROTOCOL: usize = 9;
/// Offset of the header checksum.
pub const CHECKSUM: usize = 10;
/// Offset of the source address.
pub const SOURCE: usize = 12;
/// Offset of the destination address.
pub const DESTINATION: usize = 16;

/// Version 4, five words of header.
const VERSION_IHL: u8 = 0x45;
/// More-fragments flag and fragment offset.
pub const FRAGMENT: u16 = 0x3fff;
/// Fragment offset.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;
/// The don't-fragment flag, in the first of both bytes.
const DONT_FRAGMENT: u8 = 0x40;

/// The header at `offset`; `None` for anything but a plain one.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, offset: usize) -> Option<Header> {
    parse_without(packet, offset, FRAGMENT)
}

/// The same, also of a first fragment.
#[inline(always)]
pub fn parse_first<P: Packet>(packet: &P, offset: usize) -> Option<Header> {
    parse_without(packet, offset, FRAGMENT_OFFSET)
}

/// The same, of a fragment or not.
#[inline(always)]
pub fn parse_fragment<P: Packet>(packet: &P, offset: usize) -> Option<Header> {
    parse_without(packet, offset, 0)
}

/// The header at `offset`, if it has none of these bits of flags and fragment offset.
#[inline(always)]
fn parse_without<P: Packet>(packet: &P, offset: usize, bits: u16) -> Option<Header> {
    let bytes = packet.read_bytes::<LEN>(offset)?;
    let total_len = u16::from_be_bytes([bytes[2], bytes[3]]);
    let fragment = u16::from_be_bytes([bytes[6], bytes[7]]);
    if bytes[0] != VERSION_IHL || fragment & bits != 0 || usize::from(total_len) < LEN {
        return None;
    }
    Some(Header {
        offset,
        is_v6: false,
        extension_len: 0,
        total_len: u32::from(total_len),
        ttl: bytes[TTL],
        protocol: bytes[PROTOCOL],
        dont_fragment: bytes[6] & DONT_FRAGMENT != 0,
        source: Address::v4([bytes[12], bytes[13], bytes[14], bytes[15]]),
        destination: Address::v4([bytes[16], bytes[17], bytes[18], bytes[19]]),
    })
}
