//! IPv4 headers (RFC 791) without options.

use super::ip::Header;
use super::{pair, quad};
use crate::abi::Address;
use crate::packet::Packet;

/// Length of a header without options.
pub const LEN: usize = 20;
/// Offset of version and header length.
pub const VERSION: usize = 0;
/// Offset of the type of service: DSCP and ECN.
pub const TOS: usize = 1;
/// Offset of the length of header and payload.
pub const TOTAL_LEN: usize = 2;
/// Offset of the identification.
pub const ID: usize = 4;
/// Offset of the flags and the fragment offset, 16 bits.
pub const FLAGS: usize = 6;
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

/// First byte of a header without options: version 4, five words.
pub const VERSION_IHL: u8 = 0x45;
/// Mask of the more-fragments flag and the fragment offset, in the field at [`FLAGS`].
pub const FRAGMENT: u16 = 0x3fff;
/// Mask of the fragment offset, in the field at [`FLAGS`].
pub const FRAGMENT_OFFSET: u16 = 0x1fff;
/// The don't-fragment flag, in the first byte of the field at [`FLAGS`].
const DONT_FRAGMENT: u8 = 0x40;

/// Parses the header at `offset`; `None` unless it is a plain one.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P, offset: usize) -> Option<Header> {
    parse_without(packet, offset, FRAGMENT)
}

/// [`parse`], which also accepts a first fragment.
#[inline(always)]
pub fn parse_first<P: Packet>(packet: &P, offset: usize) -> Option<Header> {
    parse_without(packet, offset, FRAGMENT_OFFSET)
}

/// [`parse`], which also accepts any fragment.
#[inline(always)]
pub fn parse_fragment<P: Packet>(packet: &P, offset: usize) -> Option<Header> {
    parse_without(packet, offset, 0)
}

/// Parses the header at `offset` if none of these bits of flags and fragment offset is set.
#[inline(always)]
fn parse_without<P: Packet>(packet: &P, offset: usize, bits: u16) -> Option<Header> {
    let bytes = packet.read_bytes::<LEN>(offset)?;
    let total_len = u16::from_be_bytes(pair(&bytes, TOTAL_LEN));
    let fragment = u16::from_be_bytes(pair(&bytes, FLAGS));
    if bytes[VERSION] != VERSION_IHL || fragment & bits != 0 || usize::from(total_len) < LEN {
        return None;
    }
    Some(Header {
        offset,
        is_v6: false,
        extension_len: 0,
        total_len: u32::from(total_len),
        ttl: bytes[TTL],
        protocol: bytes[PROTOCOL],
        dont_fragment: bytes[FLAGS] & DONT_FRAGMENT != 0,
        source: Address::v4(quad(&bytes, SOURCE)),
        destination: Address::v4(quad(&bytes, DESTINATION)),
    })
}
